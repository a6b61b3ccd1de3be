//! A TCP segment as a line of text, both ways: what an operator types, and what he is shown and may type again.
//!
//! ```
//! use sluice_control::packet;
//!
//! let frame = packet::parse(r#"192.0.2.7:40000 > 198.51.100.10:443 flags=P. seq=8 ack=1 payload="GET ""#).unwrap();
//! assert_eq!(frame.len(), 14 + 20 + 20 + 4);
//! ```
//!
//! First the two ends, an IPv6 address in brackets; then words in any order, each at most once:
//!
//! | word | meaning | otherwise |
//! |---|---|---|
//! | `flags=S.` or `flags=syn,ack` | tcpdump's letters `F S R P . U E W`, or names; `none` | `S` |
//! | `seq=` `ack=` | sequence and acknowledgment number | 0 |
//! | `win=` | window, unscaled | 64240 |
//! | `ttl=` | TTL or hop limit | 64 |
//! | `tos=` | IPv4 TOS or IPv6 traffic class | 0 |
//! | `urg=` | urgent pointer | 0 |
//! | `vlan=` | an 802.1Q tag with this id | no tag |
//! | `mss=1460` `sack` `ts=1:0` `wscale=7` | TCP options, in a layout that systems use | Linux's for a SYN, else none |
//! | `options=mss,nop,wscale` | the options' order; those without a word of their own get Linux's value; `none` | as above |
//! | `options=hex:020405b4` | their octets | as above |
//! | `payload="GET \r\n"` or `payload=hex:474554` | payload; `\r \n \t \0 \\ \" \x1f` in text | none |
//! | `len=1400` | payload's length; zeros are added | the payload's own |

use std::borrow::Cow;
use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};

use sluice_filters::testkit::{self, Opt};
use sluice_filters::{Flags, Segment, TcpOptions, option_kinds};
use thiserror::Error;

/// Room for options in a TCP header.
const MAX_OPTIONS: usize = 40;
/// What IPv4 leaves for the payload behind the longest TCP header.
const MAX_PAYLOAD: usize = 65_535 - 20 - 60;
/// Zeros at a payload's end that are shown as a length.
const MANY_ZEROS: usize = 8;
const EXAMPLE: &str = "192.0.2.7:40000 > 198.51.100.10:443 flags=S";

const KEYS: [&str; 15] = [
    "flags", "seq", "ack", "win", "ttl", "tos", "urg", "vlan", "mss", "sack", "ts", "wscale", "options", "payload",
    "len",
];
/// Names that the configuration and other tools use.
const ALIASES: [(&str, &str); 8] = [
    ("window", "win"),
    ("hop_limit", "ttl"),
    ("hlim", "ttl"),
    ("window_scale", "wscale"),
    ("timestamps", "ts"),
    ("timestamp", "ts"),
    ("sack_permitted", "sack"),
    ("sackok", "sack"),
];
const FLAGS: [(char, &str, Flags); 8] = [
    ('F', "fin", Flags::FIN),
    ('S', "syn", Flags::SYN),
    ('R', "rst", Flags::RST),
    ('P', "psh", Flags::PSH),
    ('.', "ack", Flags::ACK),
    ('U', "urg", Flags::URG),
    ('E', "ece", Flags::ECE),
    ('W', "cwr", Flags::CWR),
];
const KINDS: [(u8, &str); 6] = [(0, "eol"), (1, "nop"), (2, "mss"), (3, "wscale"), (4, "sack-permitted"), (8, "ts")];
const KIND_ALIASES: [(&str, &str); 9] = [
    ("end", "eol"),
    ("sack", "sack-permitted"),
    ("sackok", "sack-permitted"),
    ("window-scale", "wscale"),
    ("ws", "wscale"),
    ("timestamps", "ts"),
    ("timestamp", "ts"),
    ("noop", "nop"),
    ("end-of-list", "eol"),
];

/// What is wrong with a packet's text.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{word:?}: {found}; {remedy}")]
pub struct PacketError {
    /// The word it is about.
    pub word: String,
    /// What is wrong with it.
    pub found: String,
    /// What would be right.
    pub remedy: String,
}

fn error<T>(word: &str, found: impl Into<String>, remedy: impl Into<String>) -> Result<T, PacketError> {
    Err(PacketError { word: word.to_owned(), found: found.into(), remedy: remedy.into() })
}

/// The Ethernet frame of a packet's text. Its stations are [`testkit::PEER_MAC`] and [`testkit::OUR_MAC`].
///
/// # Errors
/// [`PacketError`] names the first word that is wrong.
pub fn parse(text: &str) -> Result<Vec<u8>, PacketError> {
    build(&split(text)?)
}

/// The same from the words of a command line, where the shell has already taken the quotes from a payload. A single word is
/// the whole text.
///
/// # Errors
/// [`PacketError`] names the first word that is wrong.
pub fn parse_words<S: AsRef<str>>(words: &[S]) -> Result<Vec<u8>, PacketError> {
    if let [text] = words {
        return parse(text.as_ref());
    }
    let mut all = Vec::new();
    for word in words.iter().map(AsRef::as_ref) {
        if word.starts_with("payload=") { all.push(word) } else { all.extend(split(word)?) }
    }
    build(&all)
}

/// The text of a segment, from which [`parse`] makes it again: everything in it but the stations' addresses, the VLAN's
/// priority and IPv4's identification. `frame` is the one the segment was parsed from.
#[must_use]
pub fn describe(segment: &Segment, frame: &[u8]) -> String {
    let mut text = format!("{} > {}", segment.key.remote(), segment.key.local());
    let mut add = |word: std::fmt::Arguments<'_>| {
        // Writing into a String cannot fail.
        let _ = write!(text, " {word}");
    };
    add(format_args!("flags={}", flag_letters(segment.flags)));
    add(format_args!("seq={}", segment.seq.0));
    if segment.flags.ack() || segment.ack.0 != 0 {
        add(format_args!("ack={}", segment.ack.0));
    }
    add(format_args!("win={} ttl={}", segment.window, segment.hop_limit));
    if segment.tos != 0 {
        add(format_args!("tos={:#04x}", segment.tos));
    }
    let urgent =
        frame.get(segment.l4() + 18..).and_then(|field| field.first_chunk()).copied().map_or(0, u16::from_be_bytes);
    if urgent != 0 {
        add(format_args!("urg={urgent}"));
    }
    if segment.l2.len == 18 {
        add(format_args!("vlan={}", segment.l2.vlan));
    }
    let options = option_words(segment, frame);
    if !options.is_empty() {
        add(format_args!("{options}"));
    }
    let payload = segment.payload(frame);
    let zeros = payload.iter().rev().take_while(|octet| **octet == 0).count();
    let zeros = if zeros < MANY_ZEROS { 0 } else { zeros };
    let (body, _) = payload.split_at(payload.len() - zeros);
    if !body.is_empty() {
        add(format_args!("payload={}", payload_text(body)));
    }
    if zeros > 0 {
        add(format_args!("len={}", payload.len()));
    }
    text
}

/// Splits at white space outside double quotes. The quotes stay.
fn split(text: &str) -> Result<Vec<&str>, PacketError> {
    let mut words = Vec::new();
    let (mut start, mut quoted, mut escaped) = (None, false, false);
    for (at, c) in text.char_indices() {
        if c.is_whitespace() && !quoted {
            words.extend(start.take().map(|start| &text[start..at]));
            continue;
        }
        start.get_or_insert(at);
        if c == '"' && !escaped {
            quoted = !quoted;
        }
        escaped = c == '\\' && quoted && !escaped;
    }
    let last = start.map(|start| &text[start..]);
    if quoted {
        return error(last.unwrap_or_default(), "a quote is not closed", "end the text with \"");
    }
    words.extend(last);
    Ok(words)
}

/// TCP options by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Options {
    mss: Option<u16>,
    sack: bool,
    ts: Option<(u32, u32)>,
    wscale: Option<u8>,
}

impl Options {
    const LINUX: Options = Options { mss: Some(1460), sack: true, ts: Some((1, 0)), wscale: Some(7) };

    /// The octets in the order of `kinds`, up to 3 octets short of whole words.
    fn in_order(&self, kinds: &[u8]) -> Vec<u8> {
        let mut octets = Vec::new();
        for kind in kinds {
            match kind {
                2 => octets.extend([2, 4].into_iter().chain(self.mss.unwrap_or(1460).to_be_bytes())),
                3 => octets.extend([3, 3, self.wscale.unwrap_or(7)]),
                4 => octets.extend([4, 2]),
                8 => {
                    let (value, echo) = self.ts.unwrap_or((1, 0));
                    octets.extend([8, 10].into_iter().chain(value.to_be_bytes()).chain(echo.to_be_bytes()));
                }
                kind => octets.push(*kind),
            }
        }
        octets
    }

    /// The kinds of those that are there, each filling whole words: Linux's layout.
    fn usual_order(&self) -> Vec<u8> {
        let mut kinds = Vec::new();
        if self.mss.is_some() {
            kinds.push(2);
        }
        match (self.sack, self.ts.is_some()) {
            (true, true) => kinds.extend([4, 8]),
            (true, false) => kinds.extend([1, 1, 4]),
            (false, true) => kinds.extend([1, 1, 8]),
            (false, false) => {}
        }
        if self.wscale.is_some() {
            kinds.extend([1, 3]);
        }
        kinds
    }

    fn words(&self) -> Vec<String> {
        let mss = self.mss.map(|mss| format!("mss={mss}"));
        let sack = self.sack.then(|| "sack".to_owned());
        let ts = self.ts.map(|(value, echo)| format!("ts={value}:{echo}"));
        let wscale = self.wscale.map(|shift| format!("wscale={shift}"));
        [mss, sack, ts, wscale].into_iter().flatten().collect()
    }
}

/// The words that give exactly the segment's options.
fn option_words(segment: &Segment, frame: &[u8]) -> String {
    let octets = segment.option_octets(frame);
    if octets.is_empty() {
        // A SYN without a word on options would get Linux's.
        return if segment.flags.is_initial_syn() { "options=none".to_owned() } else { String::new() };
    }
    let read: TcpOptions = segment.options(frame);
    let options = Options { mss: read.mss, sack: read.sack_permitted, ts: read.timestamp, wscale: read.wscale };
    let same = |mut made: Vec<u8>| {
        made.resize(made.len().next_multiple_of(4), 0);
        made == octets
    };
    let mut words = options.words();
    if same(options.in_order(&options.usual_order())) {
        return words.join(" ");
    }
    let kinds: Vec<u8> = option_kinds(octets).collect();
    let names: Option<Vec<&str>> = kinds.iter().map(|kind| kind_name(*kind)).collect();
    if let (Some(names), true) = (names, same(options.in_order(&kinds))) {
        words.push(format!("options={}", names.join(",")));
        return words.join(" ");
    }
    format!("options=hex:{}", hex(octets))
}

fn kind_name(kind: u8) -> Option<&'static str> {
    KINDS.iter().find(|(number, _)| *number == kind).map(|(_, name)| *name)
}

/// What the words said; none where they said nothing.
#[derive(Default)]
struct Words {
    flags: Option<Flags>,
    seq: u32,
    ack: u32,
    window: Option<u16>,
    hop_limit: Option<u8>,
    tos: u8,
    urgent: u16,
    vlan: Option<u16>,
    options: Options,
    order: Option<Order>,
    payload: Vec<u8>,
    len: Option<usize>,
}

/// `options=`
enum Order {
    Kinds(Vec<u8>),
    Octets(Vec<u8>),
}

fn build(words: &[&str]) -> Result<Vec<u8>, PacketError> {
    let (src, dst, rest) = ends(words)?;
    let mut said = Words::default();
    let mut seen: Vec<&str> = Vec::new();
    for &word in rest {
        let (key, value) = match word.split_once('=') {
            Some((key, value)) => (key, Some(value)),
            None => (word, None),
        };
        let key = known_key(word, key)?;
        if seen.contains(&key) {
            return error(word, format!("{key} is there already"), "give it once");
        }
        seen.push(key);
        said.take(word, key, value)?;
    }
    if let (Some(len), payload) = (said.len, said.payload.len()) {
        if len < payload {
            let word = format!("len={len}");
            return error(
                &word,
                format!("the payload has {payload} octets"),
                format!("give {payload} or more, or no len"),
            );
        }
        said.payload.resize(len, 0);
    }
    let flags = said.flags.unwrap_or(Flags::SYN);
    let options = said.option_octets(flags)?;
    let mut packet = testkit::tcp(src, dst)
        .flags(flags)
        .seq(said.seq)
        .ack(said.ack)
        .window(said.window.unwrap_or(64_240))
        .hop_limit(said.hop_limit.unwrap_or(64))
        .tos(said.tos)
        .urgent(said.urgent)
        .options([Opt::Raw(options)])
        .payload(&said.payload);
    if let Some(vlan) = said.vlan {
        packet = packet.vlan(vlan);
    }
    Ok(packet.build())
}

/// Source, destination, and the words after them.
fn ends<'a, 'b>(words: &'b [&'a str]) -> Result<(SocketAddr, SocketAddr, &'b [&'a str]), PacketError> {
    let mut head = String::new();
    for (index, word) in words.iter().enumerate() {
        if word.contains('=') {
            break;
        }
        head.push_str(word);
        if let Some((src, dst)) = head.split_once('>')
            && !dst.is_empty()
        {
            // The arrow that others draw.
            let (src, dst) = (end(src.trim_end_matches('-'))?, end(dst)?);
            if src.is_ipv4() != dst.is_ipv4() {
                return error(&head, "one address is IPv4 and the other IPv6", "give two of one family");
            }
            return Ok((src, dst, &words[index + 1..]));
        }
    }
    let found = if head.contains('>') { "the destination is missing" } else { "source > destination is missing" };
    let word = if head.is_empty() { words.first().copied().unwrap_or_default() } else { head.as_str() };
    error(word, found, format!("begin with ADDRESS:PORT > ADDRESS:PORT, as in {EXAMPLE}"))
}

fn end(text: &str) -> Result<SocketAddr, PacketError> {
    if let Ok(end) = text.parse() {
        return Ok(end);
    }
    let bare = text.trim_start_matches('[').trim_end_matches(']');
    match bare.parse::<IpAddr>() {
        Ok(IpAddr::V4(addr)) => error(text, "the port is missing", format!("write {addr}:443")),
        Ok(IpAddr::V6(addr)) => error(text, "an IPv6 address without brackets and port", format!("write [{addr}]:443")),
        Err(_) => error(text, "no address and port", "write 192.0.2.7:443 or [2001:db8::7]:443"),
    }
}

fn known_key(word: &str, key: &str) -> Result<&'static str, PacketError> {
    let name = key.to_lowercase().replace('-', "_");
    let known = KEYS.iter().find(|known| **known == name).copied();
    let alias = || ALIASES.iter().find(|(alias, _)| *alias == name).map(|(_, key)| *key);
    if let Some(key) = known.or_else(alias) {
        return Ok(key);
    }
    let all = KEYS.into_iter().chain(ALIASES.iter().map(|(alias, _)| *alias));
    match nearest(&name, all) {
        Some(near) => error(word, format!("no word of a packet is {key:?}"), format!("did you mean {near}?")),
        None => error(word, format!("no word of a packet is {key:?}"), format!("there are {}", KEYS.join(", "))),
    }
}

/// The name among `known` that `word` was probably meant to be.
fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    // Long words are no slips of the pen, and the distance costs their length squared.
    if word.len() > 64 {
        return None;
    }
    let distance = |name: &str| {
        let extends = name.len().min(word.len()) >= 3 && (name.starts_with(word) || word.starts_with(name));
        if extends { 1 } else { strsim::damerau_levenshtein(word, name) }
    };
    known
        .into_iter()
        .map(|name| (distance(name), name))
        .filter(|(distance, name)| *distance <= (name.len() / 3).max(1))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, name)| name)
}

impl Words {
    fn take(&mut self, word: &str, key: &str, value: Option<&str>) -> Result<(), PacketError> {
        let value = match (key, value) {
            ("sack", None | Some("yes" | "true" | "1")) => {
                self.options.sack = true;
                return Ok(());
            }
            ("sack", Some(_)) => return error(word, "sack takes no value", "write sack, or leave it out"),
            (_, None) => return error(word, "the value is missing", format!("write {key}=VALUE")),
            (_, Some(value)) => value,
        };
        match key {
            "flags" => self.flags = Some(flags(word, value)?),
            "seq" => self.seq = number(word, value, u32::MAX)?,
            "ack" => self.ack = number(word, value, u32::MAX)?,
            "win" => self.window = Some(number(word, value, u16::MAX.into())? as u16),
            "ttl" => self.hop_limit = Some(number(word, value, u8::MAX.into())? as u8),
            "tos" => self.tos = number(word, value, u8::MAX.into())? as u8,
            "urg" => self.urgent = number(word, value, u16::MAX.into())? as u16,
            "vlan" => self.vlan = Some(number(word, value, 4095)? as u16),
            "mss" => self.options.mss = Some(number(word, value, u16::MAX.into())? as u16),
            "wscale" => self.options.wscale = Some(number(word, value, u8::MAX.into())? as u8),
            "ts" => {
                let (own, echo) = value.split_once(':').unwrap_or((value, "0"));
                self.options.ts = Some((number(word, own, u32::MAX)?, number(word, echo, u32::MAX)?));
            }
            "options" => self.order = Some(order(word, value)?),
            "payload" => self.payload = payload(word, value)?,
            "len" => self.len = Some(number(word, value, MAX_PAYLOAD as u32)? as usize),
            _ => {}
        }
        Ok(())
    }

    fn option_octets(&self, flags: Flags) -> Result<Vec<u8>, PacketError> {
        let named = self.options != Options::default();
        let octets = match &self.order {
            None if !named && flags.is_initial_syn() => Options::LINUX.in_order(&Options::LINUX.usual_order()),
            None => self.options.in_order(&self.options.usual_order()),
            Some(order) => {
                let listed: &[u8] = match order {
                    Order::Kinds(kinds) => kinds,
                    Order::Octets(_) => &[],
                };
                let absent = |kind| !listed.contains(&kind);
                let unused = [
                    ("mss", self.options.mss.is_some() && absent(2)),
                    ("sack", self.options.sack && absent(4)),
                    ("ts", self.options.ts.is_some() && absent(8)),
                    ("wscale", self.options.wscale.is_some() && absent(3)),
                ];
                if let Some((name, _)) = unused.into_iter().find(|(_, unused)| *unused) {
                    return error(name, "options= does not list it", "add it there, or leave it out");
                }
                match order {
                    Order::Kinds(kinds) => self.options.in_order(kinds),
                    Order::Octets(octets) => octets.clone(),
                }
            }
        };
        if octets.len() > MAX_OPTIONS {
            let found = format!("{} octets", octets.len());
            return error("options", found, format!("TCP has room for {MAX_OPTIONS}"));
        }
        Ok(octets)
    }
}

fn number(word: &str, value: &str, max: u32) -> Result<u32, PacketError> {
    let parsed = match value.strip_prefix("0x") {
        Some(digits) if digits.bytes().all(|digit| digit.is_ascii_hexdigit()) => u32::from_str_radix(digits, 16),
        _ => value.parse(),
    };
    match parsed {
        Ok(number) if number <= max && !value.starts_with('+') => Ok(number),
        _ => error(
            word,
            format!("{value:?} is no number from 0 to {max}"),
            "write it in decimal, or hexadecimal after 0x",
        ),
    }
}

fn flags(word: &str, value: &str) -> Result<Flags, PacketError> {
    const LETTERS: &str = "letters are F S R P . U E W, names fin, syn, rst, psh, ack, urg, ece, cwr, or none";
    if value == "none" {
        return Ok(Flags(0));
    }
    if value.is_empty() {
        return error(word, "no flag is named", LETTERS);
    }
    let letter = |c: char| FLAGS.iter().find(|(letter, ..)| *letter == c || (c == 'A' && *letter == '.'));
    if let Some(flags) = value.chars().map(letter).collect::<Option<Vec<_>>>() {
        return Ok(flags.iter().fold(Flags(0), |all, (.., flag)| all | *flag));
    }
    let mut all = Flags(0);
    for name in value.split([',', '|', '+']) {
        let lower = name.to_lowercase();
        match FLAGS.iter().find(|(_, known, _)| *known == lower) {
            Some((.., flag)) => all = all | *flag,
            None => {
                let near = nearest(&lower, FLAGS.iter().map(|(_, name, _)| *name));
                let remedy = near.map_or(LETTERS.to_owned(), |near| format!("did you mean {near}? {LETTERS}"));
                return error(word, format!("{name:?} is no flag"), remedy);
            }
        }
    }
    Ok(all)
}

fn flag_letters(flags: Flags) -> Cow<'static, str> {
    if flags.0 == 0 {
        return Cow::Borrowed("none");
    }
    FLAGS.iter().filter(|(.., flag)| flags.contains(*flag)).map(|(letter, ..)| *letter).collect::<String>().into()
}

fn order(word: &str, value: &str) -> Result<Order, PacketError> {
    if let Some(digits) = value.strip_prefix("hex:") {
        return from_hex(word, digits).map(Order::Octets);
    }
    if value == "none" {
        return Ok(Order::Kinds(Vec::new()));
    }
    let mut kinds = Vec::new();
    for name in value.split(',') {
        let lower = name.to_lowercase().replace('_', "-");
        let canonical = KIND_ALIASES.iter().find(|(alias, _)| *alias == lower).map_or(lower.as_str(), |(_, name)| name);
        match KINDS.iter().find(|(_, known)| *known == canonical) {
            Some((kind, _)) => kinds.push(*kind),
            None => {
                let names = KINDS.map(|(_, name)| name);
                let near = nearest(&lower, names.into_iter().chain(KIND_ALIASES.map(|(alias, _)| alias)));
                let did = near.map_or(String::new(), |near| format!("did you mean {near}? "));
                let remedy = format!("{did}there are {}; others go as options=hex:OCTETS", names.join(", "));
                return error(word, format!("{name:?} is no option"), remedy);
            }
        }
    }
    Ok(Order::Kinds(kinds))
}

fn payload(word: &str, value: &str) -> Result<Vec<u8>, PacketError> {
    let octets = if let Some(digits) = value.strip_prefix("hex:") {
        from_hex(word, digits)?
    } else {
        let text = value.strip_prefix('"').and_then(|text| text.strip_suffix('"')).unwrap_or(value);
        unescape(word, text)?
    };
    if octets.len() > MAX_PAYLOAD {
        return error("payload", format!("{} octets", octets.len()), format!("IP has room for {MAX_PAYLOAD}"));
    }
    Ok(octets)
}

fn unescape(word: &str, text: &str) -> Result<Vec<u8>, PacketError> {
    let mut octets = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(octet) = rest.next() {
        if octet != b'\\' {
            octets.push(octet);
            continue;
        }
        octets.push(match rest.next() {
            Some(b'r') => b'\r',
            Some(b'n') => b'\n',
            Some(b't') => b'\t',
            Some(b'0') => 0,
            Some(octet @ (b'\\' | b'"' | b'\'')) => octet,
            Some(b'x') => {
                let mut digit = || rest.next().and_then(|digit| char::from(digit).to_digit(16));
                match (digit(), digit()) {
                    (Some(high), Some(low)) => (high << 4 | low) as u8,
                    _ => return error(word, "\\x without two hexadecimal digits", "write \\x0d"),
                }
            }
            _ => return error(word, "an unknown escape", "there are \\r \\n \\t \\0 \\\\ \\\" \\' and \\x0d"),
        });
    }
    Ok(octets)
}

/// Text where most of it is readable, else hexadecimal. A single quote is escaped, so that the whole line can stand between
/// two in a shell.
fn payload_text(octets: &[u8]) -> String {
    let readable = |octet: &u8| matches!(octet, b' '..=b'~' | b'\r' | b'\n' | b'\t');
    if octets.iter().filter(|octet| readable(octet)).count() * 4 < octets.len() * 3 {
        return format!("hex:{}", hex(octets));
    }
    let mut text = String::with_capacity(octets.len() + 2);
    text.push('"');
    for octet in octets {
        match octet {
            b'\r' => text.push_str("\\r"),
            b'\n' => text.push_str("\\n"),
            b'\t' => text.push_str("\\t"),
            b'"' | b'\\' => text.extend(['\\', char::from(*octet)]),
            b'\'' => text.push_str("\\x27"),
            b' '..=b'~' => text.push(char::from(*octet)),
            _ => text.push_str(&format!("\\x{octet:02x}")),
        }
    }
    text.push('"');
    text
}

fn hex(octets: &[u8]) -> String {
    octets.iter().map(|octet| format!("{octet:02x}")).collect()
}

fn from_hex(word: &str, digits: &str) -> Result<Vec<u8>, PacketError> {
    let values: Option<Vec<u8>> =
        digits.chars().filter(|c| *c != ':').map(|c| c.to_digit(16).map(|digit| digit as u8)).collect();
    match values {
        Some(values) if values.len() % 2 == 0 => {
            Ok(values.chunks(2).map(|pair| pair.iter().fold(0, |octet, digit| octet << 4 | digit)).collect())
        }
        _ => error(word, "not hexadecimal octets", "write two digits for each, as in hex:474554"),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use sluice_filters::{Parsed, RxChecksums, parse as parse_frame};

    use super::*;

    const ENDS: &str = "192.0.2.7:40000 > 198.51.100.10:443";

    fn segment(frame: &[u8]) -> Segment {
        match parse_frame(frame, RxChecksums::default()) {
            Ok(Parsed::Tcp(segment)) => segment,
            other => panic!("{other:?}"),
        }
    }

    fn made(words: &str) -> (Segment, Vec<u8>) {
        let frame = parse(&format!("{ENDS} {words}")).unwrap();
        (segment(&frame), frame)
    }

    fn refused(text: &str) -> String {
        parse(text).unwrap_err().to_string()
    }

    #[test]
    fn two_ends_alone_are_a_linux_clients_syn() {
        let (segment, frame) = made("");
        assert_eq!((segment.flags, segment.hop_limit, segment.window), (Flags::SYN, 64, 64_240));
        assert_eq!((segment.seq.0, segment.ack.0, segment.payload_len, segment.l2.len), (0, 0, 0, 14));
        let linux = [2, 4, 5, 0xb4, 4, 2, 8, 10, 0, 0, 0, 1, 0, 0, 0, 0, 1, 3, 3, 7];
        assert_eq!(segment.option_octets(&frame), linux);
        assert_eq!(segment.key.remote().to_string(), "192.0.2.7:40000");
        assert_eq!(segment.key.local().to_string(), "198.51.100.10:443");
    }

    #[test]
    fn every_word_sets_its_field() {
        let words =
            "flags=P. seq=7 ack=0xff win=1 ttl=3 tos=0x12 urg=9 vlan=5 ts=4:5 payload=\"GET \\r\\n\\x00\\\"\" len=8";
        let (segment, frame) = made(words);
        assert_eq!(segment.flags, Flags::PSH | Flags::ACK);
        assert_eq!((segment.seq.0, segment.ack.0, segment.window), (7, 255, 1));
        assert_eq!((segment.hop_limit, segment.tos, segment.l2.vlan), (3, 0x12, 5));
        assert_eq!(segment.options(&frame).timestamp, Some((4, 5)));
        assert_eq!(segment.payload(&frame), b"GET \r\n\0\"");
        assert_eq!(frame[segment.l4() + 18..segment.l4() + 20], [0, 9]);
        let (segment, frame) = made("payload=hex:47:45:54 len=5 flags=.");
        assert_eq!(segment.payload(&frame), b"GET\0\0");
    }

    #[test]
    fn ipv6_ends_stand_in_brackets() {
        let frame = parse("[2001:db8::1]:40000 > [2001:db8::10]:443 flags=R").unwrap();
        assert_eq!(segment(&frame).key.remote().to_string(), "[2001:db8::1]:40000");
        for arrow in [">", " >", "> ", " -> "] {
            let text = format!("192.0.2.7:1{arrow}192.0.2.8:2");
            assert_eq!(segment(&parse(&text).unwrap()).key.dst_port, 2, "{text}");
        }
    }

    #[test]
    fn flags_are_letters_or_names() {
        for (text, flags) in [
            ("S", Flags::SYN),
            ("S.", Flags::SYN | Flags::ACK),
            ("SA", Flags::SYN | Flags::ACK),
            (".", Flags::ACK),
            ("syn,ack", Flags::SYN | Flags::ACK),
            ("FIN|ack", Flags::FIN | Flags::ACK),
            ("UEW", Flags::URG | Flags::ECE | Flags::CWR),
            ("none", Flags(0)),
        ] {
            let frame = parse(&format!("{ENDS} flags={text}")).unwrap();
            assert_eq!(frame[14 + 20 + 13], flags.0, "{text}");
        }
    }

    #[test]
    fn options_named_alone_get_the_usual_layout_and_listed_ones_their_order() {
        let octets = |words: &str| {
            let (segment, frame) = made(words);
            segment.option_octets(&frame).to_vec()
        };
        assert_eq!(octets("mss=536"), [2, 4, 2, 24]);
        assert_eq!(octets("mss=1460 sack wscale=8"), [2, 4, 5, 0xb4, 1, 1, 4, 2, 1, 3, 3, 8]);
        assert!(octets("options=none").is_empty());
        assert_eq!(octets("options=mss,nop,wscale,nop,nop,sack wscale=8"), [2, 4, 5, 0xb4, 1, 3, 3, 8, 1, 1, 4, 2]);
        assert_eq!(octets("options=hex:fd04f989"), [0xfd, 4, 0xf9, 0x89]);
        assert!(octets("flags=S.").is_empty());
        assert_eq!(octets("flags=S. sack_permitted options=sack"), [4, 2, 0, 0]);
    }

    #[test]
    fn a_shell_may_have_taken_the_quotes() {
        let words = ["192.0.2.7:1", ">", "192.0.2.8:2", "flags=P.", "payload=GET / x=y"];
        let frame = parse_words(&words).unwrap();
        assert_eq!(segment(&frame).payload(&frame), b"GET / x=y");
        let one = ["192.0.2.7:1 > 192.0.2.8:2 flags=P. payload=\"GET / x=y\""];
        assert_eq!(parse_words(&one).unwrap(), frame);
        let two = ["192.0.2.7:1 > 192.0.2.8:2", "flags=P. payload=\"GET / x=y\""];
        assert_eq!(parse_words(&two).unwrap(), frame);
    }

    #[test]
    fn a_mistake_is_named_with_the_word_and_what_would_be_right() {
        let begin = "begin with ADDRESS:PORT > ADDRESS:PORT, as in 192.0.2.7:40000 > 198.51.100.10:443 flags=S";
        assert_eq!(refused(""), format!("\"\": source > destination is missing; {begin}"));
        assert_eq!(refused("flags=S"), format!("\"flags=S\": source > destination is missing; {begin}"));
        assert_eq!(refused("1.2.3.4:5 >"), format!("\"1.2.3.4:5>\": the destination is missing; {begin}"));
        assert_eq!(refused("192.0.2.7 > 1.2.3.4:5"), "\"192.0.2.7\": the port is missing; write 192.0.2.7:443");
        assert_eq!(
            refused("2001:db8::1:99 > 1.2.3.4:5"),
            "\"2001:db8::1:99\": an IPv6 address without brackets and port; write [2001:db8::1:99]:443"
        );
        assert_eq!(
            refused("[2001:db8::1]:99 > 1.2.3.4:5"),
            "\"[2001:db8::1]:99>1.2.3.4:5\": one address is IPv4 and the other IPv6; give two of one family"
        );
        let wrong = |words: &str| refused(&format!("{ENDS} {words}"));
        assert_eq!(wrong("flag=S"), "\"flag=S\": no word of a packet is \"flag\"; did you mean flags?");
        assert!(wrong("quux=S").contains("there are flags, seq, ack"), "{}", wrong("quux=S"));
        assert_eq!(
            wrong("ttl=300"),
            "\"ttl=300\": \"300\" is no number from 0 to 255; write it in decimal, or hexadecimal after 0x"
        );
        assert_eq!(wrong("ttl=1 hop_limit=2"), "\"hop_limit=2\": ttl is there already; give it once");
        assert!(wrong("flags=syn,akc").starts_with("\"flags=syn,akc\": \"akc\" is no flag; did you mean ack? "));
        assert!(wrong("options=mss,wscal").contains("did you mean wscale?"), "{}", wrong("options=mss,wscal"));
        assert_eq!(wrong("payload=\"GET"), "\"payload=\\\"GET\": a quote is not closed; end the text with \"");
        assert!(wrong("payload=hex:123").contains("two digits for each"));
        assert!(wrong("payload=\\q").contains("unknown escape"));
        assert!(wrong("payload=abc len=2").contains("the payload has 3 octets; give 3 or more"));
        assert_eq!(wrong("mss=1 options=nop"), "\"mss\": options= does not list it; add it there, or leave it out");
        let long = format!("options=hex:{}", "01".repeat(41));
        assert_eq!(wrong(&long), "\"options\": 41 octets; TCP has room for 40");
        assert!(wrong("seq").contains("the value is missing; write seq=VALUE"));
        assert!(wrong("len=70000").contains("no number from 0 to 65455"));
    }

    #[test]
    fn a_segment_is_described_as_it_would_be_typed() {
        let again = |words: &str| {
            let (segment, frame) = made(words);
            describe(&segment, &frame)
        };
        let syn = "flags=S seq=0 win=64240 ttl=64 mss=1460 sack ts=1:0 wscale=7";
        assert_eq!(again(""), format!("{ENDS} {syn}"));
        let data = "flags=P. seq=8 ack=1 win=502 ttl=64 tos=0x02 urg=3 vlan=5 payload=\"GET /\\x27\\r\\n\"";
        assert_eq!(again(data), format!("{ENDS} {data}"));
        let windows =
            "flags=S seq=0 win=64240 ttl=128 mss=1460 sack wscale=8 options=mss,nop,wscale,nop,nop,sack-permitted";
        assert_eq!(again(windows), format!("{ENDS} {windows}"));
        let bare = "flags=S seq=0 win=1024 ttl=64 options=none len=1400";
        assert_eq!(again(bare), format!("{ENDS} {bare}"));
    }

    fn any_text() -> impl Strategy<Value = String> {
        let word = prop_oneof![
            3 => proptest::sample::select(&KEYS[..]).prop_map(|key| format!("{key}=")),
            3 => proptest::sample::select(&KEYS[..]).prop_flat_map(|key| "[0-9a-z:,.]{0,6}".prop_map(move |v| format!("{key}={v}"))),
            1 => Just(ENDS.to_owned()),
            1 => "\\PC{0,8}",
            1 => "payload=\"\\PC{0,8}\"",
        ];
        proptest::collection::vec(word, 0..6).prop_map(|words| format!("{ENDS} {}", words.join(" ")))
    }

    fn legal_flags() -> impl Strategy<Value = Flags> {
        let legal: Vec<Flags> = (0..=u8::MAX).map(Flags).filter(|flags| flags.is_legal()).collect();
        proptest::sample::select(legal)
    }

    fn any_option_octets() -> impl Strategy<Value = Vec<Opt>> {
        let option = prop_oneof![
            any::<u16>().prop_map(Opt::Mss),
            any::<u8>().prop_map(Opt::WindowScale),
            Just(Opt::SackPermitted),
            any::<(u32, u32)>().prop_map(|(value, echo)| Opt::Timestamp(value, echo)),
            any::<(u32, u32)>().prop_map(|block| Opt::Sack(vec![block])),
            Just(Opt::Nop),
            Just(Opt::End),
            proptest::collection::vec(any::<u8>(), 0..5).prop_map(Opt::Raw),
        ];
        let linux = [Opt::Mss(1460), Opt::SackPermitted, Opt::Timestamp(7, 0), Opt::Nop, Opt::WindowScale(7)];
        prop_oneof![1 => Just(linux.to_vec()), 4 => proptest::collection::vec(option, 0..4)]
    }

    proptest! {
        #[test]
        fn no_text_panics(text in prop_oneof![any_text(), "\\PC{0,60}"]) {
            if let Ok(frame) = parse(&text) {
                let _ = parse_frame(&frame, RxChecksums::default());
            }
            let words: Vec<&str> = text.split(' ').collect();
            let _ = parse_words(&words);
        }

        #[test]
        fn what_is_described_can_be_typed_again(
            v6 in any::<bool>(),
            (flags, window, hop_limit, tos, urgent) in (legal_flags(), any::<u16>(), 1_u8.., any::<u8>(), any::<u16>()),
            (seq, ack) in any::<(u32, u32)>(),
            vlan in proptest::option::of(0_u16..4096),
            options in any_option_octets(),
            payload in prop_oneof![
                proptest::collection::vec(any::<u8>(), 0..40),
                "[ -~\r\n\t]{0,40}".prop_map(String::into_bytes),
                (0_usize..1400).prop_map(|len| vec![0; len]),
                (0_usize..20).prop_map(|len| [&b"GET"[..], &vec![0; len]].concat()),
            ],
        ) {
            let (src, dst) = if v6 { ("[2001:db8::7]:1", "[2001:db8::8]:65535") } else { ("192.0.2.7:1", "192.0.2.8:65535") };
            let mut packet = testkit::tcp(src, dst)
                .flags(flags).seq(seq).ack(ack).window(window).hop_limit(hop_limit).tos(tos).urgent(urgent)
                .options(options).payload(payload);
            if let Some(vlan) = vlan {
                packet = packet.vlan(vlan);
            }
            prop_assume!(packet.options_len() <= 40);
            let frame = packet.build();
            let text = describe(&segment(&frame), &frame);
            prop_assert!(!text.contains(|c: char| c.is_control() || c == '\''), "{text}");
            let again = parse(&text).unwrap();
            prop_assert_eq!(&again, &frame, "{}", text);
        }
    }
}
