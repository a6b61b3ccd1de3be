//! Conversations with a whole stack on a virtual clock.

mod clocks;
mod found_by_review;
mod headers;
mod lab;
mod path_claims;
mod peace;
mod peers_that_break_rules;
mod promises;
mod sessions;
mod silence;
mod small_paths;
mod spliced;
mod spliced_by_hand;
mod spliced_claims;
mod spliced_found_by_review;
