//! Function binaries on this engine's disk, by their hash.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use crate::manifest::Version;

/// Binaries that were fetched or deployed here. A file that is there is whole.
#[derive(Clone, Debug)]
pub struct Binaries {
    directory: PathBuf,
    scratch: PathBuf,
}

/// Why a binary is not there.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// These bytes have another hash.
    #[error("a binary fetched as {wanted} has the hash {found}")]
    WrongHash {
        /// What it should be.
        wanted: Version,
        /// What it is.
        found: Version,
    },
    /// The disk refuses.
    #[error("cannot write {}: {source}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl Binaries {
    /// In `data_dir`; makes the directories, and removes what an earlier life left half done.
    pub fn open(data_dir: &Path) -> Result<Self, StoreError> {
        let (directory, scratch) = (data_dir.join("binaries"), data_dir.join("scratch"));
        let io = |path: &Path| {
            let path = path.to_owned();
            move |source| StoreError::Io { path, source }
        };
        if scratch.exists() {
            fs::remove_dir_all(&scratch).map_err(io(&scratch))?;
        }
        fs::create_dir_all(&directory).map_err(io(&directory))?;
        fs::create_dir_all(&scratch).map_err(io(&scratch))?;
        Ok(Self { directory, scratch })
    }

    /// Where files lie that are not whole yet.
    #[must_use]
    pub fn scratch(&self) -> &Path {
        &self.scratch
    }

    /// The executable, if it is there.
    #[must_use]
    pub fn find(&self, version: Version) -> Option<PathBuf> {
        let path = self.path(version);
        path.exists().then_some(path)
    }

    /// Puts a binary there, its hash compared. Blocks.
    pub fn store(&self, version: Version, binary: &[u8]) -> Result<PathBuf, StoreError> {
        let found = Version::of(binary);
        if found != version {
            return Err(StoreError::WrongHash { wanted: version, found });
        }
        let path = self.path(version);
        if path.exists() {
            return Ok(path);
        }
        // One name per version is enough: whoever writes it writes the same bytes, and the rename
        // is atomic. Two writers at once would still see each other's file vanish.
        let unique = format!("{version}-{:?}", std::thread::current().id());
        let temporary = self.scratch.join(unique);
        let io = |source| StoreError::Io { path: path.clone(), source };
        write_executable(&temporary, binary).map_err(io)?;
        fs::rename(&temporary, &path).map_err(io)?;
        // The name must survive a loss of power as well: roots in the log need it at once.
        fs::File::open(&self.directory).and_then(|directory| directory.sync_all()).map_err(io)?;
        Ok(path)
    }

    fn path(&self, version: Version) -> PathBuf {
        self.directory.join(version.to_string())
    }
}

/// Writes an executable, durably.
pub(crate) fn write_executable(path: &Path, binary: &[u8]) -> io::Result<()> {
    let mut file =
        fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o755).open(path)?;
    file.write_all(binary)?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn a_binary_is_found_again_only_if_its_hash_is_right() {
        let directory = tempfile::tempdir().unwrap();
        let binaries = Binaries::open(directory.path()).unwrap();
        let version = Version::of(b"code");
        assert!(binaries.find(version).is_none());
        assert!(matches!(binaries.store(version, b"other"), Err(StoreError::WrongHash { .. })));
        assert!(binaries.find(version).is_none());
        let path = binaries.store(version, b"code").unwrap();
        assert_eq!(binaries.find(version), Some(path.clone()));
        assert_eq!(fs::metadata(path).unwrap().permissions().mode() & 0o777, 0o755);
        assert_eq!(binaries.store(version, b"code").unwrap(), binaries.find(version).unwrap());
        assert_eq!(fs::read_dir(binaries.scratch()).unwrap().count(), 0);
    }

    #[test]
    fn what_was_half_done_is_removed_at_the_next_start() {
        let directory = tempfile::tempdir().unwrap();
        let binaries = Binaries::open(directory.path()).unwrap();
        fs::write(binaries.scratch().join("half"), b"x").unwrap();
        let again = Binaries::open(directory.path()).unwrap();
        assert_eq!(fs::read_dir(again.scratch()).unwrap().count(), 0);
    }
}
