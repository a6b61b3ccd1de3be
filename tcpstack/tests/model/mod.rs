//! A model of the world around the stack: two ends with a TCP of their own, four legs that lose, repeat, delay and reorder, a forger,
//! one virtual clock. All of it comes from one seed.
//!
//! - [`engine`]: one end's TCP; [`app`]: the program that uses it.
//! - [`leg`]: what a link does to segments.
//! - [`middle`]: the stack, as a worker drives it.
//! - [`plan`]: a connection as its seed has it.
//! - [`forger`]: who sends in others' names.
//! - [`world`]: all of it on one clock, and the judgement.

pub mod app;
pub mod engine;
pub mod forger;
pub mod leg;
pub mod middle;
pub mod plan;
pub mod random;
pub mod wire;
pub mod world;

/// Microseconds.
pub type Time = u64;
