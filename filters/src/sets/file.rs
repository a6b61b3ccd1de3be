//! Opening what a set names: regular files of bounded size, and text that is fit for a message.

use std::fmt;
use std::fs::File;
use std::io;
use std::path::Path;

/// Longest excerpt of a file in a message, in characters.
const EXCERPT: usize = 80;

/// Why a file cannot be used, whatever is in it. Displayed as what was found and the remedy, to follow the file's name.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FileProblem {
    /// It cannot be opened or read; what the system says.
    Unreadable(io::ErrorKind, String),
    /// A directory, pipe or device.
    NotAFile,
    /// Larger than this many octets.
    TooLarge(u64),
}

impl From<io::Error> for FileProblem {
    fn from(error: io::Error) -> FileProblem {
        FileProblem::Unreadable(error.kind(), plain(&error))
    }
}

impl fmt::Display for FileProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FileProblem::Unreadable(kind, message) => {
                let remedy = match kind {
                    io::ErrorKind::NotFound => "correct the path, or put the file there",
                    io::ErrorKind::PermissionDenied => "let the user that sluice runs as read it",
                    _ => "make it readable",
                };
                write!(f, "{message}; {remedy}")
            }
            FileProblem::NotAFile => write!(f, "is not a regular file; name one"),
            FileProblem::TooLarge(limit) => {
                write!(f, "is larger than {} MiB; use a smaller file, or several", limit >> 20)
            }
        }
    }
}

/// The regular file at `path`, if it has at most `limit` octets now.
pub(super) fn open(path: &Path, limit: u64) -> Result<File, FileProblem> {
    // Asked before opening: to open a pipe would wait for a writer.
    let about = std::fs::metadata(path)?;
    if !about.is_file() {
        return Err(FileProblem::NotAFile);
    }
    if about.len() > limit {
        return Err(FileProblem::TooLarge(limit));
    }
    Ok(File::open(path)?)
}

/// A path for messages: quoted when it holds what a terminal or a log would take amiss.
pub(super) fn shown_path(path: &Path) -> String {
    let text = path.to_string_lossy();
    if text.chars().any(char::is_control) { format!("{text:?}") } else { text.into_owned() }
}

/// What the system says, without the number it adds and the capital letter.
fn plain(error: &io::Error) -> String {
    let text = error.to_string();
    let plain = text.split_once(" (os error").map_or(&*text, |(plain, _)| plain);
    let mut chars = plain.chars();
    chars.next().map_or_else(String::new, |first| first.to_lowercase().chain(chars).collect())
}

/// `octets` in double quotes, escaped, shortened.
pub(super) fn quoted(octets: &[u8]) -> String {
    // A character has four octets at most.
    let text = String::from_utf8_lossy(octets.get(..EXCERPT * 4 + 4).unwrap_or(octets));
    let mut shown: String = text.chars().take(EXCERPT).collect();
    if shown.len() < text.len() {
        shown.push_str("...");
    }
    format!("{shown:?}")
}
