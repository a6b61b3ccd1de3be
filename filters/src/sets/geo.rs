//! Networks of countries and autonomous systems, from a MaxMind database.
//!
//! A country is where a network is used (`country.iso_code`), not where it is registered. IPv4 networks come out as IPv4; the
//! places where these databases repeat them among IPv6 addresses (mapped, Teredo, 6to4, NAT64) are left out, for an address
//! there says nothing about where its packets come from. A damaged file is an error: the tree is not followed further than
//! a sound one of its size could lead.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::io::Read;
use std::net::{IpAddr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use maxminddb::{LookupResult, MaxMindDbError, PathElement, Reader, WithinOptions};
use sluice_config::Geo;

use super::file::{self, FileProblem};

/// The greatest database file, in octets.
pub const MAX_DATABASE_OCTETS: u64 = 1 << 30;

/// Names shown of what a database has not.
const SHOWN: usize = 10;

/// Where IPv4 networks appear among IPv6 ones.
const ALIASES: [(Ipv6Addr, u8); 4] = [
    (Ipv6Addr::new(0, 0, 0, 0, 0, 0xffff, 0, 0), 96),
    (Ipv6Addr::new(0x2001, 0, 0, 0, 0, 0, 0, 0), 32),
    (Ipv6Addr::new(0x2002, 0, 0, 0, 0, 0, 0, 0), 16),
    (Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, 0, 0), 96),
];

const COUNTRY: [PathElement<'static>; 2] = [PathElement::Key("country"), PathElement::Key("iso_code")];
const ASN: [PathElement<'static>; 1] = [PathElement::Key("autonomous_system_number")];

/// Why a database gives no prefixes: the file's name and what is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GeoError {
    /// The file as it was named.
    pub file: String,
    /// What is wrong.
    pub problem: GeoProblem,
}

/// What is wrong with a database, or with what is asked of it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum GeoProblem {
    /// The file cannot be used.
    File(FileProblem),
    /// It is no MaxMind database, or a damaged one; what was found.
    Damaged(String),
    /// A sound database of this type, none of whose networks has a country.
    NoCountries(String),
    /// A sound database of this type, none of whose networks has an autonomous system.
    NoAsns(String),
    /// No network is in these countries.
    UnknownCountries(Vec<String>),
    /// No network is in these autonomous systems.
    UnknownAsns(Vec<u32>),
}

impl fmt::Display for GeoError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.file)?;
        match &self.problem {
            GeoProblem::File(problem) => problem.fmt(f),
            GeoProblem::Damaged(found) => {
                write!(f, "is no MaxMind database, or a damaged one ({}); fetch it again", found.escape_debug())
            }
            GeoProblem::NoCountries(kind) => write!(
                f,
                "is a {} database, which has no countries; name one of countries or cities, such as GeoLite2-Country",
                file::quoted(kind.as_bytes())
            ),
            GeoProblem::NoAsns(kind) => write!(
                f,
                "is a {} database, which has no autonomous systems; name one that has, such as GeoLite2-ASN",
                file::quoted(kind.as_bytes())
            ),
            GeoProblem::UnknownCountries(codes) => {
                write!(f, "no network is in {}; ", listed(codes))?;
                f.write_str("write ISO 3166-1 codes in two capital letters, or remove what is not there")
            }
            GeoProblem::UnknownAsns(asns) => {
                let names: Vec<_> = asns.iter().map(|asn| format!("AS{asn}")).collect();
                write!(f, "no network is in {}; correct the number, or remove what is not there", listed(&names))
            }
        }
    }
}

impl std::error::Error for GeoError {}

fn listed(names: &[String]) -> String {
    let shown: Vec<_> = names.iter().take(SHOWN).map(|name| name.escape_debug().to_string()).collect();
    match names.len().saturating_sub(SHOWN) {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}

/// The networks of `geo`'s countries and autonomous systems, in the database's order.
///
/// # Errors
/// The file cannot be read or is no sound database, has none of what is asked, or has no network in one of the countries
/// or systems.
pub fn read_geo(geo: &Geo) -> Result<Vec<IpNet>, GeoError> {
    networks(geo).map_err(|problem| GeoError { file: file::shown_path(&geo.database), problem })
}

fn networks(geo: &Geo) -> Result<Vec<IpNet>, GeoProblem> {
    let mut octets = Vec::new();
    let file = file::open(&geo.database, MAX_DATABASE_OCTETS).map_err(GeoProblem::File)?;
    file.take(MAX_DATABASE_OCTETS).read_to_end(&mut octets).map_err(|e| GeoProblem::File(e.into()))?;
    let reader = Reader::from_source(octets).map_err(damaged)?;
    let metadata = reader.metadata();

    // A tree of n nodes ends in n + 1 places; the repeated IPv4 networks come on top, in a few places of their own. Empty
    // and repeated places are asked for so that they count: a damaged tree could lead through more than a lifetime of them.
    let places = u64::from(metadata.node_count).saturating_add(1);
    let mut budget = places.saturating_mul((ALIASES.len() as u64).saturating_add(2));
    let options = WithinOptions::default().include_aliased_networks().include_networks_without_data();
    let mut wanted = Wanted::new(geo);
    let mut nets = Vec::new();
    for found in reader.networks(options).map_err(damaged)? {
        let found = found.map_err(damaged)?;
        budget = budget
            .checked_sub(1)
            .ok_or_else(|| GeoProblem::Damaged("the search tree has more branches than nodes".to_owned()))?;
        let Some(record) = found.offset() else { continue };
        let network = found.network().map_err(damaged)?;
        let net: IpNet = match network.ip() {
            IpAddr::V4(ip) => {
                Ipv4Net::new(ip, network.prefix()).map_err(|e| GeoProblem::Damaged(e.to_string()))?.into()
            }
            IpAddr::V6(ip) => {
                Ipv6Net::new(ip, network.prefix()).map_err(|e| GeoProblem::Damaged(e.to_string()))?.into()
            }
        };
        if !is_alias(&net) && wanted.holds(record, &found)? {
            nets.push(net);
        }
    }
    wanted.finish(&metadata.database_type)?;
    Ok(nets)
}

fn is_alias(net: &IpNet) -> bool {
    let IpNet::V6(net) = net else { return false };
    ALIASES.iter().any(|&(alias, len)| {
        net.prefix_len() >= len && (net.network().to_bits() ^ alias.to_bits()).leading_zeros() >= len.into()
    })
}

fn damaged(error: MaxMindDbError) -> GeoProblem {
    GeoProblem::Damaged(error.to_string().chars().take(200).collect())
}

/// What is asked of the database, and how much of it was met.
struct Wanted<'a> {
    geo: &'a Geo,
    countries: HashSet<&'a str>,
    asns: HashSet<u32>,
    /// Of the above, not met yet.
    missing_countries: HashSet<&'a str>,
    missing_asns: HashSet<u32>,
    any_country: bool,
    any_asn: bool,
    /// By a record's offset: many networks share one.
    known: HashMap<usize, bool>,
}

impl<'a> Wanted<'a> {
    fn new(geo: &'a Geo) -> Wanted<'a> {
        let countries: HashSet<_> = geo.countries.iter().map(String::as_str).collect();
        let asns: HashSet<_> = geo.asns.iter().copied().collect();
        Wanted {
            geo,
            missing_countries: countries.clone(),
            missing_asns: asns.clone(),
            countries,
            asns,
            any_country: false,
            any_asn: false,
            known: HashMap::new(),
        }
    }

    /// Whether the record at offset `record`, where `found` is, is of a wanted country or system.
    fn holds(&mut self, record: usize, found: &LookupResult<'_, Vec<u8>>) -> Result<bool, GeoProblem> {
        if let Some(&holds) = self.known.get(&record) {
            return Ok(holds);
        }
        let mut holds = false;
        if !self.countries.is_empty()
            && let Some(code) = found.decode_path::<&str>(&COUNTRY).map_err(damaged)?
        {
            self.any_country = true;
            self.missing_countries.remove(code);
            holds |= self.countries.contains(code);
        }
        if !self.asns.is_empty()
            && let Some(asn) = found.decode_path::<u32>(&ASN).map_err(damaged)?
        {
            self.any_asn = true;
            self.missing_asns.remove(&asn);
            holds |= self.asns.contains(&asn);
        }
        self.known.insert(record, holds);
        Ok(holds)
    }

    fn finish(self, database_type: &str) -> Result<(), GeoProblem> {
        let geo = self.geo;
        if !self.countries.is_empty() && !self.any_country {
            return Err(GeoProblem::NoCountries(database_type.to_owned()));
        }
        if !self.asns.is_empty() && !self.any_asn {
            return Err(GeoProblem::NoAsns(database_type.to_owned()));
        }
        let countries: Vec<_> =
            geo.countries.iter().filter(|code| self.missing_countries.contains(code.as_str())).cloned().collect();
        if !countries.is_empty() {
            return Err(GeoProblem::UnknownCountries(countries));
        }
        let asns: Vec<_> = geo.asns.iter().copied().filter(|asn| self.missing_asns.contains(asn)).collect();
        if !asns.is_empty() {
            return Err(GeoProblem::UnknownAsns(asns));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;
    use crate::testkit::mmdb::{self, Mmdb};

    fn countries() -> Mmdb {
        Mmdb::new("GeoLite2-Country")
            .insert("192.0.2.0/24", &mmdb::country("DE", "US"))
            .insert("198.51.100.0/24", &mmdb::country("FR", "DE"))
            .insert("203.0.113.0/25", &mmdb::country("DE", "DE"))
            .insert("0.0.0.0/24", &mmdb::country("DE", "DE"))
            .insert("2001:db8:1::/48", &mmdb::country("DE", "US"))
            .insert("2001:db8:2::/48", &mmdb::country("FR", "DE"))
            .insert("2a00::/12", &mmdb::country("SE", "SE"))
            .insert("2003::/19", &mmdb::map([("continent", mmdb::map([("code", "EU".into())]))]))
    }

    /// Reads `octets` as a database, asking for these.
    fn ask(octets: &[u8], countries: &[&str], asns: &[u32]) -> Result<Vec<String>, String> {
        let folder = tempfile::tempdir().unwrap();
        let database = folder.path().join("test.mmdb");
        std::fs::write(&database, octets).unwrap();
        let countries = countries.iter().map(|&code| code.to_owned()).collect();
        let geo = Geo { database, countries, asns: asns.to_vec() };
        let mut nets: Vec<_> =
            read_geo(&geo).map_err(|e| e.to_string().replace(&*geo.database.to_string_lossy(), "test.mmdb"))?;
        nets.sort();
        Ok(nets.iter().map(IpNet::to_string).collect())
    }

    #[test]
    fn a_country_is_where_a_network_is_used_in_both_families() {
        let german = ["0.0.0.0/24", "192.0.2.0/24", "203.0.113.0/25", "2001:db8:1::/48"];
        for record_size in [24, 28, 32] {
            let database = countries().record_size(record_size).build();
            assert_eq!(ask(&database, &["DE"], &[]).unwrap(), german, "{record_size}");
            assert_eq!(
                ask(&database, &["FR", "SE"], &[]).unwrap(),
                ["198.51.100.0/24", "2001:db8:2::/48", "2a00::/12"]
            );
        }
    }

    #[test]
    fn repeated_ipv4_networks_are_no_ipv6_networks() {
        let database = countries().aliases().build();
        let german = ["0.0.0.0/24", "192.0.2.0/24", "203.0.113.0/25", "2001:db8:1::/48"];
        assert_eq!(ask(&database, &["DE"], &[]).unwrap(), german);
    }

    #[test]
    fn a_database_of_ipv4_alone_is_read() {
        let database = Mmdb::new("GeoLite2-ASN")
            .v4_only()
            .insert("192.0.2.0/24", &mmdb::asn(64_500))
            .insert("0.0.0.0/1", &mmdb::asn(1));
        assert_eq!(ask(&database.build(), &[], &[64_500]).unwrap(), ["192.0.2.0/24"]);
        assert_eq!(ask(&database.build(), &[], &[1]).unwrap(), ["0.0.0.0/1"]);
    }

    #[test]
    fn autonomous_systems_are_found_by_number() {
        let database = Mmdb::new("GeoLite2-ASN")
            .insert("192.0.2.0/24", &mmdb::asn(64_500))
            .insert("192.0.2.128/25", &mmdb::asn(4_200_000_000))
            .insert("2001:db8::/32", &mmdb::asn(64_500))
            .build();
        assert_eq!(ask(&database, &[], &[64_500]).unwrap(), ["192.0.2.0/25", "2001:db8::/32"]);
        assert_eq!(ask(&database, &[], &[4_200_000_000]).unwrap(), ["192.0.2.128/25"]);
    }

    #[test]
    fn a_database_of_another_kind_is_named() {
        let asns = Mmdb::new("GeoLite2-ASN").insert("192.0.2.0/24", &mmdb::asn(64_500)).build();
        assert_eq!(
            ask(&asns, &["DE"], &[]).unwrap_err(),
            "test.mmdb: is a \"GeoLite2-ASN\" database, which has no countries; \
             name one of countries or cities, such as GeoLite2-Country"
        );
        assert_eq!(
            ask(&countries().build(), &[], &[1]).unwrap_err(),
            "test.mmdb: is a \"GeoLite2-Country\" database, which has no autonomous systems; \
             name one that has, such as GeoLite2-ASN"
        );
    }

    #[test]
    fn what_no_network_has_is_named() {
        assert_eq!(
            ask(&countries().build(), &["DE", "XX", "UK"], &[]).unwrap_err(),
            "test.mmdb: no network is in XX, UK; \
             write ISO 3166-1 codes in two capital letters, or remove what is not there"
        );
        let asns = Mmdb::new("GeoLite2-ASN").insert("192.0.2.0/24", &mmdb::asn(64_500)).build();
        assert_eq!(
            ask(&asns, &[], &[64_501, 64_500]).unwrap_err(),
            "test.mmdb: no network is in AS64501; correct the number, or remove what is not there"
        );
    }

    #[test]
    fn what_is_no_database_is_said() {
        for octets in [&b""[..], b"192.0.2.0/24\n", &[0xff; 4096], b"\xab\xcd\xefMaxMind.com"] {
            let error = ask(octets, &["DE"], &[]).unwrap_err();
            assert!(error.starts_with("test.mmdb: is no MaxMind database, or a damaged one ("), "{error}");
            assert!(error.ends_with("); fetch it again"), "{error}");
        }
    }

    #[test]
    fn a_database_that_is_not_there_is_said() {
        let geo = |database| Geo { database, countries: vec!["DE".to_owned()], asns: vec![] };
        assert_eq!(
            read_geo(&geo(PathBuf::from("/nowhere/a.mmdb"))).unwrap_err().to_string(),
            "/nowhere/a.mmdb: no such file or directory; correct the path, or put the file there"
        );
        let folder = tempfile::tempdir().unwrap();
        let error = read_geo(&geo(folder.path().to_owned())).unwrap_err();
        assert_eq!(error.problem, GeoProblem::File(FileProblem::NotAFile));
    }

    /// A tree whose every node leads on to the next on both sides: 2^60 ways to nothing.
    #[test]
    fn a_tree_with_more_ways_than_nodes_ends_in_an_error() {
        let error = ask(&countries().braid(60).build(), &["DE"], &[]).unwrap_err();
        assert!(error.contains("more branches than nodes"), "{error}");
    }

    proptest! {
        #[test]
        fn a_damaged_database_is_an_error_or_an_answer(
            cut in prop_oneof![Just(None), any::<prop::sample::Index>().prop_map(Some)],
            flips in vec((any::<prop::sample::Index>(), any::<u8>()), 0..8),
            tail in any::<bool>(),
        ) {
            let mut database = countries().record_size(24).aliases().build();
            // Half of the time the metadata and data, which are the smaller part, take all the damage.
            let from = if tail { database.len() - 600 } else { 0 };
            for (at, octet) in flips {
                let at = from + at.index(database.len() - from);
                database[at] = octet;
            }
            if let Some(cut) = cut {
                database.truncate(cut.index(database.len()));
            }
            if let Err(error) = ask(&database, &["DE"], &[1]) {
                prop_assert!(error.starts_with("test.mmdb: ") && error.contains("; "), "{}", error);
            }
        }
    }
}
