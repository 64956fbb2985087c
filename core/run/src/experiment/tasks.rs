//! The work of an experiment as tasks for several processes: each makes one result and leaves it in the
//! store, from which the cells then take it.

use super::{Cell, Experiment};
use crate::{
    layout,
    runs::Known,
    steps::Plan,
    work::{Goal, shards::Shard},
};
use diffaug::{Error, Result};
use std::collections::BTreeSet;

/// The folder of the runs of tasks, in the folder of the experiment.
pub const FOLDER: &str = ".tasks";

/// How the names of tasks that make a part of the synthetic images begin.
const SHARD: &str = "shard-";
/// The name of the task that joins them.
const MERGED: &str = "merged";

/// What one process does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Task {
    /// The cell, by its place among all.
    pub cell: usize,
    /// What is done.
    pub part: Part,
}

/// What a task makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The generator.
    Generator,
    /// The validator's segmenters.
    Judge,
    /// The synthetic images.
    Synthesis,
    /// A part of them.
    Shard(Shard),
    /// All of them, joined from parts.
    Merge,
    /// The training of a seed, and its scores.
    Training(u64),
}

impl Part {
    /// How far a run goes for it.
    pub fn goal(self) -> Goal {
        match self {
            Part::Generator => Goal::Generator,
            Part::Judge => Goal::Segmenter,
            Part::Synthesis => Goal::Synthesis,
            Part::Shard(shard) => Goal::Shard(shard),
            Part::Merge => Goal::Merge,
            Part::Training(_) => Goal::Scores,
        }
    }

    fn name(self) -> String {
        match self {
            Part::Generator => layout::GENERATOR.to_owned(),
            Part::Judge => layout::SEGMENTER.to_owned(),
            Part::Synthesis => layout::SYNTHETIC.to_owned(),
            Part::Shard(shard) => format!("{SHARD}{}", shard.folder()),
            Part::Merge => MERGED.to_owned(),
            Part::Training(seed) => format!("seed-{seed}"),
        }
    }

    /// What the tasks of a phase that begins with this make.
    pub fn phase(self) -> &'static str {
        match self {
            Part::Generator | Part::Judge => "models",
            Part::Synthesis | Part::Shard(_) => "paint",
            Part::Merge => "merge",
            Part::Training(_) => "train",
        }
    }

    fn parse(name: &str) -> Option<Self> {
        let all = [Part::Generator, Part::Judge, Part::Synthesis, Part::Merge];
        if let Some(part) = all.into_iter().find(|part| part.name() == name) {
            return Some(part);
        }
        if let Some(shard) = name.strip_prefix(SHARD) {
            let shard = Shard::parse(&shard.replace("-of-", "/")).ok();
            return shard.map(Part::Shard);
        }
        let seed = name.strip_prefix("seed-")?.parse().ok();
        seed.map(Part::Training)
    }
}

impl Task {
    /// `CELL:generator`, `CELL:segmenter`, `CELL:synthetic`, `CELL:shard-I-of-N`, `CELL:merged` or
    /// `CELL:seed-N`.
    pub fn name(&self, experiment: &Experiment) -> String {
        format!(
            "{}:{}",
            experiment.cells[self.cell].name(),
            self.part.name()
        )
    }

    /// The task of that name.
    ///
    /// # Errors
    /// When the experiment has no such cell, or a cell no such part.
    pub fn find(experiment: &Experiment, name: &str) -> Result<Self> {
        let (cell, part) = name.rsplit_once(':').unwrap_or((name, ""));
        let cells = &experiment.cells;
        let found = cells.iter().position(|other| other.name() == cell);
        let Some(cell) = found else {
            let names: Vec<String> = cells.iter().map(Cell::name).collect();
            return Err(Error::config(format!(
                "there is no cell `{cell}`; those of the experiment are {}",
                names.join(", ")
            )));
        };
        let seeds = &experiment.settings.seeds;
        let fits = |part: &Part| match part {
            Part::Training(seed) => seeds.contains(seed),
            _ => cells[cell].manifest.paints(),
        };
        match Part::parse(part).filter(fits) {
            Some(part) => Ok(Task { cell, part }),
            None => Err(Error::config(format!(
                "the cell `{}` has no step `{part}`: expected {}seed-N with a seed of the experiment",
                cells[cell].name(),
                match cells[cell].manifest.paints() {
                    true => "generator, segmenter, synthetic, shard-I-of-N, merged or ",
                    false => "",
                }
            ))),
        }
    }

    /// The run of the task: in a folder of its own, so that no two processes meet in one.
    pub fn cell(&self, experiment: &Experiment) -> Cell {
        let cell = &experiment.cells[self.cell];
        let mut manifest = cell.manifest.clone();
        let folder = experiment.folder.join(FOLDER).join(cell.name());
        manifest.output = Some(folder.join(self.part.name()));
        if let Part::Training(seed) = self.part {
            manifest.evaluate.seeds = Some(vec![seed]);
        }
        Cell {
            manifest,
            document: cell.document.clone(),
            arm: cell.arm.clone(),
            group: cell.group.clone(),
        }
    }
}

/// Whether a task of some part makes what is left in a place.
type Makes = fn(&str) -> bool;

/// The tasks that are left, in phases: those of one need nothing but what the phases before it made.
/// What several cells have in common is one task. `plans` are those of the cells; synthetic images are made
/// in `shards` parts.
pub fn phases(
    experiment: &Experiment,
    plans: &[Plan],
    known: &Known,
    shards: u32,
) -> Vec<Vec<Task>> {
    let mut taken = BTreeSet::new();
    let mut phase = |parts: &[(Part, Makes)]| {
        let mut tasks = Vec::new();
        for (cell, plan) in plans.iter().enumerate() {
            for (part, leaves) in parts {
                let left = plan.steps().filter(|(place, step)| {
                    leaves(place) && !known.has(step) && !taken.contains(&step.key)
                });
                let left: Vec<String> = left.map(|(_, step)| step.key.clone()).collect();
                if !left.is_empty() {
                    taken.extend(left);
                    tasks.push(Task { cell, part: *part });
                }
            }
        }
        tasks
    };
    let judge = |place: &str| {
        place == layout::SEGMENTER || place.strip_prefix(layout::SEGMENTERS).is_some()
    };
    let mut phases = vec![
        phase(&[
            (Part::Generator, |place| {
                place == layout::GENERATOR || place == layout::START
            }),
            (Part::Judge, judge),
        ]),
        phase(&[(Part::Synthesis, |place| place == layout::SYNTHETIC)]),
    ];
    if shards > 1 {
        let merges = phases.pop().unwrap_or_default();
        let cells = merges.iter().map(|task| task.cell);
        let parts = cells.flat_map(|cell| {
            (0..shards).map(move |index| Task {
                cell,
                part: Part::Shard(Shard { index, of: shards }),
            })
        });
        phases.push(parts.collect());
        let merge = |task: Task| Task {
            part: Part::Merge,
            ..task
        };
        phases.push(merges.into_iter().map(merge).collect());
    }
    let mut trainings = Vec::new();
    for (cell, plan) in plans.iter().enumerate() {
        for seed in &experiment.settings.seeds {
            let files = layout::Training::new(experiment.cells[cell].scored(), *seed);
            let Some(step) = plan.step(&files.scores()) else {
                continue;
            };
            if !known.has(step) && taken.insert(step.key.clone()) {
                let part = Part::Training(*seed);
                trainings.push(Task { cell, part });
            }
        }
    }
    phases.push(trainings);
    phases.retain(|tasks| !tasks.is_empty());
    phases
}
