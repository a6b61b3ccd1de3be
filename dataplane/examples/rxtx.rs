//! Speed of the bare runtime on one core: receive a burst, swap the MAC addresses, send it. What is left of this rate in the
//! appliance is what the appliance costs.
//!
//! `cargo run --release -p sluice-dataplane --example rxtx [DEVICE [ARGS]]`, by default on `net_null0`.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use sluice_config as config;
use sluice_dataplane::dpdk::{Burst, TxBuffer, WorkerQueues};
use sluice_dataplane::error::StartError;
use sluice_dataplane::runtime::{Runtime, Turn};
use sluice_filters::units::WorkerId;

const PREFETCH: usize = 4;

struct Swap {
    queues: WorkerQueues,
    burst: Burst,
    buffer: TxBuffer,
    sent: Arc<AtomicU64>,
}

impl Turn for Swap {
    fn turn(&mut self) {
        for port in &mut self.queues.ports {
            let (Some(rx), Some(tx)) = (&mut port.rx, &mut port.tx) else { continue };
            let received = rx.burst(&mut self.burst);
            for i in 0..received.min(PREFETCH) {
                self.burst.prefetch(i);
            }
            for i in 0..received {
                self.burst.prefetch(i + PREFETCH);
                let Some(mut frame) = self.burst.take(i) else { continue };
                if let Some((macs, _)) = frame.data_mut().split_first_chunk_mut::<12>() {
                    macs.rotate_left(6);
                }
                // A full buffer drops the frame.
                let _ = self.buffer.push(frame);
            }
            let sent = tx.offer(&mut self.buffer);
            self.sent.store(self.sent.load(Ordering::Relaxed) + sent.frames as u64, Ordering::Relaxed);
        }
    }

    fn finish(self) {}
}

fn main() -> Result<(), StartError> {
    let mut arguments = std::env::args().skip(1);
    let device = arguments.next().unwrap_or_else(|| "net_null0".into());
    let port = config::Port {
        name: "wan".into(),
        device,
        args: arguments.next().unwrap_or_default(),
        addresses: Vec::new(),
        gateways: Vec::<IpAddr>::new(),
        vlan: 0,
        mtu: 1500,
        promiscuous: true,
        source_check: config::SourceCheck::Loose,
    };
    let config = config::Config {
        runtime: config::Runtime { hugepages: config::Hugepages::Auto, ..config::Runtime::default() },
        ports: vec![port],
        routes: Vec::new(),
        services: Vec::new(),
        sets: Vec::new(),
        warnings: Vec::new(),
        rules: Vec::new(),
        filters: config::Filters::default(),
        bans: None,
        sample: None,
        cookies: config::Cookies { seed_file: None, epoch: Duration::from_secs(64) },
        peace: sluice_config::Peace::default(),
        proxy_keys: None,
        metrics: None,
        log: config::Log { level: config::Level::Info, connections: config::ConnectionLog::Off },
    };
    let mut runtime = Runtime::build(&config)?;
    println!("{}", runtime.ports()[0]);
    let sent = Arc::new(AtomicU64::new(0));
    let (counter, stopper) = (Arc::clone(&sent), runtime.stopper());
    runtime.install(WorkerId(0), move |queues| Swap {
        queues,
        burst: Burst::new(),
        buffer: TxBuffer::new(),
        sent: counter,
    })?;
    thread::spawn(move || {
        for _ in 0..4 {
            let (before, start) = (sent.load(Ordering::Relaxed), Instant::now());
            thread::sleep(Duration::from_secs(1));
            let frames = sent.load(Ordering::Relaxed) - before;
            println!("{:.1} Mpps", frames as f64 / start.elapsed().as_secs_f64() / 1e6);
        }
        stopper.stop();
    });
    runtime.run(|_| true)
}
