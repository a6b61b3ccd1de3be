//! What can keep the control plane from starting. Each message names the key, what was found and the remedy.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

use thiserror::Error;

/// Why the control plane did not start.
#[derive(Debug, Error)]
pub enum StartError {
    /// The metrics address cannot be bound.
    #[error("metrics.listen: cannot listen on {listen}: {cause}; {}", listen_remedy(cause))]
    MetricsListen {
        /// `metrics.listen`
        listen: SocketAddr,
        /// The kernel's answer.
        #[source]
        cause: io::Error,
    },
    /// The connection log cannot be opened.
    #[error(
        "log.connections: cannot append to {}: {cause}; name a file in an existing directory that this user may write, \
         \"stdout\" or \"off\"",
        path.display()
    )]
    ConnectionLog {
        /// `log.connections`
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        cause: io::Error,
    },
    /// The sample of dropped packets cannot be opened.
    #[error(transparent)]
    Sample(#[from] crate::capture::SampleError),
    /// `SLUICE_LOG` is not a filter.
    #[error(
        "SLUICE_LOG: {filter:?} is not a log filter: {cause}; give a level such as \"debug\" or \"info,dpdk=warn\""
    )]
    LogFilter {
        /// What was found.
        filter: String,
        /// What is wrong with it.
        cause: String,
    },
    /// Somebody set up logging before us.
    #[error("logging is already set up in this process")]
    LoggingTwice,
    /// No thread, or no event queue for it.
    #[error("cannot start the thread {name}: {cause}; raise the process's limits on threads and open files")]
    Thread {
        /// The thread's name.
        name: &'static str,
        /// The kernel's answer.
        #[source]
        cause: io::Error,
    },
}

fn listen_remedy(cause: &io::Error) -> &'static str {
    match cause.kind() {
        io::ErrorKind::AddrInUse => "another program has this port: end it or choose another port",
        io::ErrorKind::AddrNotAvailable => {
            "choose an address of this host (the appliance's ports are not the kernel's)"
        }
        io::ErrorKind::PermissionDenied => "choose a port above 1023, or run as root",
        _ => "choose another address or port",
    }
}
