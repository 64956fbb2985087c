//! A small finished run to export: painted images by pasting, judged by a segmenter that learns nothing.
//! The pipeline itself makes it, so its folder is that of any run.

use diffaug::{Silent, prelude::*};
use diffaug_run::{
    manifest::Manifest,
    registry::Registry,
    session::Session,
    work::{self, Goal},
};
// A dependency that nobody names registers nothing.
use diffaug_gate as _;
use diffaug_phantom as _;
use diffaug_prompts as _;
use diffaug_seamless_paste as _;
use std::{
    fs,
    path::{Path, PathBuf},
};

/// Finds labels 1 and 2 by turns, whatever is shown: some of each lesion is found, so all are accepted.
struct Everywhere;

/// Its options.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Options {
    /// What training left.
    #[serde(default)]
    weights: Option<PathBuf>,
}

impl FromConfig for Everywhere {
    type Config = Options;

    fn from_config(options: Options, _: &Context) -> Result<Self> {
        if let Some(folder) = options.weights {
            fs::read(folder.join("weights"))?;
        }
        Ok(Everywhere)
    }
}

impl Segmenter for Everywhere {
    fn classes(&self) -> Result<RVec<Class>> {
        let class = |label: u8| Class {
            label,
            name: format!("class {label}").into(),
            target: true,
        };
        Ok([1, 2].map(class).to_vec().into())
    }

    fn segment(
        &self,
        images: RSlice<'_, diffaug::ImageRef<'_>>,
        _: &Reporter<'_>,
    ) -> Result<RVec<diffaug::Segmentation>> {
        let find = |image: &diffaug::ImageRef<'_>| {
            let (width, height) = image.size();
            let labels = (0..width * height).map(|at| 1 + (at % 2) as u8);
            Ok(diffaug::Segmentation {
                mask: Mask::new(width, height, labels.collect())?,
                probability: RVec::new(),
            })
        };
        images.iter().map(find).collect()
    }

    fn fit(
        &self,
        _: &BoxDataset,
        _: &BoxDataset,
        out: RStr<'_>,
        _: &Reporter<'_>,
    ) -> Result<diffaug::FitReport> {
        fs::create_dir_all(out.as_str())?;
        fs::write(Path::new(out.as_str()).join("weights"), "none")?;
        Ok(diffaug::FitReport {
            steps: 1,
            best_step: 1,
            loss: 0.0,
            metric: "nothing".into(),
            score: 0.0,
        })
    }
}

diffaug::export_plugin! { segmenter "everywhere" => Everywhere, "finds lesions everywhere" }

/// What is linked in.
pub fn registry() -> Registry {
    Registry::built_in().unwrap()
}

/// Runs a manifest with these changes up to its scores; the run folder is `folder/run`. `kind` is the phantom's.
pub fn run(folder: &Path, kind: &str, changes: &[&str]) -> PathBuf {
    let output = folder.join("run");
    let text = format!(
        "name = \"export\"\noutput = {output:?}\n\
         [dataset]\nuse = \"phantom\"\nkind = \"{kind}\"\nsize = 80\ntrain = 6\nvalidation = 3\ntest = 4\n\
         [images]\nsize = 64\n\
         [prompts]\nuse = \"medical\"\n\
         [generator]\nuse = \"seamless-paste\"\n\
         [validator]\nuse = \"iou\"\nthreshold = 0.0\n\
         [segmenter]\nuse = \"everywhere\"\n"
    );
    let changes: Vec<String> = changes.iter().map(|c| (*c).to_owned()).collect();
    let path = folder.join("manifest.toml");
    fs::write(&path, text).unwrap();
    let (manifest, document) = Manifest::read(&path, &changes).unwrap();
    let session = Session::new(&Silent);
    work::run(&manifest, &document, &registry(), Goal::Scores, &session).unwrap();
    output
}
