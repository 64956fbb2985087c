//! The generator as the host sees it: what it changes, what it refuses, what `fit` leaves.

use super::*;
use diffaug::stage::{Progress, Silent, with_reporter};
use rand::RngExt;
use std::{collections::BTreeMap, fs};

const SIDE: u32 = 64;

/// A rough grey-pink ground with a darker elliptic lesion.
struct Tissue {
    count: u64,
    /// The sample without any lesion.
    healthy: u64,
}

fn lesion(index: u64) -> Vec<u8> {
    let (a, b) = (9.0 + (index % 4) as f64 * 2.0, 8.0 + (index % 3) as f64);
    let (cx, cy) = (30.0 + (index % 5) as f64, 31.0);
    let inside = |i: u32| {
        let (x, y) = (f64::from(i % SIDE) - cx, f64::from(i / SIDE) - cy);
        u8::from((x / a).powi(2) + (y / b).powi(2) <= 1.0)
    };
    (0..SIDE * SIDE).map(inside).collect()
}

fn scene(index: u64, labels: &[u8]) -> Image {
    let mut rng = rng::stream(index, "scene", 0);
    let pixels = labels.iter().flat_map(|&label| {
        let grain = rng.random_range(0..12u8);
        let [r, g, b] = if label == 0 {
            [170, 120, 110]
        } else {
            [140, 60, 50]
        };
        [r + grain, g + grain, b + grain + (index % 7) as u8]
    });
    Image::new(SIDE, SIDE, pixels.collect()).unwrap()
}

impl Dataset for Tissue {
    fn info(&self) -> Result<DatasetInfo> {
        Ok(DatasetInfo::single_class("tissue", "lesion"))
    }
    fn items(&self) -> Result<RVec<Item>> {
        Ok((0..self.count)
            .map(|i| Item {
                group: format!("video-{}", i / 2).into(),
                ..Item::new(&format!("tissue-{i}"))
            })
            .collect())
    }
    fn sample(&self, index: u64) -> Result<Sample> {
        let mut labels = lesion(index);
        if index == self.healthy {
            labels.fill(0);
        }
        Ok(Sample {
            id: format!("tissue-{index}").into(),
            image: scene(index, &labels),
            mask: Mask::new(SIDE, SIDE, labels)?,
            attributes: Attributes::new(),
        })
    }
}

struct NoPrompts;

impl PromptBank for NoPrompts {
    fn draw(&self, _: RSlice<'_, PromptQuery<'_>>, _: u64) -> Result<RVec<Prompt>> {
        Ok(RVec::new())
    }
}

fn build(options: Options) -> Result<SeamlessPaste> {
    SeamlessPaste::validate(&options)?;
    SeamlessPaste::from_config(options, &Context::default())
}

fn fit(tissue: Tissue, out: &Path) -> Result<FitReport> {
    let data = BoxDataset::new(tissue);
    let prompts = BoxPromptBank::new(NoPrompts);
    let generator = build(Options::default())?;
    with_reporter(&Silent, |reporter| {
        generator.fit(
            &data,
            &data,
            &prompts,
            out.to_str().unwrap().into(),
            reporter,
        )
    })
}

fn tissue(count: u64) -> Tissue {
    Tissue { count, healthy: 1 }
}

/// A generator with donors, and the folder that keeps them.
fn ready(options: Options) -> (SeamlessPaste, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    fit(tissue(8), folder.path()).unwrap();
    let weights = Some(folder.path().to_owned());
    (build(Options { weights, ..options }).unwrap(), folder)
}

fn job<'a>(source: &'a str, image: &'a Image, mask: &'a Mask, seed: u64) -> Job<'a> {
    Job {
        source: source.into(),
        image: image.view(),
        mask: mask.view(),
        prompt: "".into(),
        negative: "".into(),
        seed,
    }
}

fn generate(generator: &SeamlessPaste, jobs: &[Job<'_>]) -> Result<Vec<Image>> {
    with_reporter(&Silent, |reporter| {
        generator.generate(jobs.into(), reporter)
    })
    .map(Into::into)
}

fn background() -> Image {
    scene(99, &[0; (SIDE * SIDE) as usize])
}

/// Two squares, the second of another class.
fn two_squares() -> Mask {
    let label = |i: u32| {
        let (x, y) = (i % SIDE, i / SIDE);
        let first = (10..26).contains(&x) && (12..30).contains(&y);
        let second = (40..58).contains(&x) && (30..50).contains(&y);
        u8::from(first) + 2 * u8::from(second)
    };
    Mask::new(SIDE, SIDE, (0..SIDE * SIDE).map(label).collect()).unwrap()
}

fn files(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut all = BTreeMap::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            all.extend(files(&path));
        } else {
            all.insert(path.clone(), fs::read(&path).unwrap());
        }
    }
    all
}

#[test]
fn lesions_appear_under_the_mask_and_nothing_else_changes() {
    for blend in [Blend::Source, Blend::Mixed] {
        let (generator, _folder) = ready(Options {
            blend,
            ..Options::default()
        });
        let (image, mask) = (background(), two_squares());
        let painted = generate(&generator, &[job("other", &image, &mask, 4)])
            .unwrap()
            .remove(0);
        let near = shape::Nearest::new(SIDE as usize, SIDE as usize, |x, y| {
            mask.labels()[y * SIDE as usize + x] != 0
        });
        let mut green = [(0.0, 0.0); 2];
        for i in 0..(SIDE * SIDE) as usize {
            let (old, new) = (
                &image.pixels()[i * 3..][..3],
                &painted.pixels()[i * 3..][..3],
            );
            if near.distance(i % SIDE as usize, i / SIDE as usize) > 4.0 {
                assert_eq!(old, new, "pixel {i}");
            }
            if let Some(sum) = usize::from(mask.labels()[i]).checked_sub(1) {
                green[sum].0 += f64::from(old[1]) - f64::from(new[1]);
                green[sum].1 += 1.0;
            }
        }
        for (darker, pixels) in green {
            assert!(darker / pixels > 25.0, "{blend:?}: {}", darker / pixels);
        }
    }
}

#[test]
fn an_old_lesion_under_the_mask_is_replaced() {
    let (generator, _folder) = ready(Options::default());
    let labels = lesion(0);
    // Bright blue, as no donor is.
    let pixels = labels.iter().flat_map(|&l| {
        if l == 0 {
            [170, 120, 110]
        } else {
            [30, 60, 250]
        }
    });
    let image = Image::new(SIDE, SIDE, pixels.collect()).unwrap();
    let mask = Mask::new(SIDE, SIDE, labels).unwrap();
    let painted = generate(&generator, &[job("other", &image, &mask, 0)])
        .unwrap()
        .remove(0);
    for (pixel, &label) in painted.pixels().chunks_exact(3).zip(mask.labels()) {
        assert!(label == 0 || pixel[2] < 140, "{pixel:?}");
    }
}

#[test]
fn images_depend_on_their_job_alone() {
    let (generator, _folder) = ready(Options::default());
    let (image, mask) = (background(), two_squares());
    let jobs: Vec<Job<'_>> = (0..5)
        .map(|seed| job("other", &image, &mask, seed))
        .collect();
    let together = generate(&generator, &jobs).unwrap();
    for (job, image) in jobs.iter().zip(&together).rev() {
        assert_eq!(&generate(&generator, &[*job]).unwrap()[0], image);
    }
    assert!(together.iter().any(|image| image != &together[0]));
}

#[test]
fn every_size_and_place_of_a_mask_can_be_filled() {
    let (generator, _folder) = ready(Options::default());
    let image = background();
    let corner = |side: u32| move |i: u32| u8::from(i % SIDE < side && i / SIDE < side);
    let paint = |inside: &dyn Fn(u32) -> u8| {
        let mask = Mask::new(SIDE, SIDE, (0..SIDE * SIDE).map(inside).collect()).unwrap();
        generate(&generator, &[job("other", &image, &mask, 1)])
            .unwrap()
            .remove(0)
    };
    for inside in [corner(1), corner(20), corner(SIDE)] {
        assert_eq!(paint(&inside).size(), image.size());
    }
    paint(&|i| u8::from(i / SIDE == 30));
    paint(&|i| u8::from(i % 2 == 0 && i / SIDE > 40 && i / SIDE < 46));
}

#[test]
fn a_donor_never_comes_from_the_image_itself_nor_from_its_video() {
    let folder = tempfile::tempdir().unwrap();
    fit(tissue(8), folder.path()).unwrap();
    let donors = Donors::open(folder.path(), (1 << 20).into()).unwrap();
    let shape = shape::patches(two_squares().view(), |label| label == 1).remove(0);
    let mut sources = std::collections::BTreeSet::new();
    for seed in 0..200 {
        let wanted = Wanted {
            source: "tissue-4",
            shape: &shape,
            size: (SIDE, SIDE),
            surroundings: None,
        };
        let choice = donors
            .choose(&wanted, &mut rng::stream(seed, "test", 0))
            .unwrap();
        sources.insert(donors.facts(choice).source.clone());
    }
    // tissue-1 is healthy; 4 and 5 are one video.
    let expected = ["tissue-0", "tissue-2", "tissue-3", "tissue-6", "tissue-7"];
    assert_eq!(sources.into_iter().collect::<Vec<_>>(), expected);
}

#[test]
fn fit_leaves_the_same_bytes_and_does_no_work_twice() {
    let folder = tempfile::tempdir().unwrap();
    let report = fit(tissue(5), folder.path()).unwrap();
    assert_eq!((report.metric.as_str(), report.score), ("donors", 4.0));
    let first = files(folder.path());
    assert_eq!(first.len(), 9);

    // A whole folder is left alone: the spoilt file stays.
    let spoilt = folder.path().join("images/00000-0.png");
    fs::write(&spoilt, "x").unwrap();
    fit(tissue(5), folder.path()).unwrap();
    assert_eq!(fs::read(&spoilt).unwrap(), b"x");

    // One that was cut short is completed.
    fs::remove_file(folder.path().join("donors.json")).unwrap();
    fs::remove_file(folder.path().join("masks/00003-0.png")).unwrap();
    fit(tissue(5), folder.path()).unwrap();
    assert_eq!(files(folder.path()), first);

    // Another training set takes the place of the first.
    let report = fit(tissue(3), folder.path()).unwrap();
    assert_eq!(report.score, 2.0);
    assert_eq!(files(folder.path()).len(), 5);

    // Also where the first was cut short.
    let small = files(folder.path());
    fit(tissue(5), folder.path()).unwrap();
    fs::remove_file(folder.path().join("donors.json")).unwrap();
    fit(tissue(3), folder.path()).unwrap();
    assert_eq!(files(folder.path()), small);
}

#[test]
fn a_training_set_without_lesions_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let error = fit(
        Tissue {
            count: 1,
            healthy: 0,
        },
        folder.path(),
    )
    .unwrap_err();
    assert_eq!(
        error.message,
        "none of the 1 training images of `tissue` shows a lesion of at least 48 pixels"
    );
}

#[test]
fn a_plain_folder_of_images_and_masks_serves_too() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["images", "masks"] {
        fs::create_dir(folder.path().join(name)).unwrap();
    }
    for index in [0u64, 2, 3] {
        let labels = lesion(index);
        let image = scene(index, &labels);
        let gray = labels
            .iter()
            .map(|&label| if label == 0 { 10 } else { 240 })
            .collect();
        let gray = Mask::new(SIDE, SIDE, gray).unwrap();
        diffaug::image::save_image(
            image.view(),
            &folder.path().join(format!("images/{index}.png")),
        )
        .unwrap();
        diffaug::image::save_gray(
            gray.view(),
            &folder.path().join(format!("masks/{index}.png")),
        )
        .unwrap();
    }
    let weights = Some(folder.path().to_owned());
    let generator = build(Options {
        weights,
        ..Options::default()
    })
    .unwrap();
    let (image, mask) = (background(), two_squares());
    let painted = generate(&generator, &[job("0", &image, &mask, 0)]).unwrap();
    assert_ne!(painted[0], image);
}

#[test]
fn bad_jobs_are_named() {
    let (generator, _folder) = ready(Options::default());
    let image = background();
    let empty = Mask::new(SIDE, SIDE, vec![0; (SIDE * SIDE) as usize]).unwrap();
    let error = generate(&generator, &[job("frame-7", &image, &empty, 0)]).unwrap_err();
    assert_eq!(
        error.message,
        "the mask for `frame-7` is empty, so there is nowhere to paste"
    );
    let narrow = Mask::new(2, 2, vec![1; 4]).unwrap();
    let error = generate(&generator, &[job("frame-7", &image, &narrow, 0)]).unwrap_err();
    assert_eq!(
        error.message,
        "the mask for `frame-7` is 2x2, the image 64x64"
    );
}

#[test]
fn without_donors_there_is_a_hint() {
    let generator = build(Options::default()).unwrap();
    let error = generate(&generator, &[]).unwrap_err();
    assert_eq!(error.field, "weights");
    assert!(error.message.contains("run `fit`"), "{error}");

    let folder = tempfile::tempdir().unwrap();
    let weights = Some(folder.path().to_owned());
    let error = build(Options {
        weights,
        ..Options::default()
    })
    .err()
    .unwrap();
    assert_eq!(error.field, "weights");
    assert!(error.message.contains("donors.json"), "{error}");
}

#[test]
fn a_lone_source_has_no_donor() {
    let folder = tempfile::tempdir().unwrap();
    fit(tissue(2), folder.path()).unwrap();
    let weights = Some(folder.path().to_owned());
    let generator = build(Options {
        weights,
        ..Options::default()
    })
    .unwrap();
    let (image, mask) = (background(), two_squares());
    let error = generate(&generator, &[job("tissue-0", &image, &mask, 0)]).unwrap_err();
    assert!(error.message.contains("`tissue-0` itself"), "{error}");
}

#[test]
fn options_out_of_range_name_their_field() {
    let cases: [(&str, Options); 5] = [
        (
            "colour",
            Options {
                colour: 1.1,
                ..Options::default()
            },
        ),
        (
            "keep_contrast",
            Options {
                keep_contrast: f64::NAN,
                ..Options::default()
            },
        ),
        (
            "feather",
            Options {
                feather: 0,
                ..Options::default()
            },
        ),
        (
            "tolerance",
            Options {
                tolerance: 0.0,
                ..Options::default()
            },
        ),
        (
            "max_iterations",
            Options {
                max_iterations: 0,
                ..Options::default()
            },
        ),
    ];
    for (field, options) in cases {
        assert_eq!(build(options).err().unwrap().field, field);
    }
}

#[test]
fn a_wish_to_stop_is_heard() {
    struct Impatient;
    impl Progress for Impatient {
        fn progress(&self, _: u64, _: u64, _: &str) {}
        fn cancelled(&self) -> bool {
            true
        }
    }
    let (generator, folder) = ready(Options::default());
    let (image, mask) = (background(), two_squares());
    let jobs = [job("other", &image, &mask, 0)];
    let error = with_reporter(&Impatient, |r| {
        generator.generate(jobs.as_slice().into(), r)
    })
    .unwrap_err();
    assert_eq!(error.kind, ErrorKind::Cancelled);

    let fresh = folder.path().join("fresh");
    let data = BoxDataset::new(tissue(4));
    let prompts = BoxPromptBank::new(NoPrompts);
    let out = fresh.to_str().unwrap();
    let error = with_reporter(&Impatient, |r| {
        generator.fit(&data, &data, &prompts, out.into(), r)
    })
    .unwrap_err();
    assert_eq!(error.kind, ErrorKind::Cancelled);
    assert!(!fresh.join("donors.json").exists());
}
