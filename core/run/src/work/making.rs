//! The part of a run that makes synthetic images: backgrounds, candidates, painting in one process or in
//! shards, the contact sheet.

use super::{
    Run,
    backgrounds::Clearing,
    candidates::{Candidates, Cleared},
    once::Steps,
    overlap::StopFlag,
    painting::Stages,
    pool_figures::Outcomes,
    record::{self, Summary},
    shards::Shard,
    sheet,
    sizes::Quota,
    synthesis::Synthesizer,
};
use crate::{failure::Failure, layout};
use diffaug::{Error, Result, image::ReadOptions, view::Shared};
use std::{
    fs,
    sync::{Mutex, PoisonError},
};

/// The synthetic images of a run.
pub(super) struct Made {
    pub summary: Summary,
    /// What measures say of them.
    pub measured: Outcomes,
    /// Those that were accepted, if any.
    pub images: Option<Shared>,
}

impl Run<'_> {
    /// The synthetic images; joined from shards with `merge`.
    pub(super) fn synthesise(
        &self,
        steps: &Steps<'_>,
        stages: &Stages,
        merge: bool,
    ) -> Result<Made, Failure> {
        let m = self.manifest();
        let reading = self.reading();
        let shards = match (merge, self.plan.step(layout::SYNTHETIC)) {
            (true, Some(step)) => Some(self.results.shards(&step.key)),
            _ => None,
        };
        self.with_synthesis(steps, stages, |synthesis| {
            let draw = || -> Result<(), Failure> {
                let shown = synthesis.examples(sheet::SHOWN.0, sheet::SHOWN.1)?;
                let targets = self.data.targets();
                let stop = StopFlag::new(self.session);
                let (all, options) = (synthesis.candidates, &m.synthesis);
                let draw =
                    || sheet::draw(&self.store, shown, all, stages, &targets, options, &stop);
                Ok(self.session.stage(draw)?)
            };
            let summary = synthesis.once(steps, || {
                let pool = match &shards {
                    Some(_) => None,
                    None => steps.pool(reading)?,
                };
                let summary = synthesis.run(stages, pool.as_ref(), shards.as_deref())?;
                let painted = synthesis.painted.lock();
                let (images, time) = *painted.unwrap_or_else(PoisonError::into_inner);
                steps.count(images, time);
                draw()?;
                Ok(summary)
            })?;
            if !sheet::is_drawn(&self.store) {
                draw()?;
            }
            if let Some(shards) = &shards {
                // This run holds their images now.
                let _ = fs::remove_dir_all(shards);
            }
            Ok(Made {
                summary,
                measured: self.measure_pools(steps, synthesis)?,
                images: synthesis.images_of(layout::METADATA, reading.max_pixels)?,
            })
        })
    }

    /// A part of the synthetic images, for a merge.
    pub(super) fn shard(
        &self,
        steps: &Steps<'_>,
        stages: &Stages,
        shard: Shard,
    ) -> Result<(), Failure> {
        let missing = || Error::internal("a shard without a synthesis");
        let step = self.plan.step(layout::SYNTHETIC).ok_or_else(missing)?;
        let _part = self.results.take_part(&step.key)?;
        let all = self.results.shards(&step.key);
        self.with_synthesis(steps, stages, |synthesis| {
            Ok(synthesis.shard(stages, shard, &all)?)
        })
    }

    /// Checks that everything is trained that a shard needs: many processes would wait for one.
    pub(super) fn check_trained(&self) -> Result<(), Failure> {
        for (place, step) in self.plan.steps() {
            let verb = match place.split('/').next() {
                Some(layout::GENERATOR | layout::START) => "generator",
                Some(layout::SEGMENTER | layout::SEGMENTERS) => "segmenter",
                _ => continue,
            };
            if !self.results.has(&step.key) {
                let error = Error::data(format!(
                    "a shard needs what is trained to be in `{}`, and the {verb} is not",
                    self.results.root().display()
                ));
                let hint = format!("`diffaug train {verb}` with the same manifest leaves it there");
                return Err(Failure::from(error).hint(hint));
            }
        }
        Ok(())
    }

    pub(super) fn reading(&self) -> ReadOptions {
        ReadOptions::from(&self.wire.context(self.manifest().seed))
    }

    /// Does `work` with everything that a synthesis needs.
    fn with_synthesis<T>(
        &self,
        steps: &Steps<'_>,
        stages: &Stages,
        work: impl FnOnce(&Synthesizer<'_>) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let m = self.manifest();
        let (backgrounds, cleared) = match m.clears() {
            true => self
                .cleared(steps, stages)
                .map(|(all, each)| (Some(all), each))?,
            false => Default::default(),
        };
        let candidates = Candidates::new(
            self.data.train()?,
            self.data.originals()?,
            &m.synthesis,
            m.size(),
            self.reading(),
            m.seed,
            &cleared,
        )
        .map_err(|error| self.wire.document.failure("", error))?;
        let validation = self.data.validation()?;
        let ratio = m.synthesis.ratio;
        let synthesizer = Synthesizer {
            manifest: m,
            session: self.session,
            store: &self.store,
            candidates: &candidates,
            info: &self.data.info,
            quota: match m.synthesis.quotas {
                true => Quota::of_each(ratio, candidates.sizes()?),
                false => Quota::of_all(ratio, self.data.counts()[0]),
            },
            validation: &validation,
            backgrounds,
            painted: Mutex::default(),
        };
        work(&synthesizer)
    }

    /// Training images with their lesions painted away.
    fn cleared(
        &self,
        steps: &Steps<'_>,
        stages: &Stages,
    ) -> Result<(record::Backgrounds, Cleared), Failure> {
        let info = &self.data.info;
        let target = info.classes.iter().find(|class| class.target);
        let clearing = Clearing {
            options: &self.manifest().synthesis,
            seed: self.manifest().seed,
            session: self.session,
            store: &self.store,
            train: self.data.train()?,
            targets: &self.data.targets(),
            target_name: target.map_or("", |class| class.name.as_str()),
        };
        Ok(clearing.run(steps, stages)?)
    }
}
