//! The export itself: images of a run, one after the other, into a layout.

use crate::{
    case::{Case, Counts, Layout},
    classes::Classes,
    coco::Coco,
    folder::PartialFolder,
    imagefolder::Imagefolder,
    nnunet::{self, Nnunet},
    options::{Format, Options, Size},
    picture,
    provenance::Provenance,
    text::TextFile,
    yolo::Yolo,
};
use diffaug::{Dataset, Error, Result, view::Shared};
use diffaug_run::{
    failure::Failure,
    layout,
    manifest::Manifest,
    reader::{Run, Synthetic},
    registry::Registry,
    session::Session,
    work::{
        record::Record,
        reopen::{Part, Reopened},
    },
};
use rayon::prelude::*;
use serde::Serialize;
use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};

/// Images in memory at once.
const BATCH: usize = 16;
/// Where every image comes from.
const PROVENANCE: &str = "provenance.jsonl";

/// What was exported.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Exported {
    /// The folder.
    pub folder: PathBuf,
    /// The dataset's name.
    pub dataset: String,
    /// The arms.
    pub arms: Vec<ExportedArm>,
}

/// What was exported of an arm.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ExportedArm {
    /// Its name.
    pub arm: String,
    /// The folder that a tool is given.
    pub folder: PathBuf,
    /// Real training images.
    pub real: u64,
    /// Synthetic training images.
    pub synthetic: u64,
    /// Validation images.
    pub validation: u64,
    /// Test images.
    pub test: u64,
    /// What a user has to know, if anything.
    pub note: Option<String>,
}

/// Exports the images of `run`, whose manifest is `manifest` ([`Run::manifest`]).
///
/// # Errors
/// When the options do not fit the run, the folder is there already, the dataset or what was painted is no
/// longer what it was, a file cannot be read or written, or the user stops it. Then no file is left, only the folders that it was
/// to lie in.
pub fn export(
    run: &Run,
    manifest: &Manifest,
    registry: &Registry,
    options: &Options,
    session: &Session<'_>,
) -> Result<Exported, Failure> {
    let arms = options.arms(manifest)?;
    let partial = PartialFolder::begin(&options.output)?;
    let data = Reopened::open(run, manifest, registry, session)?;
    let synthetic = match arms.iter().any(|arm| arm == layout::AUGMENTED) {
        true => run.synthetic(data.info()).map_err(|error| {
            let hint = format!("`--arms {}` exports the real images alone", layout::REAL);
            Failure::from(error).hint(hint)
        })?,
        false => None,
    };
    let source = Source {
        classes: Classes::of(data.info())?,
        data: &data,
        provenance: Provenance::of(run, manifest)?,
        options,
        session,
    };
    let mut exported = Vec::new();
    for (arm, id) in arms.iter().zip(options.dataset_id..) {
        let several = (arms.len() > 1).then_some(arm.as_str());
        let folder = source.folder(several, id);
        let synthetic = synthetic.as_ref().filter(|_| arm == layout::AUGMENTED);
        let (counts, note) = source.write(&partial.path().join(&folder), synthetic)?;
        exported.push(ExportedArm {
            arm: arm.clone(),
            // Joined with nothing, a path would end in a slash.
            folder: match folder.as_os_str().is_empty() {
                true => options.output.clone(),
                false => options.output.join(folder),
            },
            real: counts.real,
            synthetic: counts.synthetic,
            validation: counts.validation,
            test: counts.test,
            note,
        });
    }
    partial.finish()?;
    Ok(Exported {
        folder: options.output.clone(),
        dataset: data.info().name.to_string(),
        arms: exported,
    })
}

/// What is exported.
struct Source<'a> {
    classes: Classes,
    data: &'a Reopened,
    provenance: Provenance,
    options: &'a Options,
    session: &'a Session<'a>,
}

/// Where an image is read from.
enum Place<'a> {
    /// The sample of that index.
    Real(&'a Shared, u64),
    /// The accepted candidate of that record.
    Synthetic(&'a Synthetic, Box<Record>),
}

/// An image that is to be read and written.
struct Job<'a> {
    part: Part,
    place: Place<'a>,
}

impl Source<'_> {
    /// The folder of an arm below the output; `arm` where there are several.
    fn folder(&self, arm: Option<&str>, id: u16) -> PathBuf {
        let base = PathBuf::from(arm.unwrap_or_default());
        match self.options.format {
            Format::Nnunet => base.join(nnunet::folder_name(id, &self.data.info().name, arm)),
            _ => base,
        }
    }

    fn write(
        &self,
        folder: &Path,
        synthetic: Option<&Synthetic>,
    ) -> Result<(Counts, Option<String>), Failure> {
        let classes = self.classes.clone();
        let name = self.data.info().name.as_str();
        match self.options.format {
            Format::Nnunet => self.fill(Nnunet::begin(folder, classes, name), folder, synthetic),
            Format::Coco => self.fill(Coco::begin(folder, &classes, name), folder, synthetic),
            Format::YoloSeg => self.fill(Yolo::begin(folder, classes), folder, synthetic),
            Format::Imagefolder => {
                self.fill(Imagefolder::begin(folder, classes), folder, synthetic)
            }
        }
    }

    /// Writes all images into a layout: the training images first, real ones before synthetic ones.
    fn fill<L: Layout>(
        &self,
        mut into: L,
        folder: &Path,
        synthetic: Option<&Synthetic>,
    ) -> Result<(Counts, Option<String>), Failure> {
        let native = self.options.size == Size::Native;
        let mut parts = vec![Part::Train, Part::Validation];
        parts.extend(self.options.test.then_some(Part::Test));
        let mut views = Vec::new();
        for part in parts {
            let view = self.data.part(part, native)?;
            let count = view.items()?.len() as u64;
            views.push((part, view, count));
        }
        let real: u64 = views.iter().map(|(_, _, count)| count).sum();
        let total = real + synthetic.map_or(0, Synthetic::len);
        let mut list = Listing::begin(self, &mut into, folder, total)?;
        for (part, view, count) in &views {
            let place = |index| Place::Real(view, index);
            list.add((0..*count).map(|index| {
                Ok(Job {
                    part: *part,
                    place: place(index),
                })
            }))?;
            if let Some(synthetic) = synthetic.filter(|_| *part == Part::Train) {
                let painted = synthetic.records()?.map(|record| {
                    let place = Place::Synthetic(synthetic, Box::new(record?));
                    Ok(Job { part: *part, place })
                });
                list.add(painted)?;
            }
        }
        let counts = list.finish()?;
        Ok((counts, into.finish(counts)?))
    }

    /// Reads an image.
    fn read(&self, number: u64, job: Job<'_>) -> Result<Case> {
        let (mut sample, record) = match job.place {
            Place::Real(view, index) => (view.sample(index)?, None),
            Place::Synthetic(synthetic, record) => {
                let sample = synthetic.sample(&record, self.data.reading())?;
                (sample, Some(record))
            }
        };
        self.classes.index(&sample.id, &mut sample.mask)?;
        Ok(Case {
            number,
            part: job.part,
            sample,
            record,
        })
    }
}

/// The images of an arm on their way.
struct Listing<'a, L> {
    source: &'a Source<'a>,
    into: &'a mut L,
    folder: &'a Path,
    provenance: TextFile,
    counts: Counts,
    done: u64,
    total: u64,
    step: Box<dyn diffaug_run::session::Step>,
}

impl<'a, L: Layout> Listing<'a, L> {
    fn begin(
        source: &'a Source<'a>,
        into: &'a mut L,
        folder: &'a Path,
        total: u64,
    ) -> Result<Self> {
        Ok(Listing {
            source,
            into,
            folder,
            provenance: TextFile::create(&folder.join(PROVENANCE))?,
            counts: Counts::default(),
            done: 0,
            total,
            step: source.session.begin("writing images"),
        })
    }

    /// Writes images, some at a time.
    fn add<'j>(&mut self, mut jobs: impl Iterator<Item = Result<Job<'j>>>) -> Result<()> {
        loop {
            let batch: Vec<Job<'j>> = jobs.by_ref().take(BATCH).collect::<Result<_>>()?;
            if batch.is_empty() {
                return Ok(());
            }
            self.source.session.check_stopped()?;
            let numbered: Vec<(u64, Job<'j>)> = (self.done..).zip(batch).collect();
            self.done += numbered.len() as u64;
            let (source, into, folder) = (self.source, &*self.into, self.folder);
            let written: Vec<Result<Written<L::Note>>> = numbered
                .into_par_iter()
                .map(|(number, job)| write(source, into, folder, number, job))
                .collect();
            for written in written {
                let written = written?;
                self.counts.add(written.part, written.synthetic);
                self.provenance.line(&written.line)?;
                self.into.add(written.note)?;
            }
            self.step.progress(self.done, self.total, "");
        }
    }

    fn finish(self) -> Result<Counts> {
        if self.done != self.total {
            return Err(Error::data(format!(
                "the run says that there are {} images, but {} are listed",
                self.total, self.done
            )));
        }
        self.provenance.finish()?;
        self.step.finish(&format!("{} images", self.done));
        Ok(self.counts)
    }
}

/// An image that was written, and what the lists are to say of it.
struct Written<N> {
    part: Part,
    synthetic: bool,
    line: Map<String, Value>,
    note: N,
}

/// Reads an image and writes its files.
fn write<L: Layout>(
    source: &Source<'_>,
    into: &L,
    folder: &Path,
    number: u64,
    job: Job<'_>,
) -> Result<Written<L::Note>> {
    let case = source.read(number, job)?;
    let facts = source.provenance.facts(&case);
    let image = into.image(case.part, number);
    picture::write_image(&folder.join(&image), case.sample.image.view(), &facts)?;
    let mut line = Map::from_iter([("file".to_owned(), json!(image))]);
    if let Some(label) = into.label(case.part, number) {
        picture::write_label(&folder.join(&label), case.mask(), &facts)?;
        line.insert("label".to_owned(), json!(label));
    }
    line.extend(facts);
    Ok(Written {
        part: case.part,
        synthetic: case.is_synthetic(),
        line,
        note: into.note(&case)?,
    })
}
