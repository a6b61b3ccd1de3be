//! What one appliance alone may use: an interface of the kernel's, a file prefix of DPDK's. Two appliances on one interface would
//! each answer every packet.
//!
//! A claim is an abstract Unix socket: its name is the network namespace's own, as interfaces are, and goes with the process,
//! however that ends.

use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::{Mutex, PoisonError};

use sluice_config::{Config, Port};

use crate::StartError;

/// Devices that use an interface of the kernel's, which their `iface=` names.
const TAKES_INTERFACE: [&str; 4] = ["net_af_packet", "eth_af_packet", "net_af_xdp", "net_pcap"];

/// Held until the process ends: DPDK may use what is claimed for as long.
static HELD: Mutex<Vec<UnixDatagram>> = Mutex::new(Vec::new());

/// Claims what `config` uses.
///
/// # Errors
/// [`StartError::InterfaceTaken`] and [`StartError::PrefixTaken`], when another appliance has it.
pub(crate) fn claim(config: &Config) -> Result<(), StartError> {
    for port in &config.ports {
        if let Some(interface) = interfaces(port).find(|interface| is_taken("interface", interface)) {
            return Err(StartError::InterfaceTaken { port: port.name.clone(), interface: interface.to_owned() });
        }
    }
    if let Some(prefix) = file_prefix(&config.runtime.dpdk_args)
        && is_taken("file-prefix", prefix)
    {
        return Err(StartError::PrefixTaken { prefix: prefix.to_owned() });
    }
    Ok(())
}

/// The interfaces of the kernel's that a port's device uses.
pub(crate) fn interfaces(port: &Port) -> impl Iterator<Item = &str> {
    let takes_one = TAKES_INTERFACE.iter().any(|device| port.device.starts_with(device));
    port.args.split(',').filter_map(move |argument| argument.strip_prefix("iface=").filter(|_| takes_one))
}

/// The last `--file-prefix` among DPDK's arguments.
pub(crate) fn file_prefix(arguments: &str) -> Option<&str> {
    let mut words = arguments.split_ascii_whitespace();
    let mut prefix = None;
    while let Some(word) = words.next() {
        prefix = match word.split_once('=') {
            Some(("--file-prefix", value)) => Some(value),
            None if word == "--file-prefix" => words.next(),
            _ => prefix,
        };
    }
    prefix
}

/// Whether another process has claimed it; if not, this one has from now on.
fn is_taken(what: &str, name: &str) -> bool {
    let address = SocketAddr::from_abstract_name(format!("sluice/{what}/{name}"));
    match address.and_then(|address| UnixDatagram::bind_addr(&address)) {
        Ok(socket) => {
            HELD.lock().unwrap_or_else(PoisonError::into_inner).push(socket);
            false
        }
        // A name that is too long for a socket, say, is claimed by nobody.
        Err(error) => error.kind() == io::ErrorKind::AddrInUse,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_file_prefix_counts_in_either_form() {
        for (arguments, prefix) in [
            ("", None),
            ("--log-level 7", None),
            ("--file-prefix a", Some("a")),
            ("--file-prefix=a -n 4", Some("a")),
            ("--file-prefix=a --file-prefix b", Some("b")),
            ("--file-prefix", None),
        ] {
            assert_eq!(file_prefix(arguments), prefix, "{arguments}");
        }
    }

    #[test]
    fn what_is_claimed_is_taken_until_its_process_ends() {
        assert!(!is_taken("test", "a name of this test's"));
        assert!(is_taken("test", "a name of this test's"));
        assert!(!is_taken("other", "a name of this test's"));
        assert!(!is_taken("test", &"x".repeat(200)), "no name for a socket");
    }
}
