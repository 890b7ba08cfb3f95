//! What a guest, a peer, a boot loader or a disk may say to the hypervisor, as functions of any bytes.
//!
//! Each [`Check`] takes bytes that nobody vouches for, gives them to the code that must survive them, and panics when that
//! code breaks a promise: it must not panic, not work without end, and not be left in a state that it cannot go on from.
//! `tests/mutations.rs` runs all of them in the normal test run, from the seeds in `corpus/`; `libfuzzer/` runs them for
//! as long as one likes, led by coverage.
//!
//! A guest is not its bytes but what it does, so [`guest`] reads bytes as a list of actions. Only the crates' public
//! interfaces are used: what cannot be reached through them cannot be reached by a guest or a peer.

#![forbid(unsafe_code)]

mod boot;
mod bytes;
mod guest;
mod instruction;
mod peer;
mod state;
mod storage;
mod vcpu;

pub use boot::boot_information;
pub use guest::guest;
pub use instruction::instruction;
pub use peer::{host_protocol, migration};
pub use state::saved_state;
pub use storage::{rpc, virtual_disk};

/// Something that must survive any bytes.
pub type Check = fn(&[u8]);

/// All checks, with the names of their corpora and of their libFuzzer targets.
pub const CHECKS: [(&str, Check); 8] = [
    ("boot_information", boot_information),
    ("guest", guest),
    ("host_protocol", host_protocol),
    ("instruction", instruction),
    ("migration", migration),
    ("rpc", rpc),
    ("saved_state", saved_state),
    ("virtual_disk", virtual_disk),
];
