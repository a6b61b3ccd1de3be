//! What tells one state of a file from another.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// A file's state. The change time is among it for the sake of a mode put right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    /// Of the file at `path`.
    ///
    /// # Errors
    /// Why there is none: its absence is a state too.
    pub(crate) fn of(path: &Path) -> Result<Stamp, io::ErrorKind> {
        let meta = std::fs::metadata(path).map_err(|error| error.kind())?;
        Ok(Stamp {
            device: meta.dev(),
            inode: meta.ino(),
            size: meta.size(),
            modified: (meta.mtime(), meta.mtime_nsec()),
            changed: (meta.ctime(), meta.ctime_nsec()),
        })
    }
}
