//! Files that hold secrets: opened once, only while others have no access, and wiped from memory after use.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use zeroize::Zeroizing;

/// Why a secret file was not read.
pub(crate) enum Refused {
    /// It cannot be opened or read.
    Unreadable(io::Error),
    /// It is a directory, a pipe or a device.
    NotAFile,
    /// Its mode, which gives others access.
    TooOpen(u32),
    /// The user it belongs to, who is neither root nor the one that sluice runs as, and may change it.
    Foreign(u32),
}

impl From<io::Error> for Refused {
    fn from(error: io::Error) -> Refused {
        Refused::Unreadable(error)
    }
}

/// The first `most` octets of the file at `path`, if its mode has none of the bits of `too_open`.
pub(crate) fn read(path: &Path, too_open: u32, most: usize) -> Result<Zeroizing<Vec<u8>>, Refused> {
    // Asked before opening: opening a pipe would wait for its writer.
    if !fs::metadata(path)?.is_file() {
        return Err(Refused::NotAFile);
    }
    let file = File::open(path)?;
    let mode = file.metadata()?.permissions().mode() & 0o7777;
    if mode & too_open != 0 {
        return Err(Refused::TooOpen(mode));
    }
    let owner = file.metadata()?.uid();
    if owner != 0 && Some(owner) != effective_user(&fs::read_to_string("/proc/self/status")?) {
        return Err(Refused::Foreign(owner));
    }
    // Room for everything at once: a growing vector would leave copies behind.
    let mut text = Zeroizing::new(Vec::with_capacity(2 * most));
    file.take(most as u64).read_to_end(&mut text)?;
    Ok(text)
}

/// The effective user by a process's status (proc(5)). (The directory of a process with capabilities of its file belongs to root.)
fn effective_user(status: &str) -> Option<u32> {
    status.lines().find_map(|line| line.strip_prefix("Uid:")?.split_whitespace().nth(1)?.parse().ok())
}

/// The octet that two hexadecimal digits write.
pub(crate) fn octet(pair: &[u8]) -> Option<u8> {
    let nibble = |digit: u8| char::from(digit).to_digit(16).and_then(|n| u8::try_from(n).ok());
    let [high, low] = pair else { return None };
    Some(nibble(*high)? << 4 | nibble(*low)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_effective_user_is_the_second_of_four() {
        assert_eq!(effective_user("Name:\tsluice\nUid:\t1000\t998\t1001\t1002\nGid:\t7\t8\t9\t10\n"), Some(998));
        assert_eq!(effective_user("Name:\tUid\n"), None);
        let ours = fs::read_to_string("/proc/self/status").unwrap();
        assert!(effective_user(&ours).is_some(), "{ours}");
    }
}
