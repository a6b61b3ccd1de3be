//! What a worker remembers of sources, in memory that is allocated once.
//!
//! - [`Meters`]: limits per source address or prefix, for more sources than there are records.
//! - [`Ceiling`]: one limit for every prefix that SYN-ACKs go to, without records.
//! - [`Bucket`]: one exact limit, for what is not per source.
//! - [`Clients`]: sources that answered a cookie, and what dry-run rules would have cut of them.
//! - [`Bans`]: addresses and prefixes that are shut out for a time.
//!
//! One worker owns one of each. Nothing here locks, allocates after construction, reads a clock or prints; time comes in as
//! [`crate::units::Micros`], and addresses are found through a hash under a secret key ([`Secret`]).

mod bans;
mod bucket;
mod ceiling;
mod clients;
mod hash;
mod meters;

pub use bans::{Ban, Bans, Full};
pub use bucket::Bucket;
pub use ceiling::Ceiling;
pub use clients::{Clients, DRY_RUN_RULES, VERIFIED_FOR};
pub use hash::{Secret, prefix};
pub use meters::{Key, Meters, Quota, STANDING_MAX, STANDING_PER_PACKET};

/// Octets of a cache line, the unit that a table is touched in.
const LINE: usize = 64;
