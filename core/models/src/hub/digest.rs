//! Names of blobs that are hashes of what they hold: SHA-256 for large files, for others the SHA-1
//! that git gives them.

use diffaug::{Error, Result};
use sha1::Sha1;
use sha2::{Digest, Sha256};
use std::{
    fs::File,
    io::{self, Read},
    path::Path,
};

/// The hash that a blob is named by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Sha256,
    GitBlob,
}

impl Kind {
    /// The kind of hash that `name` is; `None` where it says nothing of the contents.
    pub fn of(name: &str) -> Option<Self> {
        let hex = name
            .bytes()
            .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        match name.len() {
            64 if hex => Some(Kind::Sha256),
            40 if hex => Some(Kind::GitBlob),
            _ => None,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Kind::Sha256 => "SHA-256",
            Kind::GitBlob => "git hash",
        }
    }
}

/// Checks that the file at `path` is the one that the blob `name` is named after, if that is a hash.
///
/// # Errors
/// When it is another, or cannot be read.
pub(super) fn check(path: &Path, name: &str) -> Result<()> {
    let Some(kind) = Kind::of(name) else {
        return Ok(());
    };
    let file = File::open(path)?;
    let found = match kind {
        Kind::Sha256 => hash(Sha256::new(), file)?,
        Kind::GitBlob => {
            let size = file.metadata()?.len();
            hash(Sha1::new_with_prefix(format!("blob {size}\0")), file)?
        }
    };
    if found != name {
        let kind = kind.name();
        return Err(Error::model(format!(
            "its {kind} is `{found}`, expected `{name}`"
        )));
    }
    Ok(())
}

/// The hash of the rest of `file` in hexadecimal digits.
fn hash<D: Digest>(mut digest: D, mut file: File) -> io::Result<String> {
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => digest.update(&buffer[..n]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    let digits = digest.finalize();
    Ok(digits.iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_what_its_blob_is_named_after() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x");
        std::fs::write(&path, "hello\n").unwrap();
        // `sha256sum` and `git hash-object`.
        let sha = "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03";
        let git = "ce013625030ba8dba906f756967f9e9ca394464a";
        for name in [sha, git, "any-other-name"] {
            check(&path, name).unwrap();
        }
        std::fs::write(&path, "jello\n").unwrap();
        let error = check(&path, sha).unwrap_err().to_string();
        assert!(error.starts_with("its SHA-256 is `"), "{error}");
        assert!(error.ends_with(&format!("expected `{sha}`")), "{error}");
        let error = check(&path, git).unwrap_err().to_string();
        assert!(error.starts_with("its git hash is `"), "{error}");
    }
}
