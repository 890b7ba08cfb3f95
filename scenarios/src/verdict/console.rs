//! The guests' consoles: what their kernels complain of.

use super::{Check, Evidence};

/// What a Linux kernel prints when something is badly wrong, from its sources (`lib/bug.c`, `kernel/panic.c`,
/// `kernel/watchdog.c`, `kernel/rcu/tree_stall.h`, `block/blk-core.c`, `fs/ext4/super.c`, `mm/oom_kill.c`).
const COMPLAINTS: [&str; 15] = [
    "BUG: ",
    "kernel BUG at",
    "Oops",
    "Kernel panic",
    "general protection fault",
    "Call Trace:",
    "WARNING: CPU",
    "soft lockup",
    "rcu_sched self-detected stall",
    "detected stalls on CPUs",
    "blocked for more than",
    "I/O error",
    "EXT4-fs error",
    "Remounting filesystem read-only",
    "Out of memory",
];

/// No console shows an error.
pub(super) fn console(evidence: &Evidence<'_>) -> Option<Check> {
    let mut wrong = None;
    let mut lines = 0;
    for (guest, text) in evidence.consoles {
        for (number, line) in text.lines().enumerate() {
            lines += 1;
            if COMPLAINTS.iter().any(|complaint| line.contains(complaint)) {
                wrong.get_or_insert_with(|| {
                    format!("{guest}, line {}: {}", number + 1, line.trim())
                });
            }
        }
    }
    (!evidence.consoles.is_empty())
        .then(|| Check::new("console", wrong, format!("{lines} lines, no complaint")))
}
