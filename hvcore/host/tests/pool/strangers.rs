//! What a pool of whole hosts does with what is not its own: frames that were forged, sent again, or come from another
//! pool, damaged blocks of the statefile, and clocks that jump. Each is told as an event and changes nothing.

use host::platform::Nic;
use host_protocol::{
    HostEvent,
    auth::{PoolKey, Purpose},
    pool::PoolMark,
};
use pool::{Heard, Heartbeat, HostId, Report, Standing};

use crate::{
    MS,
    availability::{marks, protected},
    wire::LAB,
    world::{HEARTBEAT_AT, World},
};

/// What the pool calls them, and what its hosts share.
const POOL: [u8; 16] = [4; 16];
const KEY: [u8; 32] = [6; 32];
/// No wait of the probe may be longer than what a slice and the network take.
const UNNOTICED_NS: u64 = 20 * MS;

/// Sentences that a host has told as notes since it had told `from` events.
fn notes(world: &World, host: usize, from: usize) -> Vec<&str> {
    let events = &world.events(host)[from..];
    events
        .iter()
        .filter_map(|event| match event {
            HostEvent::Pool {
                mark: PoolMark::Note,
                text,
                ..
            } => Some(text.as_str()),
            _ => None,
        })
        .collect()
}

/// Runs the pool while `disturb` acts every 50 ms, and checks that the guest did not notice and nothing but notes was told; gives the
/// notes of the second host.
fn undisturbed(world: &mut World, mut disturb: impl FnMut(&mut World)) -> Vec<String> {
    let marks_before = [0, 1].map(|host| marks(world, host).len());
    let events_before = world.events(1).len();
    world.probe.echoes.clear();
    for _ in 0..60 {
        disturb(world);
        world.run_for(50 * MS).unwrap();
    }
    assert_eq!(world.running(), [0]);
    world.check_guest(0).unwrap();
    let longest = world.probe.longest_ns();
    assert!(longest < UNNOTICED_NS, "an echo took {} us", longest / 1000);
    for (host, before) in marks_before.into_iter().enumerate() {
        let told = &marks(world, host)[before..];
        assert!(told.iter().all(|mark| *mark == PoolMark::Note), "{told:?}");
    }
    let told = notes(world, 1, events_before);
    told.into_iter().map(str::to_string).collect()
}

/// A heartbeat of the guest's host in a frame of its own, without a UDP checksum (RFC 768: none is zero).
fn frame_with(world: &World, payload: &[u8]) -> Vec<u8> {
    let (_, real) = heartbeat_of(world, 0);
    let mut frame = real[..HEARTBEAT_AT].to_vec();
    frame.extend_from_slice(payload);
    let udp = (8 + payload.len()) as u16;
    frame[16..18].copy_from_slice(&(20 + udp).to_be_bytes());
    frame[38..40].copy_from_slice(&udp.to_be_bytes());
    frame[40..42].fill(0);
    frame[24..26].fill(0);
    let sum: u32 = frame[14..34]
        .chunks(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])))
        .sum();
    let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
    frame[24..26].copy_from_slice(&sum.to_be_bytes());
    frame
}

/// The last that a host has sent.
fn heartbeat_of(world: &World, host: usize) -> &(usize, Vec<u8>) {
    let mut newest = world.heartbeats.iter().rev();
    newest.find(|(of, _)| *of == host).expect("hosts send them")
}

fn inject(world: &mut World, frame: Vec<u8>) {
    let now = world.now.get();
    world.wire.send(LAB, Nic::Management, frame, now);
}

/// A report as the guest's host might make it much later: it has left the pool and everything goes on without it.
fn invented(pool: &[u8; 16], key: [u8; 32]) -> Vec<u8> {
    let heartbeat = Heartbeat {
        report: Report {
            from: HostId(0),
            incarnation: 99,
            sequence: 1 << 40,
            standing: Standing::Fenced,
            generation: 1 << 40,
            version: 0,
            vms: Vec::new(),
            table: None,
        },
        storage_age_ms: 0,
        heard: vec![Heard::default(); 2],
    };
    heartbeat.encode(pool, &PoolKey::new(key).seal(Purpose::Heartbeat))
}

fn assert_told(notes: &[String], what: &str) {
    assert!(notes.iter().any(|note| note.contains(what)), "{notes:?}");
}

#[test]
fn heartbeats_that_were_forged_damaged_or_are_anothers_change_nothing() {
    let mut world = protected(1, "w");
    let told = undisturbed(&mut world, |world| {
        let (_, real) = heartbeat_of(world, 0).clone();
        let payload = &real[HEARTBEAT_AT..];
        let mut damaged = payload.to_vec();
        let at = world.rng.usize(20..damaged.len());
        damaged[at] ^= 1 << world.rng.u8(..8);
        let cut = &payload[..world.rng.usize(..payload.len())];
        for payload in [
            &damaged[..],
            cut,
            &invented(&POOL, [7; 32]),
            &invented(&[5; 16], KEY),
        ] {
            let frame = frame_with(world, payload);
            inject(world, frame);
        }
    });
    assert_told(&told, "its seal was not made with the pool's key");
    assert_told(&told, "it comes from another pool");
}

/// The negative control: what the other test sends does harm when it is sealed with the pool's key.
#[test]
fn what_is_sealed_with_the_pools_key_is_believed() {
    let mut world = protected(1, "w");
    let frame = frame_with(&world, &invented(&POOL, KEY));
    inject(&mut world, frame);
    let moved = world.run_until(5_000 * MS, |world| {
        marks(world, 0).contains(&PoolMark::SelfFenced)
            || marks(world, 0).contains(&PoolMark::PermitLapsed)
            || marks(world, 1).contains(&PoolMark::DeclaredDead)
    });
    moved.expect("an invented report of a fenced host has an effect");
}

#[test]
fn heartbeats_sent_again_change_nothing_and_keep_no_dead_host_alive() {
    let mut world = protected(2, "w");
    let told = undisturbed(&mut world, |world| {
        let which = world.rng.usize(..world.heartbeats.len() - 4);
        let (_, frame) = world.heartbeats[which].clone();
        inject(world, frame);
    });
    assert_told(&told, "it is older than what was heard before");
    let old: Vec<_> = world
        .heartbeats
        .iter()
        .filter(|(of, _)| *of == 0)
        .cloned()
        .collect();
    let pulled = world.now.get();
    world.kill(0);
    while world.running() != [1] {
        let (_, frame) = old[world.rng.usize(..old.len())].clone();
        inject(&mut world, frame);
        world.run_for(20 * MS).unwrap();
        let outage = (world.now.get() - pulled) / MS;
        assert!(outage < 2_000, "{:#?}", world.events(1));
    }
    world.check_guest(1).unwrap();
}

#[test]
fn damaged_and_foreign_slots_of_the_statefile_change_nothing() {
    let mut world = protected(3, "w");
    let told = undisturbed(&mut world, |world| {
        let mut file = world.storage.server.content("statefile").to_vec();
        let slot = |host: usize| (1 + host) * 4096;
        if world.rng.bool() {
            let at = slot(0) + world.rng.usize(..4096);
            file[at] ^= 1 << world.rng.u8(..8);
        } else {
            file.copy_within(slot(1)..slot(2), slot(0));
        }
        world.storage.server.put("statefile", file);
    });
    assert_told(&told, "the checksum is wrong");
    assert_told(&told, "the index of the host is not possible");
}

#[test]
fn a_clock_that_jumps_is_told_and_restarts_nothing() {
    // Both are far beyond what a host may be silent for. An hour is also beyond what the connection lasts by which it would be told.
    let (seconds, hour) = (10, 3_600);
    for (host, by) in [(0, seconds), (1, seconds), (0, hour), (1, hour)] {
        let mut world = protected(4, "w");
        let before = world.events(host).len();
        let ahead = world.outside[host].ahead_ns.clone();
        ahead.set(by * 1_000 * MS);
        world.run_for(3_000 * MS).unwrap();
        ahead.set(0);
        world.run_for(3_000 * MS).unwrap();
        assert_eq!(world.running(), [0], "{:#?}", world.events(host));
        world.check_guest(0).unwrap();
        let told = notes(&world, host, before);
        // It is late by what has passed since the host last looked.
        for way in ["the clock jumped by 100", "the clock jumped by -99"] {
            let is_told = told.iter().any(|note| note.contains(way));
            assert!(is_told || by == hour, "{told:?}");
        }
        let restart = |mark: &PoolMark| matches!(mark, PoolMark::Restart | PoolMark::DeclaredDead);
        for of in 0..2 {
            assert!(
                !marks(&world, of).iter().any(restart),
                "{:#?}",
                world.events(of)
            );
        }
    }
}
