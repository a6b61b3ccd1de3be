//! sluice's configuration: the TOML schema, its defaults and its validation.
//!
//! [`load`] reads a file into a [`Config`] whose every value has been checked, or into [`ConfigErrors`] that name every
//! mistake with its line, key, what was found and what would be right. Nothing here looks at the machine: whether a CPU, a
//! device or a file of secrets exists is found out at start ([`read_seed`] and [`read_proxy_keys`] for the latter).
//!
//! The TOML tree is walked by hand instead of deserialised with serde, because a derived deserialiser stops at the first
//! mistake and knows no remedies.
//!
//! Invariants: no input makes it panic; a mistake found in a text always carries a line; a [`Config`] is returned only
//! when there was no mistake at all.

#![forbid(unsafe_code)]

mod address;
mod catch_all;
mod check;
mod describe;
mod error;
mod keys;
mod model;
mod prefix;
mod rate;
mod read;
mod schema;
mod secret;
mod seed;
mod summary;
mod units;

use std::fs::File;
use std::io::Read;
use std::path::Path;

pub use error::{ConfigErrors, Mistake, Place};
pub use keys::{KeyError, KeyFault, ProxyKeys, read_proxy_keys};
pub use model::*;
pub use prefix::{Prefix, PrefixError, Shortest, read_prefix};
pub use seed::{SeedError, read_seed};
pub use units::show_size;

use error::Diagnostics;

/// Largest file that is read, octets: room for some 500,000 filter prefixes.
const LARGEST: u64 = 16 << 20;

/// Reads and checks the configuration file at `path`.
///
/// # Errors
/// When the file cannot be read, and for everything that [`parse`] finds.
pub fn load(path: &Path) -> Result<Config, ConfigErrors> {
    let name = path.display().to_string();
    let unreadable = |place, found: String, remedy: &str| {
        let (file, key, remedy) = (name.clone(), "file".to_owned(), remedy.to_owned());
        ConfigErrors::new(vec![Mistake { file, place, key, found, remedy }])
    };
    let mut octets = Vec::new();
    // One octet more than allowed, to tell a file of exactly that size from a larger one.
    File::open(path)
        .and_then(|file| file.take(LARGEST + 1).read_to_end(&mut octets))
        .map_err(|error| unreadable(None, format!("cannot be read: {error}"), "name a file that sluice may read"))?;
    if octets.len() as u64 > LARGEST {
        let found = format!("is larger than {} MiB", LARGEST >> 20);
        return Err(unreadable(None, found, "name a sluice configuration file"));
    }
    match String::from_utf8(octets) {
        Ok(text) => parse(&name, &text),
        Err(error) => {
            let sound = error.utf8_error().valid_up_to();
            let before = error.as_bytes().get(..sound).unwrap_or_default();
            let line = before.iter().filter(|octet| **octet == b'\n').count() + 1;
            let column = before.iter().rev().take_while(|octet| **octet != b'\n').count() + 1;
            Err(unreadable(Some(Place { line, column }), "is not UTF-8 text".to_owned(), "save the file as UTF-8"))
        }
    }
}

/// Checks a configuration's text. `file_name` is what messages call it.
///
/// ```
/// let text = r#"
/// [[port]]
/// name = "wan"
/// device = "net_af_packet0"
/// args = "iface=p0"
/// addresses = ["198.51.100.2/24"]
///
/// [[service]]
/// name = "trading"
/// listen = ["198.51.100.10:443"]
/// [service.timeouts]
/// connect = "5"
/// [[service.upstream]]
/// address = "198.51.100.50:443"
/// "#;
/// let errors = sluice_config::parse("sluice.toml", text).unwrap_err();
/// assert_eq!(
///     errors.to_string(),
///     r#"sluice.toml:12: service "trading": timeouts.connect: "5" has no unit; write "5s", "500ms" or "2m""#
/// );
/// assert!(sluice_config::parse("sluice.toml", &text.replace("\"5\"", "\"5s\"")).is_ok());
/// ```
///
/// # Errors
/// Every mistake found, in file order. When the text is not TOML, only that is reported.
pub fn parse(file_name: &str, text: &str) -> Result<Config, ConfigErrors> {
    let mut diag = Diagnostics::new(file_name, text);
    let (root, syntax) = toml::de::DeTable::parse_recoverable(text);
    if !syntax.is_empty() {
        let mut last = None;
        for error in &syntax {
            let at = error.span().map_or(0, |span| span.start);
            // What follows on the same line is most often a consequence.
            if last.replace(diag.line(at)) != Some(diag.line(at)) {
                diag.syntax(at, error.message());
            }
        }
        return Err(ConfigErrors::new(diag.into_mistakes()));
    }
    let draft = schema::draft(&read::Section::root(&root), &mut diag);
    check::check(draft, &mut diag).ok_or_else(|| ConfigErrors::new(diag.into_mistakes()))
}
