//! Bans: who is shut out, until when, and why. The book is the Rust interface; the file is one of those who write into it.
//!
//! A ban is of an address or a prefix; the longest that holds a source counts. The file has one a line: `PREFIX UNTIL REASON...`, where
//! UNTIL is `never` or a time in RFC 3339 (`2026-12-01T00:00:00Z`), and the reason is free text and may be left out. `#` begins a comment.
//!
//! Bans end by the wall clock, here as at the workers. Who sets it forward ends bans early; what ended while it was ahead by mistake is
//! laid again from the file when it is put right.

use std::collections::{HashMap, HashSet};
use std::fmt::Debug;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ipnet::IpNet;
use sluice_config::{Bans, Config, OnError, PrefixError, Shortest, read_prefix};
use sluice_dataplane::{Busy, Orders};
use sluice_filters::counter::Counter;
use sluice_filters::sets::Lines;
use thiserror::Error;

use super::copies::Copies;
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
    /// It would shut out more than a ban may.
    #[error("{prefix} {wrong}; {}", wrong.remedy())]
    TooWide {
        /// What it would shut out.
        prefix: IpNet,
        /// Why it may not.
        wrong: PrefixError,
    },
    /// The workers did not read their orders in time.
    #[error(transparent)]
    Busy(#[from] Busy),
}

/// Who carries bans out: the workers.
pub trait Enforcer: Debug + Send + Sync {
    /// The wall clock by which they end bans.
    fn now(&self) -> SystemTime;
    /// How often that was set since the start.
    fn clock_steps(&self) -> u64;
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
    fn now(&self) -> SystemTime {
        self.clock().wall_clock(self.clock().now())
    }

    fn clock_steps(&self) -> u64 {
        self.clock().steps()
    }

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

/// What is known of the file of bans.
#[derive(Debug, Default)]
pub struct BanGauges {
    /// How many of its bans had no room.
    pub refused: Counter,
    /// 1 while the bans are not what the file is, since it cannot be used.
    pub stale: Counter,
}

/// All bans in force. Shared by whoever lays them.
#[derive(Debug)]
pub struct BanBook<E: Enforcer = Orders> {
    capacity: usize,
    shortest: Shortest,
    enforcer: E,
    gauges: Arc<BanGauges>,
    bans: Mutex<HashMap<IpNet, (Ban, Origin)>>,
}

/// For bans without an end: later than any clock of the workers reads.
fn end(until: Option<SystemTime>) -> SystemTime {
    until.unwrap_or(UNIX_EPOCH + Duration::from_micros(u64::MAX))
}

impl<E: Enforcer> BanBook<E> {
    /// An empty book for what `config` allows.
    #[must_use]
    pub fn new(config: &Bans, enforcer: E) -> BanBook<E> {
        let capacity = usize::try_from(config.capacity).unwrap_or(usize::MAX);
        BanBook { capacity, shortest: config.shortest, enforcer, gauges: Arc::default(), bans: Mutex::default() }
    }

    /// What is known of its file.
    #[must_use]
    pub fn gauges(&self) -> Arc<BanGauges> {
        Arc::clone(&self.gauges)
    }

    /// Lays a ban, in place of an earlier one of the same prefix. It is in force within a turn of the workers.
    ///
    /// # Errors
    /// [`BanError::Full`], [`BanError::TooWide`], or [`BanError::Busy`] when the workers do not answer; nothing has changed then.
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
        let now = self.enforcer.now();
        let bans = self.lock();
        bans.values().map(|(ban, _)| ban).filter(|ban| ban.until.is_none_or(|until| until > now)).cloned().collect()
    }

    /// Forgets what has run out, and has the workers forget it: by themselves they might do so too late for another ban to find room.
    pub fn sweep(&self) {
        let now = self.enforcer.now();
        let ended = |ban: &Ban| ban.until.is_some_and(|until| until <= now);
        let prefixes: Vec<IpNet> =
            self.lock().iter().filter(|(_, (ban, _))| ended(ban)).map(|(prefix, _)| *prefix).collect();
        for prefix in prefixes {
            let mut bans = self.lock();
            // It may have been laid anew since.
            if bans.get(&prefix).is_some_and(|(ban, _)| ended(ban)) {
                if patiently(|| self.enforcer.unban(prefix)).is_err() {
                    return;
                }
                bans.remove(&prefix);
            }
        }
    }

    /// Lays again what the book holds: workers may have cleared away what the clock, since set back, says is in force.
    fn renew(&self) -> Result<(), Busy> {
        let held: Vec<(IpNet, Option<SystemTime>)> = self
            .lock()
            .iter()
            .map(|(prefix, (ban, _))| (*prefix, ban.until))
            .filter(|(_, until)| until.is_some())
            .collect();
        for (prefix, until) in held {
            let bans = self.lock();
            // It may have been lifted or laid anew since.
            if bans.get(&prefix).is_some_and(|(ban, _)| ban.until == until) {
                patiently(|| self.enforcer.ban(prefix, end(until)))?;
            }
        }
        Ok(())
    }

    fn has_room(&self) -> bool {
        self.lock().len() < self.capacity
    }

    fn lay(&self, ban: Ban, origin: Origin) -> Result<(), BanError> {
        let ban = Ban { prefix: ban.prefix.trunc(), ..ban };
        if let Some(least) = self.shortest.refuses(ban.prefix) {
            return Err(BanError::TooWide { prefix: ban.prefix, wrong: PrefixError::TooShort(least) });
        }
        let mut bans = self.lock();
        if bans.len() >= self.capacity && !bans.contains_key(&ban.prefix) {
            return Err(BanError::Full(bans.len()));
        }
        patiently(|| self.enforcer.ban(ban.prefix, end(ban.until)))?;
        bans.insert(ban.prefix, (ban, origin));
        Ok(())
    }

    /// Makes the file's bans what `wanted` are: the rest of those it laid is lifted. What there is no room for is told.
    fn adopt(&self, wanted: Vec<Ban>) -> Result<Adopted, BanError> {
        let gone: Vec<IpNet> = {
            let keep: HashSet<IpNet> = wanted.iter().map(|ban| ban.prefix).collect();
            let bans = self.lock();
            let ours = bans.iter().filter(|(_, (_, origin))| *origin == Origin::File);
            ours.map(|(prefix, _)| *prefix).filter(|prefix| !keep.contains(prefix)).collect()
        };
        for prefix in &gone {
            self.unban(*prefix)?;
        }
        let mut adopted = Adopted { lifted: gone.len(), ..Adopted::default() };
        for ban in wanted {
            if self.lock().get(&ban.prefix).is_none_or(|(known, _)| *known != ban) {
                match self.lay(ban, Origin::File) {
                    Ok(()) => adopted.laid += 1,
                    Err(error @ BanError::Full(_)) => {
                        adopted.refused += 1;
                        adopted.full = Some(error);
                    }
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(adopted)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<IpNet, (Ban, Origin)>> {
        self.bans.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What became of a file's bans.
#[derive(Debug, Default)]
struct Adopted {
    laid: usize,
    lifted: usize,
    /// For want of room.
    refused: u64,
    full: Option<BanError>,
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

/// A file of bans as it was read.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct ReadBans {
    /// In no order.
    pub bans: Vec<Ban>,
    /// Lines that were skipped, and prefixes with host bits: what an operator should be told.
    pub warnings: Vec<String>,
    /// They are those of the last good copy.
    pub copied: bool,
}

/// Reads the file of bans that `config` names, or its last good copy if it cannot be used. There is none without one, nor before it
/// exists: it may come later.
///
/// # Errors
/// As [`read_bans`], if there is no copy either.
pub fn configured_bans(config: &Config) -> Result<ReadBans, BanFileError> {
    let there = |bans: &&Bans| bans.file.as_ref().is_some_and(|file| file.exists());
    config
        .bans
        .as_ref()
        .filter(there)
        .map_or_else(|| Ok(ReadBans::default()), |bans| read_or_copy(bans, &Copies::of(config)))
}

fn read_or_copy(bans: &Bans, copies: &Copies) -> Result<ReadBans, BanFileError> {
    let Some(file) = &bans.file else { return Ok(ReadBans::default()) };
    read_bans(file, bans).or_else(|error| {
        // Whoever took the file away wants no bans.
        if !file.exists() {
            return Err(error);
        }
        let copy = copies.of_bans(bans).and_then(|copy| Some((read_bans(&copy, bans).ok()?, copy)));
        let Some((mut read, copy)) = copy else { return Err(error) };
        read.warnings = vec![format!("{error} (until then the bans are what they were last, from {})", copy.display())];
        read.copied = true;
        Ok(read)
    })
}

/// Reads a file of bans as `config` says. Of several bans of one prefix the last counts.
///
/// # Errors
/// Names the file and the first line that is not a ban, if such are not to be skipped.
pub fn read_bans(path: &Path, config: &Bans) -> Result<ReadBans, BanFileError> {
    let unreadable = |source| BanFileError::Unreadable { path: path.to_owned(), source };
    // Asked before opening: to open a pipe would wait for a writer.
    let about = std::fs::metadata(path).map_err(unreadable)?;
    if !about.is_file() {
        return Err(unreadable(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file")));
    }
    let mut octets = Vec::new();
    File::open(path).map_err(unreadable)?.take(LARGEST + 1).read_to_end(&mut octets).map_err(unreadable)?;
    if about.len().max(octets.len() as u64) > LARGEST {
        return Err(BanFileError::TooLarge { path: path.to_owned() });
    }
    let mut bans: HashMap<IpNet, Ban> = HashMap::new();
    let (mut skipped, mut host_bits) = (Lines::default(), Lines::default());
    for (line, text) in (1..).zip(octets.split(|octet| *octet == b'\n')) {
        let text = String::from_utf8_lossy(text);
        let text = text.split('#').next().unwrap_or_default().trim();
        if text.is_empty() {
            continue;
        }
        match parse(text, config.shortest) {
            Ok((ban, warning)) => {
                if let Some((found, remedy)) = warning {
                    host_bits.note(line, || format!("{} {found}", shown(first_word(text).0)), || remedy);
                }
                bans.insert(ban.prefix, ban);
            }
            Err(found) if config.on_error == OnError::SkipLine => {
                skipped.note(line, || found, || "it is skipped".to_owned());
            }
            Err(found) => return Err(BanFileError::Line { path: path.to_owned(), line, found }),
        }
    }
    let file = path.display().to_string();
    let warnings = skipped.messages(&file).chain(host_bits.messages(&file)).map(|line| format!("bans.file: {line}"));
    Ok(ReadBans { warnings: warnings.collect(), bans: bans.into_values().collect(), copied: false })
}

fn shown(text: &str) -> String {
    format!("{:?}", text.chars().take(60).collect::<String>())
}

/// A line's ban, and what to say of its prefix; or what is wrong with it.
fn parse(text: &str, shortest: Shortest) -> Result<(Ban, Option<(String, String)>), String> {
    let (prefix, rest) = first_word(text);
    let (until, reason) = first_word(rest);
    let reason: String = reason.chars().take(REASON).collect();
    let read = read_prefix(prefix)
        .and_then(|read| shortest.refuses(read.net).map_or(Ok(read), |least| Err(PrefixError::TooShort(least))));
    let read = read.map_err(|error| match error {
        PrefixError::TooShort(_) => format!("{} {error}: {}", shown(prefix), error.remedy()),
        error => format!("{} {error}", shown(prefix)),
    })?;
    let until = match until {
        "" => return Err(format!("{} lacks the time at which the ban ends", shown(text))),
        "never" => None,
        time => Some(humantime::parse_rfc3339_weak(time).map_err(|_| format!("{} is no time", shown(time)))?),
    };
    Ok((Ban { prefix: read.net, until, reason }, read.warning()))
}

/// The first word of a text that begins with one, and what follows the blanks behind it.
fn first_word(text: &str) -> (&str, &str) {
    let (word, rest) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
    (word, rest.trim_start())
}

/// The file of bans as it was last seen.
pub(super) struct BanFile<E: Enforcer = Orders> {
    config: Bans,
    path: PathBuf,
    copies: Copies,
    book: Arc<BanBook<E>>,
    /// None before the first look, and when it is to be read again.
    seen: Option<Result<Stamp, io::ErrorKind>>,
    /// There was no room for so many of its bans.
    refused: u64,
    /// How often the clock had been set when bans were last laid by it.
    clock_steps: u64,
}

impl<E: Enforcer> BanFile<E> {
    /// None without a file.
    pub(super) fn new(config: &Bans, copies: Copies, book: Arc<BanBook<E>>) -> Option<BanFile<E>> {
        let (clock_steps, path) = (book.enforcer.clock_steps(), config.file.clone()?);
        Some(BanFile { config: config.clone(), path, copies, book, seen: None, refused: 0, clock_steps })
    }

    /// Reads the file if it is not as it was.
    pub(super) fn look(&mut self) {
        self.book.sweep();
        let clock_steps = self.book.enforcer.clock_steps();
        if clock_steps != self.clock_steps {
            // What had ended has not when it was set back, here or at the workers.
            self.seen = None;
            match self.book.renew() {
                Ok(()) => self.clock_steps = clock_steps,
                Err(error) => {
                    tracing::warn!(%error, "the clock was set, and not all bans are in force again; tried again in a second");
                }
            }
        }
        if self.refused > 0 && self.book.has_room() {
            self.seen = None;
        }
        let stamp = Stamp::of(&self.path);
        let first = self.seen.is_none();
        if self.seen.replace(stamp) == Some(stamp) {
            return;
        }
        // Once it runs, what is in force is what was good last.
        let read = if first { read_or_copy(&self.config, &self.copies) } else { read_bans(&self.path, &self.config) };
        match read {
            Ok(read) => self.adopt(read),
            Err(error) => {
                // A file that is not there says nothing.
                if stamp != Err(io::ErrorKind::NotFound) {
                    self.book.gauges.stale.set(1);
                }
                tracing::warn!(%error, "the bans stay as they were");
            }
        }
    }

    fn adopt(&mut self, read: ReadBans) {
        for warning in &read.warnings {
            tracing::warn!("{warning}");
        }
        let now = self.book.enforcer.now();
        let current = |ban: &Ban| ban.until.is_none_or(|until| until > now);
        let adopted = self.book.adopt(read.bans.into_iter().filter(current).collect());
        self.book.gauges.stale.set(u64::from(read.copied));
        match adopted {
            Ok(Adopted { laid, lifted, refused, full }) => {
                // A file that waits for room is read again and again: each ban counts once.
                self.book.gauges.refused.add(refused.saturating_sub(self.refused));
                self.refused = refused;
                match full {
                    None => tracing::info!(laid, lifted, "the file of bans is in force"),
                    Some(error) => tracing::warn!(%error, refused, "not all bans of the file are in force"),
                }
            }
            Err(error) => {
                // Looked at again in a second.
                self.seen = None;
                tracing::warn!(%error, "not all bans of the file are in force");
            }
        }
        if !read.copied
            && let Err(error) = self.copies.keep_bans(&self.config)
        {
            tracing::warn!(%error, "no copy of the bans is kept, so no start without the file; let sluice write to runtime.state");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// Workers that note their orders, and may be busy.
    #[derive(Debug)]
    struct Notes {
        orders: Mutex<Vec<String>>,
        busy: Mutex<usize>,
        /// And how often it was set.
        now: Mutex<(SystemTime, u64)>,
    }

    /// When the tests begin: 2026-01-02T03:04:05Z.
    fn begin() -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(1_767_323_045)
    }

    impl Notes {
        fn take(&self, order: String) -> Result<(), Busy> {
            let mut busy = self.busy.lock().unwrap();
            if *busy > 0 {
                *busy -= 1;
                return Err(Busy);
            }
            self.orders.lock().unwrap().push(order);
            Ok(())
        }
    }

    impl Enforcer for Arc<Notes> {
        fn now(&self) -> SystemTime {
            self.now.lock().unwrap().0
        }

        fn clock_steps(&self) -> u64 {
            self.now.lock().unwrap().1
        }

        fn ban(&self, prefix: IpNet, _: SystemTime) -> Result<(), Busy> {
            self.take(format!("ban {prefix}"))
        }

        fn unban(&self, prefix: IpNet) -> Result<(), Busy> {
            self.take(format!("unban {prefix}"))
        }
    }

    fn book(capacity: u32) -> (Arc<BanBook<Arc<Notes>>>, Arc<Notes>) {
        let notes = Arc::new(Notes { orders: Mutex::default(), busy: Mutex::default(), now: Mutex::new((begin(), 0)) });
        (Arc::new(BanBook::new(&Bans { capacity, ..limits(None) }, notes.clone())), notes)
    }

    fn limits(file: Option<PathBuf>) -> Bans {
        Bans { file, on_error: OnError::KeepLast, shortest: Shortest::default(), capacity: 10 }
    }

    /// A file's copies lie beside it.
    fn file_of(path: &Path, book: &Arc<BanBook<Arc<Notes>>>) -> BanFile<Arc<Notes>> {
        let copies = Copies { dir: path.with_extension("copies") };
        BanFile::new(&limits(Some(path.to_owned())), copies, book.clone()).unwrap()
    }

    fn read_file(path: &Path) -> Result<Vec<Ban>, BanFileError> {
        read_bans(path, &limits(None)).map(|read| read.bans)
    }

    fn orders(notes: &Notes) -> Vec<String> {
        let mut orders = std::mem::take(&mut *notes.orders.lock().unwrap());
        orders.sort();
        orders
    }

    fn ban(prefix: &str) -> Ban {
        Ban { prefix: prefix.parse().unwrap(), until: None, reason: "test".into() }
    }

    #[test]
    fn bans_are_laid_listed_and_lifted() {
        let (book, notes) = book(10);
        book.ban(ban("192.0.2.77/24")).unwrap();
        assert_eq!(book.list(), [ban("192.0.2.0/24")]);
        assert_eq!(book.unban("192.0.2.0/24".parse().unwrap()), Ok(true));
        assert_eq!(book.unban("192.0.2.0/24".parse().unwrap()), Ok(false));
        assert_eq!(orders(&notes), ["ban 192.0.2.0/24", "unban 192.0.2.0/24"]);
        assert!(book.list().is_empty());
    }

    #[test]
    fn no_more_bans_are_laid_than_there_is_room_for() {
        let (book, notes) = book(1);
        book.ban(ban("192.0.2.0/24")).unwrap();
        assert_eq!(book.ban(ban("192.0.3.0/24")), Err(BanError::Full(1)));
        book.ban(ban("192.0.2.0/24")).unwrap();
        assert_eq!(orders(&notes).len(), 2);
    }

    #[test]
    fn bans_that_have_ended_are_neither_listed_nor_in_the_way() {
        let (book, _) = book(1);
        book.ban(Ban { until: Some(begin() - Duration::from_secs(1)), ..ban("192.0.2.0/24") }).unwrap();
        assert!(book.list().is_empty());
        book.sweep();
        book.ban(ban("192.0.3.0/24")).unwrap();
    }

    #[test]
    fn workers_forget_a_ban_that_has_ended_before_another_takes_its_place() {
        let (book, notes) = book(1);
        book.ban(Ban { until: Some(begin() - Duration::from_secs(1)), ..ban("192.0.2.0/24") }).unwrap();
        book.sweep();
        book.ban(ban("192.0.3.0/24")).unwrap();
        assert_eq!(*notes.orders.lock().unwrap(), ["ban 192.0.2.0/24", "unban 192.0.2.0/24", "ban 192.0.3.0/24"]);
    }

    #[test]
    fn a_file_with_more_bans_than_there_is_room_for_is_read_again_when_there_is_room() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("bans");
        fs::write(&path, "192.0.2.1 never\n192.0.2.2 never\n").unwrap();
        let (book, notes) = book(2);
        book.ban(ban("198.18.0.0/15")).unwrap();
        let mut file = file_of(&path, &book);
        file.look();
        assert_eq!(book.gauges.refused.get(), 1);
        assert_eq!((orders(&notes).len(), file.seen.is_some()), (2, true));
        file.look();
        assert_eq!(orders(&notes), [""; 0]);
        book.unban("198.18.0.0/15".parse().unwrap()).unwrap();
        file.look();
        assert_eq!(orders(&notes).len(), 2, "one lifted, one laid");
        assert_eq!(book.list().len(), 2);
    }

    /// An hour forth by mistake, and back: each way the file's bans are those that the clock says are in force.
    #[test]
    fn a_clock_that_is_set_ends_bans_and_one_that_is_set_back_has_them_laid_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("bans");
        fs::write(&path, "192.0.2.1 2026-01-02T03:34:05Z\n192.0.2.2 2026-01-02T04:34:05Z\n192.0.2.3 never\n").unwrap();
        let (book, notes) = book(10);
        let mut file = file_of(&path, &book);
        let at = |minutes: u64| begin() + Duration::from_secs(60 * minutes);
        file.look();
        assert_eq!(orders(&notes), ["ban 192.0.2.1/32", "ban 192.0.2.2/32", "ban 192.0.2.3/32"]);
        *notes.now.lock().unwrap() = (at(60), 1);
        file.look();
        assert_eq!(orders(&notes), ["ban 192.0.2.2/32", "unban 192.0.2.1/32"]);
        assert_eq!(book.list().len(), 2);
        *notes.now.lock().unwrap() = (at(1), 2);
        file.look();
        // What workers may have cleared away, and what the file has; what never ends was never in doubt.
        assert_eq!(orders(&notes), ["ban 192.0.2.1/32", "ban 192.0.2.2/32"]);
        assert_eq!(book.list().len(), 3);
        file.look();
        assert_eq!(orders(&notes), [""; 0]);
    }

    #[test]
    fn busy_workers_are_asked_again() {
        let (book, notes) = book(1);
        *notes.busy.lock().unwrap() = 3;
        book.ban(ban("192.0.2.0/24")).unwrap();
        assert_eq!(orders(&notes), ["ban 192.0.2.0/24"]);
    }

    #[test]
    fn a_file_has_a_ban_a_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("bans");
        fs::write(
            &path,
            "# by hand\n192.0.2.7 never\n\n  2001:db8:7::/48\t2026-12-01T00:00:00Z   many words # why\r\n192.0.2.7/32 never again\n",
        )
        .unwrap();
        let mut bans = read_file(&path).unwrap();
        bans.sort_by_key(|ban| ban.prefix);
        let until = humantime::parse_rfc3339("2026-12-01T00:00:00Z").unwrap();
        assert_eq!(
            bans,
            [
                Ban { reason: "again".into(), ..ban("192.0.2.7/32") },
                Ban { prefix: "2001:db8:7::/48".parse().unwrap(), until: Some(until), reason: "many words".into() },
            ]
        );
    }

    #[test]
    fn columns_may_stand_apart_by_any_blanks() {
        for line in ["192.0.2.7 never why so", "192.0.2.7   never  why so", "192.0.2.7\t\tnever \twhy so"] {
            let wanted = (Ban { reason: "why so".into(), ..ban("192.0.2.7/32") }, None);
            assert_eq!(parse(line, Shortest::default()), Ok(wanted), "{line:?}");
        }
    }

    #[test]
    fn a_file_of_bans_without_an_end_is_refused_and_a_pipe_waits_for_nobody() {
        let error = read_file(Path::new("/dev/zero")).unwrap_err().to_string();
        assert!(error.contains("/dev/zero: not a regular file; name a file"), "{error}");
        let dir = tempfile::tempdir().unwrap();
        assert!(read_file(dir.path()).unwrap_err().to_string().contains("not a regular file"));
    }

    #[test]
    fn a_wrong_line_is_named_with_its_remedy() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("bans");
        for (line, found) in [
            ("192.0.2.300 never", "\"192.0.2.300\" is no address or prefix"),
            ("192.0.2.1", "\"192.0.2.1\" lacks the time"),
            ("::ffff:192.0.2.1 never", "\"::ffff:192.0.2.1\" is IPv4-mapped"),
            ("192.0.2.1 tomorrow", "\"tomorrow\" is no time"),
            ("0.0.0.0/0 never", "\"0.0.0.0/0\" holds more addresses than a prefix of 8 bits"),
            ("\u{1b}[2J never", "\"\\u{1b}[2J\" is no address"),
        ] {
            fs::write(&path, format!("192.0.2.7 never\n{line}\n")).unwrap();
            let error = read_file(&path).unwrap_err().to_string();
            let place = format!("bans.file: {}:2: {found}", path.display());
            assert!(error.starts_with(&place) && error.contains("; write PREFIX UNTIL"), "{error}");
        }
        assert!(read_file(&dir.path().join("none")).unwrap_err().to_string().contains("; name a file"));
    }

    #[test]
    fn a_changed_file_lays_what_is_new_and_lifts_what_is_gone_and_nothing_of_others() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("bans");
        let put = |text: &str| {
            let new = path.with_extension("new");
            fs::write(&new, text).unwrap();
            fs::rename(new, &path).unwrap();
        };
        let (book, notes) = book(100);
        book.ban(ban("198.18.0.0/15")).unwrap();
        let mut file = file_of(&path, &book);
        put("192.0.2.1 never\n192.0.2.2 never\n192.0.2.3 2020-01-01T00:00:00Z ended long ago\n");
        file.look();
        assert_eq!(orders(&notes), ["ban 192.0.2.1/32", "ban 192.0.2.2/32", "ban 198.18.0.0/15"]);
        file.look();
        assert_eq!(orders(&notes), [""; 0]);
        put("192.0.2.2 never\n2001:db8::/32 never\n");
        file.look();
        assert_eq!(orders(&notes), ["ban 2001:db8::/32", "unban 192.0.2.1/32"]);
        put("192.0.2.2 never\nnonsense\n");
        file.look();
        assert_eq!(orders(&notes), [""; 0], "a broken file changes nothing");
        fs::remove_file(&path).unwrap();
        file.look();
        assert_eq!((orders(&notes), book.list().len()), (vec![], 3), "neither does a missing one");
        put("");
        file.look();
        assert_eq!(orders(&notes), ["unban 192.0.2.2/32", "unban 2001:db8::/32"]);
        assert_eq!(book.list(), [ban("198.18.0.0/15")]);
    }

    #[test]
    fn a_file_of_bans_that_was_spoilt_starts_as_it_was_last_good() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("bans");
        fs::write(&path, "192.0.2.1 never\n").unwrap();
        let (book, _) = book(10);
        file_of(&path, &book).look();
        assert!(book.gauges.stale.get() == 0);
        fs::write(&path, "192.0.2.1 never\n<html>\n").unwrap();

        let (book, notes) = super::tests::book(10);
        let mut file = file_of(&path, &book);
        file.look();
        assert_eq!((orders(&notes), book.gauges.stale.get() == 1), (vec!["ban 192.0.2.1/32".to_owned()], true));
        fs::write(&path, "192.0.2.2 never\n").unwrap();
        file.look();
        assert_eq!((orders(&notes).len(), book.gauges.stale.get() == 1), (2, false));
        let refuse = Bans { on_error: OnError::Refuse, ..limits(Some(path.clone())) };
        fs::write(&path, "<html>\n").unwrap();
        assert!(read_or_copy(&refuse, &Copies { dir: path.with_extension("copies") }).is_err());
    }

    #[test]
    fn bans_whose_file_is_not_there_at_the_start_are_none_though_there_is_a_copy() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("bans");
        fs::write(&path, "192.0.2.1 never\n").unwrap();
        let (first, _) = book(10);
        file_of(&path, &first).look();
        fs::remove_file(&path).unwrap();
        let (second, notes) = book(10);
        file_of(&path, &second).look();
        assert_eq!((orders(&notes), second.gauges.stale.get()), (vec![], 0));
    }

    #[test]
    fn lines_that_are_no_bans_are_skipped_where_that_is_asked_and_told_with_host_bits() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("bans");
        fs::write(&path, "192.0.2.1/24 never\n<html>\n::/0 never\n192.0.3.1 never\n").unwrap();
        let skip = Bans { on_error: OnError::SkipLine, ..limits(None) };
        let read = read_bans(&path, &skip).unwrap();
        assert_eq!((read.bans.len(), read.warnings.len()), (2, 3), "{:?}", read.warnings);
        let place = format!("bans.file: {}", path.display());
        for (warning, wanted) in read.warnings.iter().zip([
            ":2: \"<html>\" is no address or prefix; it is skipped",
            ":3: \"::/0\" holds more addresses than a prefix of 19 bits",
            ":1: \"192.0.2.1/24\" has bits set after its first 24: it covers 192.0.2.0/24",
        ]) {
            assert!(warning.starts_with(&format!("{place}{wanted}")), "{warning}");
        }
    }

    #[test]
    fn a_ban_of_half_the_internet_is_refused_whoever_lays_it() {
        let (book, notes) = book(10);
        assert_eq!(
            book.ban(ban("0.0.0.0/0")),
            Err(BanError::TooWide { prefix: "0.0.0.0/0".parse().unwrap(), wrong: PrefixError::TooShort(8) })
        );
        let error = book.ban(ban("2000::/3")).unwrap_err().to_string();
        assert!(error.starts_with("2000::/3 holds more addresses than a prefix of 19 bits; write"), "{error}");
        assert_eq!(orders(&notes), [""; 0]);
    }
}
