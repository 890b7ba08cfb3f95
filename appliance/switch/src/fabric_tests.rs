//! Tests of the switch's decisions, without sockets and with a clock made of numbers.

use super::*;
use proptest::prelude::*;

const BROADCAST: [u8; 6] = [0xff; 6];
const A: [u8; 6] = [2, 0, 0, 0, 0, 0xa];
const B: [u8; 6] = [2, 0, 0, 0, 0, 0xb];
const C: [u8; 6] = [2, 0, 0, 0, 0, 0xc];

#[derive(Debug, Default, PartialEq)]
struct Seen {
    delivered: Vec<(PortId, Vec<u8>)>,
    events: Vec<FabricEvent>,
    dropped: Vec<(PortId, Direction, DropCause)>,
}

impl Outlet for Seen {
    fn deliver(&mut self, port: PortId, frame: &[u8]) {
        self.delivered.push((port, frame.to_vec()));
    }
    fn event(&mut self, event: FabricEvent) {
        self.events.push(event);
    }
    fn trace(&mut self, port: PortId, direction: Direction, _: &[u8], fate: Result<(), DropCause>) {
        if let Err(cause) = fate {
            self.dropped.push((port, direction, cause));
        }
    }
}

fn frame(to: [u8; 6], from: [u8; 6], body: &[u8]) -> Vec<u8> {
    [&to[..], &from[..], &[0x08, 0x00], body].concat()
}

/// Three ports; A, B and C are known on them.
fn three() -> (Fabric, [PortId; 3]) {
    let mut fabric = Fabric::new(1500, 7);
    let ports = [(); 3].map(|()| fabric.add_port());
    for (port, mac) in ports.iter().zip([A, B, C]) {
        fabric.ingress(*port, &frame(BROADCAST, mac, b""), 0, &mut Seen::default());
    }
    (fabric, ports)
}

fn receivers(seen: &Seen) -> Vec<PortId> {
    seen.delivered.iter().map(|(port, _)| *port).collect()
}

#[test]
fn known_addresses_get_their_frames_alone_and_unknown_ones_flood() {
    let (mut fabric, [a, b, c]) = three();
    let mut seen = Seen::default();
    fabric.ingress(a, &frame(B, A, b"x"), 1, &mut seen);
    assert_eq!(receivers(&seen), [b]);
    let mut seen = Seen::default();
    fabric.ingress(a, &frame([2, 9, 9, 9, 9, 9], A, b"x"), 1, &mut seen);
    assert_eq!(receivers(&seen), [b, c]);
    let mut seen = Seen::default();
    fabric.ingress(a, &frame(BROADCAST, A, b"x"), 1, &mut seen);
    assert_eq!(receivers(&seen), [b, c]);
    let mut seen = Seen::default();
    fabric.ingress(a, &frame(A, A, b"x"), 1, &mut seen);
    assert_eq!(receivers(&seen), [], "nothing goes back where it came from");
}

#[test]
fn a_move_is_reported_once_and_frames_follow_it() {
    let (mut fabric, [a, b, c]) = three();
    let mac = MacAddress(A);
    let mut seen = Seen::default();
    fabric.ingress(c, &frame(BROADCAST, A, b"announce"), 1, &mut seen);
    assert_eq!(
        seen.events,
        [FabricEvent::Moved {
            mac,
            from: a,
            to: c
        }]
    );
    let mut seen = Seen::default();
    fabric.ingress(b, &frame(A, B, b"for A"), 2, &mut seen);
    assert_eq!(receivers(&seen), [c]);
    let mut seen = Seen::default();
    fabric.ingress(c, &frame(B, A, b"hello"), 3, &mut seen);
    fabric.ingress(c, &frame(B, A, b"again"), 4, &mut seen);
    assert_eq!(seen.events, [FabricEvent::FirstFrame { mac, port: c }]);
}

#[test]
fn a_group_address_is_never_learnt() {
    let (mut fabric, [a, b, c]) = three();
    let group = [3, 0, 0, 0, 0, 1];
    fabric.ingress(a, &frame(B, group, b""), 1, &mut Seen::default());
    let mut seen = Seen::default();
    fabric.ingress(b, &frame(group, B, b""), 2, &mut seen);
    assert_eq!(receivers(&seen), [a, c]);
}

#[test]
fn the_address_table_is_bounded() {
    let (mut fabric, [a, b, _]) = three();
    for number in 0..u32::try_from(MAX_ADDRESSES).unwrap() + 10 {
        let [w, x, y, z] = number.to_be_bytes();
        fabric.ingress(
            a,
            &frame(B, [2, 1, w, x, y, z], b""),
            1,
            &mut Seen::default(),
        );
    }
    assert_eq!(fabric.addresses.len(), MAX_ADDRESSES);
    let mut seen = Seen::default();
    fabric.ingress(a, &frame(B, A, b"still works"), 2, &mut seen);
    assert_eq!(receivers(&seen), [b]);
}

#[test]
fn frames_of_bad_length_are_dropped_and_counted() {
    let (mut fabric, [a, ..]) = three();
    let before = fabric.counters(a).dropped;
    let mut seen = Seen::default();
    fabric.ingress(a, &[0; 13], 1, &mut seen);
    fabric.ingress(a, &frame(B, A, &[0; 1505]), 1, &mut seen);
    assert_eq!(receivers(&seen), []);
    assert_eq!(
        seen.dropped,
        [(a, Direction::Sending, DropCause::BadLength); 2]
    );
    assert_eq!(fabric.counters(a).dropped, before + 2);
    fabric.ingress(a, &frame(B, A, &[0; 1500]), 1, &mut seen);
    assert_eq!(seen.delivered.len(), 1, "the longest allowed frame passes");
}

#[test]
fn a_cut_is_directed() {
    let (mut fabric, [a, b, _]) = three();
    let cut = LinkFault {
        cut: true,
        ..LinkFault::default()
    };
    fabric.set_fault(a, Direction::Sending, cut);
    let mut seen = Seen::default();
    fabric.ingress(a, &frame(B, A, b"lost"), 1, &mut seen);
    fabric.ingress(b, &frame(A, B, b"arrives"), 1, &mut seen);
    assert_eq!(receivers(&seen), [a]);
    assert_eq!(seen.dropped, [(a, Direction::Sending, DropCause::Cut)]);
    fabric.set_fault(a, Direction::Sending, LinkFault::default());
    fabric.ingress(a, &frame(B, A, b"healed"), 2, &mut seen);
    assert_eq!(receivers(&seen), [a, b]);
}

#[test]
fn delays_of_both_directions_add_up() {
    let (mut fabric, [a, b, _]) = three();
    let slow = |delay_us| LinkFault {
        delay_us,
        ..LinkFault::default()
    };
    fabric.set_fault(a, Direction::Sending, slow(1000));
    fabric.set_fault(b, Direction::Receiving, slow(500));
    let mut seen = Seen::default();
    fabric.ingress(a, &frame(B, A, b"x"), 0, &mut seen);
    assert_eq!(fabric.next_deadline_ns(), Some(1_000_000));
    fabric.on_time(999_999, &mut seen);
    assert_eq!(fabric.next_deadline_ns(), Some(1_000_000));
    fabric.on_time(1_000_000, &mut seen);
    assert_eq!(fabric.next_deadline_ns(), Some(1_500_000));
    assert_eq!(receivers(&seen), []);
    fabric.on_time(1_500_000, &mut seen);
    assert_eq!(receivers(&seen), [b]);
    assert_eq!(fabric.next_deadline_ns(), None);
}

#[test]
fn duplicates_and_damage_reach_the_receiver() {
    let (mut fabric, [a, b, _]) = three();
    let original = frame(B, A, b"payload");
    fabric.set_fault(
        b,
        Direction::Receiving,
        LinkFault {
            duplicate: 1.0,
            ..LinkFault::default()
        },
    );
    let mut seen = Seen::default();
    fabric.ingress(a, &original, 1, &mut seen);
    assert_eq!(seen.delivered, vec![(b, original.clone()); 2]);
    fabric.set_fault(
        b,
        Direction::Receiving,
        LinkFault {
            corrupt: 1.0,
            ..LinkFault::default()
        },
    );
    let mut seen = Seen::default();
    fabric.ingress(a, &original, 1, &mut seen);
    let changed = seen.delivered[0]
        .1
        .iter()
        .zip(&original)
        .filter(|(x, y)| x != y)
        .count();
    assert_eq!(changed, 1);
}

proptest! {
    #[test]
    fn a_run_depends_on_seed_and_input_alone(
        seed: u64,
        sends in prop::collection::vec((0usize..3, 0usize..4, 0u64..3_000_000), 1..100),
        loss in 0.0f64..0.5,
        reorder in 0.0f64..0.5,
    ) {
        let run = || {
            let mut fabric = Fabric::new(1500, seed);
            let ports = [(); 3].map(|()| fabric.add_port());
            let fault = LinkFault { loss, reorder, jitter_us: 300, delay_us: 400, ..LinkFault::default() };
            fabric.set_fault(ports[0], Direction::Sending, fault.clone());
            fabric.set_fault(ports[1], Direction::Receiving, fault);
            let mut seen = Seen::default();
            let mut now = 0;
            for (from, to, wait) in &sends {
                now += wait;
                let body = frame([A, B, C, BROADCAST][*to], [A, B, C][*from], &now.to_be_bytes());
                fabric.ingress(ports[*from], &body, now, &mut seen);
            }
            fabric.on_time(u64::MAX, &mut seen);
            seen
        };
        prop_assert_eq!(run(), run());
    }
}
