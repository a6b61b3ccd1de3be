//! The connection log: one JSON line per ended connection.
//!
//! Workers put ended connections into a bounded queue and never wait; this thread drains it. What cannot be written at
//! once (a full disk, a pipe nobody reads) waits in memory up to a bound and is lost beyond it, counted and reported on
//! the ordinary log at intervals. At shut-down the queue is emptied after the last worker has ended.

mod line;
mod sink;

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use sluice_config::Config;
use sluice_filters::counter::Counter;

pub(crate) use sink::Output;

use crate::{Source, StartError};
use line::Line;
use sink::Sink;

/// How long shut-down waits for the last lines to be written.
pub(crate) const FINISH_GRACE: Duration = Duration::from_secs(3);
/// Records taken between two writes.
const BATCH: usize = 256;
/// How often an empty queue is looked at.
const POLL: Duration = Duration::from_millis(20);
const THREAD: &str = "sluice-connlog";

/// What the log's thread, its only writer, counts.
#[derive(Debug, Default)]
pub(crate) struct LogCounters {
    /// Lines written out.
    pub(crate) written: Counter,
    /// Lines lost because writing failed for too long.
    pub(crate) lost: Counter,
    /// Writes that failed.
    pub(crate) write_errors: Counter,
    /// Gauge: lines that wait for the next write.
    pub(crate) waiting: Counter,
}

/// The thread that writes the connection log.
#[derive(Debug)]
pub(crate) struct ConnectionLog {
    stop: Sender<()>,
    done: Receiver<()>,
    counters: Arc<LogCounters>,
}

impl ConnectionLog {
    pub(crate) fn start(
        output: Output,
        config: Arc<Config>,
        source: Arc<dyn Source>,
    ) -> Result<ConnectionLog, StartError> {
        let counters = Arc::new(LogCounters::default());
        let (stop, stopped) = channel();
        let (finished, done) = channel();
        let mut sink = Sink::new(output, Arc::clone(&counters));
        let write = move || {
            drain(&mut sink, &config, &*source, &stopped);
            // Nobody listens any more when the grace is over.
            let _ = finished.send(());
        };
        std::thread::Builder::new()
            .name(THREAD.into())
            .spawn(write)
            .map_err(|cause| StartError::Thread { name: THREAD, cause })?;
        Ok(ConnectionLog { stop, done, counters })
    }

    pub(crate) fn counters(&self) -> Arc<LogCounters> {
        Arc::clone(&self.counters)
    }

    /// Writes what is left, for at most `grace`: a reader that takes nothing must not keep the process alive.
    pub(crate) fn finish(self, grace: Duration) {
        drop(self.stop);
        if self.done.recv_timeout(grace).is_err() {
            tracing::warn!(
                waiting = self.counters.waiting.get(),
                "connection log: its reader takes nothing; the last lines are lost"
            );
        }
    }
}

fn drain(sink: &mut Sink, config: &Config, source: &dyn Source, stop: &Receiver<()>) {
    loop {
        let taken = take(sink, config, source, BATCH);
        sink.flush(Instant::now());
        if taken == BATCH {
            continue;
        }
        if stop.recv_timeout(POLL) != Err(RecvTimeoutError::Timeout) {
            break;
        }
    }
    while take(sink, config, source, BATCH) > 0 {
        sink.flush(Instant::now());
    }
    sink.finish();
}

fn take(sink: &mut Sink, config: &Config, source: &dyn Source, most: usize) -> usize {
    for taken in 0..most {
        let Some(record) = source.next_record() else { return taken };
        sink.push(&Line::new(&record, config, |at| source.wall_clock(at)));
    }
    most
}

#[cfg(test)]
mod tests;
