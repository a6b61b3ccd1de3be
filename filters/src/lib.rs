//! sluice's only header parser and its stateless verdicts.

#![forbid(unsafe_code)]

pub mod addr;
pub mod counter;
mod reason;
pub mod units;

pub use reason::DropReason;
