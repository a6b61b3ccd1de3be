//! sluice's only header parser, and everything that is asked of a packet before memory is spent on its sender.
//!
//! [`parse`] turns a frame into a [`Parsed`] that proves its bounds, or into the [`DropReason`] that ends it;
//! [`gate::Gate`] says whether its source may have sent it and who listens. [`engine`] asks the rest in its order: [`sets`] say where a source stands,
//! [`memory`] holds bans and limits, [`rules`] are the operator's, [`expression`] runs tcpdump's filters for them.
//! [`checksum`] is the one implementation of the Internet checksum. No clock, no allocation per packet; all that is remembered is in
//! [`memory`], of fixed size.

#![forbid(unsafe_code)]
#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects
    )
)]
pub mod addr;
pub mod checksum;
pub mod counter;
pub mod engine;
pub mod expression;
pub mod gate;
pub mod icmp;
pub mod memory;
mod options;
mod packet;
mod parse;
mod reason;
pub mod rules;
pub mod services;
pub mod sets;
#[doc(hidden)]
#[allow(
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    reason = "for tests: it makes frames, and reads none that anybody sent"
)]
pub mod testkit;
pub mod units;

pub use expression::Expression;
pub use options::{SynOffer, TcpOptions, option_kinds};
pub use packet::{ChecksumState, Datagram, Flags, L2, Parsed, RxChecksums, Segment, dst_mac, src_mac};
pub use parse::{FRAGMENT_HEADER, Glimpse, glance, parse, parse_then, unwrap_atomic};
pub use reason::DropReason;
pub use services::ServiceMap;
pub use sets::AddressSet;
