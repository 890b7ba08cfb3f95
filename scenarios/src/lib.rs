//! Scenarios: what is done to a lab, what is measured meanwhile, and the reports of it.
//!
//! Invariant: nothing here knows of hosts, switches or QEMU; a lab is its event log and its commands
//! (`lab_protocol`). The live session with a guest is the exception that proves it: it gets a byte stream.

#![forbid(unsafe_code)]

pub mod compare;
pub mod engine;
pub mod evidence;
pub mod gate;
pub mod history;
pub mod measure;
pub mod report;
pub mod scenario;
pub mod session;
pub mod verdict;
