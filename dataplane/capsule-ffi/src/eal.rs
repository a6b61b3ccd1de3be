//! Start and end of DPDK's environment layer (EAL).
//!
//! sluice starts the EAL itself, to choose its arguments and to explain its failures, and then lets capsule build its
//! runtime, which would start it again: the second start is answered with success. Once ended it cannot be started again.
//!
//! capsule knows its threads by CPU, so it cannot have two on one, nor a worker on the control thread's. Where
//! [`set_cpus`] was called, the CPU numbers that capsule uses are names, translated here: threads may then share CPUs,
//! which labs with few of them need.

use std::ffi::{CStr, CString};
use std::os::raw::{c_char, c_int};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::bindings::rte_cpuset_t;
use crate::{bindings, pool};

const NEVER: u8 = 0;
const STARTED: u8 = 1;
const ENDED: u8 = 2;

static STATE: AtomicU8 = AtomicU8::new(NEVER);
static ONE_NODE: AtomicBool = AtomicBool::new(false);
static CPUS: Mutex<Vec<u16>> = Mutex::new(Vec::new());

/// Whether the EAL runs.
#[must_use]
pub fn started() -> bool {
    STATE.load(Ordering::Acquire) == STARTED
}

/// Makes all CPUs count as one NUMA node's, so that there is one packet pool: `--no-huge` memory has no nodes.
pub fn ignore_numa() {
    ONE_NODE.store(true, Ordering::Release);
}

/// Sets the CPUs behind the numbers that capsule uses: 0 is the first of `cpus`, and so on. Without this, numbers are CPUs.
pub fn set_cpus(cpus: &[u16]) {
    *CPUS.lock().unwrap_or_else(PoisonError::into_inner) = cpus.to_vec();
}

/// The CPU behind a number of capsule's.
fn cpu(number: usize) -> usize {
    let cpus = CPUS.lock().unwrap_or_else(PoisonError::into_inner);
    cpus.get(number).map_or(number, |&cpu| usize::from(cpu))
}

/// The set with each number replaced by the CPU behind it.
fn translated(set: &rte_cpuset_t) -> rte_cpuset_t {
    let mut result = rte_cpuset_t::default();
    let word_bits = u64::BITS as usize;
    for (word, bits) in set.__bits.iter().enumerate() {
        for bit in (0..word_bits).filter(|bit| bits >> bit & 1 == 1) {
            let cpu = cpu(word * word_bits + bit);
            if let Some(word) = result.__bits.get_mut(cpu / word_bits) {
                *word |= 1 << (cpu % word_bits);
            }
        }
    }
    result
}

/// Binds this thread to CPUs.
///
/// # Safety
/// As DPDK's function: `set` must point to a set.
pub unsafe fn rte_thread_set_affinity(set: *mut rte_cpuset_t) -> c_int {
    // SAFETY: the caller vouches for `set`.
    let mut set = translated(unsafe { &*set });
    // SAFETY: `set` is ours; DPDK copies it.
    unsafe { bindings::rte_thread_set_affinity(&mut set) }
}

/// The argument as DPDK 22.11 spells it.
fn renamed(argument: &[u8]) -> &[u8] {
    match argument {
        b"--master-lcore" => b"--main-lcore",
        b"--pci-whitelist" | b"-w" => b"-a",
        b"--pci-blacklist" => b"-b",
        same => same,
    }
}

/// Starts the EAL, or does nothing if it runs already. Arguments that 22.11 renamed are passed under their new names.
///
/// # Safety
/// `argv` must hold `argc` pointers to C strings. No other thread may be in this function or in [`rte_eal_cleanup`].
pub unsafe fn rte_eal_init(argc: c_int, argv: *mut *mut c_char) -> c_int {
    if started() {
        return 0;
    }
    let count = usize::try_from(argc).unwrap_or(0);
    // DPDK keeps pointers to the arguments and permutes the array: both live as long as the process.
    let pointers: Vec<*mut c_char> = (0..count)
        // SAFETY: the caller vouches for `argc` pointers to C strings.
        .map(|i| unsafe { CStr::from_ptr(*argv.add(i)) })
        .map(|argument| CString::new(renamed(argument.to_bytes())).unwrap_or_default().into_raw())
        .chain([std::ptr::null_mut()])
        .collect();
    let pointers = Vec::leak(pointers);
    // SAFETY: `pointers` holds `argc` C strings and a terminating null, all of which stay valid. Like any main(), DPDK may
    // write to them: they are heap memory that was given away for it.
    let result = unsafe { bindings::rte_eal_init(argc, pointers.as_mut_ptr()) };
    if result >= 0 {
        STATE.store(STARTED, Ordering::Release);
    }
    result
}

/// Ends the EAL, once. Does nothing if it does not run, and leaves its memory alone if a pool could not be freed because
/// somebody still holds frames of it (see [`pool::rte_mempool_free`]).
///
/// # Safety
/// All ports must be closed, and no thread may use DPDK during or after the call.
pub unsafe fn rte_eal_cleanup() -> c_int {
    if STATE.compare_exchange(STARTED, ENDED, Ordering::AcqRel, Ordering::Acquire).is_err() || pool::any_in_use() {
        return 0;
    }
    // SAFETY: the EAL runs, and the caller vouches that nobody uses it any more.
    unsafe { bindings::rte_eal_cleanup() }
}

/// The NUMA node of the CPU behind a number of capsule's, always one that DPDK knows. (libnuma's function of this name
/// answers -1 on kernels without NUMA, for which capsule then finds no pool.)
///
/// # Safety
/// The EAL must run.
#[must_use]
pub unsafe fn numa_node_of_cpu(number: c_int) -> c_int {
    // SAFETY: the caller's promise is the callee's requirement.
    unsafe { node_of(cpu(usize::try_from(number).unwrap_or(0))) }
}

/// The NUMA node of a CPU, always one that DPDK knows.
///
/// # Safety
/// The EAL must run.
#[must_use]
pub unsafe fn node_of(cpu: usize) -> c_int {
    // SAFETY: the EAL runs; both only read its configuration.
    let nodes = unsafe { (0..bindings::rte_socket_count()).map(|i| bindings::rte_socket_id_by_idx(i)) };
    let nodes: Vec<c_int> = nodes.filter(|&node| node >= 0).collect();
    let first = nodes.first().copied().unwrap_or(0);
    if ONE_NODE.load(Ordering::Acquire) {
        return first;
    }
    let local = |node: &c_int| Path::new(&format!("/sys/devices/system/cpu/cpu{cpu}/node{node}")).exists();
    nodes.into_iter().find(local).unwrap_or(first)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_that_dpdk_renamed_are_passed_under_their_new_names() {
        assert_eq!(renamed(b"--master-lcore"), b"--main-lcore");
        assert_eq!(renamed(b"--pci-whitelist"), b"-a");
        assert_eq!(renamed(b"--vdev"), b"--vdev");
    }

    #[test]
    fn cpu_numbers_are_names_once_set() {
        let mut set = rte_cpuset_t::default();
        set.__bits[0] = 0b110;
        assert_eq!(translated(&set).__bits[0], 0b110);
        set_cpus(&[0, 1, 70]);
        let result = translated(&set);
        assert_eq!((result.__bits[0], result.__bits[1]), (0b10, 1 << 6));
    }

    #[test]
    fn ending_an_eal_that_never_started_does_nothing() {
        // SAFETY: no port exists and no thread uses DPDK.
        assert_eq!(unsafe { rte_eal_cleanup() }, 0);
        assert!(!started());
    }
}
