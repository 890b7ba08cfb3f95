//! Real-time priority for the threads whose lateness would be measured as the guest's.
//!
//! The switch and the endpoints sleep nearly always and work for microseconds; on a busy machine they must not wait behind
//! programs that compute for milliseconds. Where the system does not allow it (it needs `CAP_SYS_NICE` or a limit `RTPRIO`),
//! they run as everyone else, and the probes' own lateness tells whether that was good enough.

use nix::libc;

/// The lowest real-time priority: above all ordinary programs, below whatever else the machine runs in real time.
const PRIORITY: i32 = 1;

/// Gives the calling thread real-time priority, if the system allows it. Its children and threads do not inherit it.
pub fn raise() {
    let parameters = libc::sched_param {
        sched_priority: PRIORITY,
    };
    // SAFETY: the call reads the parameters, which outlive it, and changes the scheduling of this thread alone (number 0).
    // A refusal leaves everything as it was, which is the documented fallback.
    unsafe {
        libc::sched_setscheduler(
            0,
            libc::SCHED_RR | libc::SCHED_RESET_ON_FORK,
            &raw const parameters,
        );
    }
}
