//! Start of DPDK's environment (EAL) from the configuration, with failures explained.
//!
//! Virtual devices are created one by one after the EAL runs, so that each failure is that of a known port; PCI devices are
//! passed to the EAL, which probes no others. What can be checked beforehand without DPDK is checked beforehand.
//!
//! DPDK's log goes to `tracing` with the target `dpdk`: its errors and warnings as such, its notices as information, the
//! rest below.

use std::collections::VecDeque;
use std::ffi::{CStr, CString};
use std::fs;
use std::os::raw::{c_char, c_int};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock};

use capsule_ffi as ffi;
use sluice_config::{Config, Hugepages, Port};

use super::port::data_room;
use crate::claims;
use crate::error::{LogLines, StartError};

/// Lines of DPDK's log kept for error messages.
const LOG_LINES: usize = 12;

/// Memory DPDK needs besides packet pools: rings, queues, its own tables.
const OVERHEAD_MIB: u64 = 64;

/// Frames in a worker's pool cache. DPDK's upper limit is 512.
pub(crate) const POOL_CACHE: u32 = 256;

/// Octets DPDK adds to a frame's buffer: the mbuf and the pool's object header.
const MBUF_OVERHEAD: u64 = 192;

/// PCI drivers of the kernel through which DPDK reaches a device: the first three give it away, the others share it.
const USABLE_DRIVERS: [&str; 6] =
    ["vfio-pci", "uio_pci_generic", "igb_uio", "mlx4_core", "mlx5_core", "uio_hv_generic"];

/// Virtual devices that share memory with another process, which needs it in files.
const SHARES_MEMORY: [&str; 5] = ["net_memif", "net_vhost", "eth_vhost", "net_virtio_user", "virtio_user"];

/// Whether somebody started DPDK, or tried to: nobody else may.
static CLAIMED: AtomicBool = AtomicBool::new(false);

static LOG: Mutex<VecDeque<String>> = Mutex::new(VecDeque::new());

fn log_lines() -> MutexGuard<'static, VecDeque<String>> {
    LOG.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The last lines of DPDK's log, most recent last.
pub(crate) fn recent_log() -> LogLines {
    LogLines(log_lines().iter().cloned().collect())
}

/// Empties the memory of [`recent_log`], before a step whose own lines matter.
pub(crate) fn forget_log() {
    log_lines().clear();
}

/// Gets DPDK's log from the C side.
unsafe extern "C" fn log_sink(level: u32, text: *const c_char, len: usize) {
    // SAFETY: the shim passes `len` octets that the C library is writing; nobody changes them meanwhile. A panic here aborts
    // (`extern "C"`).
    let text = unsafe { std::slice::from_raw_parts(text.cast::<u8>(), len) };
    for line in String::from_utf8_lossy(text).lines().map(str::trim_end).filter(|line| !line.is_empty()) {
        match level {
            0..=ffi::RTE_LOG_ERR => tracing::error!(target: "dpdk", "{line}"),
            ffi::RTE_LOG_WARNING => tracing::warn!(target: "dpdk", "{line}"),
            ffi::RTE_LOG_NOTICE => tracing::info!(target: "dpdk", "{line}"),
            ffi::RTE_LOG_INFO => tracing::debug!(target: "dpdk", "{line}"),
            _ => tracing::trace!(target: "dpdk", "{line}"),
        }
        let mut lines = log_lines();
        if lines.len() >= LOG_LINES {
            lines.pop_front();
        }
        lines.push_back(line.to_owned());
    }
}

/// DPDK's words for an error: a negative error number, or -1 for the one it keeps per thread.
pub(crate) fn error_text(code: c_int) -> String {
    // SAFETY: reads a per-thread number.
    let number = if code == -1 { unsafe { ffi::_rte_errno() } } else { code.saturating_neg() };
    // SAFETY: answers any number with a terminated string that lasts until this thread's next call; it is copied here.
    unsafe { CStr::from_ptr(ffi::rte_strerror(number)) }.to_string_lossy().into_owned()
}

/// DPDK's name and version, `DPDK 22.11.11`. Does not need DPDK to run.
#[must_use]
pub fn dpdk_version() -> &'static str {
    static VERSION: OnceLock<String> = OnceLock::new();
    VERSION.get_or_init(|| {
        // SAFETY: returns a static terminated string, which the first call writes: no other call runs meanwhile.
        unsafe { CStr::from_ptr(ffi::rte_version()) }.to_string_lossy().into_owned()
    })
}

/// Says whether DPDK runs, and holds off its end while somebody reads from it.
#[derive(Clone, Debug)]
pub(crate) struct Lifetime(Arc<RwLock<bool>>);

impl Lifetime {
    /// DPDK runs from now on.
    pub(crate) fn begin() -> Lifetime {
        Lifetime(Arc::new(RwLock::new(true)))
    }

    /// Runs `read` if DPDK runs, and keeps it running meanwhile.
    pub(crate) fn while_alive<T>(&self, read: impl FnOnce() -> T) -> Option<T> {
        let alive = self.0.read().unwrap_or_else(PoisonError::into_inner);
        (*alive).then(read)
    }

    /// DPDK is about to end: waits for readers and admits no more.
    pub(crate) fn end(&self) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = false;
    }
}

/// A PCI address in full, `0000:03:00.0`.
fn is_pci(device: &str) -> bool {
    let digits = |text: &str, n: usize| text.len() == n && text.bytes().all(|b| b.is_ascii_hexdigit());
    let mut parts = device.split(':');
    let (Some(domain), Some(bus), Some(rest), None) = (parts.next(), parts.next(), parts.next(), parts.next()) else {
        return false;
    };
    rest.split_once('.')
        .is_some_and(|(slot, function)| digits(domain, 4) && digits(bus, 2) && digits(slot, 2) && digits(function, 1))
}

fn shares_memory(port: &Port) -> bool {
    SHARES_MEMORY.iter().any(|prefix| port.device.starts_with(prefix))
}

/// The smallest hugepage, and the page of ordinary memory, octets.
const HUGE_PAGE: u64 = 2 << 20;
const PAGE: u64 = 4096;

/// Where DPDK's memory comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Memory {
    Huge,
    /// Ordinary memory, so many MiB of it.
    Ordinary(u64),
}

/// The EAL, to be started.
#[derive(Debug)]
struct Plan {
    arguments: Vec<String>,
    prefix: String,
    memory: Memory,
}

impl Plan {
    fn new(config: &Config, memory: Memory) -> Plan {
        let prefix = format!("sluice-{}", std::process::id());
        let core = config.runtime.control_core.to_string();
        let mut arguments: Vec<String> =
            ["sluice", "--proc-type", "primary", "--file-prefix", &prefix].map(str::to_owned).into();
        let extra: Vec<String> = config.runtime.dpdk_args.split_ascii_whitespace().map(str::to_owned).collect();
        // Only the control thread is the EAL's; capsule makes the workers.
        arguments.extend(["--main-lcore", &core, "-l", &core].map(str::to_owned));
        // Without files of its own an appliance can neither collide with another nor leave something behind.
        let private = !config.ports.iter().any(shares_memory);
        // We have metrics of our own; a thread less, and no socket left behind.
        arguments.push("--no-telemetry".to_owned());
        match memory {
            Memory::Huge if private => arguments.push("--in-memory".to_owned()),
            Memory::Huge => {}
            Memory::Ordinary(mib) => {
                arguments.extend(["--no-huge".to_owned(), "-m".to_owned(), mib.to_string()]);
                if private {
                    arguments.push("--no-shconf".to_owned());
                }
            }
        }
        let mut pci = config.ports.iter().filter(|port| is_pci(&port.device)).peekable();
        let chosen_by_operator =
            extra.iter().any(|a| ["-a", "-b", "--allow", "--block"].iter().any(|o| a.starts_with(o)));
        if pci.peek().is_none() && !chosen_by_operator {
            arguments.push("--no-pci".to_owned());
        }
        for port in pci {
            let separator = if port.args.is_empty() { "" } else { "," };
            arguments.extend(["-a".to_owned(), format!("{}{separator}{}", port.device, port.args)]);
        }
        arguments.extend(extra);
        Plan { arguments, prefix, memory }
    }
}

/// Starts the EAL and creates the virtual devices.
///
/// # Errors
/// Anything that keeps DPDK or a device from coming up.
pub(crate) fn start(config: &Config) -> Result<(), StartError> {
    // Before the checks, which look at a process as it is without DPDK.
    if CLAIMED.load(Ordering::Acquire) {
        return Err(StartError::Twice);
    }
    check_cpus(config)?;
    for port in &config.ports {
        if is_pci(&port.device) { check_pci(port)? } else { check_arguments(port)? }
    }
    let plan = Plan::new(config, choose_memory(config)?);
    if CLAIMED.swap(true, Ordering::AcqRel) {
        return Err(StartError::Twice);
    }
    claims::claim(config)?;
    if plan.memory != Memory::Huge {
        ffi::eal::ignore_numa();
    }
    ffi::pool::set_data_room(config.ports.iter().map(|port| data_room(port.mtu)).max().unwrap_or(0));

    // SAFETY: `log_sink` is a function for as long as the process lives, and may be called on any thread; written before the
    // stream that uses it is opened, by the one thread that starts DPDK.
    if unsafe { ffi::sluice_log_to(Some(log_sink)) } != 0 {
        tracing::warn!("DPDK's log goes to standard error: its stream could not be opened");
    }
    pin_to(config.runtime.control_core);
    tracing::debug!(arguments = ?plan.arguments, "starting DPDK");
    let arguments: Vec<CString> = plan.arguments.iter().map(|a| CString::new(a.as_str()).unwrap_or_default()).collect();
    let mut pointers: Vec<*mut c_char> = arguments.iter().map(|a| a.as_ptr().cast_mut()).collect();
    let count = c_int::try_from(pointers.len()).unwrap_or(c_int::MAX);
    forget_log();
    // SAFETY: `count` pointers to C strings, which live until the end of this function; `CLAIMED` lets one thread in here, once.
    if unsafe { ffi::rte_eal_init(count, pointers.as_mut_ptr()) } < 0 {
        let reason = error_text(-1);
        let log = recent_log();
        remove_runtime_files(&plan.prefix);
        // Other programs on DPDK lock their files and claim nothing.
        if log.0.iter().any(|line| line.contains("another primary process")) {
            let prefix = claims::file_prefix(&config.runtime.dpdk_args).unwrap_or(&plan.prefix).to_owned();
            return Err(StartError::PrefixTaken { prefix });
        }
        let denied = log.0.iter().any(|line| line.contains("ermission denied") || line.contains("not permitted"));
        return Err(if denied { StartError::Permission { reason, log } } else { StartError::Eal { reason, log } });
    }
    // PCI devices were probed just now: while what was said of them is still at hand.
    let (pci, virtual_devices): (Vec<&Port>, Vec<&Port>) = config.ports.iter().partition(|port| is_pci(&port.device));
    let result = pci
        .into_iter()
        .try_for_each(|port| find(port).map(|_| ()))
        .and_then(|()| virtual_devices.into_iter().try_for_each(create));
    if result.is_err() {
        end();
    }
    result
}

/// Pins this thread, so that the threads DPDK starts for itself stay off the workers' cores: it gives them what this one may
/// use. Workers are pinned to their own later.
fn pin_to(core: u16) {
    // SAFETY: an all-zero set is a valid, empty one.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: libc checks the index: a CPU beyond the set is a panic, and configurations name none above 1023.
    unsafe { libc::CPU_SET(usize::from(core), &mut set) };
    // SAFETY: `set` is complete, its size is passed, and 0 means the calling thread.
    if unsafe { libc::sched_setaffinity(0, size_of_val(&set), &raw const set) } != 0 {
        tracing::warn!(core, "the control thread could not be pinned to its core");
    }
}

/// Ends the EAL after a failed start; after a successful one, capsule's runtime does so. Removes its files.
pub(crate) fn end() {
    // SAFETY: every port that was configured is closed (`rte_mempool_free` sees to those capsule forgot); workers have ended, or
    // wait for good for a start that does not come.
    unsafe { ffi::rte_eal_cleanup() };
    remove_files();
}

/// Removes DPDK's files, which it does not need once it runs.
pub(crate) fn remove_files() {
    remove_runtime_files(&format!("sluice-{}", std::process::id()));
}

/// Removes what DPDK leaves behind under our prefix: a directory of sockets and locks, and hugepages in files.
fn remove_runtime_files(prefix: &str) {
    let by_environment = ["RUNTIME_DIRECTORY", "XDG_RUNTIME_DIR"].iter().filter_map(std::env::var_os);
    let parents = by_environment.chain(["/var/run", "/tmp"].map(Into::into));
    for parent in parents {
        // Not there: nothing to remove. Not removable: it is small, and named after a process that is gone.
        let _ = fs::remove_dir_all(Path::new(&parent).join("dpdk").join(prefix));
    }
    let ours = format!("{prefix}map_");
    let files = hugetlbfs_mounts().into_iter().filter_map(|mount| fs::read_dir(mount).ok()).flatten().flatten();
    for file in files.filter(|file| file.file_name().to_string_lossy().starts_with(&ours)) {
        // DPDK's next start removes files that nobody holds.
        let _ = fs::remove_file(file.path());
    }
}

/// Creates a virtual device.
fn create(port: &Port) -> Result<(), StartError> {
    forget_log();
    let argument = |text: &str| CString::new(text).unwrap_or_default();
    let (name, args) = (argument(&port.device), argument(&port.args));
    // SAFETY: the EAL runs; `CLAIMED` keeps other threads out, and workers come later; all three are C strings.
    let result = unsafe { ffi::rte_eal_hotplug_add(c"vdev".as_ptr(), name.as_ptr(), args.as_ptr()) };
    if result >= 0 {
        return Ok(());
    }
    let (name, device, log, reason) = (port.name.clone(), port.device.clone(), recent_log(), error_text(result));
    let said = |words: &str| log.0.iter().any(|line| line.to_ascii_lowercase().contains(words));
    // The device is "parsed" by asking every driver whether the name is one of its own.
    Err(if said("failed to parse device") || said("no driver found") {
        StartError::UnknownDriver { port: name, device }
    } else if said("busy") || said("in use") {
        StartError::Busy { port: name, device, reason, log }
    } else {
        StartError::Device { port: name, device, args: port.args.clone(), reason, log }
    })
}

/// DPDK's number of the port that a device became.
///
/// # Errors
/// It became none.
pub(crate) fn find(port: &Port) -> Result<u16, StartError> {
    let name = CString::new(port.device.as_str()).unwrap_or_default();
    let mut id = 0;
    // SAFETY: the EAL runs (this is called after its start), `name` is a C string and `id` ours.
    if unsafe { ffi::rte_eth_dev_get_port_by_name(name.as_ptr(), &mut id) } == 0 {
        return Ok(id);
    }
    let (name, device, log) = (port.name.clone(), port.device.clone(), recent_log());
    Err(match log.0.iter().find(|line| line.contains("busy")).cloned() {
        Some(reason) => StartError::Busy { port: name, device, reason, log },
        None => StartError::NotTakenOver { port: name, device, log },
    })
}

/// Checks that the CPUs exist and that we may run on them.
fn check_cpus(config: &Config) -> Result<(), StartError> {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let Some(allowed) = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")) else { return Ok(()) };
    let allowed = allowed.trim();
    let cores = config.runtime.cores.iter().map(|&cpu| ("runtime.cores", cpu));
    for (key, cpu) in cores.chain([("runtime.control_core", config.runtime.control_core)]) {
        if !in_list(allowed, cpu) {
            return Err(StartError::Cpu { key, cpu, allowed: allowed.to_owned() });
        }
    }
    Ok(())
}

/// Whether a list in the kernel's format (`0-3,8`) has a number.
fn in_list(list: &str, number: u16) -> bool {
    list.split(',').any(|part| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        match (first.trim().parse(), last.trim().parse()) {
            (Ok(first), Ok(last)) => (first..=last).contains(&number),
            _ => false,
        }
    })
}

/// Checks that a PCI device exists and that DPDK can reach it.
fn check_pci(port: &Port) -> Result<(), StartError> {
    let root = Path::new("/sys/bus/pci/devices");
    let path = root.join(&port.device);
    if !path.exists() {
        let mut known: Vec<String> = fs::read_dir(root)
            .into_iter()
            .flatten()
            .flatten()
            // Class 02: network controllers.
            .filter(|entry| fs::read_to_string(entry.path().join("class")).is_ok_and(|class| class.starts_with("0x02")))
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .collect();
        known.sort();
        let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
        return Err(StartError::PciMissing { port: port.name.clone(), device: port.device.clone(), known });
    }
    let driver =
        fs::read_link(path.join("driver")).ok().and_then(|link| Some(link.file_name()?.to_string_lossy().into_owned()));
    match driver {
        Some(driver) if USABLE_DRIVERS.contains(&driver.as_str()) => Ok(()),
        other => Err(StartError::PciNotBound {
            port: port.name.clone(),
            device: port.device.clone(),
            driver: other.map_or_else(|| "no driver".to_owned(), |driver| format!("the kernel's driver {driver}")),
        }),
    }
}

/// Whether this process's network namespace has an interface of this name. (/sys shows those of the namespace it was mounted in.)
fn interface_exists(name: &str) -> bool {
    let Ok(name) = CString::new(name) else { return false };
    // SAFETY: `name` is a terminated string that outlives the call.
    unsafe { libc::if_nametoindex(name.as_ptr()) != 0 }
}

/// Checks what a virtual device's arguments refer to.
fn check_arguments(port: &Port) -> Result<(), StartError> {
    if let Some(missing) = claims::interfaces(port).find(|interface| !interface_exists(interface)) {
        return Err(StartError::InterfaceMissing {
            port: port.name.clone(),
            device: port.device.clone(),
            interface: missing.to_owned(),
        });
    }
    for (key, value) in port.args.split(',').filter_map(|argument| argument.split_once('=')) {
        if key == "rx_pcap"
            && let Err(error) = fs::File::open(value)
        {
            return Err(StartError::FileMissing {
                port: port.name.clone(),
                device: port.device.clone(),
                file: value.to_owned(),
                reason: error.to_string(),
            });
        }
    }
    Ok(())
}

/// MiB that DPDK needs: a pool for each NUMA node of the cores, and the rest. `page` octets are contiguous, and no frame
/// crosses from one page into another.
fn needed_mib(config: &Config, page: u64) -> u64 {
    let room = config.ports.iter().map(|port| data_room(port.mtu)).max().unwrap_or(0);
    let frame = u64::from(room).saturating_add(MBUF_OVERHEAD).next_multiple_of(64);
    let frame = match page.div_euclid(frame.max(1)) {
        0 => frame.next_multiple_of(page),
        in_a_page => page.div_ceil(in_a_page),
    };
    let nodes = (0..64)
        .filter(|node| {
            let holds = |cpu: &u16| Path::new(&format!("/sys/devices/system/cpu/cpu{cpu}/node{node}")).exists();
            config.runtime.cores.iter().chain([&config.runtime.control_core]).any(holds)
        })
        .count();
    let pools = u64::from(config.runtime.mbufs).saturating_mul(frame).saturating_mul(nodes.max(1) as u64);
    pools.div_ceil(1 << 20).saturating_add(OVERHEAD_MIB)
}

/// MiB of hugepages that are free, of all sizes.
fn free_huge_mib() -> u64 {
    fs::read_dir("/sys/kernel/mm/hugepages")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            let kib: u64 = name.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse().ok()?;
            let free: u64 = fs::read_to_string(entry.path().join("free_hugepages")).ok()?.trim().parse().ok()?;
            Some(kib.saturating_mul(free) / 1024)
        })
        .sum()
}

/// Where hugetlbfs is mounted.
fn hugetlbfs_mounts() -> Vec<String> {
    let mounts = fs::read_to_string("/proc/mounts").unwrap_or_default();
    let directory = |line: &str| {
        let mut fields = line.split(' ').skip(1);
        fields.next().filter(|_| fields.next() == Some("hugetlbfs")).map(str::to_owned)
    };
    mounts.lines().filter_map(directory).collect()
}

/// Decides between hugepages and ordinary memory.
fn choose_memory(config: &Config) -> Result<Memory, StartError> {
    let needed_mib = needed_mib(config, HUGE_PAGE);
    let ordinary = Memory::Ordinary(self::needed_mib(config, PAGE));
    let free_mib = free_huge_mib();
    let needs_files = config.ports.iter().find(|port| shares_memory(port));
    let no_files = needs_files.filter(|_| hugetlbfs_mounts().is_empty());
    match config.runtime.hugepages {
        Hugepages::Off => Ok(ordinary),
        Hugepages::Require if free_mib < needed_mib => Err(StartError::Hugepages { needed_mib, free_mib }),
        Hugepages::Require => match no_files {
            Some(port) => Err(StartError::Hugetlbfs { port: port.name.clone(), device: port.device.clone() }),
            None => Ok(Memory::Huge),
        },
        Hugepages::Auto if free_mib < needed_mib || no_files.is_some() => {
            tracing::warn!(
                needed_mib,
                free_mib,
                "hugepages are missing, ordinary memory is used: slower, and not for PCI devices without an IOMMU; \
                 `scripts/setup.sh` reserves hugepages"
            );
            Ok(ordinary)
        }
        Hugepages::Auto => Ok(Memory::Huge),
    }
}

/// Makes this thread known to DPDK, without which every allocation misses the pool's cache. Undone when dropped, on the
/// same thread.
#[derive(Debug)]
pub(crate) struct Registered {
    one_thread: std::marker::PhantomData<*const ()>,
}

impl Registered {
    /// Registers this thread and names it, for `top` and the like; `None` if DPDK has no place left, which costs speed only.
    pub(crate) fn this_thread(name: &str) -> Option<Registered> {
        // A thread without its name does its work all the same.
        let _ = fs::write("/proc/thread-self/comm", name);
        // SAFETY: the EAL runs, and this thread is none of its own.
        let result = unsafe { ffi::rte_thread_register() };
        if result != 0 {
            tracing::warn!(reason = error_text(-1), "a worker is not registered with DPDK and will be slow");
        }
        (result == 0).then_some(Registered { one_thread: std::marker::PhantomData })
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        // SAFETY: this thread was registered, and by this value, which cannot leave it.
        unsafe { ffi::rte_thread_unregister() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pci_addresses_are_told_from_virtual_devices() {
        assert!(is_pci("0000:03:00.0"));
        assert!(is_pci("0000:af:1f.7"));
        for other in ["net_null0", "03:00.0", "0000:03:00", "0000:03:00.0.0", "net_tap0:0:0.0"] {
            assert!(!is_pci(other), "{other}");
        }
    }

    #[test]
    fn kernel_lists_are_understood() {
        assert!(in_list("0-3,8", 3));
        assert!(in_list("0-3,8", 8));
        assert!(!in_list("0-3,8", 4));
        assert!(!in_list("", 0));
    }

    #[test]
    fn nothing_is_read_from_dpdk_after_its_end() {
        let lifetime = Lifetime::begin();
        assert_eq!(lifetime.while_alive(|| 1), Some(1));
        lifetime.end();
        assert_eq!(lifetime.clone().while_alive(|| 1), None);
    }
}
