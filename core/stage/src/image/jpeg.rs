//! Whether JPEG data is all there: decoders fill what is missing with grey and report nothing.

use crate::error::Error;
use std::path::Path;

pub(super) fn truncated(path: &Path) -> Error {
    Error::data(format!(
        "`{}` is truncated: its image data ends early",
        path.display()
    ))
}

/// Whether a JPEG goes on to its end marker (EOI), walking segment by segment: the mere bytes of
/// the marker may also occur in an embedded thumbnail.
pub(super) fn is_complete(bytes: &[u8]) -> bool {
    const SOI: u8 = 0xD8;
    const EOI: u8 = 0xD9;
    const SOS: u8 = 0xDA;
    let mut rest = bytes;
    let mut in_scan = false;
    // What lies before the next 0xFF is entropy-coded data.
    while let Some(at) = rest.iter().position(|&byte| byte == 0xFF) {
        rest = &rest[at..];
        let Some(marker) = rest.iter().position(|&byte| byte != 0xFF) else {
            return false;
        };
        let kind = rest[marker];
        rest = &rest[marker + 1..];
        match kind {
            EOI => return in_scan,
            // A stuffed 0xFF of the data, and markers without a body (TEM, RST0 to RST7).
            0x00 | 0x01 | SOI | 0xD0..=0xD7 => {}
            kind => {
                in_scan |= kind == SOS;
                let Some(&[high, low]) = rest.first_chunk() else {
                    return false;
                };
                let Some(after) = rest.get(usize::from(u16::from_be_bytes([high, low]))..) else {
                    return false;
                };
                rest = after;
            }
        }
    }
    false
}
