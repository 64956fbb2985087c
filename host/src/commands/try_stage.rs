//! `diffaug try`: one stage on one image, without a manifest.

use crate::{
    cli::{Global, Try, TryArgs},
    ui::Ui,
};
use diffaug::{
    BoxGenerator, BoxSegmenter, Context, Error, Generator, Image, Job, Mask, Result, Segmenter,
    files::check_output,
    image::{MaskRule, OutputFormat, open_image, open_mask, save_gray, save_image},
    with_reporter,
};
use diffaug_run::{
    failure::Failure,
    registry::{Kind, Registry},
    session::Monitor,
};
use serde_json::json;

/// Runs one stage on one image and writes what it answers.
pub fn try_stage(what: Try, global: &Global, ui: Ui) -> Result<(), Failure> {
    match what {
        Try::Generator {
            name,
            image,
            mask,
            prompt,
            negative,
            common,
        } => {
            OutputFormat::of(&common.output)?;
            check_output(&common.output, &[&image, &mask])?;
            let max_pixels = Context::default().max_pixels;
            let source = image
                .file_stem()
                .map_or_else(String::new, |stem| stem.to_string_lossy().into_owned());
            let picture = open_image(&image, max_pixels)?;
            let hole = open_mask(&mask, max_pixels, &MaskRule::Auto { label: 1 })?;
            if hole.size() != picture.size() {
                return Err(Error::data(format!(
                    "mask `{}` is {}x{}, but image `{}` is {}x{}",
                    mask.display(),
                    hole.width(),
                    hole.height(),
                    image.display(),
                    picture.width(),
                    picture.height()
                ))
                .into());
            }
            let job = Job {
                source: source.as_str().into(),
                image: picture.view(),
                mask: hole.view(),
                prompt: prompt.as_str().into(),
                negative: negative.as_str().into(),
                seed: common.seed,
            };
            let painted = generate(&name, job, &common, global, ui)?;
            save_image(painted.view(), &common.output)?;
            done(&common, ui, json!({}));
        }
        Try::Segmenter {
            name,
            image,
            common,
        } => {
            OutputFormat::of_mask(&common.output)?;
            check_output(&common.output, &[&image])?;
            let picture = open_image(&image, Context::default().max_pixels)?;
            let mask = segment(&name, &picture, &common, global, ui)?;
            let found = mask.view().foreground();
            let share = found as f64 / mask.labels().len() as f64;
            save_gray(spread(mask).view(), &common.output)?;
            done(&common, ui, json!({ "foreground": share }));
        }
    }
    Ok(())
}

fn done(common: &TryArgs, ui: Ui, mut facts: serde_json::Value) {
    let path = common.output.display().to_string();
    facts["output"] = json!(path);
    ui.result(|| format!("wrote {path}"), &facts);
}

fn build<S: Kind>(
    registry: &Registry,
    name: &str,
    common: &TryArgs,
    global: &Global,
) -> Result<S, Failure> {
    let context = Context {
        device: super::device(global).into(),
        seed: common.seed,
        ..Context::default()
    };
    let offer = registry.find::<S>(name, &context.device)?;
    let options = super::options(&common.set)?;
    Ok(offer.build(&options, &context)?)
}

fn generate(
    name: &str,
    job: Job<'_>,
    common: &TryArgs,
    global: &Global,
    ui: Ui,
) -> Result<Image, Failure> {
    let registry = super::registry(&common.library, global, ui)?;
    let generator: BoxGenerator = build(&registry, name, common, global)?;
    let step = ui.begin(name);
    let jobs = [job];
    let painted = with_reporter(&step, |r| generator.generate((&jobs[..]).into(), r))?;
    step.finish("1 image");
    let first = painted.into_iter().next();
    let first = first.ok_or_else(|| Error::internal(format!("`{name}` painted nothing")))?;
    if first.size() != job.image.size() {
        let message = format!("`{name}` painted {first:?} on {:?}", job.image);
        return Err(Error::internal(message).into());
    }
    Ok(first)
}

fn segment(
    name: &str,
    image: &Image,
    common: &TryArgs,
    global: &Global,
    ui: Ui,
) -> Result<Mask, Failure> {
    let registry = super::registry(&common.library, global, ui)?;
    let segmenter: BoxSegmenter = build(&registry, name, common, global)?;
    let step = ui.begin(name);
    let images = [image.view()];
    let found = with_reporter(&step, |r| segmenter.segment((&images[..]).into(), r))?;
    step.finish("1 image");
    let first = found.into_iter().next();
    let first = first.ok_or_else(|| Error::internal(format!("`{name}` answered nothing")))?;
    if first.mask.size() != image.size() {
        let message = format!("`{name}` answered {:?} for {image:?}", first.mask);
        return Err(Error::internal(message).into());
    }
    Ok(first.mask)
}

/// Labels spread up to white, so that the file can be looked at.
fn spread(mut mask: Mask) -> Mask {
    let highest = mask.labels().iter().copied().max().unwrap_or(0).max(1);
    for label in mask.bytes_mut() {
        *label = (u32::from(*label) * 255 / u32::from(highest)) as u8;
    }
    mask
}
