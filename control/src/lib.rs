//! Everything of sluice that is off the hot path: the metrics endpoint, the connection log, the rotation of keys and the log
//! on standard error.
//!
//! The control plane reads what the workers publish (their counters and the bounded queue of ended connections) through
//! [`Source`], and never makes a worker wait: a reader that is slow, a full disk or a stuck pipe cost log lines, which
//! are counted, and nothing else. Its threads are started from the main thread after the appliance is built, so they
//! inherit its pinning to `runtime.control_core` and stay off the workers' cores.
//!
//! Start-up is in two steps, so that whatever can be refused is refused before a packet flows: [`prepare`] takes the
//! metrics port and opens the connection log; [`Prepared::start`] sets the threads going.

#![forbid(unsafe_code)]

pub mod capture;
mod connlog;
mod error;
pub mod explain;
#[cfg(test)]
mod fake;
pub mod filters;
mod http;
pub mod keys;
pub mod logging;
pub mod memory;
pub mod metrics;
pub mod packet;
pub mod replay;
mod source;
mod stamp;

use std::path::Path;
use std::sync::Arc;
use std::{fs, io};

use sluice_config::Config;

pub use error::StartError;
pub use source::Source;

use connlog::{ConnectionLog, Output};
use filters::{FilterWatch, SampleFile, SampleThread};
use metrics::{BuildInfo, Exporter, FilterSide};

/// What the control plane holds before the appliance exists: its port and its file.
#[derive(Debug)]
pub struct Prepared {
    listener: Option<http::Listener>,
    output: Output,
    sample: Option<SampleFile>,
}

/// The running control plane.
#[derive(Debug)]
pub struct Control {
    server: Option<http::Server>,
    connections: ConnectionLog,
    sample: Option<SampleThread>,
}

/// Takes the metrics port and opens the connection log and the sample of dropped packets.
///
/// # Errors
/// [`StartError::MetricsListen`] when `[metrics].listen` cannot be bound, [`StartError::ConnectionLog`] when
/// `[log].connections` cannot be opened, [`StartError::Sample`] when `[sample].file` cannot.
pub fn prepare(config: &Config) -> Result<Prepared, StartError> {
    let listener = config.metrics.as_ref().map(|metrics| http::Listener::bind(metrics.listen)).transpose()?;
    let output = Output::open(&config.log.connections)?;
    let sample = config.sample.as_ref().map(|sample| SampleFile::open(sample, config)).transpose()?;
    Ok(Prepared { listener, output, sample })
}

/// Says what would keep [`prepare`] from opening the files that the control plane writes to, as far as that shows without making them.
///
/// # Errors
/// [`StartError::ConnectionLog`] and [`StartError::Sample`].
pub fn check_outputs(config: &Config) -> Result<(), StartError> {
    if let sluice_config::ConnectionLog::File(path) = &config.log.connections {
        writable(path).map_err(|cause| StartError::ConnectionLog { path: path.clone(), cause })?;
    }
    if let Some(sample) = &config.sample {
        let failed = |cause| capture::SampleError { file: sample.file.clone(), cause };
        writable(&sample.file).map_err(failed)?;
    }
    Ok(())
}

/// Whether there is a file at `path` to write to, or a directory to make it in.
fn writable(path: &Path) -> io::Result<()> {
    match fs::metadata(path) {
        Ok(found) if found.is_dir() => Err(io::ErrorKind::IsADirectory.into()),
        // Opening changes nothing; to open a pipe might wait for its reader.
        Ok(found) if found.is_file() => fs::File::options().append(true).open(path).map(|_| ()),
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => match path.parent().map(fs::metadata) {
            Some(Ok(parent)) if parent.is_dir() => Ok(()),
            Some(Ok(_)) => Err(io::ErrorKind::NotADirectory.into()),
            _ => Err(error),
        },
        Err(error) => Err(error),
    }
}

impl Prepared {
    /// Starts the threads. Call it on the main thread, once the appliance is built: they inherit its CPU affinity.
    ///
    /// # Errors
    /// [`StartError::Thread`] when the kernel gives no thread or no event queue.
    pub fn start(
        self,
        config: Arc<Config>,
        source: Arc<dyn Source>,
        filters: &FilterWatch,
        build: BuildInfo,
    ) -> Result<Control, StartError> {
        let connections = ConnectionLog::start(self.output, Arc::clone(&config), Arc::clone(&source))?;
        let sample =
            self.sample.map(|file| SampleThread::start(file, Arc::clone(&config), Arc::clone(&source))).transpose()?;
        let server = match self.listener {
            Some(listener) => {
                let side = FilterSide {
                    sets: filters.gauges(),
                    bans: filters.bans().map(|bans| bans.gauges()).unwrap_or_default(),
                    sample: sample.as_ref().map(SampleThread::counters).unwrap_or_default(),
                };
                let exporter = Exporter::new(&config, source, connections.counters(), side, build);
                Some(http::Server::start(listener, exporter)?)
            }
            None => None,
        };
        Ok(Control { server, connections, sample })
    }
}

impl Control {
    /// Ends the control plane after the workers have ended: every connection they reported is written first. Waits for
    /// a reader of standard output that takes nothing, but no longer than a few seconds.
    pub fn finish(self) {
        self.connections.finish(connlog::FINISH_GRACE);
        if let Some(sample) = self.sample {
            sample.finish();
        }
        if let Some(server) = self.server {
            server.stop();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_output_is_a_file_that_can_be_written_or_made() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("log");
        assert!(writable(&file).is_ok() && !file.exists(), "none is made");
        fs::write(&file, "kept\n").unwrap();
        assert!(writable(&file).is_ok());
        assert_eq!(fs::read_to_string(&file).unwrap(), "kept\n");
        assert!(writable(dir.path()).is_err());
        assert!(writable(&dir.path().join("no/log")).is_err());
        // Nobody, root neither, writes to this one.
        assert!(writable(Path::new("/sys/kernel/uevent_seqnum")).is_err());
    }
}
