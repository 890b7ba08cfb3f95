//! Which way an Ethernet frame goes between the guests and the session card.
//!
//! An Ethernet switch learns where addresses live. Here nothing is left to learn: each guest may send
//! from its configured address only (so it cannot draw another's traffic), and everything else
//! is behind the one uplink. So the forwarding table *is* the configuration, which cannot age, overflow or
//! be poisoned. What a guest broadcasts reaches the other guests too, and is limited in rate.
//!
//! It handles addresses, not frames: nothing is copied here.

use alloc::vec::Vec;

/// A MAC address.
pub(crate) type Mac = [u8; 6];

/// A guest's network card.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Vif {
    /// The VM's number on this host.
    pub vm: u32,
    /// Which of its cards.
    pub nic: usize,
}

/// Where a frame comes from or goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Port {
    /// The host's session card.
    Uplink,
    /// A guest's card.
    Guest(Vif),
}

/// Where a frame goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Route {
    /// Nowhere.
    Drop,
    /// To one port.
    To(Port),
    /// To every port except the one it came from.
    Flood,
}

/// Frames that may be flooded from one guest in a second, and in one burst.
const FLOODS_PER_SECOND: u64 = 2000;
const FLOOD_BURST: u64 = 200;

/// A flooded frame's price; credit grows by a nanosecond in a nanosecond.
const FLOOD_COST_NS: u64 = 1_000_000_000 / FLOODS_PER_SECOND;

struct GuestPort {
    vif: Vif,
    mac: Mac,
    credit_ns: u64,
    credit_at_ns: u64,
}

impl GuestPort {
    fn may_flood(&mut self, now_ns: u64) -> bool {
        let grown = self.credit_ns + now_ns.saturating_sub(self.credit_at_ns);
        self.credit_ns = grown.min(FLOOD_BURST * FLOOD_COST_NS);
        self.credit_at_ns = now_ns;
        match self.credit_ns.checked_sub(FLOOD_COST_NS) {
            Some(rest) => {
                self.credit_ns = rest;
                true
            }
            None => false,
        }
    }
}

/// Joins guests and uplink.
#[derive(Default)]
pub(crate) struct Bridge {
    guests: Vec<GuestPort>,
}

impl Bridge {
    /// Connects a guest's card.
    pub fn connect(&mut self, vif: Vif, mac: Mac, now_ns: u64) {
        self.guests.push(GuestPort {
            vif,
            mac,
            credit_ns: FLOOD_BURST * FLOOD_COST_NS,
            credit_at_ns: now_ns,
        });
    }

    /// Takes all cards of a VM off.
    pub fn disconnect(&mut self, vm: u32) {
        self.guests.retain(|port| port.vif.vm != vm);
    }

    /// Whether a guest here has this address.
    pub fn has(&self, mac: Mac) -> bool {
        self.guests.iter().any(|port| port.mac == mac)
    }

    /// The guests' cards.
    pub fn guests(&self) -> impl Iterator<Item = Vif> + '_ {
        self.guests.iter().map(|port| port.vif)
    }

    /// Where a frame goes.
    pub fn route(&mut self, from: Port, frame: &[u8], now_ns: u64) -> Route {
        let Some((destination, rest)) = frame.split_first_chunk::<6>() else {
            return Route::Drop;
        };
        let Some(source) = rest.first_chunk::<6>() else {
            return Route::Drop;
        };
        // The lowest bit of an address's first byte: group address (IEEE 802.3, 3.2.3).
        let group = destination[0] & 1 != 0;
        if let Port::Guest(vif) = from {
            let Some(own) = self.guests.iter_mut().find(|port| port.vif == vif) else {
                return Route::Drop;
            };
            if own.mac != *source || (group && !own.may_flood(now_ns)) {
                return Route::Drop;
            }
        }
        if group {
            return Route::Flood;
        }
        match (
            self.guests.iter().find(|port| port.mac == *destination),
            from,
        ) {
            (Some(port), Port::Guest(vif)) if port.vif == vif => Route::Drop,
            (Some(port), _) => Route::To(Port::Guest(port.vif)),
            (None, Port::Guest(_)) => Route::To(Port::Uplink),
            // The switch outside flooded it, or has not yet seen that the guest moved away.
            (None, Port::Uplink) => Route::Drop,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Mac = [2, 0, 0, 0, 0, 1];
    const B: Mac = [2, 0, 0, 0, 0, 2];
    const OUTSIDE: Mac = [2, 0, 0, 0, 0, 9];
    const ALL: Mac = [0xff; 6];
    const VIF_A: Vif = Vif { vm: 1, nic: 0 };
    const VIF_B: Vif = Vif { vm: 2, nic: 0 };

    fn frame(to: Mac, from: Mac) -> Vec<u8> {
        [&to[..], &from[..], &[0; 48]].concat()
    }

    fn bridge() -> Bridge {
        let mut bridge = Bridge::default();
        bridge.connect(VIF_A, A, 0);
        bridge.connect(VIF_B, B, 0);
        bridge
    }

    #[test]
    fn frames_go_to_their_address_and_nowhere_else() {
        let mut bridge = bridge();
        let a = Port::Guest(VIF_A);
        let b = Port::Guest(VIF_B);
        assert_eq!(bridge.route(a, &frame(B, A), 0), Route::To(b));
        assert_eq!(
            bridge.route(a, &frame(OUTSIDE, A), 0),
            Route::To(Port::Uplink)
        );
        assert_eq!(
            bridge.route(Port::Uplink, &frame(A, OUTSIDE), 0),
            Route::To(a)
        );
        assert_eq!(
            bridge.route(Port::Uplink, &frame([2; 6], OUTSIDE), 0),
            Route::Drop
        );
        assert_eq!(bridge.route(a, &frame(A, A), 0), Route::Drop);
        assert_eq!(bridge.route(a, &frame(ALL, A), 0), Route::Flood);
        assert_eq!(bridge.route(a, &[0; 11], 0), Route::Drop);
    }

    #[test]
    fn a_guest_cannot_pose_as_another() {
        let mut bridge = bridge();
        assert_eq!(
            bridge.route(Port::Guest(VIF_A), &frame(OUTSIDE, B), 0),
            Route::Drop
        );
    }

    #[test]
    fn a_broadcast_storm_is_throttled_and_then_allowed_again() {
        let mut bridge = bridge();
        let from = Port::Guest(VIF_A);
        let storm = frame(ALL, A);
        let passed = |bridge: &mut Bridge, now| {
            (0..10_000)
                .filter(|_| bridge.route(from, &storm, now) == Route::Flood)
                .count() as u64
        };
        assert_eq!(passed(&mut bridge, 0), FLOOD_BURST);
        assert_eq!(passed(&mut bridge, 10 * FLOOD_COST_NS), 10);
    }

    #[test]
    fn a_guest_that_left_gets_nothing() {
        let mut bridge = bridge();
        bridge.disconnect(1);
        assert_eq!(
            bridge.route(Port::Uplink, &frame(A, OUTSIDE), 0),
            Route::Drop
        );
        assert!(!bridge.has(A) && bridge.has(B));
    }
}
