//! List files, as public blocklists come: one address, prefix or range of addresses a line.
//!
//! IPv4 and IPv6 mixed, `#` and `;` comments, blank lines, CRLF, a byte order mark; host bits below a prefix are dropped. What
//! cannot be understood is an error with its line: a list that silently loses lines protects less than it says.
//! The file is read in pieces, so memory is bounded by the prefixes it may have, not by its size.

use std::fmt;
use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;

use ipnet::{IpNet, Ipv4Net, Ipv4Subnets, Ipv6Net, Ipv6Subnets};

/// The greatest list file, in octets.
pub const MAX_LIST_OCTETS: u64 = 128 << 20;

/// The most prefixes of a list, each range counted as the prefixes that make it up.
pub const MAX_LIST_PREFIXES: usize = 1 << 22;

/// Broken lines that [`ListError`] shows; the rest is counted.
const SHOWN: usize = 10;

/// Longest excerpt of a line in a message, in characters.
const EXCERPT: usize = 80;

/// A longer line is no entry, whatever stands in it, unless it is a comment.
const MAX_ENTRY: usize = 1024;

const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// Why a list file gives no prefixes: the file's name and what is wrong with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListError {
    /// The file as it was named.
    pub file: String,
    /// What is wrong.
    pub problem: ListProblem,
}

/// What is wrong with a list file.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ListProblem {
    /// It cannot be opened or read.
    Unreadable(io::ErrorKind, String),
    /// It is no regular file.
    NotAFile,
    /// It is larger than [`MAX_LIST_OCTETS`].
    TooLarge,
    /// It has more than [`MAX_LIST_PREFIXES`].
    TooManyPrefixes,
    /// It has no prefix, and does not say that none is meant.
    Empty,
    /// `none` stands beside prefixes, at this line.
    NoneAmongOthers(usize),
    /// Lines that are no entries: the first ten in full, and how many there are in all.
    Lines {
        /// In file order; at least one.
        first: Vec<BrokenLine>,
        /// All of them, the first included.
        total: usize,
    },
}

/// A line that is no entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BrokenLine {
    /// From 1.
    pub line: usize,
    /// What stands there and what is wrong with it.
    pub found: String,
    /// What would be right.
    pub remedy: &'static str,
}

impl fmt::Display for ListError {
    /// Broken lines take a line each; without a newline at the end.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let file = &self.file;
        match &self.problem {
            ListProblem::Unreadable(kind, message) => {
                let remedy = match kind {
                    io::ErrorKind::NotFound => "correct the path, or put the list there",
                    io::ErrorKind::PermissionDenied => "let the user that sluice runs as read it",
                    _ => "make it readable",
                };
                write!(f, "{file}: {message}; {remedy}")
            }
            ListProblem::NotAFile => write!(f, "{file}: is not a regular file; name a file with one prefix a line"),
            ListProblem::TooLarge => {
                write!(f, "{file}: is larger than {} MiB; split it, or drop what it repeats", MAX_LIST_OCTETS >> 20)
            }
            ListProblem::TooManyPrefixes => write!(
                f,
                "{file}: has more than {MAX_LIST_PREFIXES} prefixes; join adjacent ones, or split it between several files"
            ),
            ListProblem::Empty => write!(
                f,
                "{file}: has no prefix, as after a failed download; fetch it again, or write the line none if that is meant"
            ),
            ListProblem::NoneAmongOthers(line) => {
                write!(f, "{file}:{line}: none stands beside other entries; remove one or the other")
            }
            ListProblem::Lines { first, total } => {
                for (i, broken) in first.iter().enumerate() {
                    let newline = if i > 0 { "\n" } else { "" };
                    write!(f, "{newline}{file}:{}: {}; {}", broken.line, broken.found, broken.remedy)?;
                }
                match total.saturating_sub(first.len()) {
                    0 => Ok(()),
                    1 => write!(f, "\n{file}: ... and 1 more line"),
                    more => write!(f, "\n{file}: ... and {more} more lines"),
                }
            }
        }
    }
}

impl std::error::Error for ListError {}

/// The prefixes of the list file at `path`, in its order, host bits dropped; none if its only entry is `none`.
///
/// # Errors
/// The file cannot be read, is too large, has too many prefixes or none, or has lines that are no entries.
pub fn read_list(path: &Path) -> Result<Vec<IpNet>, ListError> {
    let name = shown_path(path);
    let fail = |problem| ListError { file: name.clone(), problem };
    let unreadable = |e: io::Error| fail(ListProblem::Unreadable(e.kind(), plain(&e)));
    // Asked before opening: to open a pipe would wait for a writer.
    let about = std::fs::metadata(path).map_err(unreadable)?;
    if !about.is_file() {
        return Err(fail(ListProblem::NotAFile));
    }
    if about.len() > MAX_LIST_OCTETS {
        return Err(fail(ListProblem::TooLarge));
    }
    let file = File::open(path).map_err(unreadable)?;
    parse_list(&name, BufReader::with_capacity(1 << 16, file))
}

/// The prefixes of a list read from `reader`, as [`read_list`]; `name` is for messages.
///
/// # Errors
/// As [`read_list`].
pub fn parse_list(name: &str, reader: impl BufRead) -> Result<Vec<IpNet>, ListError> {
    let mut list = List::default();
    list.read(reader).and_then(|()| list.finish()).map_err(|problem| ListError { file: name.to_owned(), problem })
}

/// A path for messages: quoted when it holds what a terminal or a log would take amiss.
pub(super) fn shown_path(path: &Path) -> String {
    let text = path.to_string_lossy();
    if text.chars().any(char::is_control) { format!("{text:?}") } else { text.into_owned() }
}

/// What the system says, without the number it adds.
pub(super) fn plain(error: &io::Error) -> String {
    let text = error.to_string();
    let plain = text.split_once(" (os error").map_or(&*text, |(plain, _)| plain);
    let mut chars = plain.chars();
    chars.next().map_or_else(String::new, |first| first.to_lowercase().chain(chars).collect())
}

/// A list as far as it was read.
#[derive(Default)]
struct List {
    nets: Vec<IpNet>,
    line: usize,
    none: Option<usize>,
    broken: Vec<BrokenLine>,
    total_broken: usize,
}

impl List {
    fn read(&mut self, reader: impl BufRead) -> Result<(), ListProblem> {
        // One octet more tells a file that grew past the limit from one that ends there.
        let mut reader = reader.take(MAX_LIST_OCTETS + 1);
        // A line that does not lie whole in the reader's buffer is put together here, as far as an entry may reach.
        let mut partial: Vec<u8> = Vec::new();
        let mut cut = false;
        loop {
            let buffer = match reader.fill_buf() {
                Ok(buffer) => buffer,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(ListProblem::Unreadable(e.kind(), plain(&e))),
            };
            if buffer.is_empty() {
                break;
            }
            let consumed = buffer.len();
            let mut rest = buffer;
            while let Some(end) = rest.iter().position(|&octet| octet == b'\n') {
                let (line, after) = (&rest[..end], &rest[end + 1..]);
                if partial.is_empty() && !cut {
                    self.line(line, false)?;
                } else {
                    cut |= append(&mut partial, line);
                    self.line(&partial, cut)?;
                    partial.clear();
                    cut = false;
                }
                rest = after;
            }
            cut |= append(&mut partial, rest);
            reader.consume(consumed);
        }
        if reader.limit() == 0 {
            return Err(ListProblem::TooLarge);
        }
        if !partial.is_empty() { self.line(&partial, cut) } else { Ok(()) }
    }

    /// One line without its end; `cut` if only its beginning.
    fn line(&mut self, line: &[u8], cut: bool) -> Result<(), ListProblem> {
        self.line += 1;
        let line = if self.line == 1 { line.strip_prefix(BYTE_ORDER_MARK).unwrap_or(line) } else { line };
        let comment = line.iter().position(|&octet| octet == b'#' || octet == b';');
        let entry = line[..comment.unwrap_or(line.len())].trim_ascii();
        if entry.is_empty() && (comment.is_some() || !cut) {
            return Ok(());
        }
        if (cut && comment.is_none()) || entry.len() > MAX_ENTRY {
            self.broken(entry, "is no address or prefix", "write one address or prefix a line");
            return Ok(());
        }
        if let Some(net) = dotted_quad(entry) {
            return self.push(net.into());
        }
        if entry == b"none" {
            self.none.get_or_insert(self.line);
            return Ok(());
        }
        match parse_entry(entry) {
            Ok(Entry::Net(net)) => self.push(net),
            Ok(Entry::V4(subnets)) => subnets.into_iter().try_for_each(|net| self.push(net.into())),
            Ok(Entry::V6(subnets)) => subnets.into_iter().try_for_each(|net| self.push(net.into())),
            Err((what, remedy)) => {
                self.broken(entry, what, remedy);
                Ok(())
            }
        }
    }

    fn push(&mut self, net: IpNet) -> Result<(), ListProblem> {
        if self.nets.len() >= MAX_LIST_PREFIXES {
            return Err(ListProblem::TooManyPrefixes);
        }
        self.nets.push(net);
        Ok(())
    }

    fn broken(&mut self, entry: &[u8], what: &str, remedy: &'static str) {
        self.total_broken += 1;
        if self.broken.len() < SHOWN {
            self.broken.push(BrokenLine { line: self.line, found: format!("{} {what}", quoted(entry)), remedy });
        }
    }

    fn finish(&mut self) -> Result<Vec<IpNet>, ListProblem> {
        if self.total_broken > 0 {
            return Err(ListProblem::Lines { first: std::mem::take(&mut self.broken), total: self.total_broken });
        }
        match self.none {
            Some(line) if !self.nets.is_empty() => Err(ListProblem::NoneAmongOthers(line)),
            None if self.nets.is_empty() => Err(ListProblem::Empty),
            _ => Ok(std::mem::take(&mut self.nets)),
        }
    }
}

/// Appends what an entry may still hold; whether something was left off.
fn append(partial: &mut Vec<u8>, line: &[u8]) -> bool {
    // Blanks before an entry could fill the room; they are no part of it. The mark is kept for the line to strip.
    let line = if partial.is_empty() { line.trim_ascii_start() } else { line };
    let room = (MAX_ENTRY + 2).saturating_sub(partial.len());
    partial.extend_from_slice(&line[..line.len().min(room)]);
    line.len() > room
}

/// `octets` in double quotes, escaped, shortened.
fn quoted(octets: &[u8]) -> String {
    // An escaped character has four octets at most before it is escaped.
    let text = String::from_utf8_lossy(&octets[..octets.len().min(EXCERPT * 4 + 4)]);
    let mut shown: String = text.chars().take(EXCERPT).collect();
    if shown.len() < text.len() {
        shown.push_str("...");
    }
    format!("{shown:?}")
}

/// An IPv4 address or prefix in its usual form, which most lines of most lists are; `None` for anything else.
#[inline]
fn dotted_quad(entry: &[u8]) -> Option<Ipv4Net> {
    let mut rest = entry;
    let mut bits = 0u32;
    for place in 0..4 {
        let (number, after) = decimal(rest, 255)?;
        bits = bits << 8 | number;
        rest = if place < 3 { after.strip_prefix(b".")? } else { after };
    }
    let len = match rest {
        [] => 32,
        [b'/', digits @ ..] => match decimal(digits, 32)? {
            (len, []) => len as u8,
            _ => return None,
        },
        _ => return None,
    };
    Ipv4Net::new(Ipv4Addr::from(bits), len).ok().map(|net| net.trunc())
}

/// A number up to `max` of at most three digits without leading zeros, and what follows it.
#[inline]
fn decimal(octets: &[u8], max: u32) -> Option<(u32, &[u8])> {
    let digit = |octet: u8| octet.is_ascii_digit().then(|| u32::from(octet - b'0'));
    let (&first, mut rest) = octets.split_first()?;
    let mut number = digit(first)?;
    while let Some((&octet, after)) = rest.split_first() {
        let Some(next) = digit(octet) else { break };
        if number == 0 || number > 99 {
            return None;
        }
        number = number * 10 + next;
        rest = after;
    }
    (number <= max).then_some((number, rest))
}

/// What a line may hold.
enum Entry {
    Net(IpNet),
    V4(Ipv4Subnets),
    V6(Ipv6Subnets),
}

/// What is wrong with an entry, to follow it in a message, and what would be right.
type Wrong = (&'static str, &'static str);

const WRITE: &str =
    "write an address, a prefix or a range: 192.0.2.7, 192.0.2.0/24, 2001:db8::/32 or 192.0.2.1-192.0.2.9";

fn parse_entry(entry: &[u8]) -> Result<Entry, Wrong> {
    let no_entry: Wrong = ("is no address or prefix", WRITE);
    let text = std::str::from_utf8(entry).map_err(|_| no_entry)?;
    if let Some((first, last)) = text.split_once('-') {
        return range(first.trim(), last.trim());
    }
    let Some((addr, len)) = text.split_once('/') else {
        return match text.parse::<IpAddr>().map_err(|_| no_entry)? {
            IpAddr::V4(addr) => Ok(Entry::Net(Ipv4Net::from(addr).into())),
            IpAddr::V6(_) => prefix(text.parse().map_err(|_| no_entry)?, 128),
        };
    };
    let addr: IpAddr = addr.parse().map_err(|_| no_entry)?;
    if len.is_empty() || len.len() > 3 || !len.bytes().all(|octet| octet.is_ascii_digit()) {
        return Err(("has no prefix length after the slash", WRITE));
    }
    prefix(addr, len.parse().map_err(|_| no_entry)?)
}

fn prefix(addr: IpAddr, len: u16) -> Result<Entry, Wrong> {
    let len = u8::try_from(len).unwrap_or(u8::MAX);
    match addr {
        IpAddr::V4(addr) => match Ipv4Net::new(addr, len) {
            Ok(net) => Ok(Entry::Net(net.trunc().into())),
            Err(_) => Err(("has a prefix longer than an IPv4 address", "use /32 at most")),
        },
        IpAddr::V6(addr) => match Ipv6Net::new(addr, len) {
            Ok(_) if len >= 96 && addr.to_ipv4_mapped().is_some() => Err(MAPPED),
            Ok(net) => Ok(Entry::Net(net.trunc().into())),
            Err(_) => Err(("has a prefix longer than an IPv6 address", "use /128 at most")),
        },
    }
}

const MAPPED: Wrong = (
    "is an IPv4-mapped prefix, which holds no address of any packet",
    "write it as IPv4: 192.0.2.0/24 instead of ::ffff:192.0.2.0/120",
);

fn range(first: &str, last: &str) -> Result<Entry, Wrong> {
    let no_range: Wrong = ("is no range of addresses", "write the first and the last address: 192.0.2.1-192.0.2.9");
    let backwards: Wrong = ("ends before it starts", "write the lesser address first");
    match (first.parse().map_err(|_| no_range)?, last.parse().map_err(|_| no_range)?) {
        (IpAddr::V4(first), IpAddr::V4(last)) if first <= last => Ok(Entry::V4(Ipv4Subnets::new(first, last, 0))),
        (IpAddr::V6(first), IpAddr::V6(last)) if first <= last => {
            let is_mapped = |addr: std::net::Ipv6Addr| addr.to_ipv4_mapped().is_some();
            if is_mapped(first) || is_mapped(last) {
                return Err((
                    "ends in an IPv4-mapped address, which no packet has",
                    "write the range as IPv4 addresses",
                ));
            }
            Ok(Entry::V6(Ipv6Subnets::new(first, last, 0)))
        }
        (IpAddr::V4(_), IpAddr::V4(_)) | (IpAddr::V6(_), IpAddr::V6(_)) => Err(backwards),
        _ => Err(("mixes IPv4 and IPv6", "write both ends in the same family")),
    }
}
