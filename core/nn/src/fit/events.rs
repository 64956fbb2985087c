//! Event files of TensorBoard: records (length, checksum, data, checksum) that each hold an `Event`
//! in protobuf's encoding. Scalars need five fields of it, which are written here; the crates that
//! know the whole format bring a protobuf compiler or an image library along.
//!
//! An event file cannot be cut off reliably, so that of a run that goes on is written anew from the
//! lines of its log.

use super::log::Line;
use diffaug::{ErrorKind, Result, ResultExt};
use std::{
    fs::{self, File},
    io::Write,
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

/// The folder with event files in a run's folder.
pub const EVENTS: &str = "tensorboard";

/// An open event file.
pub(super) struct Events {
    path: PathBuf,
    file: File,
    /// When training began, in seconds since 1970; pauses are left out.
    start: f64,
}

impl Events {
    /// Puts an event file with `lines` into `out`, in the place of all that were there. `before` is
    /// how long training has taken so far.
    pub fn create(out: &Path, before: f64, lines: &[Line]) -> Result<Self> {
        let folder = out.join(EVENTS);
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let now = now.map_or(0.0, |now| now.as_secs_f64());
        let path = folder.join(format!("events.out.tfevents.{:010}.diffaug", now as u64));
        let open = || -> std::io::Result<File> {
            fs::create_dir_all(&folder)?;
            for entry in fs::read_dir(&folder)? {
                let entry = entry?;
                if entry.file_name().to_string_lossy().contains("tfevents") {
                    fs::remove_file(entry.path())?;
                }
            }
            File::create(&path)
        };
        let file = open().or_error(ErrorKind::Data, || {
            format!("cannot write `{}`", path.display())
        })?;
        let start = now - before;
        let mut events = Events { path, file, start };
        events.record(&event(start, 0, Content::Version))?;
        lines.iter().try_for_each(|line| events.write(line))?;
        Ok(events)
    }

    /// Appends what `line` says.
    pub fn write(&mut self, line: &Line) -> Result<()> {
        let scalars = [
            ("train/loss", line.loss),
            ("train/lr", line.lr),
            ("train/grad_norm", line.grad_norm),
            ("validation/score", line.score),
        ];
        let scalars: Vec<(&str, f32)> = scalars
            .into_iter()
            .filter_map(|(tag, value)| Some((tag, value? as f32)))
            .collect();
        let event = event(
            self.start + line.seconds,
            line.step,
            Content::Scalars(&scalars),
        );
        self.record(&event)
    }

    fn record(&mut self, data: &[u8]) -> Result<()> {
        let length = (data.len() as u64).to_le_bytes();
        let mut record = length.to_vec();
        record.extend(masked(&length));
        record.extend(data);
        record.extend(masked(data));
        self.file.write_all(&record).or_error(ErrorKind::Data, || {
            format!("cannot write `{}`", self.path.display())
        })
    }
}

enum Content<'a> {
    Version,
    Scalars(&'a [(&'a str, f32)]),
}

/// An `Event`: 1 is the time, 2 the step, 3 the file's version, 5 the summary.
fn event(time: f64, step: u64, content: Content<'_>) -> Vec<u8> {
    let mut event = vec![1 << 3 | 1];
    event.extend(time.to_le_bytes());
    event.push(2 << 3);
    event.extend(varint(step));
    match content {
        Content::Version => event.extend(bytes(3, b"brain.Event:2")),
        Content::Scalars(scalars) => {
            let values = scalars.iter().flat_map(|(tag, value)| {
                // A `Summary.Value`: 1 is the tag, 2 the number.
                let mut scalar = bytes(1, tag.as_bytes());
                scalar.push(2 << 3 | 5);
                scalar.extend(value.to_le_bytes());
                bytes(1, &scalar)
            });
            event.extend(bytes(5, &values.collect::<Vec<u8>>()));
        }
    }
    event
}

/// Field `number` with bytes in it.
fn bytes(number: u8, content: &[u8]) -> Vec<u8> {
    let mut field = vec![number << 3 | 2];
    field.extend(varint(content.len() as u64));
    field.extend(content);
    field
}

/// Seven bits a byte, the lowest first.
fn varint(mut value: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while value > 127 {
        bytes.push(value as u8 | 128);
        value >>= 7;
    }
    bytes.push(value as u8);
    bytes
}

/// The checksum of a record: CRC-32C, rotated and shifted by a constant.
fn masked(data: &[u8]) -> [u8; 4] {
    crc32c(data)
        .rotate_right(15)
        .wrapping_add(0xa282_ead8)
        .to_le_bytes()
}

/// CRC with Castagnoli's polynomial, bit by bit: a log line is short.
fn crc32c(data: &[u8]) -> u32 {
    let bit = |crc: u32, _| (crc >> 1) ^ (0x82f6_3b78 & (crc & 1).wrapping_neg());
    let byte = |crc: u32, byte: &u8| (0..8).fold(crc ^ u32::from(*byte), bit);
    !data.iter().fold(u32::MAX, byte)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_crc_32c() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
    }

    /// The bytes that `torch.utils.tensorboard` (2.21) serialises for the same event.
    #[test]
    fn an_event_is_encoded_as_tensorboard_does() {
        let expected = [
            9, 0, 0, 0, 0, 0, 0, 248, 63, 16, 172, 2, 42, 19, 10, 17, 10, 10, 116, 114, 97, 105,
            110, 47, 108, 111, 115, 115, 21, 0, 0, 128, 62,
        ];
        let ours = event(1.5, 300, Content::Scalars(&[("train/loss", 0.25)]));
        assert_eq!(ours, expected);
    }

    #[test]
    fn a_run_that_goes_on_has_one_file_with_every_line_once() {
        let folder = tempfile::tempdir().unwrap();
        let line = |step| Line {
            step,
            loss: Some(0.5),
            ..Line::default()
        };
        let mut events = Events::create(folder.path(), 0.0, &[]).unwrap();
        (1..5).for_each(|step| events.write(&line(step)).unwrap());
        drop(Events::create(folder.path(), 2.0, &[line(1), line(2)]).unwrap());
        let files: Vec<_> = fs::read_dir(folder.path().join(EVENTS)).unwrap().collect();
        assert_eq!(files.len(), 1);
        let bytes = fs::read(files[0].as_ref().unwrap().path()).unwrap();
        let mut rest = &bytes[..];
        let mut records = 0;
        while !rest.is_empty() {
            let length = u64::from_le_bytes(rest[..8].try_into().unwrap()) as usize;
            assert_eq!(rest[8..12], masked(&rest[..8]));
            assert_eq!(
                rest[12 + length..16 + length],
                masked(&rest[12..12 + length])
            );
            rest = &rest[16 + length..];
            records += 1;
        }
        // The version and two lines.
        assert_eq!(records, 3);
    }
}
