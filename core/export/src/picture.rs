//! PNG files with texts that say what they are.

use diffaug::{ErrorKind, ImageRef, MaskRef, Result, ResultExt, files};
use png::{BitDepth, ColorType, Compression, Encoder, Filter};
use serde_json::{Map, Value};
use std::{fs::File, io::BufWriter, path::Path};

/// The keyword of the text that holds what is known of an image, as JSON.
pub const KEYWORD: &str = "diffaug";

/// Writes an image.
///
/// # Errors
/// When the file is there already or cannot be written.
pub fn write_image(path: &Path, image: ImageRef<'_>, facts: &Map<String, Value>) -> Result<()> {
    write(path, image.size(), ColorType::Rgb, image.pixels(), facts)
}

/// Writes class indices as grey values of 8 bits.
///
/// # Errors
/// As for [`write_image`].
pub fn write_label(path: &Path, mask: MaskRef<'_>, facts: &Map<String, Value>) -> Result<()> {
    write(
        path,
        mask.size(),
        ColorType::Grayscale,
        mask.labels(),
        facts,
    )
}

fn write(
    path: &Path,
    (width, height): (u32, u32),
    color: ColorType,
    bytes: &[u8],
    facts: &Map<String, Value>,
) -> Result<()> {
    let cannot = || format!("cannot write `{}`", path.display());
    files::make_folder(files::parent(path)).or_error(ErrorKind::Data, cannot)?;
    let file = File::create_new(path).or_error(ErrorKind::Data, cannot)?;
    let text = ascii(&serde_json::to_string(facts)?);
    let write = || -> Result<(), png::EncodingError> {
        let mut encoder = Encoder::new(BufWriter::new(file), width, height);
        encoder.set_color(color);
        encoder.set_depth(BitDepth::Eight);
        encoder.set_compression(Compression::Fast);
        encoder.set_filter(Filter::Adaptive);
        let software = concat!("diffaug ", env!("CARGO_PKG_VERSION"));
        encoder.add_text_chunk("Software".into(), software.into())?;
        encoder.add_text_chunk(KEYWORD.into(), text)?;
        let mut writer = encoder.write_header()?;
        writer.write_image_data(bytes)?;
        writer.finish()
    };
    write().or_error(ErrorKind::Data, cannot)
}

/// JSON without a character beyond ASCII: texts of PNG files are Latin-1.
fn ascii(json: &str) -> String {
    let mut out = String::with_capacity(json.len());
    for c in json.chars() {
        if c.is_ascii() {
            out.push(c);
            continue;
        }
        for unit in c.encode_utf16(&mut [0; 2]) {
            out += &format!("\\u{unit:04x}");
        }
    }
    out
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use diffaug::{Image, image::open_image};
    use serde_json::json;

    #[test]
    fn texts_of_any_language_come_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sub/a.png");
        let image = Image::new(2, 1, vec![1, 2, 3, 4, 5, 6]).unwrap();
        let facts =
            json!({ "prompt": "ein Polyp, 息肉 \u{1f600}, \"flach\"\n", "synthetic": true });
        let facts = facts.as_object().unwrap();
        write_image(&path, image.view(), facts).unwrap();
        let file = std::io::BufReader::new(File::open(&path).unwrap());
        let reader = png::Decoder::new(file).read_info().unwrap();
        let texts = &reader.info().uncompressed_latin1_text;
        let of = |key: &str| &texts.iter().find(|t| t.keyword == key).unwrap().text;
        assert!(of("Software").starts_with("diffaug "));
        let read: Value = serde_json::from_str(of(KEYWORD)).unwrap();
        assert_eq!(read, Value::Object(facts.clone()));
        assert_eq!(open_image(&path, 100).unwrap(), image);
        // Nothing is written over.
        assert!(write_image(&path, image.view(), facts).is_err());
    }
}
