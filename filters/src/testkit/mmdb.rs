//! Writes MaxMind DB files (format 2.0) for tests: a search tree of 24, 28 or 32 bit records, a data section, the metadata.
//!
//! <https://maxmind.github.io/MaxMind-DB/>. Only what tests need: no pointers within the data, no values beyond [`Value`].

use std::collections::HashMap;

use ipnet::IpNet;

/// A value of the data section.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// UTF-8.
    Text(String),
    /// Type `uint16`.
    U16(u16),
    /// Type `uint32`.
    U32(u32),
    /// Type `uint64`.
    U64(u64),
    /// Keys and values, in this order.
    Map(Vec<(String, Value)>),
    /// Values.
    Array(Vec<Value>),
}

impl From<&str> for Value {
    fn from(text: &str) -> Value {
        Value::Text(text.to_owned())
    }
}

/// A map of these.
#[must_use]
pub fn map(entries: impl IntoIterator<Item = (&'static str, Value)>) -> Value {
    Value::Map(entries.into_iter().map(|(key, value)| (key.to_owned(), value)).collect())
}

/// A record as GeoLite2-Country has it, for a network in `country` that is registered in `registered`.
#[must_use]
pub fn country(country: &str, registered: &str) -> Value {
    map([
        ("continent", map([("code", "EU".into())])),
        ("country", map([("geoname_id", Value::U32(1)), ("iso_code", country.into())])),
        ("registered_country", map([("geoname_id", Value::U32(2)), ("iso_code", registered.into())])),
    ])
}

/// A record as GeoLite2-ASN has it.
#[must_use]
pub fn asn(number: u32) -> Value {
    map([("autonomous_system_number", Value::U32(number)), ("autonomous_system_organization", "Example".into())])
}

/// Where a record of a node leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Child {
    Empty,
    Node(usize),
    /// Offset in the data section.
    Data(usize),
}

/// A database in the making.
#[derive(Clone, Debug)]
pub struct Mmdb {
    database_type: String,
    ip_version: u16,
    record_size: u16,
    nodes: Vec<[Child; 2]>,
    data: Vec<u8>,
    offsets: HashMap<Vec<u8>, usize>,
}

impl Mmdb {
    /// An empty database of both families with records of 28 bits. A `database_type` is `GeoLite2-Country`, for instance.
    #[must_use]
    pub fn new(database_type: &str) -> Mmdb {
        Mmdb {
            database_type: database_type.to_owned(),
            ip_version: 6,
            record_size: 28,
            nodes: vec![[Child::Empty; 2]],
            data: Vec::new(),
            offsets: HashMap::new(),
        }
    }

    /// For IPv4 only. Before anything is inserted.
    #[must_use]
    pub fn v4_only(mut self) -> Mmdb {
        self.ip_version = 4;
        self
    }

    /// Records of 24, 28 or 32 bits.
    #[must_use]
    pub fn record_size(mut self, bits: u16) -> Mmdb {
        self.record_size = bits;
        self
    }

    /// Gives the network `net` this record; a network inserted later may lie within it.
    ///
    /// # Panics
    /// If `net` is no prefix, or an IPv6 one in a database for IPv4 only.
    #[must_use]
    pub fn insert(mut self, net: &str, value: &Value) -> Mmdb {
        let mut encoded = Vec::new();
        encode(value, &mut encoded);
        let next = self.data.len();
        let at = *self.offsets.entry(encoded.clone()).or_insert(next);
        if at == next {
            self.data.extend_from_slice(&encoded);
        }
        let net: IpNet = net.parse().unwrap_or_else(|_| panic!("not a prefix: {net}"));
        let (bits, len) = self.path(net);
        self.set(bits, len, Child::Data(at));
        self
    }

    /// Makes the IPv4 networks reachable where MaxMind's databases repeat them: mapped, Teredo and 6to4 addresses. After
    /// all is inserted.
    ///
    /// # Panics
    /// If the database has no IPv4 network.
    #[must_use]
    pub fn aliases(mut self) -> Mmdb {
        let mut node = 0;
        for _ in 0..96 {
            let Child::Node(next) = self.nodes[node][0] else { panic!("no IPv4 networks") };
            node = next;
        }
        for alias in ["::ffff:0:0/96", "2001::/32", "2002::/16"] {
            let (bits, len) = self.path(alias.parse().expect("a prefix"));
            self.set(bits, len, Child::Node(node));
        }
        self
    }

    /// Replaces the tree by a damaged one: each node leads to the next on both sides, the last one to nothing.
    #[must_use]
    pub fn braid(mut self, nodes: usize) -> Mmdb {
        self.nodes = (1..nodes).map(|next| [Child::Node(next); 2]).chain([[Child::Empty; 2]]).collect();
        self
    }

    /// The file.
    ///
    /// # Panics
    /// If the tree does not fit into the records.
    #[must_use]
    pub fn build(&self) -> Vec<u8> {
        let mut file = Vec::new();
        for node in &self.nodes {
            let [left, right] = node.map(|child| self.record(child));
            let ([_, left_octets @ ..], [_, right_octets @ ..]) = (left.to_be_bytes(), right.to_be_bytes());
            let limit = 1u64 << self.record_size;
            assert!(u64::from(left.max(right)) < limit, "the tree does not fit into its records");
            match self.record_size {
                24 => file.extend([left_octets, right_octets].as_flattened()),
                28 => {
                    file.extend(left_octets);
                    file.push((left >> 20 & 0xf0 | right >> 24) as u8);
                    file.extend(right_octets);
                }
                _ => file.extend([left.to_be_bytes(), right.to_be_bytes()].as_flattened()),
            }
        }
        file.extend([0; 16]);
        file.extend_from_slice(&self.data);
        file.extend_from_slice(b"\xab\xcd\xefMaxMind.com");
        let metadata = map([
            ("binary_format_major_version", Value::U16(2)),
            ("binary_format_minor_version", Value::U16(0)),
            ("build_epoch", Value::U64(1_700_000_000)),
            ("database_type", self.database_type.as_str().into()),
            ("description", map([("en", "For tests".into())])),
            ("ip_version", Value::U16(self.ip_version)),
            ("languages", Value::Array(vec!["en".into()])),
            ("node_count", Value::U32(self.nodes.len() as u32)),
            ("record_size", Value::U16(self.record_size)),
        ]);
        encode(&metadata, &mut file);
        file
    }

    /// A record's number: a node, the number of nodes for nothing, or past the separator an offset in the data.
    fn record(&self, child: Child) -> u32 {
        let number = match child {
            Child::Empty => self.nodes.len(),
            Child::Node(node) => node,
            Child::Data(offset) => self.nodes.len() + 16 + offset,
        };
        u32::try_from(number).expect("a tree of fewer than 2^32 nodes")
    }

    /// A network's way through the tree: its bits from the most significant on, and how many.
    fn path(&self, net: IpNet) -> (u128, u32) {
        match (net, self.ip_version) {
            (IpNet::V4(net), 4) => (u128::from(net.network().to_bits()) << 96, net.prefix_len().into()),
            (IpNet::V4(net), _) => (net.network().to_bits().into(), u32::from(net.prefix_len()) + 96),
            (IpNet::V6(net), 6) => (net.network().to_bits(), net.prefix_len().into()),
            (IpNet::V6(net), _) => panic!("{net} in a database for IPv4"),
        }
    }

    fn set(&mut self, bits: u128, len: u32, child: Child) {
        if len == 0 {
            self.nodes[0] = [child; 2];
            return;
        }
        let way = |depth: u32| (bits >> (127 - depth) & 1) as usize;
        let mut node = 0;
        for depth in 0..len - 1 {
            let next = self.nodes.len();
            node = match self.nodes[node][way(depth)] {
                Child::Node(node) => node,
                // What covered this network so far covers both halves.
                before => {
                    self.nodes.push([before; 2]);
                    self.nodes[node][way(depth)] = Child::Node(next);
                    next
                }
            };
        }
        self.nodes[node][way(len - 1)] = child;
    }
}

fn encode(value: &Value, out: &mut Vec<u8>) {
    let number = |kind: u8, octets: &[u8], out: &mut Vec<u8>| {
        let significant = &octets[octets.iter().take_while(|octet| **octet == 0).count()..];
        control(kind, significant.len(), out);
        out.extend_from_slice(significant);
    };
    match value {
        Value::Text(text) => {
            control(2, text.len(), out);
            out.extend_from_slice(text.as_bytes());
        }
        Value::U16(value) => number(5, &value.to_be_bytes(), out),
        Value::U32(value) => number(6, &value.to_be_bytes(), out),
        Value::U64(value) => number(9, &value.to_be_bytes(), out),
        Value::Map(entries) => {
            control(7, entries.len(), out);
            for (key, value) in entries {
                encode(&Value::Text(key.clone()), out);
                encode(value, out);
            }
        }
        Value::Array(values) => {
            control(11, values.len(), out);
            values.iter().for_each(|value| encode(value, out));
        }
    }
}

/// A value's type and size.
///
/// # Panics
/// From a size of 285 on, which would need more octets.
fn control(kind: u8, size: usize, out: &mut Vec<u8>) {
    let (short, extra) = match size {
        0..29 => (size as u8, None),
        _ => (29, Some(u8::try_from(size - 29).expect("a value of fewer than 285 octets or entries"))),
    };
    // Types past 7 do not fit into three bits: they take an octet of their own.
    if kind <= 7 {
        out.push(kind << 5 | short)
    } else {
        out.extend([short, kind - 7])
    }
    out.extend(extra);
}
