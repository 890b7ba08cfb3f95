//! The pool: which hosts live, who may run which protected VM, and where a VM goes whose host is gone.
//!
//! [`Pool`] is one host's part, and sans-IO: heartbeats, blocks of the statefile, answers of the storage server and clock readings go in;
//! [`Action`]s and a next deadline come out. No controller outside is needed, for safety or for a restart.
//!
//! # How a host is found dead
//!
//! Each host sends a heartbeat to all others every 100 ms and writes its slot of the statefile every 200 ms. It is dead when another
//! has seen neither for 1250 ms, by a clock that does not count that other's own stalls, and a look into the statefile
//! that began after that time shows nothing new. Heartbeats tell what their senders have heard, so a host that anybody hears
//! is not dead.
//!
//! Why these times: hosts may share busy processors with much else, and stand still for several hundred milliseconds. A
//! shorter silence would need to be confirmed by somebody who cannot know either; counting on two paths instead means that only a host that
//! did nothing at all for 1250 ms, or whose every path was cut, is given up. After a pull this takes 1250 to 1400 ms, and
//! agreeing, fencing and deciding take a few round trips to the storage server.
//!
//! # Why a VM never runs twice
//!
//! - Its disks: before a restart the epoch of their leases is moved at the storage server, which refuses every
//!   request of the old holder from then on, however late.
//! - Its face on the network: a host's guests stand still 900 ms after the last sign that the host knows to have been noticed
//!   ([`Pool::may_run`], asked before every slice), and nobody restarts them before 1250 ms. Neither a message nor the
//!   goodwill of the frozen host is needed: see `permit.rs`.
//! - Its restart: only the host that moved the epoch of the pool's own lease decides, and of two hosts that are told to start a VM, one
//!   gets its leases.
//!
//! All this asks one thing of a host's clock: it may be set, far ahead or back, but it must not stand still while the host does. A host
//! whose clock stood still with it (an emulator that was halted together with its time) has nothing by which to see it until a
//! message comes. It can then be heard for a moment, and writes nothing.
//!
//! # Who goes on
//!
//! Hosts that reach the storage see each other there, whatever becomes of the network between them: they are one
//! partition, and all of them go on. A host that has lost the storage while it works for another fences itself, and says so if it can.
//! When all have lost it, hosts go on as long as each hears that all others hear it: nobody could take their leases. A
//! host that has neither fences itself. The coordinator is who made the present liveset; when it dies, the
//! lowest living host makes the next.
//!
//! **Architecture invariant:** this crate knows no sockets, no files and no hypervisor.
//!
//! Rejected: declaring a host dead on the word of the network alone (a cut cable would kill guests that run well), a
//! quorum of hosts (two hosts are a pool too, and the storage server is there to decide), and the watchdog of the host's
//! board as a fence (the server refuses its writes sooner, and does not rely on it).

#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

mod action;
pub mod capacity;
mod clock;
mod config;
mod event;
mod exchange;
mod peer;
mod permit;
mod pool;
mod proposal;
mod recovery;
mod status;
mod table;
mod wire;

pub use action::{Action, LeaseAnswer, LeaseCall, LeaseFile, Token};
pub use capacity::{Case, Plan, Shortage};
pub use config::{
    ConfigError, HostId, HostPolicy, PoolConfig, Safeguards, Timing, VmIndex, VmPolicy,
};
pub use event::{Departure, Event, Explained, Fault, FenceCause, NotRestarted, RestartCause};
pub use pool::Pool;
pub use status::{HostStatus, Protection, Status};
pub use table::{Place, Table};
pub use wire::{Heard, Heartbeat, MAX_HEARTBEAT, Report, Standing, VmReport};
