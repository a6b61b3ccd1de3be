//! Signals that arrive while the runtime is being built, before capsule listens for them: held, and repeated once it does.
//! Without that, a SIGTERM in the first moments would end the process half-started.

use std::sync::atomic::{AtomicU32, Ordering};

use crate::runtime::Signal;

const HELD: [(Signal, libc::c_int); 3] =
    [(Signal::Hangup, libc::SIGHUP), (Signal::Interrupt, libc::SIGINT), (Signal::Terminate, libc::SIGTERM)];

/// Signals that mean nothing here, and would end the process: nobody who sends one means that.
const IGNORED: [libc::c_int; 3] = [libc::SIGUSR1, libc::SIGUSR2, libc::SIGALRM];

static PENDING: AtomicU32 = AtomicU32::new(0);

extern "C" fn note(number: libc::c_int) {
    PENDING.fetch_or(1_u32.wrapping_shl(number.unsigned_abs()), Ordering::Relaxed);
}

/// Holds the signals from now on. capsule's handlers, installed later, run in addition. Those that mean nothing are ignored.
pub(crate) fn hold() {
    let handler: extern "C" fn(libc::c_int) = note;
    for (_, number) in HELD {
        // SAFETY: an all-zero sigaction is a valid one, without flags, mask or handler.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        action.sa_sigaction = handler as libc::sighandler_t;
        action.sa_flags = libc::SA_RESTART;
        // SAFETY: `note` only does an atomic operation, which is allowed in a signal handler; `action` is complete.
        unsafe { libc::sigaction(number, &action, std::ptr::null_mut()) };
    }
    for number in IGNORED {
        // SAFETY: no handler is installed; nobody here waits for these signals.
        unsafe { libc::signal(number, libc::SIG_IGN) };
    }
}

/// The signal was delivered.
pub(crate) fn delivered(signal: Signal) {
    for (_, number) in HELD.iter().filter(|(held, _)| *held == signal) {
        PENDING.fetch_and(!1_u32.wrapping_shl(number.unsigned_abs()), Ordering::Relaxed);
    }
}

/// Sends this process the signals that were held and not delivered.
pub(crate) fn repeat_held() {
    let pending = PENDING.swap(0, Ordering::Relaxed);
    for (_, number) in HELD.iter().filter(|(_, number)| pending & 1_u32.wrapping_shl(number.unsigned_abs()) != 0) {
        send_self(*number);
    }
}

/// Sends this process SIGTERM.
pub(crate) fn terminate_self() {
    send_self(libc::SIGTERM);
}

fn send_self(number: libc::c_int) {
    // SAFETY: both take and return numbers only.
    unsafe { libc::kill(libc::getpid(), number) };
}
