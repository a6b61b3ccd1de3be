//! List files, as public blocklists come: one address, prefix or range of addresses a line.
//!
//! IPv4 and IPv6 mixed, `#` and `;` comments, blank lines, CRLF, a byte order mark; host bits below a prefix are dropped, and told.
//! What cannot be understood is an error with its line, or is skipped and told: a list that silently loses lines protects less than
//! it says.
//! The file is read in pieces, so memory is bounded by the prefixes it may have, not by its size.

use std::fmt;
use std::io::{self, BufRead, BufReader};
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;

use ipnet::{IpNet, Ipv4Net, Ipv4Subnets, Ipv6Subnets};
use sluice_config::{Prefix, PrefixError, Shortest, read_prefix};

use super::file::{self, FileProblem, quoted};

/// The greatest list file, in octets.
pub const MAX_LIST_OCTETS: u64 = 128 << 20;

/// The most prefixes of a list, each range counted as the prefixes that make it up.
pub const MAX_LIST_PREFIXES: usize = 1 << 22;

/// Broken lines that [`ListError`] shows; the rest is counted.
const SHOWN: usize = 10;

/// A line is no entry if it has more octets than this from the first that is not blank up to its end or comment.
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
    /// It cannot be used, whatever is in it.
    File(FileProblem),
    /// It has more than [`MAX_LIST_PREFIXES`].
    TooManyPrefixes,
    /// It has no prefix, and does not say that none is meant.
    Empty,
    /// `none` stands beside prefixes, at this line.
    NoneAmongOthers(usize),
    /// Lines that are no entries.
    Lines(Lines),
}

/// Lines of a list about which something is to be said: the first ten in full, and how many there are in all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lines {
    /// In file order.
    pub first: Vec<BrokenLine>,
    /// All of them, the first included.
    pub total: usize,
}

impl Lines {
    /// Notes a line, from 1: what stands there and what is wrong with it, and what would be right.
    pub fn note(&mut self, line: usize, found: impl FnOnce() -> String, remedy: impl FnOnce() -> String) {
        self.total = self.total.saturating_add(1);
        if self.first.len() < SHOWN {
            self.first.push(BrokenLine { line, found: found(), remedy: remedy() });
        }
    }

    /// A message for each that is shown, and one for the rest; `file` is what they call the file.
    pub fn messages<'a>(&'a self, file: &'a str) -> impl Iterator<Item = String> + 'a {
        let shown = self.first.iter().map(move |line| format!("{file}:{}: {}; {}", line.line, line.found, line.remedy));
        let rest = match self.total.saturating_sub(self.first.len()) {
            0 => None,
            1 => Some(format!("{file}: ... and 1 more line")),
            more => Some(format!("{file}: ... and {more} more lines")),
        };
        shown.chain(rest)
    }
}

/// How a list is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reading {
    /// The shortest prefixes that it may have.
    pub shortest: Shortest,
    /// Lines that are no entries are skipped.
    pub skip_broken: bool,
}

/// What a list says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct List {
    /// In its order, host bits clear; none if its only entry is `none`.
    pub nets: Vec<IpNet>,
    /// Lines that are no entries.
    pub skipped: Lines,
    /// Lines whose prefixes have host bits.
    pub host_bits: Lines,
}

/// A line that is no entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BrokenLine {
    /// From 1.
    pub line: usize,
    /// What stands there and what is wrong with it.
    pub found: String,
    /// What would be right.
    pub remedy: String,
}

impl fmt::Display for ListError {
    /// Broken lines take a line each; without a newline at the end.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let file = &self.file;
        match &self.problem {
            ListProblem::File(problem) => write!(f, "{file}: {problem}"),
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
            ListProblem::Lines(lines) => {
                for (i, message) in lines.messages(file).enumerate() {
                    if i > 0 {
                        writeln!(f)?;
                    }
                    f.write_str(&message)?;
                }
                Ok(())
            }
        }
    }
}

impl std::error::Error for ListError {}

/// Reads the list file at `path`.
///
/// # Errors
/// The file cannot be read, is too large, has too many prefixes or none, or has lines that are no entries and not to be skipped.
pub fn read_list(path: &Path, reading: Reading) -> Result<List, ListError> {
    let name = file::shown_path(path);
    match file::open(path, MAX_LIST_OCTETS) {
        Ok(file) => parse_list(&name, BufReader::with_capacity(1 << 16, file), reading),
        Err(problem) => Err(ListError { file: name, problem: ListProblem::File(problem) }),
    }
}

/// Reads a list from `reader`, as [`read_list`]; `name` is for messages.
///
/// # Errors
/// As [`read_list`].
pub fn parse_list(name: &str, reader: impl BufRead, reading: Reading) -> Result<List, ListError> {
    let mut parser = Parser { list: List::default(), line: 0, none: None, reading };
    parser.read(reader).and_then(|()| parser.finish()).map_err(|problem| ListError { file: name.to_owned(), problem })
}

/// A list as far as it was read.
struct Parser {
    list: List,
    line: usize,
    none: Option<usize>,
    reading: Reading,
}

impl Parser {
    fn read(&mut self, reader: impl BufRead) -> Result<(), ListProblem> {
        // One octet more tells a file that grew past the limit from one that ends there.
        let mut reader = reader.take(MAX_LIST_OCTETS + 1);
        // A line that does not lie whole in the reader's buffer is put together here, as far as an entry may reach.
        let mut partial: Vec<u8> = Vec::new();
        loop {
            let buffer = match reader.fill_buf() {
                Ok(buffer) => buffer,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(ListProblem::File(e.into())),
            };
            if buffer.is_empty() {
                break;
            }
            let consumed = buffer.len();
            let mut rest = buffer;
            while let Some(end) = rest.iter().position(|&octet| octet == b'\n')
                && let Some((line, [_, after @ ..])) = rest.split_at_checked(end)
            {
                if partial.is_empty() {
                    self.line(line)?;
                } else {
                    append(&mut partial, line);
                    self.line(&partial)?;
                    partial.clear();
                }
                rest = after;
            }
            append(&mut partial, rest);
            reader.consume(consumed);
        }
        if reader.limit() == 0 {
            return Err(ListProblem::File(FileProblem::TooLarge(MAX_LIST_OCTETS)));
        }
        if partial.is_empty() { Ok(()) } else { self.line(&partial) }
    }

    /// One line without its end, or its first `MAX_ENTRY + 1` octets from the first that is not blank.
    fn line(&mut self, line: &[u8]) -> Result<(), ListProblem> {
        self.line = self.line.saturating_add(1);
        let line = if self.line == 1 { line.strip_prefix(BYTE_ORDER_MARK).unwrap_or(line) } else { line };
        let comment = line.iter().position(|&octet| octet == b'#' || octet == b';');
        let line = comment.and_then(|comment| line.get(..comment)).unwrap_or(line).trim_ascii_start();
        let entry = line.trim_ascii_end();
        if entry.is_empty() {
            return Ok(());
        }
        if line.len() > MAX_ENTRY {
            self.broken(entry, "stands in a line that is too long", || "write one address or prefix a line".to_owned());
            return Ok(());
        }
        if let Some(net) = dotted_quad(entry) {
            return self.prefix(entry, Prefix::of(net.into()));
        }
        if entry == b"none" {
            self.none.get_or_insert(self.line);
            return Ok(());
        }
        match parse_entry(entry) {
            Ok(Entry::Net(prefix)) => self.prefix(entry, prefix),
            Ok(Entry::V4(subnets)) => self.range(entry, || subnets.map(IpNet::from)),
            Ok(Entry::V6(subnets)) => self.range(entry, || subnets.map(IpNet::from)),
            Err((what, remedy)) => {
                self.broken(entry, &what, || remedy);
                Ok(())
            }
        }
    }

    #[inline]
    fn prefix(&mut self, entry: &[u8], prefix: Prefix) -> Result<(), ListProblem> {
        if let Some(least) = self.reading.shortest.refuses(prefix.net) {
            self.too_short(entry, least);
            return Ok(());
        }
        if let Some((found, remedy)) = prefix.warning() {
            self.list.host_bits.note(self.line, || format!("{} {found}", quoted(entry)), || remedy);
        }
        self.push(prefix.net)
    }

    /// A range, which is short only as a whole.
    fn range<I: Iterator<Item = IpNet>>(&mut self, entry: &[u8], nets: impl Fn() -> I) -> Result<(), ListProblem> {
        if let Some(least) = nets().find_map(|net| self.reading.shortest.refuses(net)) {
            self.too_short(entry, least);
            return Ok(());
        }
        nets().try_for_each(|net| self.push(net))
    }

    fn too_short(&mut self, entry: &[u8], least: u8) {
        let error = PrefixError::TooShort(least);
        self.broken(entry, &error.to_string(), || error.remedy());
    }

    fn push(&mut self, net: IpNet) -> Result<(), ListProblem> {
        if self.list.nets.len() >= MAX_LIST_PREFIXES {
            return Err(ListProblem::TooManyPrefixes);
        }
        self.list.nets.push(net);
        Ok(())
    }

    fn broken(&mut self, entry: &[u8], what: &str, remedy: impl FnOnce() -> String) {
        self.list.skipped.note(self.line, || format!("{} {what}", quoted(entry)), remedy);
    }

    fn finish(self) -> Result<List, ListProblem> {
        let Parser { list, none, reading, .. } = self;
        if list.skipped.total > 0 && (!reading.skip_broken || list.nets.is_empty()) {
            return Err(ListProblem::Lines(list.skipped));
        }
        match none {
            Some(line) if !list.nets.is_empty() => Err(ListProblem::NoneAmongOthers(line)),
            None if list.nets.is_empty() => Err(ListProblem::Empty),
            _ => Ok(list),
        }
    }
}

/// Appends what tells an entry from a line that is too long.
fn append(partial: &mut Vec<u8>, line: &[u8]) {
    // Blanks before an entry could fill the room.
    let line = if partial.is_empty() { line.trim_ascii_start() } else { line };
    const ROOM: usize = MAX_ENTRY + BYTE_ORDER_MARK.len() + 1;
    let room = ROOM.saturating_sub(partial.len());
    partial.extend_from_slice(line.get(..room).unwrap_or(line));
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
    Ipv4Net::new(Ipv4Addr::from(bits), len).ok()
}

/// A number up to `max` of at most three digits without leading zeros, and what follows it.
#[inline]
fn decimal(octets: &[u8], max: u32) -> Option<(u32, &[u8])> {
    let digit = |octet: u8| octet.is_ascii_digit().then(|| u32::from(octet.wrapping_sub(b'0')));
    let (&first, mut rest) = octets.split_first()?;
    let mut number = digit(first)?;
    while let Some((&octet, after)) = rest.split_first() {
        let Some(next) = digit(octet) else { break };
        if number == 0 || number > 99 {
            return None;
        }
        number = number.wrapping_mul(10).wrapping_add(next);
        rest = after;
    }
    (number <= max).then_some((number, rest))
}

/// What a line may hold.
enum Entry {
    Net(Prefix),
    V4(Ipv4Subnets),
    V6(Ipv6Subnets),
}

/// What is wrong with an entry, to follow it in a message, and what would be right.
type Wrong = (String, String);

const WRITE: &str =
    "write an address, a prefix or a range: 192.0.2.7, 192.0.2.0/24, 2001:db8::/32 or 192.0.2.1-192.0.2.9";

fn parse_entry(entry: &[u8]) -> Result<Entry, Wrong> {
    let wrong = |error: PrefixError| {
        let remedy = if error == PrefixError::NoPrefix { WRITE.to_owned() } else { error.remedy() };
        (error.to_string(), remedy)
    };
    let text = std::str::from_utf8(entry).map_err(|_| wrong(PrefixError::NoPrefix))?;
    match text.split_once('-') {
        Some((first, last)) => {
            range(first.trim(), last.trim()).map_err(|(what, remedy)| (what.to_owned(), remedy.to_owned()))
        }
        None => read_prefix(text).map(Entry::Net).map_err(wrong),
    }
}

fn range(first: &str, last: &str) -> Result<Entry, (&'static str, &'static str)> {
    let no_range = ("is no range of addresses", "write the first and the last address: 192.0.2.1-192.0.2.9");
    let backwards = ("ends before it starts", "write the lesser address first");
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

#[cfg(test)]
mod tests {
    use std::io::Read;

    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn parse(text: impl AsRef<[u8]>) -> Result<Vec<String>, String> {
        let list = parse_list("list.txt", text.as_ref(), ANY).map_err(|e| e.to_string())?;
        Ok(list.nets.iter().map(IpNet::to_string).collect())
    }

    const ANY: Reading = Reading { shortest: Shortest::NONE, skip_broken: false };

    #[test]
    fn lists_are_read_as_they_come() {
        let text = b"\xef\xbb\xbf# a list \xff\xfe\n\n192.0.2.7\r\n  198.51.100.0/24\t# trailing; both\n\
            ; another\n2001:db8::/32 ; text\n2001:db8::7#close\n   \t \r\n203.0.113.0/25";
        assert_eq!(
            parse(text).unwrap(),
            ["192.0.2.7/32", "198.51.100.0/24", "2001:db8::/32", "2001:db8::7/128", "203.0.113.0/25"]
        );
    }

    #[test]
    fn host_bits_are_dropped_and_what_is_covered_is_told() {
        assert_eq!(parse("192.0.2.77/24\n2001:db8::7/32\n").unwrap(), ["192.0.2.0/24", "2001:db8::/32"]);
        let list = parse_list("l", &b"192.0.2.0/24\n192.0.2.77/24\n2001:db8::7/32 # x\n"[..], ANY).unwrap();
        let told: Vec<String> = list.host_bits.messages("l").collect();
        assert_eq!(
            told,
            [
                "l:2: \"192.0.2.77/24\" has bits set after its first 24: it covers 192.0.2.0/24; \
                 write \"192.0.2.0/24\", or \"192.0.2.77\" for the one address",
                "l:3: \"2001:db8::7/32\" has bits set after its first 32: it covers 2001:db8::/32; \
                 write \"2001:db8::/32\", or \"2001:db8::7\" for the one address",
            ]
        );
    }

    #[test]
    fn a_prefix_of_half_the_internet_is_refused_and_so_is_a_range() {
        let reading = Reading { shortest: Shortest::default(), skip_broken: false };
        for line in ["0.0.0.0/0", "10.0.0.0/7", "0.0.0.0-255.255.255.255", "::/0", "2000::/18", "1.0.0.0-4.255.255.255"]
        {
            let error = parse_list("l", line.as_bytes(), reading).unwrap_err().to_string();
            assert!(error.starts_with(&format!("l:1: {line:?} holds more addresses than a prefix of ")), "{error}");
            assert!(error.ends_with("lower filters.shortest_prefix_v4 or _v6"), "{error}");
        }
        for line in ["10.0.0.0/8", "2000::/19", "10.0.0.0-10.255.255.255"] {
            assert_eq!(parse_list("l", line.as_bytes(), reading).unwrap().nets.len(), 1, "{line}");
        }
    }

    #[test]
    fn broken_lines_that_are_skipped_are_told_and_a_list_of_nothing_else_is_an_error() {
        let reading = Reading { shortest: Shortest::default(), skip_broken: true };
        let list = parse_list("l", &b"192.0.2.1\n<html>\n0.0.0.0/0\n192.0.2.2\n"[..], reading).unwrap();
        assert_eq!((list.nets.len(), list.skipped.total), (2, 2));
        let told: Vec<String> = list.skipped.messages("l").collect();
        assert!(
            told[0].starts_with("l:2: \"<html>\" is no") && told[1].starts_with("l:3: \"0.0.0.0/0\" holds"),
            "{told:?}"
        );
        let error = parse_list("l", &b"<html>\n</html>\n"[..], reading).unwrap_err();
        assert!(matches!(error.problem, ListProblem::Lines(Lines { total: 2, .. })), "{error}");
    }

    #[test]
    fn a_range_is_the_prefixes_that_make_it_up() {
        assert_eq!(parse("192.0.2.1-192.0.2.4").unwrap(), ["192.0.2.1/32", "192.0.2.2/31", "192.0.2.4/32"]);
        assert_eq!(parse("0.0.0.0 - 255.255.255.255").unwrap(), ["0.0.0.0/0"]);
        assert_eq!(parse("192.0.2.9-192.0.2.9").unwrap(), ["192.0.2.9/32"]);
        assert_eq!(parse("2001:db8::-2001:db8::2").unwrap(), ["2001:db8::/127", "2001:db8::2/128"]);
        assert_eq!(parse("::-ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff").unwrap(), ["::/0"]);
    }

    #[test]
    fn a_broken_line_is_named_with_what_stands_there_and_the_remedy() {
        assert_eq!(
            parse("192.0.2.1\n\nexample.com # a name\n").unwrap_err(),
            "list.txt:3: \"example.com\" is no address or prefix; \
             write an address, a prefix or a range: 192.0.2.7, 192.0.2.0/24, 2001:db8::/32 or 192.0.2.1-192.0.2.9"
        );
        for (line, found) in [
            ("192.0.2.0/33", "has a prefix longer than an IPv4 address; use /32 at most"),
            ("2001:db8::/129", "has a prefix longer than an IPv6 address; use /128 at most"),
            ("192.0.2.0/", "has no prefix length after the slash"),
            ("192.0.2.0/+8", "has no prefix length after the slash"),
            ("192.0.2.0/1000", "has no prefix length after the slash"),
            ("192.0.2.01", "is no address or prefix"),
            ("192.0.2", "is no address or prefix"),
            ("192.0.2.256", "is no address or prefix"),
            ("192.0.2.1 192.0.2.2", "is no address or prefix"),
            (
                "::ffff:192.0.2.1",
                "is IPv4-mapped, and no packet has such an address; write the IPv4 address, 192.0.2.1",
            ),
            ("::ffff:0:0/96", "is IPv4-mapped, and no packet has such an address; write it as IPv4, 0.0.0.0/0"),
            ("::fffe:0:0-::ffff:0:9", "ends in an IPv4-mapped address"),
            ("192.0.2.9-192.0.2.1", "ends before it starts"),
            ("192.0.2.9-2001:db8::", "mixes IPv4 and IPv6"),
            ("192.0.2.9-", "is no range of addresses"),
            ("192.0.2.0/24-192.0.3.0/24", "is no range of addresses"),
            ("NONE", "is no address or prefix"),
        ] {
            let error = parse(line).unwrap_err();
            assert!(error.starts_with(&format!("list.txt:1: {line:?} {found}")), "{error}");
        }
    }

    #[test]
    fn what_stands_there_is_escaped_and_shortened() {
        let error = parse(b"\x1b[31m\xff").unwrap_err();
        assert!(error.starts_with("list.txt:1: \"\\u{1b}[31m\u{fffd}\" is no"), "{error}");
        for length in [100, 5000, 500_000] {
            let error = parse("x".repeat(length)).unwrap_err();
            assert!(error.starts_with(&format!("list.txt:1: \"{}...\" ", "x".repeat(80))), "{error}");
        }
    }

    #[test]
    fn the_first_ten_broken_lines_are_shown_and_the_rest_counted() {
        let error = parse("192.0.2.1\n".to_owned() + &"x\n".repeat(13)).unwrap_err();
        let lines: Vec<_> = error.lines().collect();
        assert_eq!(lines.len(), 11);
        assert!(lines[9].starts_with("list.txt:11: "), "{error}");
        assert_eq!(lines[10], "list.txt: ... and 3 more lines");
        assert!(parse("x\n".repeat(11)).unwrap_err().ends_with("... and 1 more line"));
    }

    #[test]
    fn a_list_without_prefixes_is_an_accident_unless_it_says_none() {
        for text in ["", "\n", "# 192.0.2.1\n", "\u{feff}"] {
            assert_eq!(
                parse(text).unwrap_err(),
                "list.txt: has no prefix, as after a failed download; \
                 fetch it again, or write the line none if that is meant"
            );
        }
        assert_eq!(parse("# nothing today\nnone # really\n").unwrap(), Vec::<String>::new());
        assert_eq!(
            parse("192.0.2.1\nnone\n").unwrap_err(),
            "list.txt:2: none stands beside other entries; remove one or the other"
        );
    }

    #[test]
    fn a_long_comment_is_a_comment_and_a_long_line_is_not() {
        let blanks = " ".repeat(100_000);
        let comment = format!("192.0.2.1 # {blanks}\n{blanks}192.0.2.2\n{blanks}# {blanks}\n{blanks}\n");
        assert_eq!(parse(&comment).unwrap(), ["192.0.2.1/32", "192.0.2.2/32"]);
        // In pieces, too, as a file comes.
        let pieces = BufReader::with_capacity(7, comment.as_bytes());
        assert_eq!(parse_list("list.txt", pieces, ANY).unwrap().nets.len(), 2);
        for long in [format!("192.0.2.1{blanks}x"), format!("192.0.2.1{blanks}\n"), format!("192.0.2.1{blanks}#")] {
            let whole = parse_list("list.txt", long.as_bytes(), ANY).unwrap_err();
            assert!(whole.to_string().contains("stands in a line that is too long"), "{whole}");
            assert_eq!(parse_list("list.txt", BufReader::with_capacity(7, long.as_bytes()), ANY).unwrap_err(), whole);
        }
    }

    #[test]
    fn a_huge_list_ends_in_an_error() {
        let endless = |line: &'static [u8]| {
            let lines = std::iter::repeat_n(line, 1 << 10).collect::<Vec<_>>().concat();
            struct Endless(Vec<u8>);
            impl Read for Endless {
                fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
                    let whole = buffer.len().min(self.0.len());
                    buffer[..whole].copy_from_slice(&self.0[..whole]);
                    Ok(whole)
                }
            }
            parse_list("list.txt", BufReader::with_capacity(lines.len(), Endless(lines)), ANY).unwrap_err().problem
        };
        assert_eq!(endless(b"192.0.2.1\n"), ListProblem::TooManyPrefixes);
        let too_large = ListProblem::File(FileProblem::TooLarge(MAX_LIST_OCTETS));
        assert_eq!(endless(b"# a comment and nothing else whatsoever\n"), too_large);
        assert_eq!(endless(b"a line without an end "), too_large);
    }

    #[test]
    fn a_list_that_is_no_file_is_said() {
        let folder = tempfile::tempdir().unwrap();
        let missing = folder.path().join("missing");
        assert_eq!(
            read_list(&missing, ANY).unwrap_err().to_string(),
            format!("{}: no such file or directory; correct the path, or put the file there", missing.display())
        );
        let error = read_list(folder.path(), ANY).unwrap_err();
        assert!(error.to_string().ends_with(": is not a regular file; name one"), "{error}");
        let large = folder.path().join("large");
        std::fs::File::create(&large).unwrap().set_len(MAX_LIST_OCTETS + 1).unwrap();
        let error = read_list(&large, ANY).unwrap_err();
        assert!(error.to_string().ends_with(": is larger than 128 MiB; use a smaller file, or several"), "{error}");
    }

    proptest! {
        #[test]
        fn the_fast_way_reads_what_the_standard_library_reads(text in "[0-9]{1,4}(\\.[0-9]{1,4}){2,4}(/[0-9]{0,3})?") {
            let (addr, len) = text.split_once('/').unwrap_or((&text, "32"));
            let net = addr.parse().ok().zip(len.parse().ok()).and_then(|(addr, len)| Ipv4Net::new(addr, len).ok());
            // A length with leading zeros is left to the slow way.
            if len == "0" || !len.starts_with('0') {
                prop_assert_eq!(dotted_quad(text.as_bytes()), net);
            }
        }

        #[test]
        fn any_octets_in_any_pieces_are_the_same_list(
            lines in vec(prop_oneof!["[0-9./:#; -]{0,20}", "192\\.0\\.2\\.[0-9]{1,2}", "\\PC{0,10}"], 0..20),
            octets in vec(any::<u8>(), 0..40),
            piece in 1usize..64,
        ) {
            let text = [lines.join("\n").as_bytes(), &octets].concat();
            let whole = parse_list("list.txt", &*text, ANY);
            prop_assert_eq!(parse_list("list.txt", BufReader::with_capacity(piece, &*text), ANY), whole);
        }
    }
}
