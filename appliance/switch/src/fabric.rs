//! The decisions of one learning switch (IEEE 802.1D-2004, clause 7.8): which frame goes to which port,
//! and when.
//!
//! Sans-IO: frames and a clock reading go in; deliveries and events come out through an [`Outlet`]. A frame on
//! healthy links is delivered inside [`Fabric::ingress`] without a copy; only delayed ones are kept.
//! Addresses do not age: a lab lives for minutes, and a table entry that outlives a move is what the
//! lab wants to see, not to hide.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::fmt;

use lab_protocol::LinkFault;

use crate::link::{Direction, DropCause, Link, Transit};

/// Destination and source address, and the type.
const HEADER: usize = 14;
/// A VLAN tag may come on top of the header.
const TAG: usize = 4;
/// Most addresses a switch learns; beyond it, frames to new addresses are flooded.
const MAX_ADDRESSES: usize = 4096;

/// An Ethernet address.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct MacAddress(pub [u8; 6]);

impl MacAddress {
    fn is_group(self) -> bool {
        self.0[0] & 1 != 0
    }
}

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A port of one switch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PortId(pub usize);

/// What a switch has noticed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FabricEvent {
    /// An address was seen on a port for the first time.
    Learnt {
        /// The address.
        mac: MacAddress,
        /// Where.
        port: PortId,
    },
    /// An address is now on another port.
    Moved {
        /// The address.
        mac: MacAddress,
        /// Where it was.
        from: PortId,
        /// Where it is.
        to: PortId,
    },
    /// The first frame to a single receiver since the address moved: its owner itself speaks, for
    /// what announces a move goes to all.
    FirstFrame {
        /// The address.
        mac: MacAddress,
        /// Where.
        port: PortId,
    },
}

/// Counts of a port. `sent` and `received` are seen from the port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PortCounters {
    /// Frames the port gave to the switch.
    pub sent_frames: u64,
    /// Bytes of them.
    pub sent_bytes: u64,
    /// Frames the switch gave to the port.
    pub received_frames: u64,
    /// Bytes of them.
    pub received_bytes: u64,
    /// Frames lost on either direction of its link.
    pub dropped: u64,
}

/// Takes what the switch puts out.
pub trait Outlet {
    /// A frame arrives at a port.
    fn deliver(&mut self, port: PortId, frame: &[u8]);
    /// Something was noticed.
    fn event(&mut self, event: FabricEvent);
    /// A frame passed a directed link, or did not. For captures.
    fn trace(
        &mut self,
        port: PortId,
        direction: Direction,
        frame: &[u8],
        fate: Result<(), DropCause>,
    );
}

#[derive(Debug)]
struct Port {
    sending: Link,
    receiving: Link,
    counters: PortCounters,
}

#[derive(Debug)]
struct Address {
    port: PortId,
    moved: bool,
}

/// A frame on its way over a slow link.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Delayed {
    due_ns: u64,
    /// Keeps the order of frames that are due together.
    sequence: u64,
    port: PortId,
    /// Whether it travels to the switch or from it.
    to_switch: bool,
    frame: Vec<u8>,
}

/// One learning switch.
#[derive(Debug)]
pub struct Fabric {
    seed: u64,
    longest: usize,
    ports: Vec<Port>,
    addresses: HashMap<MacAddress, Address>,
    delayed: BinaryHeap<Reverse<Delayed>>,
    sequence: u64,
}

impl Fabric {
    /// A switch without ports for frames that carry up to `mtu` bytes.
    #[must_use]
    pub fn new(mtu: usize, seed: u64) -> Self {
        Self {
            seed,
            longest: mtu + HEADER + TAG,
            ports: Vec::new(),
            addresses: HashMap::new(),
            delayed: BinaryHeap::new(),
            sequence: 0,
        }
    }

    /// Adds a port with healthy links.
    pub fn add_port(&mut self) -> PortId {
        let id = PortId(self.ports.len());
        let seed = |direction: u64| {
            self.seed
                .wrapping_add((id.0 as u64 * 2 + direction).wrapping_mul(0x9e37_79b9_7f4a_7c15))
        };
        let (sending, receiving) = (Link::new(seed(0)), Link::new(seed(1)));
        self.ports.push(Port {
            sending,
            receiving,
            counters: PortCounters::default(),
        });
        id
    }

    /// Replaces the fault of a directed link.
    pub fn set_fault(&mut self, port: PortId, direction: Direction, fault: LinkFault) {
        let port = &mut self.ports[port.0];
        match direction {
            Direction::Sending => port.sending.set_fault(fault),
            Direction::Receiving => port.receiving.set_fault(fault),
        }
    }

    /// The fault of a directed link.
    #[must_use]
    pub fn fault(&self, port: PortId, direction: Direction) -> &LinkFault {
        let port = &self.ports[port.0];
        match direction {
            Direction::Sending => port.sending.fault(),
            Direction::Receiving => port.receiving.fault(),
        }
    }

    /// Counts of a port.
    #[must_use]
    pub fn counters(&self, port: PortId) -> PortCounters {
        self.ports[port.0].counters
    }

    /// Counts a frame that the socket behind the port could not take.
    pub fn count_drop(&mut self, port: PortId) {
        self.ports[port.0].counters.dropped += 1;
    }

    /// When [`Fabric::on_time`] has something to do.
    #[must_use]
    pub fn next_deadline_ns(&self) -> Option<u64> {
        self.delayed.peek().map(|Reverse(delayed)| delayed.due_ns)
    }

    /// A port sent a frame.
    pub fn ingress(&mut self, port: PortId, frame: &[u8], now_ns: u64, outlet: &mut impl Outlet) {
        // What is due already must not be overtaken by a frame that arrives now.
        self.on_time(now_ns, outlet);
        let counters = &mut self.ports[port.0].counters;
        counters.sent_frames += 1;
        counters.sent_bytes += frame.len() as u64;
        if frame.len() < HEADER || frame.len() > self.longest {
            counters.dropped += 1;
            outlet.trace(port, Direction::Sending, frame, Err(DropCause::BadLength));
            return;
        }
        let fate = self.ports[port.0].sending.pass(frame.len(), now_ns);
        outlet.trace(port, Direction::Sending, frame, fate.map(|_| ()));
        match fate {
            Err(_) => self.ports[port.0].counters.dropped += 1,
            Ok((first, second)) => {
                for transit in [Some(first), second].into_iter().flatten() {
                    match self.keep(port, true, frame, transit, now_ns) {
                        Some(arrived) => {
                            self.forward(port, arrived.as_slice(frame), now_ns, outlet)
                        }
                        None => continue,
                    }
                }
            }
        }
    }

    /// Moves on the delayed frames that are due.
    pub fn on_time(&mut self, now_ns: u64, outlet: &mut impl Outlet) {
        while let Some(Reverse(next)) = self.delayed.peek()
            && next.due_ns <= now_ns
        {
            let Some(Reverse(delayed)) = self.delayed.pop() else {
                return;
            };
            if delayed.to_switch {
                self.forward(delayed.port, &delayed.frame, now_ns, outlet);
            } else {
                self.arrive(delayed.port, &delayed.frame, outlet);
            }
        }
    }

    /// The frame has reached the switch: learn its source, find its destinations.
    fn forward(&mut self, from: PortId, frame: &[u8], now_ns: u64, outlet: &mut impl Outlet) {
        let Some((destination, source)) = addresses(frame) else {
            return;
        };
        self.learn(source, destination, from, outlet);
        match self.addresses.get(&destination).map(|known| known.port) {
            Some(port) if !destination.is_group() => {
                if port != from {
                    self.egress(port, frame, now_ns, outlet);
                }
            }
            _ => {
                for index in (0..self.ports.len()).filter(|index| *index != from.0) {
                    self.egress(PortId(index), frame, now_ns, outlet);
                }
            }
        }
    }

    fn learn(
        &mut self,
        source: MacAddress,
        destination: MacAddress,
        port: PortId,
        outlet: &mut impl Outlet,
    ) {
        if source.is_group() {
            return;
        }
        let room = self.addresses.len() < MAX_ADDRESSES;
        match self.addresses.get_mut(&source) {
            Some(known) if known.port == port => {}
            Some(known) => {
                let from = std::mem::replace(&mut known.port, port);
                known.moved = true;
                outlet.event(FabricEvent::Moved {
                    mac: source,
                    from,
                    to: port,
                });
            }
            None if room => {
                self.addresses
                    .insert(source, Address { port, moved: false });
                outlet.event(FabricEvent::Learnt { mac: source, port });
            }
            None => {}
        }
        if !destination.is_group()
            && let Some(known) = self.addresses.get_mut(&source)
            && std::mem::take(&mut known.moved)
        {
            outlet.event(FabricEvent::FirstFrame { mac: source, port });
        }
    }

    fn egress(&mut self, port: PortId, frame: &[u8], now_ns: u64, outlet: &mut impl Outlet) {
        match self.ports[port.0].receiving.pass(frame.len(), now_ns) {
            Err(cause) => {
                self.ports[port.0].counters.dropped += 1;
                outlet.trace(port, Direction::Receiving, frame, Err(cause));
            }
            Ok((first, second)) => {
                for transit in [Some(first), second].into_iter().flatten() {
                    if let Some(arrived) = self.keep(port, false, frame, transit, now_ns) {
                        self.arrive(port, arrived.as_slice(frame), outlet);
                    }
                }
            }
        }
    }

    fn arrive(&mut self, port: PortId, frame: &[u8], outlet: &mut impl Outlet) {
        let counters = &mut self.ports[port.0].counters;
        counters.received_frames += 1;
        counters.received_bytes += frame.len() as u64;
        outlet.trace(port, Direction::Receiving, frame, Ok(()));
        outlet.deliver(port, frame);
    }

    /// Keeps the frame if it is not due yet; else gives it back, damaged if that is its fate.
    fn keep(
        &mut self,
        port: PortId,
        to_switch: bool,
        frame: &[u8],
        transit: Transit,
        now_ns: u64,
    ) -> Option<Arrived> {
        let damaged = transit.damage.map(|(at, mask)| {
            let mut copy = frame.to_vec();
            copy[at] ^= mask;
            copy
        });
        if transit.due_ns <= now_ns {
            return Some(Arrived(damaged));
        }
        self.sequence += 1;
        self.delayed.push(Reverse(Delayed {
            due_ns: transit.due_ns,
            sequence: self.sequence,
            port,
            to_switch,
            frame: damaged.unwrap_or_else(|| frame.to_vec()),
        }));
        None
    }
}

/// A frame that arrives now: a changed copy, or the original.
struct Arrived(Option<Vec<u8>>);

impl Arrived {
    fn as_slice<'a>(&'a self, original: &'a [u8]) -> &'a [u8] {
        self.0.as_deref().unwrap_or(original)
    }
}

fn addresses(frame: &[u8]) -> Option<(MacAddress, MacAddress)> {
    let (destination, rest) = frame.split_first_chunk::<6>()?;
    let (source, _) = rest.split_first_chunk::<6>()?;
    Some((MacAddress(*destination), MacAddress(*source)))
}

#[cfg(test)]
#[path = "fabric_tests.rs"]
mod tests;
