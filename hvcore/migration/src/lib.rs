//! Live migration: moving a running guest from one host to another.
//!
//! [`Source`] and [`Destination`] are the two ends. They are sans-IO: bytes and clock readings go in, bytes and
//! a next deadline come out; the guest is behind [`SourceVm`] and [`DestinationVm`]. So one code moves guests
//! between real hosts and, thousands of times a second with every kind of failure, in a simulation.
//!
//! # Order of events
//!
//! ```text
//!  source                                    destination
//!  Hello, Welcome, Prepare: both prove the pool's key, the VM is described
//!                                            builds the whole VM; Ready
//!  pages, round by round      ------------>  loads them; RoundApplied
//!  a snapshot as a rehearsal  ------------>  runs it for a moment, throws all of it away
//!                             <------------  the pages that this has changed, to be sent again
//!  stops vCPUs, drains devices
//!  last pages, Final          ------------>  loads vCPUs, devices, disks
//!                                            TAKES THE LEASE: the commit point
//!                             <------------  Committed
//!  forwards frames            ------------>  sets the clock, announces, runs the guest,
//!  EndOfFrames                ------------>  delivers forwarded frames, then direct ones
//! ```
//!
//! # Who has the guest
//!
//! The lease of the VM's first writable disk has an epoch at the storage server, and taking it is a compare-and-swap
//! on that epoch. Before `Final` is sent the destination does not know enough to run the guest, so the source may go on
//! at any time. After that, either end may be alone: the destination goes on to take the lease; the source, if it hears
//! nothing, takes it itself. One of the two fails, and drops its copy. No message, timer or
//! connection decides.
//!
//! **Architecture invariant:** this crate knows no network, no storage server and no hypervisor.
//!
//! # The rehearsal
//!
//! A guest that arrives is cold: caches, address translations and, under an emulator, the translation of its code
//! are made anew while its user waits. So the destination runs a copy of the guest for a moment *before* the
//! stop, in RAM and registers of one moment, and gives it the frames that the guest receives meanwhile. The copy is no
//! second guest: its disks are not opened for writing, its frames and its console go nowhere, its machine is
//! thrown away, and the pages it has changed are sent again.
//!
//! Rejected: post-copy as the default (each missing page is a round trip on a busy CPU: short pause, long
//! stutter), and a commit decided by messages (two generals: one of the ends cannot know).

#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

mod checkpoint;
mod copier;
mod destination;
#[cfg(test)]
mod golden_tests;
mod harvest;
mod hash;
mod outbox;
mod page_hash;
mod rounds;
mod source;
mod vm;
mod wire;

pub use checkpoint::{CheckpointReader, CheckpointStep, CheckpointWriter};
pub use destination::{Destination, DestinationOutcome};
pub use hash::MemoryHash;
pub use source::{Source, SourceOutcome};
pub use vm::{DestinationVm, SourceVm};
pub use wire::{FinalState, FromDestination, FromSource, Snapshot, WireError};
