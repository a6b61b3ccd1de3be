//! List files, as public blocklists come: one address, prefix or range of addresses a line.
//!
//! IPv4 and IPv6 mixed, `#` and `;` comments, blank lines, CRLF, a byte order mark; host bits below a prefix are dropped. What
//! cannot be understood is an error with its line: a list that silently loses lines protects less than it says.
//! The file is read in pieces, so memory is bounded by the prefixes it may have, not by its size.

use std::fmt;
use std::io::{self, BufRead, BufReader};
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;

use ipnet::{IpNet, Ipv4Net, Ipv4Subnets, Ipv6Net, Ipv6Subnets};

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
    let name = file::shown_path(path);
    match file::open(path, MAX_LIST_OCTETS) {
        Ok(file) => parse_list(&name, BufReader::with_capacity(1 << 16, file)),
        Err(problem) => Err(ListError { file: name, problem: ListProblem::File(problem) }),
    }
}

/// The prefixes of a list read from `reader`, as [`read_list`]; `name` is for messages.
///
/// # Errors
/// As [`read_list`].
pub fn parse_list(name: &str, reader: impl BufRead) -> Result<Vec<IpNet>, ListError> {
    let mut list = List::default();
    list.read(reader).and_then(|()| list.finish()).map_err(|problem| ListError { file: name.to_owned(), problem })
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
            while let Some(end) = rest.iter().position(|&octet| octet == b'\n') {
                let (line, after) = (&rest[..end], &rest[end + 1..]);
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
        self.line += 1;
        let line = if self.line == 1 { line.strip_prefix(BYTE_ORDER_MARK).unwrap_or(line) } else { line };
        let comment = line.iter().position(|&octet| octet == b'#' || octet == b';');
        let line = line[..comment.unwrap_or(line.len())].trim_ascii_start();
        let entry = line.trim_ascii_end();
        if entry.is_empty() {
            return Ok(());
        }
        if line.len() > MAX_ENTRY {
            self.broken(entry, "stands in a line that is too long", "write one address or prefix a line");
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

/// Appends what tells an entry from a line that is too long.
fn append(partial: &mut Vec<u8>, line: &[u8]) {
    // Blanks before an entry could fill the room.
    let line = if partial.is_empty() { line.trim_ascii_start() } else { line };
    let room = (MAX_ENTRY + BYTE_ORDER_MARK.len() + 1).saturating_sub(partial.len());
    partial.extend_from_slice(&line[..line.len().min(room)]);
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

#[cfg(test)]
mod tests {
    use std::io::Read;

    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn parse(text: impl AsRef<[u8]>) -> Result<Vec<String>, String> {
        let nets = parse_list("list.txt", text.as_ref()).map_err(|e| e.to_string())?;
        Ok(nets.iter().map(IpNet::to_string).collect())
    }

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
    fn host_bits_are_dropped() {
        assert_eq!(parse("192.0.2.77/24\n2001:db8::7/32\n").unwrap(), ["192.0.2.0/24", "2001:db8::/32"]);
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
            ("::ffff:192.0.2.1", "is an IPv4-mapped prefix"),
            ("::ffff:0:0/96", "is an IPv4-mapped prefix"),
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
        assert_eq!(parse_list("list.txt", pieces).unwrap().len(), 2);
        for long in [format!("192.0.2.1{blanks}x"), format!("192.0.2.1{blanks}\n"), format!("192.0.2.1{blanks}#")] {
            let whole = parse_list("list.txt", long.as_bytes()).unwrap_err();
            assert!(whole.to_string().contains("stands in a line that is too long"), "{whole}");
            assert_eq!(parse_list("list.txt", BufReader::with_capacity(7, long.as_bytes())).unwrap_err(), whole);
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
            parse_list("list.txt", BufReader::with_capacity(lines.len(), Endless(lines))).unwrap_err().problem
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
            read_list(&missing).unwrap_err().to_string(),
            format!("{}: no such file or directory; correct the path, or put the file there", missing.display())
        );
        let error = read_list(folder.path()).unwrap_err();
        assert!(error.to_string().ends_with(": is not a regular file; name one"), "{error}");
        let large = folder.path().join("large");
        std::fs::File::create(&large).unwrap().set_len(MAX_LIST_OCTETS + 1).unwrap();
        let error = read_list(&large).unwrap_err();
        assert!(error.to_string().ends_with(": is larger than 128 MiB; use a smaller file, or several"), "{error}");
    }

    proptest! {
        #[test]
        fn the_fast_way_reads_what_the_standard_library_reads(text in "[0-9]{1,4}(\\.[0-9]{1,4}){2,4}(/[0-9]{0,3})?") {
            let (addr, len) = text.split_once('/').unwrap_or((&text, "32"));
            let net = addr.parse().ok().zip(len.parse().ok()).and_then(|(addr, len)| Ipv4Net::new(addr, len).ok());
            // A length with leading zeros is left to the slow way.
            if len == "0" || !len.starts_with('0') {
                prop_assert_eq!(dotted_quad(text.as_bytes()), net.map(|net| net.trunc()));
            }
        }

        #[test]
        fn any_octets_in_any_pieces_are_the_same_list(
            lines in vec(prop_oneof!["[0-9./:#; -]{0,20}", "192\\.0\\.2\\.[0-9]{1,2}", "\\PC{0,10}"], 0..20),
            octets in vec(any::<u8>(), 0..40),
            piece in 1usize..64,
        ) {
            let text = [lines.join("\n").as_bytes(), &octets].concat();
            let whole = parse_list("list.txt", &*text);
            prop_assert_eq!(parse_list("list.txt", BufReader::with_capacity(piece, &*text)), whole);
        }
    }
}
