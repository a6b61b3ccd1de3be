//! Writes the sample of dropped packets: a thread takes them from the workers' queue.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, UNIX_EPOCH};

use sluice_config::{Config, Sample};
use sluice_dataplane::DroppedPacket;
use sluice_filters::counter::Counter;

use crate::capture::{self, SampleError, SampleWriter};
use crate::{Source, StartError};

/// How often an empty queue is looked at.
const POLL: Duration = Duration::from_millis(50);
const THREAD: &str = "sluice-sample";

/// What the sample's thread, its only writer, counts.
#[derive(Debug, Default)]
pub(crate) struct SampleCounters {
    /// Packets written.
    pub(crate) written: Counter,
    /// Packets that could not be written.
    pub(crate) lost: Counter,
}

/// The sample's file, open.
#[derive(Debug)]
pub(crate) struct SampleFile(SampleWriter);

impl SampleFile {
    /// Opens the file of `sample`; a port's packets bear its name.
    pub(crate) fn open(sample: &Sample, config: &Config) -> Result<SampleFile, SampleError> {
        let ports: Vec<String> = config.ports.iter().map(|port| port.name.clone()).collect();
        SampleWriter::open(sample, &ports, env!("CARGO_PKG_VERSION")).map(SampleFile)
    }
}

/// The thread that writes the sample.
#[derive(Debug)]
pub(crate) struct SampleThread {
    stop: Sender<()>,
    thread: JoinHandle<()>,
    counters: Arc<SampleCounters>,
}

impl SampleThread {
    pub(crate) fn start(
        file: SampleFile,
        config: Arc<Config>,
        source: Arc<dyn Source>,
    ) -> Result<SampleThread, StartError> {
        let counters = Arc::new(SampleCounters::default());
        let (stop, stopped) = channel();
        let (SampleFile(mut writer), counted) = (file, Arc::clone(&counters));
        let write = move || drain(&mut writer, &config, &*source, &counted, &stopped);
        let thread = std::thread::Builder::new()
            .name(THREAD.into())
            .spawn(write)
            .map_err(|cause| StartError::Thread { name: THREAD, cause })?;
        Ok(SampleThread { stop, thread, counters })
    }

    pub(crate) fn counters(&self) -> Arc<SampleCounters> {
        Arc::clone(&self.counters)
    }

    /// Writes what is left.
    pub(crate) fn finish(self) {
        drop(self.stop);
        if self.thread.join().is_err() {
            tracing::error!("the thread that writes the sample ended with a panic");
        }
    }
}

fn drain(
    writer: &mut SampleWriter,
    config: &Config,
    source: &dyn Source,
    counters: &SampleCounters,
    stop: &Receiver<()>,
) {
    loop {
        let stopping = stop.recv_timeout(POLL) != Err(RecvTimeoutError::Timeout);
        while let Some(packet) = source.next_sample() {
            let comment = verdict(&packet, config);
            let dropped = capture::DroppedPacket {
                port: usize::from(packet.port.0),
                time: source.wall_clock(packet.at).duration_since(UNIX_EPOCH).unwrap_or_default(),
                wire_len: packet.wire_len,
                frame: packet.octets(),
                verdict: &comment,
            };
            if let Err(error) = writer.write(&dropped, Instant::now()) {
                tracing::warn!(%error, "the sample of dropped packets cannot be written; tried again in a while");
            }
        }
        counters.written.set(writer.written());
        counters.lost.set(writer.lost());
        if stopping {
            return;
        }
    }
}

/// The packet's comment.
fn verdict(packet: &DroppedPacket, config: &Config) -> String {
    match packet.rule.and_then(|rule| config.rules.get(usize::from(rule))) {
        Some(rule) => format!("drop: {} {:?}", packet.reason.as_str(), rule.name),
        None => format!("drop: {}", packet.reason.as_str()),
    }
}
