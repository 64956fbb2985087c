//! A dataset for DiffAug: images whose lesions somebody annotated as ellipses.
//!
//! ```text
//! root/
//!   labels.csv      file,x,y,rx,ry,angle,patient
//!   images/         the files that labels.csv names
//! ```
//!
//! One row is one lesion: centre and half axes in pixels, the angle of the first axis in degrees
//! clockwise, the patient. `ry` may be empty (a circle), and so may `angle` (0) and `patient`. An
//! image with several lesions has several rows, an image without any has one row without numbers.

use diffaug::{image::open_image, prelude::*};
use std::{
    collections::HashMap,
    path::{Path, PathBuf},
};

/// The options: what a manifest may say below `use = "ellipses"`. The comments become the help of
/// `diffaug plugins dataset ellipses`, and `deny_unknown_fields` catches typing errors.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Options {
    /// The folder that holds `labels.csv` and `images/`.
    root: PathBuf,
    /// Lesions whose larger half axis has fewer pixels than this are left out.
    #[serde(default)]
    min_radius: f64,
}

/// A line of `labels.csv`.
#[derive(Deserialize)]
struct Row {
    file: String,
    x: Option<f64>,
    y: Option<f64>,
    rx: Option<f64>,
    ry: Option<f64>,
    angle: Option<f64>,
    patient: Option<String>,
}

/// A lesion, in pixels and radians.
struct Ellipse {
    centre: (f64, f64),
    axes: (f64, f64),
    angle: f64,
}

impl Ellipse {
    /// The lesion of a row; `None` where the row says that there is none.
    fn of(row: &Row) -> Result<Option<Self>> {
        let (x, y, rx) = match (row.x, row.y, row.rx) {
            (None, None, None) => return Ok(None),
            (Some(x), Some(y), Some(rx)) => (x, y, rx),
            _ => return Err(Error::data("`x`, `y` and `rx` must be given together")),
        };
        let ry = row.ry.unwrap_or(rx);
        for (name, value) in [("rx", rx), ("ry", ry)] {
            if !(value.is_finite() && value > 0.0) {
                return Err(Error::data(format!("`{name}` is `{value}`, not above 0")));
            }
        }
        Ok(Some(Ellipse {
            centre: (x, y),
            axes: (rx, ry),
            angle: row.angle.unwrap_or(0.0).to_radians(),
        }))
    }

    /// Whether the middle of a pixel is inside: the point, turned into the ellipse's own axes and
    /// divided by them, lies in the unit circle.
    fn contains(&self, x: u32, y: u32) -> bool {
        let dx = f64::from(x) + 0.5 - self.centre.0;
        let dy = f64::from(y) + 0.5 - self.centre.1;
        let (sin, cos) = self.angle.sin_cos();
        let along = (dx * cos + dy * sin) / self.axes.0;
        let across = (dy * cos - dx * sin) / self.axes.1;
        along * along + across * across <= 1.0
    }
}

/// An image and what was annotated in it.
struct Annotated {
    item: Item,
    file: PathBuf,
    lesions: Vec<Ellipse>,
}

/// The dataset.
struct Ellipses {
    images: Vec<Annotated>,
    max_pixels: u64,
}

/// From the options to the dataset. This runs once; `diffaug check` does not come here, it parses
/// the options and calls `validate`, which must not touch a file.
impl FromConfig for Ellipses {
    type Config = Options;

    fn validate(options: &Options) -> Result<()> {
        if options.min_radius < 0.0 {
            // `at` names the option, and DiffAug draws a caret below it.
            return Err(Error::config("`min_radius` must not be below 0").at("min_radius"));
        }
        Ok(())
    }

    fn from_config(options: Options, context: &Context) -> Result<Self> {
        Ok(Ellipses {
            images: read_labels(&options)?,
            max_pixels: context.max_pixels,
        })
    }
}

/// Reads `labels.csv`: one entry for each file, in the order in which they first occur.
fn read_labels(options: &Options) -> Result<Vec<Annotated>> {
    let path = options.root.join("labels.csv");
    let shown = path.display();
    let mut reader = csv::ReaderBuilder::new()
        .trim(csv::Trim::All)
        .from_path(&path)
        .or_error(ErrorKind::Data, || format!("cannot read `{shown}`"))?;
    let mut images: Vec<Annotated> = Vec::new();
    let mut known: HashMap<String, usize> = HashMap::new();
    for (index, row) in reader.deserialize().enumerate() {
        let row: Row = row.or_error(ErrorKind::Data, || format!("cannot read `{shown}`"))?;
        let lesion =
            Ellipse::of(&row).map_err(|e| e.context(format!("row {} of `{shown}`", index + 1)))?;
        let at = *known.entry(row.file.clone()).or_insert_with(|| {
            images.push(Annotated {
                item: Item {
                    group: row.patient.clone().unwrap_or_default().into(),
                    // Unique, and the same on every machine: never a path.
                    ..Item::new(stem(&row.file))
                },
                file: options.root.join("images").join(&row.file),
                lesions: Vec::new(),
            });
            images.len() - 1
        });
        let large = |lesion: &Ellipse| lesion.axes.0.max(lesion.axes.1) >= options.min_radius;
        images[at].lesions.extend(lesion.filter(large));
    }
    if images.is_empty() {
        return Err(Error::data(format!("`{shown}` lists no images")));
    }
    Ok(images)
}

/// A file's name without its extension.
fn stem(file: &str) -> &str {
    let path = Path::new(file);
    path.file_stem().and_then(|s| s.to_str()).unwrap_or(file)
}

/// What DiffAug asks a dataset. It checks the answers (sizes, labels, ids), measures the masks,
/// resizes and splits; none of that is needed here.
impl Dataset for Ellipses {
    fn info(&self) -> Result<DatasetInfo> {
        Ok(DatasetInfo::single_class("annotated ellipses", "lesion"))
    }

    fn items(&self) -> Result<RVec<Item>> {
        Ok(self.images.iter().map(|image| image.item.clone()).collect())
    }

    fn sample(&self, index: u64) -> Result<Sample> {
        let wanted = usize::try_from(index).ok().and_then(|i| self.images.get(i));
        let annotated = wanted.ok_or_else(|| Error::data(format!("there is no sample {index}")))?;
        let image = open_image(&annotated.file, self.max_pixels)?;
        let (width, height) = image.size();
        let label = |i: u32| {
            let (x, y) = (i % width, i / width);
            u8::from(annotated.lesions.iter().any(|lesion| lesion.contains(x, y)))
        };
        // Facts that DiffAug cannot measure; scores are also reported by them.
        let mut attributes = Attributes::new();
        attributes.set_flag("several", annotated.lesions.len() > 1);
        Ok(Sample {
            id: annotated.item.id.clone(),
            image,
            mask: Mask::new(width, height, (0..width * height).map(label).collect())?,
            attributes,
        })
    }
}

// The one line that makes this crate a plugin.
diffaug::export_plugin! { dataset "ellipses" => Ellipses, "labels.csv with ellipses + images/" }

#[cfg(test)]
mod tests {
    use super::*;
    use diffaug::image::save_image;

    /// The dataset of a `labels.csv` with these rows, beside two grey images of 20x10 pixels.
    fn dataset(rows: &str) -> Result<(Ellipses, tempfile::TempDir)> {
        let dir = tempfile::tempdir()?;
        let root = dir.path().to_owned();
        std::fs::create_dir(root.join("images"))?;
        std::fs::write(
            root.join("labels.csv"),
            format!("file,x,y,rx,ry,angle,patient\n{rows}"),
        )?;
        let grey = Image::new(20, 10, vec![90; 600])?;
        for file in ["a.png", "b.png"] {
            save_image(grey.view(), &root.join("images").join(file))?;
        }
        let options = Options {
            root,
            min_radius: 2.0,
        };
        Ok((Ellipses::from_config(options, &Context::default())?, dir))
    }

    #[test]
    fn a_circle_has_its_area_and_a_turned_ellipse_its_place() {
        let (data, _dir) = dataset("a.png,10,5,4,,,p1\nb.png,10,5,8,2,90,p2\n").unwrap();
        let area = data.sample(0).unwrap().mask.view().foreground() as f64;
        assert!((area - std::f64::consts::PI * 16.0).abs() < 4.0, "{area}");
        // Upright and cut off above and below: as wide as twice the short axis.
        let upright = data.sample(1).unwrap().mask;
        let row = &upright.labels()[5 * 20..6 * 20];
        assert_eq!(row.iter().map(|&label| u32::from(label)).sum::<u32>(), 4);
    }

    #[test]
    fn rows_of_one_file_are_one_sample() {
        let (data, _dir) =
            dataset("a.png,4,5,3,,,p1\nb.png,,,,,,p2\na.png,15,5,3,,,p1\na.png,1,1,1,,,\n")
                .unwrap();
        let items = data.items().unwrap();
        let ids: Vec<&str> = items.iter().map(|item| item.id.as_str()).collect();
        assert_eq!(ids, ["a", "b"]);
        assert_eq!(items[1].group, "p2");
        let (a, b) = (data.sample(0).unwrap(), data.sample(1).unwrap());
        assert_eq!(a.attributes.flag("several"), Some(true));
        // The third lesion is smaller than `min_radius`.
        assert_eq!(a.mask.labels()[20 + 1], 0);
        assert_eq!(b.mask.view().foreground(), 0);
    }

    #[test]
    fn a_wrong_row_is_named() {
        let error = dataset("a.png,4,5,3,,,\nb.png,4,5,-1,,,\n").err().unwrap();
        let text = error.to_string();
        assert!(text.starts_with("row 2 of `"), "{text}");
        assert!(text.ends_with("`rx` is `-1`, not above 0"), "{text}");
    }
}
