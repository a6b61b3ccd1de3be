//! The `sluice` command: runs the appliance, or, without touching the machine, checks its configuration, tells what that does to packets,
//! or looks into PROXY headers.
//!
//! Standard output carries what was asked for (start-up lines and the connection log, or the summary); standard error
//! carries the log and complaints. Exit codes are in [`exit`].

#![forbid(unsafe_code)]

mod args;
mod check;
mod exit;
mod explain;
mod load;
mod proxy_header;
mod replay;
mod run;

use std::process::ExitCode;

use clap::Parser;

use args::{Args, Command, ProxyHeader};

fn main() -> ExitCode {
    match Args::parse().command {
        Command::Run(file) => run::run(&file.config),
        Command::Check(file) => check::check(&file.config),
        Command::Explain(wanted) => explain::explain(&wanted),
        Command::Replay(wanted) => replay::replay(&wanted),
        Command::ProxyHeader(ProxyHeader::Verify(wanted)) => proxy_header::verify(&wanted),
    }
}
