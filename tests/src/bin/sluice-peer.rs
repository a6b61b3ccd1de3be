//! A TCP server in a process of its own, to be killed in the middle of a transfer.

#![forbid(unsafe_code)]

use std::io::Read;
use std::net::{SocketAddr, TcpListener};
use std::thread;
use std::time::Duration;

use clap::{Parser, ValueEnum};
use sluice_tests::peer::{DOWN, send};

/// Serves TCP connections one after the other.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// Address and port to listen on.
    listen: SocketAddr,
    /// What to do with a connection.
    #[arg(value_enum)]
    task: Task,
}

#[derive(Clone, Copy, ValueEnum)]
enum Task {
    /// Send without end.
    Source,
    /// Read 64 KiB, then nothing more.
    Stall,
}

fn main() -> std::io::Result<()> {
    let arguments = Arguments::parse();
    let listener = TcpListener::bind(arguments.listen)?;
    println!("listening");
    for stream in listener.incoming() {
        let mut stream = stream?;
        match arguments.task {
            Task::Source => drop(send(&stream, DOWN, u64::MAX)),
            Task::Stall => {
                stream.read_exact(&mut [0; 65_536])?;
                println!("stalled");
                thread::sleep(Duration::from_secs(600));
            }
        }
    }
    Ok(())
}
