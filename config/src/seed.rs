//! The cookie seed's file: 64 hexadecimal digits, secret.

use std::io;
use std::path::{Path, PathBuf};

use crate::secret::{self, Refused};

/// Octets read at most: the digits and generous white space.
const LONGEST: usize = 1_024;

/// Permission bits that give others access, or let a group write.
const TOO_OPEN: u32 = 0o027;

/// Why a seed file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SeedError {
    /// It cannot be opened or read.
    #[error("cookies.seed_file: {} cannot be read: {source}; write the path of a file that sluice may read", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// It is a directory, a pipe or a device.
    #[error("cookies.seed_file: {} is not a regular file; write the path of one", path.display())]
    NotAFile {
        /// The file.
        path: PathBuf,
    },
    /// Whoever reads the seed can forge cookies.
    #[error("cookies.seed_file: {} has mode {mode:04o}, open to others; run: chmod 600 {}", path.display(), path.display())]
    TooOpen {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// Its owner, who is neither root nor the user that sluice runs as, can change it.
    #[error("cookies.seed_file: {} belongs to user {owner}; run: chown root {}", path.display(), path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
        /// The owner's number.
        owner: u32,
    },
    /// It holds something other than 64 hexadecimal digits.
    #[error(
        "cookies.seed_file: {} does not hold 64 hexadecimal digits; create it with: (umask 077; openssl rand -hex 32 > {})",
        path.display(),
        path.display()
    )]
    Malformed {
        /// The file.
        path: PathBuf,
    },
    /// Every octet is the same: a placeholder.
    #[error(
        "cookies.seed_file: {} holds a placeholder; create it with: (umask 077; openssl rand -hex 32 > {})",
        path.display(),
        path.display()
    )]
    Placeholder {
        /// The file.
        path: PathBuf,
    },
}

/// Reads `cookies.seed_file`: 64 hexadecimal digits, white space around them ignored. The caller wipes the seed after use.
///
/// # Errors
/// When the file is missing or no regular file, when others may read or write it, or when it holds anything else.
pub fn read_seed(path: &Path) -> Result<[u8; 32], SeedError> {
    let text = secret::read(path, TOO_OPEN, LONGEST).map_err(|refused| {
        let path = path.to_owned();
        match refused {
            Refused::Unreadable(source) => SeedError::Unreadable { path, source },
            Refused::NotAFile => SeedError::NotAFile { path },
            Refused::TooOpen(mode) => SeedError::TooOpen { path, mode },
            Refused::Foreign(owner) => SeedError::Foreign { path, owner },
        }
    })?;
    let seed = digits(&text).ok_or_else(|| SeedError::Malformed { path: path.to_owned() })?;
    if seed.iter().all(|octet| *octet == seed[0]) {
        return Err(SeedError::Placeholder { path: path.to_owned() });
    }
    Ok(seed)
}

fn digits(text: &[u8]) -> Option<[u8; 32]> {
    let text = text.trim_ascii();
    if text.len() != 64 {
        return None;
    }
    let mut seed = [0; 32];
    for (octet, pair) in seed.iter_mut().zip(text.chunks_exact(2)) {
        *octet = secret::octet(pair)?;
    }
    Some(seed)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    const DIGITS: &str = "000102030405060708090a0b0c0d0e0f101112131415161718191A1B1C1D1E1F";

    fn file(content: &[u8], mode: u32) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("seed");
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        (dir, path)
    }

    #[test]
    fn seed_is_64_hex_digits_with_white_space_around() {
        for mode in [0o600, 0o400, 0o640] {
            let (_dir, path) = file(format!(" {DIGITS}\n").as_bytes(), mode);
            assert_eq!(read_seed(&path).unwrap(), std::array::from_fn(|i| i as u8));
        }
    }

    #[test]
    fn a_file_that_somebody_else_can_change_is_refused() {
        let (dir, path) = file(DIGITS.as_bytes(), 0o600);
        // Only root can give files away, and only others' are refused.
        if std::os::unix::fs::chown(&path, Some(12_345), None).is_err() {
            return;
        }
        let error = read_seed(&path).unwrap_err();
        assert!(matches!(error, SeedError::Foreign { owner: 12_345, .. }), "{error}");
        assert!(error.to_string().contains("run: chown root"), "{error}");
        drop(dir);
    }

    #[test]
    fn anything_but_64_hex_digits_is_refused() {
        let long = "a1".repeat(4096);
        for content in ["", &DIGITS[1..], &format!("{DIGITS}0"), &DIGITS.replace('a', "g"), &long, &"é".repeat(32)] {
            let (_dir, path) = file(content.as_bytes(), 0o600);
            assert!(matches!(read_seed(&path), Err(SeedError::Malformed { .. })), "{content}");
        }
        let (_dir, path) = file("0".repeat(64).as_bytes(), 0o600);
        assert!(matches!(read_seed(&path), Err(SeedError::Placeholder { .. })));
    }

    #[test]
    fn a_seed_others_can_read_or_a_group_can_write_is_refused() {
        for mode in [0o644, 0o604, 0o602, 0o660, 0o666] {
            let (_dir, path) = file(DIGITS.as_bytes(), mode);
            let error = read_seed(&path).unwrap_err();
            assert!(error.to_string().contains(&format!("{mode:04o}")), "{error}");
            assert!(error.to_string().contains("chmod 600"), "{error}");
        }
    }

    #[test]
    fn missing_files_and_directories_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(read_seed(dir.path()), Err(SeedError::NotAFile { .. })));
        assert!(matches!(read_seed(&dir.path().join("none")), Err(SeedError::Unreadable { .. })));
    }
}
