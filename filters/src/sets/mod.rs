//! Address sets: where their prefixes come from, and how a packet asks for all of them at once.
//!
//! [`load_set`] reads what a `[[set]]` names: prefixes, list files ([`read_list`]) and a MaxMind database ([`read_geo`]). An
//! [`AddressSet`] is one set as sorted ranges, for building and comparing; a [`SetMap`] is compiled from all sets and says with
//! one lookup which of them hold an address. Reading is all or nothing: a set that lost a part would protect less than the
//! operator believes, so whatever cannot be read is an error that names the set, the file, the place and the remedy.

mod address_set;
mod file;
mod geo;
mod list;
mod lookup_v4;
mod lookup_v6;
mod map;

use sluice_config::{OnError, Set};

pub use address_set::AddressSet;
pub use file::FileProblem;
pub use geo::{GeoError, GeoProblem, MAX_DATABASE_OCTETS, read_geo};
pub use list::{
    BrokenLine, Lines, List, ListError, ListProblem, MAX_LIST_OCTETS, MAX_LIST_PREFIXES, Reading, parse_list, read_list,
};
pub use map::{MAX_RANGES, MAX_SETS, SetMap, SetMapError};

/// Why a set cannot be loaded. Displayed as `set "NAME": `, the file, what was found and the remedy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SetError {
    /// One of its list files.
    #[error("set {set:?}: {error}")]
    List {
        /// The set's name.
        set: String,
        /// Which file, and what is wrong.
        error: ListError,
    },
    /// Its database.
    #[error("set {set:?}: {error}")]
    Geo {
        /// The set's name.
        set: String,
        /// Which file, and what is wrong.
        error: GeoError,
    },
}

/// A set as it was read.
#[derive(Debug)]
pub struct LoadedSet {
    /// The addresses of its own prefixes, of all its files, and of its database.
    pub addresses: AddressSet,
    /// Lines that were skipped, and prefixes with host bits: what an operator should be told.
    pub warnings: Vec<String>,
    /// How many lines were skipped.
    pub skipped: usize,
}

/// Reads a set. Reads files; for the time of loading only.
///
/// # Errors
/// The first file or database that cannot be used.
pub fn load_set(set: &Set) -> Result<LoadedSet, SetError> {
    let mut loaded = LoadedSet { addresses: AddressSet::new(&set.prefixes), warnings: Vec::new(), skipped: 0 };
    let reading = Reading { shortest: set.shortest, skip_broken: set.on_error == OnError::SkipLine };
    for path in &set.files {
        let list = read_list(path, reading).map_err(|error| SetError::List { set: set.name.clone(), error })?;
        loaded.addresses = loaded.addresses.union(AddressSet::new(&list.nets));
        loaded.skipped = loaded.skipped.saturating_add(list.skipped.total);
        let file = file::shown_path(path);
        let skipped = list.skipped.messages(&file).map(|line| format!("set {:?}: {line} (skipped)", set.name));
        loaded.warnings.extend(skipped);
        loaded.warnings.extend(list.host_bits.messages(&file).map(|line| format!("set {:?}: {line}", set.name)));
    }
    if let Some(geo) = &set.geo {
        let nets = read_geo(geo).map_err(|error| SetError::Geo { set: set.name.clone(), error })?;
        loaded.addresses = loaded.addresses.union(AddressSet::new(&nets));
    }
    Ok(loaded)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use sluice_config::{Geo, Shortest};

    use super::*;
    use crate::testkit::mmdb::{self, Mmdb};

    fn set_in(folder: &Path) -> Set {
        let (list, more, database) = (folder.join("list"), folder.join("more"), folder.join("test.mmdb"));
        std::fs::write(&list, "198.51.100.0/25\n198.51.100.128/25\n").unwrap();
        std::fs::write(&more, "none\n").unwrap();
        let octets = Mmdb::new("GeoLite2-Country").insert("203.0.113.0/24", &mmdb::country("DE", "US")).build();
        std::fs::write(&database, octets).unwrap();
        Set {
            name: "all".to_owned(),
            prefixes: vec!["192.0.2.0/24".parse().unwrap()],
            files: vec![list, more],
            on_error: OnError::KeepLast,
            shortest: Shortest::default(),
            geo: Some(Geo { database, countries: vec!["DE".to_owned()], asns: vec![] }),
        }
    }

    #[test]
    fn a_set_is_its_prefixes_its_files_and_its_database() {
        let folder = tempfile::tempdir().unwrap();
        let loaded = load_set(&set_in(folder.path())).unwrap().addresses;
        let nets = ["192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24"].map(|net| net.parse().unwrap());
        assert_eq!(loaded, AddressSet::new(&nets));
        assert_eq!(loaded.prefixes(), 4);
    }

    #[test]
    fn a_set_that_cannot_be_read_whole_is_an_error_that_names_it() {
        let folder = tempfile::tempdir().unwrap();
        let mut set = set_in(folder.path());
        let shown = set.files[1].display().to_string();
        std::fs::write(&set.files[1], "oops\n").unwrap();
        let error = load_set(&set).unwrap_err().to_string();
        assert!(error.starts_with(&format!("set \"all\": {shown}:1: \"oops\" is no address or prefix; ")), "{error}");

        set.files.clear();
        set.geo.as_mut().unwrap().countries = vec!["FR".to_owned()];
        let shown = folder.path().join("test.mmdb").display().to_string();
        let error = load_set(&set).unwrap_err().to_string();
        assert!(error.starts_with(&format!("set \"all\": {shown}: no network is in FR; ")), "{error}");
    }
}
