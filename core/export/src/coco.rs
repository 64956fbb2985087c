//! COCO: instances in `annotations/instances_PART.json`, images in a folder for each part.
//!
//! ```text
//! train/000000.png   val/000120.png   test/…
//! annotations/instances_train.json   instances_val.json   instances_test.json
//! ```
//!
//! An instance is a connected region of one class. Its `segmentation` holds uncompressed run lengths
//! (`{"size": [height, width], "counts": […]}`), which say exactly which pixels it has; polygons could not. With
//! `iscrowd` 0 `pycocotools`, torchvision, Detectron2 and others decode them as any instance. `bbox` is
//! `[left, top, width, height]` and `area` a number of pixels. Each image has, besides COCO's fields, `synthetic`.

use crate::{
    case::{Case, Counts, Layout},
    classes::Classes,
    regions::Regions,
    text::{Items, TextFile},
};
use diffaug::Result;
use diffaug_run::{layout, work::reopen::Part};
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

/// The layout.
pub struct Coco {
    folder: PathBuf,
    head: Value,
    parts: BTreeMap<Part, List>,
}

/// The file of a part on its way.
struct List {
    file: TextFile,
    images: Items,
    /// The annotations, which the file holds behind all images.
    annotations: TextFile,
    instances: Items,
    count: u64,
}

/// An image and its instances, whose ids are counted later.
pub struct Note {
    part: Part,
    image: Value,
    instances: Vec<Value>,
}

/// The folder of a part.
fn folder(part: Part) -> &'static str {
    match part {
        Part::Train => "train",
        Part::Validation => "val",
        Part::Test => "test",
    }
}

/// The id of an image; from 1, for tools take 0 for none.
fn id(number: u64) -> u64 {
    number + 1
}

impl Coco {
    /// Begins an export in `root`; `name` is what it says of itself.
    pub fn begin(root: &Path, classes: &Classes, name: &str) -> Self {
        let categories = classes
            .named()
            .map(|(index, name)| json!({ "id": index, "name": name }));
        Coco {
            folder: root.to_owned(),
            head: json!({
                "info": { "description": name, "version": env!("CARGO_PKG_VERSION") },
                "licenses": [],
                "categories": Value::from_iter(categories),
            }),
            parts: BTreeMap::new(),
        }
    }

    fn list(&mut self, part: Part) -> Result<&mut List> {
        if !self.parts.contains_key(&part) {
            let list = List::begin(&self.folder, part, &self.head)?;
            self.parts.insert(part, list);
        }
        let missing = || diffaug::Error::internal("a list that was begun is not there");
        self.parts.get_mut(&part).ok_or_else(missing)
    }
}

impl List {
    fn begin(root: &Path, part: Part, head: &Value) -> Result<Self> {
        let name = format!("annotations/instances_{}.json", folder(part));
        let mut file = TextFile::create(&root.join(name))?;
        let head = serde_json::to_string(head)?;
        // The object goes on with the images.
        file.write(head.strip_suffix('}').unwrap_or(&head))?;
        file.write(",\n\"images\": [")?;
        Ok(List {
            file,
            images: Items::default(),
            annotations: TextFile::nameless(root)?,
            instances: Items::default(),
            count: 0,
        })
    }

    fn add(&mut self, note: Note) -> Result<()> {
        self.images.add(&mut self.file, &note.image)?;
        for mut instance in note.instances {
            self.count += 1;
            instance["id"] = json!(self.count);
            self.instances.add(&mut self.annotations, &instance)?;
        }
        Ok(())
    }

    fn finish(mut self) -> Result<()> {
        self.file.write("],\n\"annotations\": [")?;
        self.file.append(self.annotations)?;
        self.file.write("]}\n")?;
        self.file.finish()
    }
}

impl Layout for Coco {
    type Note = Note;

    fn image(&self, part: Part, number: u64) -> String {
        format!("{}/{}", folder(part), layout::image(number))
    }

    fn label(&self, _: Part, _: u64) -> Option<String> {
        None
    }

    fn note(&self, case: &Case) -> Result<Note> {
        let regions = Regions::of(case.mask());
        let (width, height) = regions.size();
        let instances = regions.all.iter().map(|region| {
            json!({
                "id": null,
                "image_id": id(case.number),
                "category_id": region.class,
                "iscrowd": 0,
                "area": region.area,
                "bbox": [
                    region.left,
                    region.top,
                    region.right - region.left,
                    region.bottom - region.top,
                ],
                "segmentation": {
                    "size": [height, width],
                    "counts": regions.run_lengths(region),
                },
            })
        });
        Ok(Note {
            part: case.part,
            image: json!({
                "id": id(case.number),
                "file_name": layout::image(case.number),
                "width": width,
                "height": height,
                "synthetic": case.is_synthetic(),
            }),
            instances: instances.collect(),
        })
    }

    fn add(&mut self, note: Note) -> Result<()> {
        self.list(note.part)?.add(note)
    }

    fn finish(self, _: Counts) -> Result<Option<String>> {
        self.parts.into_values().try_for_each(List::finish)?;
        Ok(None)
    }
}
