//! What is refused of an expression's text before libpcap sees it: what would ask a name server, and what compiles but could
//! not mean anything here.
//!
//! libpcap looks a host's or network's name up while it compiles. Words are told apart as its scanner does; a word that is
//! no keyword, number or address may only be a port's or protocol's name, right after a keyword that asks for one.

use std::net::Ipv6Addr;

use super::ExpressionError;

/// pcap-filter(7)'s words, those for other link layers left out: their expressions do not compile for Ethernet anyway.
const KEYWORDS: &[&str] = &[
    "address1",
    "address2",
    "address3",
    "address4",
    "addr1",
    "addr2",
    "addr3",
    "addr4",
    "ah",
    "and",
    "arp",
    "atalk",
    "aarp",
    "broadcast",
    "byte",
    "carp",
    "clnp",
    "csnp",
    "decnet",
    "dir",
    "direction",
    "dst",
    "es-is",
    "esis",
    "esp",
    "ether",
    "fddi",
    "gateway",
    "greater",
    "host",
    "icmp",
    "icmp6",
    "icmp6-destinationunreach",
    "icmp6-echo",
    "icmp6-echoreply",
    "icmp6-homeagentdiscoveryreply",
    "icmp6-homeagentdiscoveryrequest",
    "icmp6-inverseneighboradvert",
    "icmp6-inverseneighborsolicit",
    "icmp6-mobileprefixadvert",
    "icmp6-mobileprefixsolicit",
    "icmp6-multicastlistenerdone",
    "icmp6-multicastlistenerquery",
    "icmp6-multicastlistenerreportv1",
    "icmp6-multicastlistenerreportv2",
    "icmp6-neighboradvert",
    "icmp6-neighborsolicit",
    "icmp6-nodeinformationquery",
    "icmp6-nodeinformationresponse",
    "icmp6-packettoobig",
    "icmp6-parameterproblem",
    "icmp6-redirect",
    "icmp6-routeradvert",
    "icmp6-routerrenum",
    "icmp6-routersolicit",
    "icmp6-timeexceeded",
    "icmp6-certpathadvert",
    "icmp6-certpathsolicit",
    "icmp6-multicastrouteradvert",
    "icmp6-multicastroutersolicit",
    "icmp6-multicastroutertermination",
    "icmp6code",
    "icmp6type",
    "icmp-echo",
    "icmp-echoreply",
    "icmp-ireq",
    "icmp-ireqreply",
    "icmp-maskreply",
    "icmp-maskreq",
    "icmp-paramprob",
    "icmp-redirect",
    "icmp-routeradvert",
    "icmp-routersolicit",
    "icmp-sourcequench",
    "icmp-timxceed",
    "icmp-tstamp",
    "icmp-tstampreply",
    "icmp-unreach",
    "icmpcode",
    "icmptype",
    "igmp",
    "igrp",
    "iih",
    "ip",
    "ip6",
    "ipx",
    "is-is",
    "isis",
    "iso",
    "l1",
    "l2",
    "lat",
    "len",
    "length",
    "less",
    "link",
    "lsp",
    "mask",
    "moprc",
    "mopdl",
    "multicast",
    "net",
    "netbeui",
    "not",
    "or",
    "pim",
    "ppp",
    "psnp",
    "radio",
    "rarp",
    "sca",
    "sctp",
    "slip",
    "snp",
    "src",
    "stp",
    "subtype",
    "tcp",
    "tcp-ack",
    "tcp-cwr",
    "tcp-ece",
    "tcp-ecn",
    "tcp-fin",
    "tcp-push",
    "tcp-rst",
    "tcp-syn",
    "tcp-urg",
    "tcpflags",
    "tr",
    "type",
    "udp",
    "vrrp",
    "wlan",
];
/// What asks for a port's or protocol's name, or a number.
const NAMED: &[&str] = &["port", "portrange", "proto", "protochain"];
/// Joins what stands to its right to what the word before asked for: `port http or https`.
const JOINS: &[&str] = &["and", "or", "not"];
/// The frame's envelope: an expression never sees it.
const ENVELOPES: &[&str] = &["vlan", "mpls", "pppoed", "pppoes", "geneve", "vxlan"];
/// What a capture knows of a packet beside its octets.
const CAPTURES: &[&str] = &[
    "inbound",
    "outbound",
    "ifindex",
    "ifname",
    "on",
    "action",
    "reason",
    "rnr",
    "rulenum",
    "rset",
    "ruleset",
    "srnr",
    "subrulenum",
];

/// How many words beside `and`, `or` and `not` a text may have. libpcap's time grows faster than its program, which this bounds.
pub(super) const MAX_WORDS: usize = 512;

/// Checks a text that is not empty and has no NUL.
pub(super) fn check(text: &str) -> Result<(), ExpressionError> {
    let mut rest = text;
    let mut names = false;
    let mut brackets = 0u32;
    let mut words = 0usize;
    while let Some(first) = rest.chars().next() {
        if first == '\\' {
            let name = leading(&rest[1..], |c| !matches!(c, ' ' | '!' | '(' | ')' | '\n' | '\t'));
            if !names {
                return Err(ExpressionError::Name(name.to_owned()));
            }
            rest = &rest[1 + name.len()..];
            continue;
        }
        // A colon makes addresses outside of brackets, and separates offset and size inside.
        let word = leading(rest, |c| c.is_ascii_alphanumeric() || "-_.".contains(c) || (c == ':' && brackets == 0));
        let word = word.trim_end_matches(['-', '_']);
        if word.is_empty() || first == '-' || first == '_' {
            match first {
                '[' => brackets += 1,
                ']' => brackets = brackets.saturating_sub(1),
                ')' => names = false,
                _ => {}
            }
            rest = &rest[first.len_utf8()..];
            continue;
        }
        rest = &rest[word.len()..];
        words += usize::from(!JOINS.contains(&word));
        if NAMED.contains(&word) {
            names = true;
        } else if KEYWORDS.contains(&word) {
            names &= JOINS.contains(&word);
        } else if ENVELOPES.contains(&word) {
            return Err(ExpressionError::Envelope(word.to_owned()));
        } else if CAPTURES.contains(&word) {
            return Err(ExpressionError::Capture(word.to_owned()));
        } else if !names && !is_number_or_address(word) {
            return Err(ExpressionError::Name(word.to_owned()));
        }
    }
    if words > MAX_WORDS { Err(ExpressionError::TooManyWords(words)) } else { Ok(()) }
}

fn leading(text: &str, belongs: impl Fn(char) -> bool) -> &str {
    &text[..text.find(|c| !belongs(c)).unwrap_or(text.len())]
}

fn is_number_or_address(word: &str) -> bool {
    is_ipv4(word) || is_mac(word) || word.parse::<Ipv6Addr>().is_ok()
}

/// A number, or up to four with dots between: `10.0` is a network.
fn is_ipv4(word: &str) -> bool {
    let number = |part: &str| match part.strip_prefix("0x").or_else(|| part.strip_prefix("0X")) {
        Some(hex) => is_hex(hex),
        None => !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit()),
    };
    word.split('.').count() <= 4 && word.split('.').all(number)
}

/// Six octets with colons, dashes or dots between, three pairs of them with dots, or none of this.
fn is_mac(word: &str) -> bool {
    let parts = |separator, count, lens: &[usize]| {
        word.split(separator).count() == count
            && word.split(separator).all(|part| lens.contains(&part.len()) && is_hex(part))
    };
    [':', '-', '.'].into_iter().any(|separator| parts(separator, 6, &[1, 2]))
        || parts('.', 3, &[4])
        || (word.len() == 12 && is_hex(word))
}

fn is_hex(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_hexdigit())
}
