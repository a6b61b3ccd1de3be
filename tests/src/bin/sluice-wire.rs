//! Joins two interfaces by a wire that loses, repeats, delays and reorders frames, for a bounded time or until SIGTERM or SIGINT.

#![forbid(unsafe_code)]

use std::os::fd::AsFd;
use std::sync::atomic::Ordering;
use std::time::Duration;

use clap::Parser;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::SignalFd;
use nix::sys::time::TimeSpec;
use sluice_tests::wire::{Impairment, Wire};

/// Joins two interfaces of this network namespace by a lossy wire.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// One interface.
    a: String,
    /// The other interface.
    b: String,
    /// Share of frames lost, 0 to 1.
    #[arg(long, default_value_t = 0.0)]
    loss: f64,
    /// Share of frames sent twice.
    #[arg(long, default_value_t = 0.0)]
    duplicate: f64,
    /// Share of frames held back for --hold-ms, so that others overtake them.
    #[arg(long, default_value_t = 0.0)]
    reorder: f64,
    /// How long a held frame waits, in milliseconds.
    #[arg(long, default_value_t = 2)]
    hold_ms: u64,
    /// Delay of every frame, in milliseconds.
    #[arg(long, default_value_t = 0)]
    delay_ms: u64,
    /// What the wire carries each way, in Mbit/s; 0 = whatever comes.
    #[arg(long, default_value_t = 0)]
    rate: u64,
    /// Seed of the decisions.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How long the wire stands, in seconds.
    #[arg(long, default_value_t = 60)]
    seconds: u64,
}

fn main() {
    let arguments = Arguments::parse();
    let impairment = Impairment {
        loss: arguments.loss,
        duplicate: arguments.duplicate,
        reorder: arguments.reorder,
        hold: Duration::from_millis(arguments.hold_ms),
        delay: Duration::from_millis(arguments.delay_ms),
        rate: arguments.rate * 1_000_000,
        seed: arguments.seed,
    };
    let signals: SigSet = [Signal::SIGTERM, Signal::SIGINT].into_iter().collect();
    // Before the wire's threads begin, so that they leave the signals to us.
    signals.thread_block().expect("signals can be blocked");
    let told = SignalFd::new(&signals).expect("signals can be waited for");
    let wire = Wire::start_here(&arguments.a, &arguments.b, impairment);
    println!("joined");
    let time = TimeSpec::from_duration(Duration::from_secs(arguments.seconds));
    let _ = ppoll(&mut [PollFd::new(told.as_fd(), PollFlags::POLLIN)], Some(time), None);
    let counts = wire.stop();
    let show = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
    println!(
        "received {} sent {} lost {} held {} repeated {} refused {} overrun {}",
        show(&counts.received),
        show(&counts.sent),
        show(&counts.lost),
        show(&counts.held),
        show(&counts.repeated),
        show(&counts.refused),
        show(&counts.overrun)
    );
}
