//! The lab's Ethernet: one learning switch for each network, in one thread of an ordinary process.
//!
//! Every port is a Unix stream socket that carries frames the way QEMU's `-netdev stream` does, so a host's
//! network card and an endpoint inside the lab are the same thing to the switch. Each directed link between a
//! port and the switch can be cut, delayed, made lossy, slow or unordered ([`lab_protocol::LinkFault`]).
//!
//! The decisions are made in [`Fabric`], which knows neither sockets nor clocks; [`Switch`] gives it both. A
//! kernel bridge with TAP devices and `netem` would do the same with root's rights only, and could not
//! say what it did to which frame.

#![forbid(unsafe_code)]

pub mod capture;
mod clock;
pub mod fabric;
pub mod framing;
pub mod link;
mod network;
mod ports;
mod switch;
mod worker;

pub use clock::LabClock;
pub use fabric::{Fabric, FabricEvent, MacAddress, PortCounters, PortId};
pub use link::Direction;
pub use switch::{
    LinkState, NetworkConfig, Noticed, PortState, Switch, SwitchConfig, SwitchError, SwitchNotice,
};
