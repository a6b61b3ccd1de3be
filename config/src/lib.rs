//! sluice's configuration: the TOML schema, its defaults and its validation.

#![forbid(unsafe_code)]

mod model;

pub use model::*;
