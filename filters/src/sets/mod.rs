//! Address sets: where their prefixes come from, and how a packet asks for all of them at once.
//!
//! An [`AddressSet`] is one set as sorted ranges, for building and comparing; a [`SetMap`] is compiled from all sets and says
//! with one lookup which of them hold an address.

mod address_set;
mod list;
mod lookup_v4;
mod lookup_v6;
mod map;

pub use address_set::AddressSet;
pub use list::{BrokenLine, ListError, ListProblem, MAX_LIST_OCTETS, MAX_LIST_PREFIXES, parse_list, read_list};
pub use map::{MAX_RANGES, MAX_SETS, SetMap, SetMapError};
