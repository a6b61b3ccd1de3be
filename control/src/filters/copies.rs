//! The last good copies of sets and bans: what a start falls back on when a list was spoilt while the appliance was down.
//!
//! A copy is one text file in `runtime.state`, written whole beside the old one, then put in its place. Its name has the set's and a
//! hash of what the set is made of: a set that was defined anew has no copy yet, and appliances that share the directory share only
//! copies of equal sets.

use std::fmt::Write as _;
use std::fs::{self, DirBuilder, File};
use std::hash::{Hash, Hasher};
use std::io::{self, BufRead, BufReader, BufWriter, Write};
use std::net::IpAddr;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use siphasher::sip::SipHasher13;
use sluice_config::{Bans, Config, OnError, Set};
use sluice_filters::sets::AddressSet;

/// First line of a copy; the number is its form's.
const HEAD: &str = "# sluice: the last good copy of a set, form 1";

/// Where copies are kept.
#[derive(Debug)]
pub(super) struct Copies {
    pub(super) dir: PathBuf,
}

impl Copies {
    pub(super) fn of(config: &Config) -> Copies {
        Copies { dir: config.runtime.state.join("last-good") }
    }

    /// Whether copies are kept of a set: it has something that may be spoilt, and may fall back.
    pub(super) fn is_kept(set: &Set) -> bool {
        set.on_error != OnError::Refuse && (!set.files.is_empty() || set.geo.is_some())
    }

    /// The set's copy.
    pub(super) fn path(&self, set: &Set) -> PathBuf {
        let mut hasher = SipHasher13::new();
        set.prefixes.hash(&mut hasher);
        set.files.hash(&mut hasher);
        if let Some(geo) = &set.geo {
            geo.database.hash(&mut hasher);
            geo.countries.hash(&mut hasher);
            geo.asns.hash(&mut hasher);
        }
        self.dir.join(format!("set-{}-{:016x}", set.name, hasher.finish()))
    }

    /// The set as it was when it was good last, and when that was.
    ///
    /// # Errors
    /// There is no copy, or it is damaged.
    pub(super) fn read(&self, set: &Set) -> io::Result<(AddressSet, SystemTime)> {
        let file = File::open(self.path(set))?;
        let written = file.metadata()?.modified()?;
        read(BufReader::new(file)).map(|addresses| (addresses, written))
    }

    /// Keeps the set as it is now.
    ///
    /// # Errors
    /// The directory cannot be made or written.
    pub(super) fn write(&self, set: &Set, addresses: &AddressSet) -> io::Result<()> {
        self.put(&self.path(set), |out| write_to(out, addresses))
    }

    /// The copy of the file of bans, if it has one and may fall back.
    pub(super) fn of_bans(&self, bans: &Bans) -> Option<PathBuf> {
        let file = bans.file.as_ref().filter(|_| bans.on_error != OnError::Refuse)?;
        let mut hasher = SipHasher13::new();
        file.hash(&mut hasher);
        Some(self.dir.join(format!("bans-{:016x}", hasher.finish())))
    }

    /// Keeps the file of bans as it is now.
    ///
    /// # Errors
    /// The file cannot be read, or the directory not be made or written.
    pub(super) fn keep_bans(&self, bans: &Bans) -> io::Result<()> {
        let Some((copy, file)) = self.of_bans(bans).zip(bans.file.as_ref()) else { return Ok(()) };
        let mut file = File::open(file)?;
        self.put(&copy, |out| io::copy(&mut file, out).map(|_| ()))
    }

    fn put(&self, path: &Path, write: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>) -> io::Result<()> {
        DirBuilder::new().recursive(true).mode(0o700).create(&self.dir)?;
        let mut unfinished = path.as_os_str().to_owned();
        // Of several appliances, each has its own.
        let _ = write!(unfinished, ".{}", std::process::id());
        let written = File::create(&unfinished).and_then(|file| {
            let mut out = BufWriter::new(file);
            write(&mut out)?;
            out.into_inner()?.sync_all()?;
            fs::rename(&unfinished, path)
        });
        if written.is_err() {
            let _ = fs::remove_file(&unfinished);
        }
        written
    }
}

fn write_to(out: &mut impl Write, addresses: &AddressSet) -> io::Result<()> {
    writeln!(out, "{HEAD}")?;
    for (first, last) in addresses.v4_ranges() {
        writeln!(out, "{first}-{last}")?;
    }
    for (first, last) in addresses.v6_ranges() {
        writeln!(out, "{first}-{last}")?;
    }
    // Whoever reads sees that nothing is missing.
    writeln!(out, "end {}", addresses.ranges())
}

fn read(copy: impl BufRead) -> io::Result<AddressSet> {
    let damaged = || io::Error::new(io::ErrorKind::InvalidData, "the copy is damaged");
    let mut lines = copy.lines();
    if lines.next().transpose()?.as_deref() != Some(HEAD) {
        return Err(damaged());
    }
    let (mut v4, mut v6) = (Vec::new(), Vec::new());
    for line in lines {
        let line = line?;
        if let Some(ranges) = line.strip_prefix("end ") {
            return if ranges.parse() == Ok(v4.len() + v6.len()) {
                Ok(AddressSet::from_ranges(v4, v6))
            } else {
                Err(damaged())
            };
        }
        let (first, last) = line.split_once('-').ok_or_else(damaged)?;
        match (first.parse().map_err(|_| damaged())?, last.parse().map_err(|_| damaged())?) {
            (IpAddr::V4(first), IpAddr::V4(last)) => v4.push((first.to_bits(), last.to_bits())),
            (IpAddr::V6(first), IpAddr::V6(last)) => v6.push((first.to_bits(), last.to_bits())),
            _ => return Err(damaged()),
        }
    }
    Err(damaged())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(text: &str) -> (Config, Set) {
        let text = format!(
            "[[port]]\nname = \"p\"\ndevice = \"net_null0\"\naddresses = [\"198.51.100.2/24\"]\n[[service]]\nname = \"web\"\n\
             listen = [\"198.51.100.10:443\"]\n[[service.upstream]]\naddress = \"198.51.100.5:80\"\n\
             [[set]]\nname = \"s\"\n{text}"
        );
        let config = sluice_config::parse("t", &text).unwrap();
        let set = config.sets[0].clone();
        (config, set)
    }

    fn addresses() -> AddressSet {
        let nets = ["192.0.2.0/24", "192.0.3.7/32", "2001:db8::/32"].map(|net| net.parse().unwrap());
        AddressSet::new(&nets)
    }

    #[test]
    fn a_copy_is_what_was_kept_and_of_this_definition_only() {
        let dir = tempfile::tempdir().unwrap();
        let (_, one) = set("files = \"/a\"");
        let copies = Copies { dir: dir.path().join("not/there") };
        assert_eq!(copies.read(&one).unwrap_err().kind(), io::ErrorKind::NotFound);
        copies.write(&one, &addresses()).unwrap();
        copies.write(&one, &addresses()).unwrap();
        assert_eq!(copies.read(&one).unwrap().0, addresses());
        assert_eq!(fs::read_dir(&copies.dir).unwrap().count(), 1, "nothing unfinished stays");
        for other in ["files = \"/b\"", "files = \"/a\"\nprefixes = [\"192.0.2.1\"]", "files = [\"/a\", \"/b\"]"] {
            assert!(copies.read(&set(other).1).is_err(), "{other}");
        }
    }

    #[test]
    fn a_copy_of_which_anything_is_missing_is_damaged() {
        let mut whole = Vec::new();
        write_to(&mut whole, &addresses()).unwrap();
        assert_eq!(read(&whole[..]).unwrap(), addresses());
        // Without its last line's end it says all there is to say.
        for len in 0..whole.len() - 1 {
            assert!(read(&whole[..len]).is_err(), "{:?}", String::from_utf8_lossy(&whole[..len]));
        }
    }

    #[test]
    fn an_empty_set_has_a_copy_too() {
        let mut whole = Vec::new();
        write_to(&mut whole, &AddressSet::default()).unwrap();
        assert!(read(&whole[..]).unwrap().is_empty());
    }

    #[test]
    fn what_cannot_be_spoilt_or_may_not_fall_back_has_no_copy() {
        assert!(!Copies::is_kept(&set("prefixes = [\"192.0.2.1\"]").1));
        assert!(!Copies::is_kept(&set("files = \"/a\"\non_error = \"refuse\"").1));
        assert!(Copies::is_kept(&set("files = \"/a\"\non_error = \"skip-line\"").1));
    }
}
