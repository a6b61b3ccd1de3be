//! Bans: who is shut out, until when, and why. The book is the Rust interface; the file is one of those who write into it.
//!
//! A ban is of an address or a prefix; the longest that holds a source counts. The file has one a line: `PREFIX UNTIL REASON...`, where
//! UNTIL is `never` or a time in RFC 3339 (`2026-12-01T00:00:00Z`), and the reason is free text and may be left out. `#` begins a comment.

use std::collections::HashMap;
use std::fmt::Debug;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use ipnet::IpNet;
use sluice_dataplane::{Busy, Orders};
use thiserror::Error;

use crate::stamp::Stamp;

/// Largest file, octets: some two million bans with their reasons.
const LARGEST: u64 = 256 << 20;
/// Characters kept of a reason.
const REASON: usize = 120;
/// How long workers may take to read their orders before one is given again, and how often that is tried.
const AGAIN: Duration = Duration::from_millis(1);
const TRIES: usize = 5_000;

/// One ban.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ban {
    /// Whom it shuts out.
    pub prefix: IpNet,
    /// Until when; none = for good.
    pub until: Option<SystemTime>,
    /// Why.
    pub reason: String,
}

/// Why a ban was not laid or lifted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum BanError {
    /// As many are in force as there is room for.
    #[error("{0} bans are in force, as many as there is room for; lift some, or raise bans.capacity")]
    Full(usize),
    /// The workers did not read their orders in time.
    #[error(transparent)]
    Busy(#[from] Busy),
}

/// Who carries bans out: the workers.
pub trait Enforcer: Debug + Send + Sync {
    /// Bans `prefix` until then.
    ///
    /// # Errors
    /// [`Busy`]: later.
    fn ban(&self, prefix: IpNet, until: SystemTime) -> Result<(), Busy>;
    /// Lifts the ban of exactly this prefix.
    ///
    /// # Errors
    /// [`Busy`]: later.
    fn unban(&self, prefix: IpNet) -> Result<(), Busy>;
}

impl Enforcer for Orders {
    fn ban(&self, prefix: IpNet, until: SystemTime) -> Result<(), Busy> {
        Orders::ban(self, prefix, until, 0)
    }

    fn unban(&self, prefix: IpNet) -> Result<(), Busy> {
        Orders::unban(self, prefix)
    }
}

/// Who laid a ban.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Origin {
    Caller,
    File,
}

/// All bans in force. Shared by whoever lays them.
#[derive(Debug)]
pub struct BanBook<E: Enforcer = Orders> {
    capacity: usize,
    enforcer: E,
    bans: Mutex<HashMap<IpNet, (Ban, Origin)>>,
}

/// For bans without an end: later than any clock of the workers reads.
fn end(until: Option<SystemTime>) -> SystemTime {
    until.unwrap_or_else(|| SystemTime::now() + Duration::from_secs(100 * 365 * 86_400))
}

impl<E: Enforcer> BanBook<E> {
    /// An empty book with room for `capacity` bans.
    #[must_use]
    pub fn new(capacity: u32, enforcer: E) -> BanBook<E> {
        BanBook { capacity: usize::try_from(capacity).unwrap_or(usize::MAX), enforcer, bans: Mutex::default() }
    }

    /// Lays a ban, in place of an earlier one of the same prefix. It is in force within a turn of the workers.
    ///
    /// # Errors
    /// [`BanError::Full`], or [`BanError::Busy`] when the workers do not answer; nothing has changed then.
    pub fn ban(&self, ban: Ban) -> Result<(), BanError> {
        self.lay(ban, Origin::Caller)
    }

    /// Lifts the ban of exactly this prefix; whether there was one.
    ///
    /// # Errors
    /// [`BanError::Busy`] when the workers do not answer; the ban is in force still.
    pub fn unban(&self, prefix: IpNet) -> Result<bool, BanError> {
        let prefix = prefix.trunc();
        let mut bans = self.lock();
        if !bans.contains_key(&prefix) {
            return Ok(false);
        }
        patiently(|| self.enforcer.unban(prefix))?;
        bans.remove(&prefix);
        Ok(true)
    }

    /// The bans in force, in no order.
    #[must_use]
    pub fn list(&self) -> Vec<Ban> {
        let now = SystemTime::now();
        let bans = self.lock();
        bans.values().map(|(ban, _)| ban).filter(|ban| ban.until.is_none_or(|until| until > now)).cloned().collect()
    }

    /// Forgets what has run out; the workers do so by themselves.
    pub fn sweep(&self) {
        let now = SystemTime::now();
        self.lock().retain(|_, (ban, _)| ban.until.is_none_or(|until| until > now));
    }

    fn lay(&self, ban: Ban, origin: Origin) -> Result<(), BanError> {
        let ban = Ban { prefix: ban.prefix.trunc(), ..ban };
        let mut bans = self.lock();
        if bans.len() >= self.capacity && !bans.contains_key(&ban.prefix) {
            return Err(BanError::Full(bans.len()));
        }
        patiently(|| self.enforcer.ban(ban.prefix, end(ban.until)))?;
        bans.insert(ban.prefix, (ban, origin));
        Ok(())
    }

    /// Makes the file's bans what `wanted` are: the rest of those it laid is lifted. Returns how many were laid and lifted.
    fn adopt(&self, wanted: Vec<Ban>) -> Result<(usize, usize), BanError> {
        let gone: Vec<IpNet> = {
            let keep: std::collections::HashSet<IpNet> = wanted.iter().map(|ban| ban.prefix).collect();
            let bans = self.lock();
            let ours = bans.iter().filter(|(_, (_, origin))| *origin == Origin::File);
            ours.map(|(prefix, _)| *prefix).filter(|prefix| !keep.contains(prefix)).collect()
        };
        for prefix in &gone {
            self.unban(*prefix)?;
        }
        let mut laid = 0;
        for ban in wanted {
            if self.lock().get(&ban.prefix).is_none_or(|(known, _)| *known != ban) {
                self.lay(ban, Origin::File)?;
                laid += 1;
            }
        }
        Ok((laid, gone.len()))
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<IpNet, (Ban, Origin)>> {
        self.bans.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Gives an order until the workers have room for it.
fn patiently(order: impl Fn() -> Result<(), Busy>) -> Result<(), Busy> {
    for _ in 0..TRIES {
        if order().is_ok() {
            return Ok(());
        }
        std::thread::sleep(AGAIN);
    }
    order()
}

/// What is wrong with a file of bans.
#[derive(Debug, Error)]
pub enum BanFileError {
    /// It cannot be read.
    #[error("bans.file: {}: {source}; name a file that sluice may read", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// It is too large.
    #[error("bans.file: {} is larger than {} MiB; remove bans that have run out", path.display(), LARGEST >> 20)]
    TooLarge {
        /// The file.
        path: PathBuf,
    },
    /// A line is not a ban.
    #[error("bans.file: {}:{line}: {found}; write PREFIX UNTIL REASON, as in \"192.0.2.7 2026-12-01T00:00:00Z scanner\"", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// From 1.
        line: usize,
        /// What stands there.
        found: String,
    },
}

/// Reads a file of bans. Of several bans of one prefix the last counts.
///
/// # Errors
/// Names the file and the first line that is not a ban.
pub fn read_bans(path: &Path) -> Result<Vec<Ban>, BanFileError> {
    let unreadable = |source| BanFileError::Unreadable { path: path.to_owned(), source };
    if std::fs::metadata(path).map_err(unreadable)?.len() > LARGEST {
        return Err(BanFileError::TooLarge { path: path.to_owned() });
    }
    let octets = std::fs::read(path).map_err(unreadable)?;
    let mut bans: HashMap<IpNet, Ban> = HashMap::new();
    for (number, line) in octets.split(|octet| *octet == b'\n').enumerate() {
        let text = String::from_utf8_lossy(line);
        let text = text.split('#').next().unwrap_or_default().trim();
        if text.is_empty() {
            continue;
        }
        let ban = parse(text).map_err(|found| BanFileError::Line { path: path.to_owned(), line: number + 1, found })?;
        bans.insert(ban.prefix, ban);
    }
    Ok(bans.into_values().collect())
}

fn parse(text: &str) -> Result<Ban, String> {
    let shown = |text: &str| format!("{:?}", text.chars().take(60).collect::<String>());
    let mut words = text.splitn(3, char::is_whitespace);
    let (prefix, until) = (words.next().unwrap_or_default(), words.next().unwrap_or_default().trim());
    let reason: String = words.next().unwrap_or_default().trim().chars().take(REASON).collect();
    let prefix: IpNet = prefix
        .parse()
        .or_else(|_| prefix.parse::<std::net::IpAddr>().map(IpNet::from))
        .map_err(|_| format!("{} is no address or prefix", shown(prefix)))?;
    let until = match until {
        "" => return Err(format!("{} lacks the time at which the ban ends", shown(text))),
        "never" => None,
        time => Some(humantime::parse_rfc3339_weak(time).map_err(|_| format!("{} is no time", shown(time)))?),
    };
    Ok(Ban { prefix: prefix.trunc(), until, reason })
}

/// The file of bans as it was last seen.
pub(super) struct BanFile<E: Enforcer = Orders> {
    path: PathBuf,
    book: Arc<BanBook<E>>,
    /// None before the first look.
    seen: Option<Result<Stamp, io::ErrorKind>>,
}

impl<E: Enforcer> BanFile<E> {
    pub(super) fn new(path: PathBuf, book: Arc<BanBook<E>>) -> BanFile<E> {
        BanFile { path, book, seen: None }
    }

    /// Reads the file if it is not as it was.
    pub(super) fn look(&mut self) {
        self.book.sweep();
        let stamp = Stamp::of(&self.path);
        if self.seen.replace(stamp) == Some(stamp) {
            return;
        }
        let now = SystemTime::now();
        let current = |ban: &Ban| ban.until.is_none_or(|until| until > now);
        let result = read_bans(&self.path).map(|bans| self.book.adopt(bans.into_iter().filter(current).collect()));
        match result {
            Ok(Ok((laid, lifted))) => tracing::info!(laid, lifted, "the file of bans is in force"),
            Ok(Err(error)) => {
                // Looked at again in a second.
                self.seen = None;
                tracing::warn!(%error, "not all bans of the file are in force");
            }
            Err(error) => tracing::warn!(%error, "the bans stay as they were"),
        }
    }
}
