//! The file of the keys that sign PROXY headers: one a line, `ID HEX`. The first signs, every one verifies.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use crate::secret::{self, Refused};

/// Octets read at most: some hundred keys.
const LONGEST: usize = 16 << 10;

/// Permission bits that give anybody but the owner access.
const TOO_OPEN: u32 = 0o077;

/// A key's shortest and longest length, octets: SHA-256's output and its block. A longer one would be no stronger.
const SHORTEST_KEY: usize = 32;
const LONGEST_KEY: usize = 64;

/// Why a key file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// It cannot be opened or read.
    #[error("proxy_keys.file: {} cannot be read: {source}; write the path of a file that sluice may read", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// It is a directory, a pipe or a device.
    #[error("proxy_keys.file: {} is not a regular file; write the path of one", path.display())]
    NotAFile {
        /// The file.
        path: PathBuf,
    },
    /// Whoever reads a key can sign headers.
    #[error("proxy_keys.file: {} has mode {mode:04o}, open to others; run: chmod 600 {}", path.display(), path.display())]
    TooOpen {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// Its owner, who is neither root nor the user that sluice runs as, can change it.
    #[error("proxy_keys.file: {} belongs to user {owner}; run: chown root {}", path.display(), path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
        /// The owner's number.
        owner: u32,
    },
    /// It is longer than any sensible list of keys.
    #[error("proxy_keys.file: {} is larger than {} KiB; remove keys that no longer sign", path.display(), LONGEST >> 10)]
    TooLong {
        /// The file.
        path: PathBuf,
    },
    /// It holds no key.
    #[error(
        "proxy_keys.file: {} holds no key; create one with: (umask 077; echo \"1 $(openssl rand -hex 32)\" > {})",
        path.display(),
        path.display()
    )]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// A line is not a key.
    #[error("proxy_keys.file: {}:{line}: {fault}", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// From 1.
        line: usize,
        /// What is wrong with it.
        fault: KeyFault,
    },
}

/// What is wrong with a line of a key file. The texts show nothing of the key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyFault {
    /// Not two words.
    #[error("is not a key; write its number, a space and its hexadecimal digits, as in \"1 $(openssl rand -hex 32)\"")]
    Form,
    /// The first word is not a number.
    #[error("does not begin with a key's number; write a whole number from 0 to 4294967295")]
    Id,
    /// The second word is not hexadecimal.
    #[error("has something other than pairs of hexadecimal digits for a key; create them with: openssl rand -hex 32")]
    Hex,
    /// The key is too short or too long.
    #[error(
        "has a key of {octets} octets; write {SHORTEST_KEY} to {LONGEST_KEY}, in two hexadecimal digits each: openssl rand -hex 32"
    )]
    Length {
        /// Its length.
        octets: usize,
    },
    /// Every octet is the same.
    #[error("holds a placeholder; create a key with: openssl rand -hex 32")]
    Placeholder,
    /// The number stands on an earlier line.
    #[error("has the number {id} of the key on line {first}; give each key a number of its own")]
    Twice {
        /// The number.
        id: u32,
        /// The earlier line.
        first: usize,
    },
}

/// A key's number and its secret.
type Key = (u32, Zeroizing<Vec<u8>>);

/// The keys of a file, in file order; at least one.
#[derive(Clone)]
pub struct ProxyKeys(Vec<Key>);

impl ProxyKeys {
    /// Reads a key file's text. `path` is what messages call it.
    ///
    /// # Errors
    /// For a line that is not a key, and when there is none.
    pub fn parse(path: &Path, text: &[u8]) -> Result<ProxyKeys, KeyError> {
        let mut keys = Vec::new();
        let mut lines: Vec<(u32, usize)> = Vec::new();
        for (line, text) in (1..).zip(text.split(|octet| *octet == b'\n')) {
            let fault = |fault| KeyError::Line { path: path.to_owned(), line, fault };
            let Some((id, secret)) = key(text).map_err(fault)? else { continue };
            if let Some((_, first)) = lines.iter().find(|(earlier, _)| *earlier == id) {
                return Err(fault(KeyFault::Twice { id, first: *first }));
            }
            lines.push((id, line));
            keys.push((id, secret));
        }
        if keys.is_empty() { Err(KeyError::Empty { path: path.to_owned() }) } else { Ok(ProxyKeys(keys)) }
    }

    /// Each key's number and its secret, the one that signs first.
    pub fn iter(&self) -> impl Iterator<Item = (u32, &[u8])> {
        self.0.iter().map(|(id, secret)| (*id, secret.as_slice()))
    }
}

impl fmt::Debug for ProxyKeys {
    /// The numbers, without the secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ProxyKeys").field(&self.0.iter().map(|(id, _)| *id).collect::<Vec<_>>()).finish()
    }
}

/// Reads `proxy_keys.file`: one key a line, `ID HEX`, with `#` comments and blank lines between. ID is a decimal number,
/// HEX 32 to 64 octets. The first key signs, every one verifies.
///
/// # Errors
/// When the file is missing or no regular file, when anybody but its owner may access it, or when it holds anything else.
pub fn read_proxy_keys(path: &Path) -> Result<ProxyKeys, KeyError> {
    // One octet more than allowed, to tell a file of exactly that size from a larger one.
    let text = secret::read(path, TOO_OPEN, LONGEST + 1).map_err(|refused| {
        let path = path.to_owned();
        match refused {
            Refused::Unreadable(source) => KeyError::Unreadable { path, source },
            Refused::NotAFile => KeyError::NotAFile { path },
            Refused::TooOpen(mode) => KeyError::TooOpen { path, mode },
            Refused::Foreign(owner) => KeyError::Foreign { path, owner },
        }
    })?;
    if text.len() > LONGEST {
        return Err(KeyError::TooLong { path: path.to_owned() });
    }
    ProxyKeys::parse(path, &text)
}

/// The key on a line; none on a line without one.
fn key(line: &[u8]) -> Result<Option<Key>, KeyFault> {
    let line = line.split(|octet| *octet == b'#').next().unwrap_or_default();
    let mut words = line.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty());
    let (id, digits) = match (words.next(), words.next(), words.next()) {
        (None, _, _) => return Ok(None),
        (Some(id), Some(digits), None) => (id, digits),
        _ => return Err(KeyFault::Form),
    };
    // `parse` would take a sign too.
    let decimal = id.iter().all(u8::is_ascii_digit).then_some(id).and_then(|id| std::str::from_utf8(id).ok());
    let id = decimal.and_then(|id| id.parse().ok()).ok_or(KeyFault::Id)?;
    if digits.len() % 2 != 0 || !digits.iter().all(u8::is_ascii_hexdigit) {
        return Err(KeyFault::Hex);
    }
    let octets = digits.len() / 2;
    if !(SHORTEST_KEY..=LONGEST_KEY).contains(&octets) {
        return Err(KeyFault::Length { octets });
    }
    let mut secret = Zeroizing::new(Vec::with_capacity(octets));
    for pair in digits.chunks_exact(2) {
        secret.push(secret::octet(pair).ok_or(KeyFault::Hex)?);
    }
    if secret.iter().all(|octet| Some(octet) == secret.first()) {
        return Err(KeyFault::Placeholder);
    }
    Ok(Some((id, secret)))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    const DIGITS: &str = "000102030405060708090a0b0c0d0e0f101112131415161718191A1B1C1D1E1F";

    fn parse(text: &str) -> Result<ProxyKeys, KeyError> {
        ProxyKeys::parse(Path::new("keys"), text.as_bytes())
    }

    fn file(content: &[u8], mode: u32) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("keys");
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        (dir, path)
    }

    #[test]
    fn keys_stand_one_a_line_between_comments_and_blank_lines() {
        let text = format!("# signs\n\n4294967295\t{DIGITS} # since May\r\n  \n 7  {DIGITS}{DIGITS}\n");
        let (_dir, path) = file(text.as_bytes(), 0o600);
        let keys = read_proxy_keys(&path).unwrap();
        let keys: Vec<(u32, &[u8])> = keys.iter().collect();
        let expected: [u8; 32] = std::array::from_fn(|i| i as u8);
        assert_eq!(keys, [(u32::MAX, &expected[..]), (7, &[expected, expected].concat())]);
    }

    #[test]
    fn a_line_that_is_not_a_key_is_named_with_its_remedy() {
        let other = DIGITS.replace("00", "ff");
        for (line, fault, remedy) in [
            (format!("{DIGITS}\n"), KeyFault::Form, "openssl rand"),
            (format!("2 {DIGITS} {DIGITS}"), KeyFault::Form, "openssl rand"),
            (format!("-1 {DIGITS}"), KeyFault::Id, "4294967295"),
            (format!("+1 {DIGITS}"), KeyFault::Id, "4294967295"),
            (format!("4294967296 {DIGITS}"), KeyFault::Id, "4294967295"),
            (format!("0x2 {DIGITS}"), KeyFault::Id, "4294967295"),
            (format!("2 {}", DIGITS.replace('a', "g")), KeyFault::Hex, "openssl rand"),
            (format!("2 {DIGITS}0"), KeyFault::Hex, "openssl rand"),
            (format!("2 {}", "é".repeat(32)), KeyFault::Hex, "openssl rand"),
            (format!("2 {}", &DIGITS[2..]), KeyFault::Length { octets: 31 }, "32 to 64"),
            (format!("2 {DIGITS}{DIGITS}00"), KeyFault::Length { octets: 65 }, "32 to 64"),
            (format!("2 {}", "a1".repeat(32)), KeyFault::Placeholder, "openssl rand"),
            (format!("1 {other}"), KeyFault::Twice { id: 1, first: 2 }, "of its own"),
        ] {
            let error = parse(&format!("# keys\n1 {DIGITS}\n{line}")).unwrap_err();
            assert!(matches!(error, KeyError::Line { line: 3, fault: found, .. } if found == fault), "{line}: {error}");
            let shown = error.to_string();
            assert!(shown.starts_with("proxy_keys.file: keys:3: ") && shown.contains(remedy), "{shown}");
            assert!(!shown.contains("0a0b0c"), "{shown}");
        }
    }

    #[test]
    fn a_file_without_a_key_or_with_too_many_is_refused() {
        for text in ["", "\n\n", "# none yet\n"] {
            assert!(matches!(parse(text), Err(KeyError::Empty { .. })), "{text:?}");
        }
        let many: String = (0..300).map(|id| format!("{id} {DIGITS}\n")).collect();
        let (_dir, path) = file(many.as_bytes(), 0o600);
        assert!(matches!(read_proxy_keys(&path), Err(KeyError::TooLong { .. })));
    }

    #[test]
    fn keys_that_anybody_else_can_access_are_refused() {
        for mode in [0o644, 0o640, 0o604, 0o620, 0o610, 0o602, 0o666] {
            let (_dir, path) = file(format!("1 {DIGITS}").as_bytes(), mode);
            let error = read_proxy_keys(&path).unwrap_err();
            assert!(error.to_string().contains(&format!("{mode:04o}")), "{error}");
            assert!(error.to_string().contains("chmod 600"), "{error}");
        }
        for mode in [0o600, 0o400] {
            let (_dir, path) = file(format!("1 {DIGITS}").as_bytes(), mode);
            assert!(read_proxy_keys(&path).is_ok());
        }
    }

    #[test]
    fn missing_files_and_directories_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(read_proxy_keys(dir.path()), Err(KeyError::NotAFile { .. })));
        assert!(matches!(read_proxy_keys(&dir.path().join("none")), Err(KeyError::Unreadable { .. })));
    }

    #[test]
    fn secrets_are_not_shown() {
        let keys = parse(&format!("7 {DIGITS}")).unwrap();
        assert_eq!(format!("{keys:?}"), "ProxyKeys([7])");
    }
}
