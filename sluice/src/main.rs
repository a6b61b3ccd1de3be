//! The `sluice` command: runs the appliance, or checks its configuration or a PROXY header without touching the machine.
//!
//! Standard output carries what was asked for (start-up lines and the connection log, or the summary); standard error
//! carries the log and complaints. Exit codes are in [`exit`].

#![forbid(unsafe_code)]

mod args;
mod check;
mod exit;
mod proxy_header;
mod run;

use std::process::ExitCode;

use clap::Parser;

use args::{Args, Command, ProxyHeader};

fn main() -> ExitCode {
    match Args::parse().command {
        Command::Run(file) => run::run(&file.config),
        Command::Check(file) => check::check(&file.config),
        Command::ProxyHeader(ProxyHeader::Verify(wanted)) => proxy_header::verify(&wanted),
    }
}
