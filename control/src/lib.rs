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
#[cfg(test)]
mod fake;
mod http;
pub mod keys;
pub mod logging;
pub mod metrics;
pub mod packet;
mod source;

use std::sync::Arc;

use sluice_config::Config;

pub use error::StartError;
pub use source::Source;

use connlog::{ConnectionLog, Output};
use metrics::{BuildInfo, Exporter};

/// What the control plane holds before the appliance exists: its port and its file.
#[derive(Debug)]
pub struct Prepared {
    listener: Option<http::Listener>,
    output: Output,
}

/// The running control plane.
#[derive(Debug)]
pub struct Control {
    server: Option<http::Server>,
    connections: ConnectionLog,
}

/// Takes the metrics port and opens the connection log.
///
/// # Errors
/// [`StartError::MetricsListen`] when `[metrics].listen` cannot be bound, [`StartError::ConnectionLog`] when
/// `[log].connections` cannot be opened.
pub fn prepare(config: &Config) -> Result<Prepared, StartError> {
    let listener = config.metrics.as_ref().map(|metrics| http::Listener::bind(metrics.listen)).transpose()?;
    let output = Output::open(&config.log.connections)?;
    Ok(Prepared { listener, output })
}

impl Prepared {
    /// Starts the threads. Call it on the main thread, once the appliance is built: they inherit its CPU affinity.
    ///
    /// # Errors
    /// [`StartError::Thread`] when the kernel gives no thread or no event queue.
    pub fn start(self, config: Arc<Config>, source: Arc<dyn Source>, build: BuildInfo) -> Result<Control, StartError> {
        let connections = ConnectionLog::start(self.output, Arc::clone(&config), Arc::clone(&source))?;
        let server = match self.listener {
            Some(listener) => {
                let exporter = Exporter::new(&config, source, connections.counters(), build);
                Some(http::Server::start(listener, exporter)?)
            }
            None => None,
        };
        Ok(Control { server, connections })
    }
}

impl Control {
    /// Ends the control plane after the workers have ended: every connection they reported is written first. Waits for
    /// a reader of standard output that takes nothing, but no longer than a few seconds.
    pub fn finish(self) {
        self.connections.finish(connlog::FINISH_GRACE);
        if let Some(server) = self.server {
            server.stop();
        }
    }
}
