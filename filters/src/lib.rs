//! sluice's only header parser and its stateless verdicts.
//!
//! [`parse`] turns a frame into a [`Parsed`] that proves its bounds, or into the [`DropReason`] that ends it;
//! [`sources::SourceFilter`] and [`services::ServiceMap`] say whether a segment's source may speak and whether anybody listens.
//! [`expression`] runs tcpdump's filters.
//! [`checksum`] is the one implementation of the Internet checksum. No state, no clock, no allocation per packet.

#![forbid(unsafe_code)]

pub mod addr;
pub mod checksum;
pub mod counter;
pub mod engine;
pub mod expression;
pub mod icmp;
pub mod memory;
mod options;
mod packet;
mod parse;
mod reason;
pub mod rules;
pub mod services;
pub mod sets;
pub mod sources;
#[doc(hidden)]
pub mod testkit;
pub mod units;

pub use expression::Expression;
pub use options::{SynOffer, TcpOptions, option_kinds};
pub use packet::{ChecksumState, Datagram, Flags, L2, Parsed, RxChecksums, Segment, dst_mac, src_mac};
pub use parse::{parse, parse_then};
pub use reason::DropReason;
pub use services::ServiceMap;
pub use sets::AddressSet;
pub use sources::SourceFilter;
