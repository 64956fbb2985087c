//! Paints the first samples of a part into one PNG, masks outlined, to judge the look by eye.
//!
//! ```text
//! cargo run --release -p diffaug-phantom --example contact_sheet -- sheet.png colon test 256
//! ```
//!
//! Arguments: file, kind (`colon`, `fundus`), part (`train`, `validation`, `test`), size in pixels,
//! seed, and `plain` to leave the outlines out. All may be omitted from the right.

use diffaug::{Context, Dataset, Error, FromConfig, Image, MaskRef, Result, image::save_image};
use diffaug_phantom::{Options, Phantom};
use std::{path::Path, time::Instant};

const COLUMNS: u32 = 5;
const ROWS: u32 = 4;

#[allow(clippy::print_stderr)] // The one thing that an example may do and a library may not.
fn main() {
    if let Err(error) = run() {
        eprintln!("error: {error}");
        std::process::exit(1);
    }
}

#[allow(clippy::print_stderr)]
fn run() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let get = |i: usize, default: &'static str| arguments.get(i).map_or(default, String::as_str);
    let mut options = Options {
        kind: match get(1, "colon") {
            "colon" => diffaug_phantom::Kind::Colon,
            "fundus" => diffaug_phantom::Kind::Fundus,
            other => return Err(Error::config(format!("unknown kind `{other}`"))),
        },
        size: get(3, "256").parse()?,
        seed: get(4, "0").parse()?,
        train: 0,
        validation: 0,
        test: 0,
        ..Options::default()
    };
    match get(2, "test") {
        "train" => options.train = COLUMNS * ROWS,
        "validation" => options.validation = COLUMNS * ROWS,
        "test" => options.test = COLUMNS * ROWS,
        other => return Err(Error::config(format!("unknown part `{other}`"))),
    }
    let plain = get(5, "outlined") == "plain";
    Phantom::validate(&options)?;

    let size = options.size;
    let phantom = Phantom::from_config(options, &Context::default())?;
    let (width, height) = (COLUMNS * size, ROWS * size);
    let mut sheet = vec![0; (width * height * 3) as usize];
    let start = Instant::now();
    for index in 0..COLUMNS * ROWS {
        let mut sample = phantom.sample(u64::from(index))?;
        if !plain {
            outline(&mut sample.image, sample.mask.view());
        }
        let (left, top) = (index % COLUMNS * size, index / COLUMNS * size);
        for (y, row) in sample.image.pixels().chunks(size as usize * 3).enumerate() {
            let at = (((top + y as u32) * width + left) * 3) as usize;
            sheet[at..at + row.len()].copy_from_slice(row);
        }
    }
    let each = start.elapsed().as_secs_f64() * 1000.0 / f64::from(COLUMNS * ROWS);
    eprintln!("{each:.1} ms a sample");
    save_image(
        Image::new(width, height, sheet)?.view(),
        Path::new(get(0, "sheet.png")),
    )
}

/// Draws the borders between labels in green.
fn outline(image: &mut Image, mask: MaskRef<'_>) {
    let (width, height) = mask.size();
    let label = |x: u32, y: u32| mask.labels()[(y * width + x) as usize];
    let bytes = image.bytes_mut();
    for y in 0..height - 1 {
        for x in 0..width - 1 {
            if label(x, y) != label(x + 1, y) || label(x, y) != label(x, y + 1) {
                bytes[((y * width + x) * 3) as usize..][..3].copy_from_slice(&[60, 255, 90]);
            }
        }
    }
}
