//! Zip archives, as PyTorch and NumPy write them: entries that are stored or deflated, each at a place of its own.
//!
//! Only the list at the end of the archive is read when it is opened. What the list claims is held
//! against the length of the file before anything is allocated: entries lie inside of the file and do
//! not overlap, and none unfolds to more than deflating can make of its bytes.

use super::input;
use diffaug::{Error, Result};
use flate2::read::DeflateDecoder;
use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Read},
};

/// The end of the list with nothing behind it but a comment of the greatest length.
const TAIL: u64 = 22 + 65_535;
/// The longest list of entries that is read, in bytes; a million tensors take less.
const LONGEST_LIST: u64 = 64 << 20;
/// Entries that an archive has at most.
const MOST_ENTRIES: u64 = 1_000_000;
/// How much longer than its bytes a deflated entry is at most (the format's own limit).
const DEFLATED: u64 = 1032;
/// Up to this length an entry may be as much longer as the format allows; beyond, [`DENSEST`] times.
const SMALL: u64 = 64 << 20;
/// Weights hardly shrink by deflating; what claims to have shrunk by more is made to fill memory.
const DENSEST: u64 = 64;

/// An entry of an archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Where its local header begins.
    header: u64,
    /// Bytes in the file.
    packed: u64,
    /// Bytes when they are unfolded.
    pub len: u64,
    deflated: bool,
}

/// An open archive.
#[derive(Debug)]
pub struct Archive {
    file: File,
    size: u64,
    entries: BTreeMap<String, Entry>,
}

impl Archive {
    /// Reads the list of the entries of `file`.
    ///
    /// # Errors
    /// When it is no zip archive, or its list claims what cannot be.
    pub fn open(file: File) -> Result<Self> {
        let size = file.metadata()?.len();
        let entries = list(&file, size)?;
        disjoint(&entries)?;
        Ok(Archive {
            file,
            size,
            entries,
        })
    }

    /// The entries by name.
    pub fn entries(&self) -> &BTreeMap<String, Entry> {
        &self.entries
    }

    /// Fills `bytes` with those of `entry` from `start` on.
    ///
    /// # Errors
    /// When the entry has fewer, or cannot be unfolded.
    pub fn read(&self, entry: &Entry, start: u64, bytes: &mut [u8]) -> Result<()> {
        let end = start.checked_add(bytes.len() as u64);
        if end.is_none_or(|end| end > entry.len) {
            return Err(Error::model("its entry in the archive is too short"));
        }
        let place = self.data(entry)?;
        if !entry.deflated {
            return input::read_at(&self.file, bytes, place + start).map_err(input::cut);
        }
        let packed = Part {
            file: &self.file,
            place,
            end: place + entry.packed,
        };
        let mut unfolded = DeflateDecoder::new(packed);
        let skipped = io::copy(&mut (&mut unfolded).take(start), &mut io::sink())?;
        if skipped < start {
            return Err(Error::model("its entry in the archive is too short"));
        }
        unfolded
            .read_exact(bytes)
            .map_err(|error| match error.kind() {
                io::ErrorKind::UnexpectedEof => {
                    Error::model("its entry in the archive is too short")
                }
                _ => Error::model(error).context("its entry in the archive cannot be unfolded"),
            })
    }

    /// All bytes of `entry`, which has at most `most`.
    ///
    /// # Errors
    /// When it has more, or those of [`Archive::read`].
    pub fn whole(&self, entry: &Entry, most: u64) -> Result<Vec<u8>> {
        if entry.len > most {
            let len = entry.len;
            return Err(Error::model(format!(
                "it has {len} bytes, expected at most {most}"
            )));
        }
        let mut bytes = vec![0; entry.len as usize];
        self.read(entry, 0, &mut bytes)?;
        Ok(bytes)
    }

    /// Where the bytes of `entry` begin, behind its local header.
    fn data(&self, entry: &Entry) -> Result<u64> {
        let mut header = [0; 30];
        input::read_at(&self.file, &mut header, entry.header).map_err(input::cut)?;
        if !header.starts_with(b"PK\x03\x04") {
            return Err(Error::model("an entry of the archive has no header"));
        }
        let (name, extra) = (u16_at(&header, 26), u16_at(&header, 28));
        let start = entry.header + 30 + u64::from(name) + u64::from(extra);
        match start
            .checked_add(entry.packed)
            .is_some_and(|end| end <= self.size)
        {
            true => Ok(start),
            false => Err(Error::model("an entry of the archive ends behind the file")),
        }
    }
}

/// Bytes of a file from one place to another.
struct Part<'a> {
    file: &'a File,
    place: u64,
    end: u64,
}

impl Read for Part<'_> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let count = (bytes.len() as u64).min(self.end - self.place) as usize;
        input::read_at(self.file, &mut bytes[..count], self.place)?;
        self.place += count as u64;
        Ok(count)
    }
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes[at..at + 4]
        .iter()
        .rev()
        .fold(0, |n, byte| n << 8 | u32::from(*byte))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at + 4)) << 32 | u64::from(u32_at(bytes, at))
}

/// Where the list of entries lies, and how many there are.
struct End {
    count: u64,
    start: u64,
    len: u64,
}

/// The entries that the archive's list names.
fn list(file: &File, size: u64) -> Result<BTreeMap<String, Entry>> {
    let end = end(file, size)?;
    let inside = end
        .start
        .checked_add(end.len)
        .is_some_and(|end| end <= size);
    if !inside || end.len > LONGEST_LIST || end.count > MOST_ENTRIES {
        return Err(Error::model(format!(
            "the archive claims a list of {} entries in {} bytes, the file has {size}",
            end.count, end.len
        )));
    }
    let mut bytes = vec![0; end.len as usize];
    input::read_at(file, &mut bytes, end.start).map_err(input::cut)?;
    let mut entries = BTreeMap::new();
    let mut rest = bytes.as_slice();
    for _ in 0..end.count {
        let (name, entry, behind) = entry(rest, size)?;
        rest = behind;
        if entries.insert(name.clone(), entry).is_some() {
            let name = name.escape_default();
            return Err(Error::model(format!(
                "the archive has two entries `{name}`"
            )));
        }
    }
    Ok(entries)
}

/// The end of the archive, in the form for large archives where there is one.
fn end(file: &File, size: u64) -> Result<End> {
    let none = || Error::model("it is no zip archive: its list of entries is missing");
    let mut tail = vec![0; size.min(TAIL) as usize];
    let start = size - tail.len() as u64;
    input::read_at(file, &mut tail, start).map_err(input::cut)?;
    let at = (0..tail.len().saturating_sub(21)).rev();
    let mut at = at.filter(|at| tail[*at..].starts_with(b"PK\x05\x06"));
    let at = at.next().ok_or_else(none)?;
    let own = End {
        count: u64::from(u16_at(&tail, at + 10)),
        len: u64::from(u32_at(&tail, at + 12)),
        start: u64::from(u32_at(&tail, at + 16)),
    };
    let large = own.count == 0xffff || own.len == 0xffff_ffff || own.start == 0xffff_ffff;
    let Some(locator) = at.checked_sub(20).filter(|_| large) else {
        return Ok(own);
    };
    if !tail[locator..].starts_with(b"PK\x06\x07") {
        return Ok(own);
    }
    let mut record = [0; 56];
    let place = u64_at(&tail, locator + 8);
    input::read_at(file, &mut record, place).map_err(|_| none())?;
    match record.starts_with(b"PK\x06\x06") {
        true => Ok(End {
            count: u64_at(&record, 32),
            len: u64_at(&record, 40),
            start: u64_at(&record, 48),
        }),
        false => Err(none()),
    }
}

/// The first entry of a list, its name, and what is behind it.
fn entry(list: &[u8], size: u64) -> Result<(String, Entry, &[u8])> {
    let broken = || Error::model("the archive's list of entries is broken");
    if list.len() < 46 || !list.starts_with(b"PK\x01\x02") {
        return Err(broken());
    }
    let [name, extra, comment] = [28, 30, 32].map(|at| usize::from(u16_at(list, at)));
    let behind = list.get(46 + name + extra + comment..).ok_or_else(broken)?;
    let text = std::str::from_utf8(&list[46..46 + name]).map_err(|_| broken())?;
    let shown = text.escape_default();
    let (flags, method) = (u16_at(list, 8), u16_at(list, 10));
    if flags & 1 != 0 {
        return Err(Error::unsupported(format!(
            "the entry `{shown}` is encrypted"
        )));
    }
    let deflated = match method {
        0 => false,
        8 => true,
        other => {
            return Err(Error::unsupported(format!(
                "the entry `{shown}` is compressed by method {other}, expected stored or deflated"
            )));
        }
    };
    let mut entry = Entry {
        packed: u64::from(u32_at(list, 20)),
        len: u64::from(u32_at(list, 24)),
        header: u64::from(u32_at(list, 42)),
        deflated,
    };
    widen(&mut entry, &list[46 + name..46 + name + extra]).ok_or_else(broken)?;
    check(&entry, &shown.to_string(), size)?;
    Ok((text.to_owned(), entry, behind))
}

/// Takes what does not fit into 32 bits from the extra fields; `None` when it is not there.
fn widen(entry: &mut Entry, extra: &[u8]) -> Option<()> {
    let mut wanted = [&mut entry.len, &mut entry.packed, &mut entry.header]
        .into_iter()
        .filter(|value| **value == 0xffff_ffff)
        .peekable();
    if wanted.peek().is_none() {
        return Some(());
    }
    let mut rest = extra;
    loop {
        let (kind, len) = (rest.len() >= 4).then(|| (u16_at(rest, 0), u16_at(rest, 2)))?;
        let field = rest.get(4..4 + usize::from(len))?;
        if kind == 1 {
            let mut values = field.chunks_exact(8).map(|value| u64_at(value, 0));
            return wanted.try_for_each(|value| {
                *value = values.next()?;
                Some(())
            });
        }
        rest = &rest[4 + usize::from(len)..];
    }
}

/// Checks that an entry lies in a file of `size` bytes and unfolds to what it can.
fn check(entry: &Entry, name: &str, size: u64) -> Result<()> {
    let end = entry
        .header
        .checked_add(30)
        .and_then(|end| end.checked_add(entry.packed));
    if end.is_none_or(|end| end > size) {
        return Err(Error::model(format!(
            "the entry `{name}` would have {} bytes from {} on, the file has {size}",
            entry.packed, entry.header
        )));
    }
    let most = match (entry.deflated, entry.len <= SMALL) {
        (false, _) => entry.packed,
        (true, true) => entry.packed.saturating_mul(DEFLATED),
        (true, false) => entry.packed.saturating_mul(DENSEST),
    };
    if entry.len > most || !entry.deflated && entry.len < most {
        return Err(Error::model(format!(
            "the entry `{name}` would unfold from {} bytes to {}",
            entry.packed, entry.len
        )));
    }
    Ok(())
}

/// Checks that no two entries share bytes.
fn disjoint(entries: &BTreeMap<String, Entry>) -> Result<()> {
    let mut places: Vec<(u64, u64, &str)> = entries
        .iter()
        .map(|(name, entry)| {
            (
                entry.header,
                entry.header + 30 + entry.packed,
                name.as_str(),
            )
        })
        .collect();
    places.sort_unstable();
    match places.windows(2).find(|pair| pair[0].1 > pair[1].0) {
        Some([a, b]) => Err(Error::model(format!(
            "the entries `{}` and `{}` of the archive overlap",
            a.2.escape_default(),
            b.2.escape_default()
        ))),
        _ => Ok(()),
    }
}
