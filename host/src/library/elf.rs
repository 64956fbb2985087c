//! Whether a file is a whole shared library in ELF, the format of Linux and its kin.
//!
//! The system maps a library as its headers say. Where the file ends before that, the process dies
//! by SIGBUS as soon as it touches what is missing, so this is looked at first. Every number comes
//! from the file; sums and products of them are checked.

use std::env::consts::ARCH;

/// What is read of a library besides whether it is whole.
#[derive(Debug, PartialEq, Eq)]
pub struct Elf {
    /// Whether it looks for other libraries beside itself (`$ORIGIN` in its search path).
    pub searches_beside: bool,
}

const HEADER: usize = 64;
const PROGRAM_HEADER: usize = 56;
const SECTION_HEADER: usize = 64;
/// Processors by their numbers in ELF.
const MACHINES: [(u16, &str); 8] = [
    (3, "x86"),
    (8, "mips"),
    (20, "powerpc"),
    (21, "powerpc64"),
    (40, "arm"),
    (62, "x86_64"),
    (183, "aarch64"),
    (243, "riscv64"),
];

/// Looks at the headers of `file`.
///
/// # Errors
/// What is wrong with it, to be put behind `the file`.
pub fn check(file: &[u8]) -> Result<Elf, String> {
    if file.is_empty() {
        return Err("is empty".into());
    }
    let magic = b"\x7fELF";
    if !file.starts_with(&magic[..file.len().min(4)]) {
        let pointer = file.starts_with(b"version https://git-lfs");
        return Err(match pointer {
            true => {
                "is no library but a pointer of git-lfs (`git lfs pull` fetches what it stands for)"
                    .into()
            }
            false => "is no library".into(),
        });
    }
    if file.len() < HEADER {
        return Err(truncated(file, HEADER as u64));
    }
    let (class, order, version) = (file[4], file[5], file[6]);
    if class != 2 || version != 1 {
        return Err("is no library of 64 bits".into());
    }
    let little = cfg!(target_endian = "little");
    if order != if little { 1 } else { 2 } {
        return Err("is a library for another byte order".into());
    }
    let image = Image(file);
    let (kind, machine) = (image.u16(16)?, image.u16(18)?);
    if kind != 3 {
        return Err("is no shared library".into());
    }
    let ours = MACHINES.iter().find(|(_, name)| *name == ARCH);
    if let Some((ours, _)) = ours
        && *ours != machine
    {
        let name = MACHINES.iter().find(|(number, _)| *number == machine);
        let name = name.map_or_else(|| format!("machine {machine}"), |(_, n)| (*n).to_owned());
        return Err(format!(
            "is a library for {name}, but this program is for {ARCH}"
        ));
    }
    let segments = segments(&image)?;
    sections(&image)?;
    let searches_beside = dynamic(&image, &segments).is_some_and(|found| found);
    Ok(Elf { searches_beside })
}

fn truncated(file: &[u8], wanted: u64) -> String {
    format!(
        "is truncated: it ends after {} bytes, but its headers speak of byte {wanted}",
        file.len()
    )
}

/// A part of the file that is mapped or read.
struct Segment {
    kind: u32,
    offset: u64,
    address: u64,
    size: u64,
}

const LOAD: u32 = 1;
const DYNAMIC: u32 = 2;

fn segments(image: &Image<'_>) -> Result<Vec<Segment>, String> {
    let (at, count) = (image.u64(32)?, image.u16(56)?);
    if usize::from(image.u16(54)?) != PROGRAM_HEADER || count == 0 || count == u16::MAX {
        return Err("is no shared library: it has no program headers".into());
    }
    image.holds(at, u64::from(count) * PROGRAM_HEADER as u64)?;
    let mut all = Vec::new();
    for index in 0..u64::from(count) {
        // Within the file, as was seen above.
        let at = at + index * PROGRAM_HEADER as u64;
        let segment = Segment {
            kind: image.u32(at)?,
            offset: image.u64(at + 8)?,
            address: image.u64(at + 16)?,
            size: image.u64(at + 32)?,
        };
        let in_memory = image.u64(at + 40)?;
        if segment.kind == 0 {
            continue;
        }
        image.holds(segment.offset, segment.size)?;
        if segment.kind == LOAD && segment.size > in_memory {
            return Err("is damaged: a part of it is larger in the file than in memory".into());
        }
        all.push(segment);
    }
    for (kind, name) in [(LOAD, "to load"), (DYNAMIC, "for the dynamic linker")] {
        if !all.iter().any(|segment| segment.kind == kind) {
            return Err(format!("is no shared library: it has no part {name}"));
        }
    }
    Ok(all)
}

/// A library does without sections; what its header says of them must be there all the same, for
/// they stand at the end of the file.
fn sections(image: &Image<'_>) -> Result<(), String> {
    let (at, size, count) = (image.u64(40)?, image.u16(58)?, image.u16(60)?);
    if at == 0 {
        return Ok(());
    }
    if usize::from(size) != SECTION_HEADER {
        return Err("is damaged: its section headers have a strange size".into());
    }
    image.holds(at, u64::from(count) * SECTION_HEADER as u64)?;
    for index in 0..u64::from(count) {
        let at = at + index * SECTION_HEADER as u64;
        // Unused, and those without bytes in the file.
        if ![0, 8].contains(&image.u32(at + 4)?) {
            image.holds(image.u64(at + 24)?, image.u64(at + 32)?)?;
        }
    }
    Ok(())
}

/// Whether the search path for other libraries speaks of the library's own place.
fn dynamic(image: &Image<'_>, segments: &[Segment]) -> Option<bool> {
    const STRINGS: u64 = 5;
    const PATHS: [u64; 2] = [15, 29];
    let table = segments.iter().find(|s| s.kind == DYNAMIC)?;
    let entries = (0..table.size / 16).map_while(|index| {
        let at = table.offset + index * 16;
        let tag = image.u64(at).ok()?;
        (tag != 0).then(|| Some((tag, image.u64(at + 8).ok()?)))?
    });
    let entries: Vec<(u64, u64)> = entries.collect();
    let address = entries.iter().find(|(tag, _)| *tag == STRINGS)?.1;
    let holder = segments
        .iter()
        .find(|s| s.kind == LOAD && address >= s.address && address - s.address < s.size)?;
    let strings = holder.offset + (address - holder.address);
    let beside = entries
        .iter()
        .filter(|(tag, _)| PATHS.contains(tag))
        .filter_map(|(_, at)| image.string(strings.checked_add(*at)?))
        .any(|path| {
            let has = |word: &[u8]| path.windows(word.len()).any(|w| w == word);
            has(b"$ORIGIN") || has(b"${ORIGIN}")
        });
    Some(beside)
}

/// Numbers of a file, in this machine's byte order.
struct Image<'a>(&'a [u8]);

impl Image<'_> {
    fn bytes<const N: usize>(&self, at: u64) -> Result<[u8; N], String> {
        self.holds(at, N as u64)?;
        let mut bytes = [0; N];
        bytes.copy_from_slice(&self.0[at as usize..at as usize + N]);
        Ok(bytes)
    }

    fn u16(&self, at: u64) -> Result<u16, String> {
        self.bytes(at).map(u16::from_ne_bytes)
    }

    fn u32(&self, at: u64) -> Result<u32, String> {
        self.bytes(at).map(u32::from_ne_bytes)
    }

    fn u64(&self, at: u64) -> Result<u64, String> {
        self.bytes(at).map(u64::from_ne_bytes)
    }

    /// The text at `at`, up to its zero.
    fn string(&self, at: u64) -> Option<&[u8]> {
        let rest = self.0.get(usize::try_from(at).ok()?..)?;
        let end = rest.iter().position(|byte| *byte == 0)?;
        Some(&rest[..end])
    }

    /// Checks that `size` bytes at `at` are within the file.
    fn holds(&self, at: u64, size: u64) -> Result<(), String> {
        match at.checked_add(size) {
            Some(end) if end <= self.0.len() as u64 => Ok(()),
            Some(end) => Err(truncated(self.0, end)),
            None => Err("is damaged: its headers speak of places beyond any file".into()),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
pub mod tests {
    use super::*;

    /// A library of nothing but headers: one part to load, a dynamic table with a search path.
    pub fn small(search: &str) -> Vec<u8> {
        let mut file = vec![0u8; HEADER + 2 * PROGRAM_HEADER];
        let put = |file: &mut Vec<u8>, at: usize, bytes: &[u8]| {
            file[at..at + bytes.len()].copy_from_slice(bytes);
        };
        let machine = MACHINES.iter().find(|(_, name)| *name == ARCH);
        let machine = machine.map_or(0, |(number, _)| *number);
        put(&mut file, 0, b"\x7fELF\x02");
        file[5] = if cfg!(target_endian = "little") { 1 } else { 2 };
        file[6] = 1;
        for (at, number) in [(16, 3), (18, machine), (54, 56), (56, 2), (58, 64), (60, 1)] {
            put(&mut file, at, &number.to_ne_bytes());
        }
        let table = file.len() as u64;
        let strings = table + 4 * 16;
        for (tag, value) in [(5, strings), (29, 1), (0, 0), (0, 0)] {
            file.extend([u64::to_ne_bytes(tag), u64::to_ne_bytes(value)].concat());
        }
        file.push(0);
        file.extend(search.as_bytes());
        file.push(0);
        let sections = file.len() as u64;
        file.extend([0; SECTION_HEADER]);
        let size = file.len() as u64;
        for (at, number) in [(32, HEADER as u64), (40, sections)] {
            put(&mut file, at, &number.to_ne_bytes());
        }
        for (index, (kind, offset, size)) in [(LOAD, 0, size), (DYNAMIC, table, 64)]
            .into_iter()
            .enumerate()
        {
            let at = HEADER + index * PROGRAM_HEADER;
            put(&mut file, at, &kind.to_ne_bytes());
            for (more, number) in [(8, offset), (16, offset), (32, size), (40, size)] {
                put(&mut file, at + more, &number.to_ne_bytes());
            }
        }
        file
    }

    #[test]
    fn a_whole_library_is_taken() {
        assert!(!check(&small("/usr/lib")).unwrap().searches_beside);
        assert!(check(&small("$ORIGIN/../lib")).unwrap().searches_beside);
        assert!(check(&small("/a:${ORIGIN}")).unwrap().searches_beside);
    }

    #[test]
    fn a_library_cut_anywhere_is_refused() {
        let whole = small("/usr/lib");
        for length in 1..whole.len() {
            let reason = check(&whole[..length]).unwrap_err();
            assert!(reason.starts_with("is truncated"), "{length}: {reason}");
        }
        assert_eq!(check(&[]).unwrap_err(), "is empty");
    }

    #[test]
    fn what_is_no_library_is_told() {
        assert_eq!(check(b"#!/bin/sh\n").unwrap_err(), "is no library");
        let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n";
        assert!(check(pointer).unwrap_err().contains("git lfs pull"));
        let spoilt = |at: usize, byte: u8| {
            let mut file = small("");
            file[at] = byte;
            check(&file).unwrap_err()
        };
        assert_eq!(spoilt(4, 1), "is no library of 64 bits");
        assert!(spoilt(16, 9).contains("no shared library"));
        assert!(spoilt(19, 77).contains("but this program is for"));
        assert!(spoilt(HEADER, 6).contains("no part to load"));
    }

    #[test]
    fn mutated_libraries_are_answered() {
        let whole = small("$ORIGIN");
        diffaug::mutate::each("elf", &[whole], 2000, |file| drop(check(file)));
    }
}
