//! Why the appliance could not be started: what was found, where in the configuration it comes from, and what to do.

use sluice_filters::units::WorkerId;
use thiserror::Error;

/// What DPDK logged just before a failure, for error messages: nothing, or indented lines after a heading.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogLines(pub Vec<String>);

impl std::fmt::Display for LogLines {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.0.is_empty() {
            return Ok(());
        }
        f.write_str("\nDPDK said:")?;
        self.0.iter().try_for_each(|line| write!(f, "\n    {line}"))
    }
}

/// Why the runtime could not be built or run. Nothing is left half-started: the process can only exit.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum StartError {
    /// A CPU that does not exist or that this process may not use.
    #[error("{key}: CPU {cpu} is not available to this process, which may use {allowed}; choose from those")]
    Cpu {
        /// Configuration key.
        key: &'static str,
        /// The CPU.
        cpu: u16,
        /// CPUs that are, in the kernel's list format.
        allowed: String,
    },
    /// Not enough free hugepages.
    #[error(
        "runtime.hugepages = \"require\": {needed_mib} MiB of hugepages are needed but {free_mib} MiB are free; run \
         `scripts/setup.sh`, or write a larger count to /sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages, or reduce \
         runtime.mbufs"
    )]
    Hugepages {
        /// What the configuration needs.
        needed_mib: u64,
        /// What there is.
        free_mib: u64,
    },
    /// Hugepages must be shared through files, but no hugetlbfs is mounted.
    #[error(
        "runtime.hugepages = \"require\": port \"{port}\" ({device}) shares memory with another process, for which hugetlbfs \
         must be mounted; run `scripts/setup.sh` or `mount -t hugetlbfs none /dev/hugepages`"
    )]
    Hugetlbfs {
        /// Port name.
        port: String,
        /// Device.
        device: String,
    },
    /// A PCI address without a device.
    #[error("port \"{port}\": there is no PCI device {device}; network devices here: {known}")]
    PciMissing {
        /// Port name.
        port: String,
        /// PCI address.
        device: String,
        /// PCI addresses of network devices, or "none".
        known: String,
    },
    /// A PCI device that the kernel uses, or nobody.
    #[error(
        "port \"{port}\": PCI device {device} is bound to {driver}, which DPDK cannot use; run `scripts/bind-nic.sh bind {device}`"
    )]
    PciNotBound {
        /// Port name.
        port: String,
        /// PCI address.
        device: String,
        /// Kernel driver, or "no driver".
        driver: String,
    },
    /// An interface that another appliance serves.
    #[error(
        "port \"{port}\": the interface \"{interface}\" is served by another sluice, or by another port of this one; stop that \
         one, or name another interface"
    )]
    InterfaceTaken {
        /// Port name.
        port: String,
        /// The interface.
        interface: String,
    },
    /// A file prefix of DPDK's that another appliance uses.
    #[error(
        "runtime.dpdk_args: the file prefix \"{prefix}\" is used by another process; stop that one, or leave --file-prefix out: \
         each sluice has one of its own"
    )]
    PrefixTaken {
        /// The prefix.
        prefix: String,
    },
    /// A virtual device whose interface does not exist.
    #[error(
        "port \"{port}\": args of {device} name the interface \"{interface}\", which does not exist; `ip link` lists what does"
    )]
    InterfaceMissing {
        /// Port name.
        port: String,
        /// Device.
        device: String,
        /// Interface.
        interface: String,
    },
    /// A virtual device whose input file does not exist.
    #[error("port \"{port}\": args of {device} name the file \"{file}\": {reason}")]
    FileMissing {
        /// Port name.
        port: String,
        /// Device.
        device: String,
        /// Path.
        file: String,
        /// The operating system's words.
        reason: String,
    },
    /// A virtual device of an unknown kind.
    #[error(
        "port \"{port}\": DPDK has no driver for the virtual device \"{device}\"; known are net_af_packet, net_af_xdp, \
         net_tap, net_memif, net_vhost, net_virtio_user, net_pcap, net_ring, net_null and others, each followed by a number"
    )]
    UnknownDriver {
        /// Port name.
        port: String,
        /// Device.
        device: String,
    },
    /// A device that is used by somebody else.
    #[error("port \"{port}\": {device} is in use by another process: {reason}; end that process first{log}")]
    Busy {
        /// Port name.
        port: String,
        /// Device.
        device: String,
        /// DPDK's words.
        reason: String,
        /// What DPDK logged.
        log: LogLines,
    },
    /// A virtual device that DPDK could not create.
    #[error(
        "port \"{port}\": DPDK cannot create {device} with args \"{args}\": {reason}; check args and permissions{log}"
    )]
    Device {
        /// Port name.
        port: String,
        /// Device.
        device: String,
        /// Its arguments.
        args: String,
        /// DPDK's words.
        reason: String,
        /// What DPDK logged.
        log: LogLines,
    },
    /// A device that exists but became no port.
    #[error(
        "port \"{port}\": DPDK did not take over {device}; no driver of DPDK's knows it, or another process uses it{log}"
    )]
    NotTakenOver {
        /// Port name.
        port: String,
        /// Device.
        device: String,
        /// What DPDK logged.
        log: LogLines,
    },
    /// An MTU the device cannot carry.
    #[error("port \"{port}\": mtu = {mtu}, but {device} carries {min} to {max}; change port.mtu")]
    Mtu {
        /// Port name.
        port: String,
        /// Device.
        device: String,
        /// What was asked for.
        mtu: u16,
        /// Least.
        min: u32,
        /// Most.
        max: u32,
    },
    /// DPDK needs rights this process does not have.
    #[error("DPDK needs root or the capabilities named in the operator's guide: {reason}{log}")]
    Permission {
        /// DPDK's words.
        reason: String,
        /// What DPDK logged.
        log: LogLines,
    },
    /// DPDK's environment could not be started, for another reason.
    #[error("DPDK's environment could not be started: {reason}; check runtime.dpdk_args{log}")]
    Eal {
        /// DPDK's words.
        reason: String,
        /// What DPDK logged.
        log: LogLines,
    },
    /// DPDK was started in this process before, and it starts only once.
    #[error("DPDK was already started in this process")]
    Twice,
    /// Too few frames in the pool to fill the devices' receive queues.
    #[error(
        "runtime.mbufs = {mbufs}, but the receive queues alone take {needed}; raise runtime.mbufs or lower \
         runtime.rx_descriptors"
    )]
    TooFewMbufs {
        /// Configured.
        mbufs: u32,
        /// Least.
        needed: u32,
    },
    /// capsule or DPDK refused to set up pools or ports.
    #[error("the packet pool or a port could not be set up: {reason}{log}")]
    Setup {
        /// capsule's words.
        reason: String,
        /// What DPDK logged.
        log: LogLines,
    },
    /// A port that was configured but did not start.
    #[error("port \"{port}\": {device} does not start: {reason}{log}")]
    PortStart {
        /// Port name.
        port: String,
        /// Device.
        device: String,
        /// DPDK's words.
        reason: String,
        /// What DPDK logged.
        log: LogLines,
    },
    /// A worker that does not exist or is installed already.
    #[error("worker {} does not exist or has its work already", .0.0)]
    Worker(WorkerId),
    /// The runtime could not run.
    #[error("the runtime could not run: {reason}")]
    Run {
        /// capsule's words.
        reason: String,
    },
}
