//! The program of the simulated guest: drivers for its disk and its network card, written against the registers and
//! rings of virtio 1.2, and the work it does with them.
//!
//! All it knows is in guest RAM and registers, so a migration that loses a page or a register breaks it. What it
//! finds wrong it counts in [`slot::ERRORS`].

use std::sync::LazyLock;

use crate::cpu::{Ram, Request};

/// State of the program, 64-bit words from [`STATE`].
pub mod slot {
    pub const STEP: u64 = 0;
    pub const TICKS: u64 = 1;
    pub const ECHOES: u64 = 2;
    pub const ERRORS: u64 = 3;
    pub const DISK_STAGE: u64 = 4;
    pub const DISK_ROUND: u64 = 5;
    pub const DISK_AVAILABLE: u64 = 6;
    pub const DISK_USED: u64 = 7;
    pub const RECEIVE_AVAILABLE: u64 = 8;
    pub const RECEIVE_USED: u64 = 9;
    pub const SEND_AVAILABLE: u64 = 10;
    pub const RING_DISK: u64 = 11;
    pub const RING_RECEIVE: u64 = 12;
    pub const RING_SEND: u64 = 13;
    pub const END_OF_INTERRUPT: u64 = 14;
    pub const TIMER_DUE: u64 = 15;
    pub const RANDOM: u64 = 16;
    pub const DISK_DONE: u64 = 17;
    pub const DISK_TICK: u64 = 18;
}

/// Where the program keeps its state.
pub const STATE: u64 = 0x20_0000;
/// Where the loader puts the command line; its first letter says what the guest does.
const COMMAND_LINE: u64 = 0x3000;
const DIRTY_FIRST: u64 = 0x28_0000;
const DIRTY_PAGES: u64 = 300;

const DISK_RING: u64 = 0x21_0000;
const DISK_HEADER: u64 = 0x21_3000;
const DISK_STATUS: u64 = 0x21_3010;
const WRITE_DATA: u64 = 0x21_4000;
/// The guest never writes here, only its disk does.
const READ_DATA: u64 = 0x21_5000;
const RECEIVE_RING: u64 = 0x22_0000;
const RECEIVE_BUFFERS: u64 = 0x23_0000;
const SEND_RING: u64 = 0x24_0000;
const SEND_BUFFERS: u64 = 0x25_0000;
const BUFFER: u64 = 0x800;
const RING_SIZE: u64 = 16;
const AVAILABLE: u64 = 0x400;
const USED: u64 = 0x800;
const NET_HEADER: u64 = 12;

/// Configuration mechanism 1 (PCI Local Bus 3.0, 3.2.2.3.2), and the functions' register windows.
const CONFIG_ADDRESS: u16 = 0xcf8;
const CONFIG_DATA: u16 = 0xcfc;
const MSIX_CAPABILITY: u64 = 0x84;
const MSIX_ENABLE: u64 = 1 << 15;
const DISK: u64 = 0xe000_0000;
const CARD: u64 = 0xe000_8000;
const NOTIFY: u64 = 0x3000;
const MSIX_TABLE: u64 = 0x4000;

const MSR_EOI: u32 = 0x80b;
const MSR_SPURIOUS: u32 = 0x80f;
const MSR_LVT_TIMER: u32 = 0x832;
const MSR_TSC_DEADLINE: u32 = 0x6e0;
const TIMER_VECTOR: u64 = 0x40;
const LVT_TSC_DEADLINE: u64 = 2 << 17;
const TICK: u64 = 1_000_000;

/// EtherType for local experiments (IEEE 802, 9.2.4).
pub const ETHER_TYPE: [u8; 2] = [0x88, 0xb5];
pub const DISK_SECTORS: u64 = 64;

/// What the set-up does, access by access.
static SET_UP: LazyLock<Vec<Request>> = LazyLock::new(|| {
    let mut steps = vec![
        Request::Msr(MSR_SPURIOUS, 0x1ff),
        Request::Msr(MSR_LVT_TIMER, TIMER_VECTOR | LVT_TSC_DEADLINE),
    ];
    let queue = |steps: &mut Vec<Request>, device: u64, number: u64, ring: u64| {
        let entry = device + MSIX_TABLE + number * 16;
        let vector = 0x50 + number;
        steps.extend([
            Request::Write(entry, 4, 0xfee0_0000),
            Request::Write(entry + 8, 4, vector),
            Request::Write(entry + 12, 4, 0),
            Request::Write(device + 0x16, 2, number),
            Request::Write(device + 0x18, 2, RING_SIZE),
            Request::Write(device + 0x1a, 2, number),
            Request::Write(device + 0x20, 4, ring),
            Request::Write(device + 0x24, 4, 0),
            Request::Write(device + 0x28, 4, ring + AVAILABLE),
            Request::Write(device + 0x2c, 4, 0),
            Request::Write(device + 0x30, 4, ring + USED),
            Request::Write(device + 0x34, 4, 0),
            Request::Write(device + 0x1c, 2, 1),
        ]);
    };
    for (slot, device, rings) in [
        (1, DISK, &[DISK_RING][..]),
        (2, CARD, &[RECEIVE_RING, SEND_RING][..]),
    ] {
        steps.extend([
            Request::Port(CONFIG_ADDRESS, 4, 1 << 31 | slot << 11 | MSIX_CAPABILITY),
            Request::Port(CONFIG_DATA + 2, 2, MSIX_ENABLE),
            Request::Write(device + 0x14, 1, 0),
            Request::Write(device + 0x14, 1, 3),
            Request::Write(device + 0x08, 4, 1),
            Request::Write(device + 0x0c, 4, 1),
            Request::Write(device + 0x14, 1, 11),
        ]);
        for (number, ring) in rings.iter().enumerate() {
            queue(&mut steps, device, number as u64, *ring);
        }
        steps.push(Request::Write(device + 0x14, 1, 15));
    }
    steps
});

/// The program, for the time of one step on one vCPU.
pub struct Program<'a> {
    pub ram: &'a Ram,
    pub tsc: u64,
}

impl Program<'_> {
    fn get(&self, slot: u64) -> u64 {
        self.ram.u64(STATE + slot * 8)
    }

    fn set(&self, slot: u64, value: u64) {
        self.ram.set_u64(STATE + slot * 8, value);
    }

    fn add(&self, slot: u64, value: u64) {
        self.set(slot, self.get(slot) + value);
    }

    /// An interrupt was delivered.
    pub fn on_interrupt(&self, vector: u8) {
        self.add(slot::END_OF_INTERRUPT, 1);
        if u64::from(vector) == TIMER_VECTOR {
            self.set(slot::TIMER_DUE, 0);
        }
    }

    /// Goes on to the next thing that needs the hypervisor. `None`: it has computed for a moment.
    pub fn step(&self) -> Option<Request> {
        if self.get(slot::END_OF_INTERRUPT) > 0 {
            self.set(slot::END_OF_INTERRUPT, self.get(slot::END_OF_INTERRUPT) - 1);
            return Some(Request::Msr(MSR_EOI, 0));
        }
        let steps = &*SET_UP;
        let step = self.get(slot::STEP);
        if let Some(request) = steps.get(step as usize) {
            self.add(slot::STEP, 1);
            if step as usize == steps.len() - 1 {
                for buffer in 0..RING_SIZE {
                    self.give_receive_buffer(buffer);
                }
            }
            return Some(*request);
        }
        self.take_frames();
        self.work_disk();
        for (flag, device, queue) in [
            (slot::RING_DISK, DISK, 0),
            (slot::RING_RECEIVE, CARD, 0),
            (slot::RING_SEND, CARD, 1),
        ] {
            if self.get(flag) != 0 {
                self.set(flag, 0);
                return Some(Request::Write(device + NOTIFY + queue * 4, 2, queue));
            }
        }
        if self.get(slot::TIMER_DUE) == 0 {
            self.set(slot::TIMER_DUE, self.tsc + TICK);
            self.add(slot::TICKS, 1);
            let pages = if self.does(b'd') { 20 } else { 1 };
            for _ in 0..pages {
                self.dirty_page();
            }
            return Some(Request::Msr(MSR_TSC_DEADLINE, self.tsc + TICK));
        }
        if self.does(b'b') {
            self.dirty_page();
            return None;
        }
        Some(Request::Halt)
    }

    /// What the command line asks for.
    fn does(&self, what: u8) -> bool {
        self.ram.array::<4>(COMMAND_LINE).contains(&what)
    }

    fn random(&self) -> u64 {
        let next = self
            .get(slot::RANDOM)
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        self.set(slot::RANDOM, next);
        next >> 33
    }

    fn dirty_page(&self) {
        let page = DIRTY_FIRST + self.random() % DIRTY_PAGES * 4096;
        self.ram
            .set_u64(page + self.random() % 500 * 8, self.random());
    }

    fn offer(&self, ring: u64, available: u64, descriptor: u64) {
        let index = self.get(available);
        let entry = ring + AVAILABLE + 4 + index % RING_SIZE * 2;
        self.ram.write(entry, &(descriptor as u16).to_le_bytes());
        self.set(available, index + 1);
        self.ram
            .write(ring + AVAILABLE + 2, &((index + 1) as u16).to_le_bytes());
    }

    fn describe(&self, ring: u64, number: u64, address: u64, length: u64, flags: u16, next: u16) {
        let mut descriptor = address.to_le_bytes().to_vec();
        descriptor.extend((length as u32).to_le_bytes());
        descriptor.extend(flags.to_le_bytes());
        descriptor.extend(next.to_le_bytes());
        self.ram.write(ring + number * 16, &descriptor);
    }

    fn used(&self, ring: u64) -> u16 {
        u16::from_le_bytes(self.ram.array(ring + USED + 2))
    }

    fn give_receive_buffer(&self, buffer: u64) {
        let address = RECEIVE_BUFFERS + buffer * BUFFER;
        self.describe(RECEIVE_RING, buffer, address, BUFFER, 2, 0);
        self.offer(RECEIVE_RING, slot::RECEIVE_AVAILABLE, buffer);
        self.set(slot::RING_RECEIVE, 1);
    }

    /// Sends every frame of ours back to where it came from.
    fn take_frames(&self) {
        while self.get(slot::RECEIVE_USED) as u16 != self.used(RECEIVE_RING) {
            let sent = self.get(slot::SEND_AVAILABLE);
            if (sent as u16).wrapping_sub(self.used(SEND_RING)) >= RING_SIZE as u16 {
                return;
            }
            let at = RECEIVE_RING + USED + 4 + self.get(slot::RECEIVE_USED) % RING_SIZE * 8;
            self.add(slot::RECEIVE_USED, 1);
            let buffer = u64::from(self.ram.array::<1>(at)[0]);
            let length = self.ram.u64(at) >> 32;
            let frame = self.ram.bytes(
                RECEIVE_BUFFERS + buffer * BUFFER + NET_HEADER,
                (length - NET_HEADER) as usize,
            );
            if frame.get(12..14) == Some(&ETHER_TYPE) {
                let answer = [&frame[6..12], &frame[0..6], &frame[12..]].concat();
                let place = SEND_BUFFERS + sent % RING_SIZE * BUFFER;
                self.ram.write(place, &[0; NET_HEADER as usize]);
                self.ram.write(place + NET_HEADER, &answer);
                let length = NET_HEADER + answer.len() as u64;
                self.describe(SEND_RING, sent % RING_SIZE, place, length, 0, 0);
                self.offer(SEND_RING, slot::SEND_AVAILABLE, sent % RING_SIZE);
                self.set(slot::RING_SEND, 1);
                self.add(slot::ECHOES, 1);
            }
            self.give_receive_buffer(buffer);
        }
    }

    /// Writes a sector, flushes, reads it back, compares, and goes on to the next one: one operation in a tick.
    fn work_disk(&self) {
        if !self.does(b'w') {
            return;
        }
        let stage = self.get(slot::DISK_STAGE);
        let round = self.get(slot::DISK_ROUND);
        if self.get(slot::DISK_AVAILABLE) != self.get(slot::DISK_USED) {
            if self.get(slot::DISK_USED) as u16 == self.used(DISK_RING) {
                return;
            }
            self.add(slot::DISK_USED, 1);
            let failed = self.ram.bytes(DISK_STATUS, 1)[0] != 0;
            let wrong = stage == 0 && self.ram.bytes(READ_DATA, 512) != pattern(round);
            if failed || wrong {
                self.add(slot::ERRORS, 1);
            }
            if stage == 0 {
                self.add(slot::DISK_DONE, 1);
                self.add(slot::DISK_ROUND, 1);
            }
        }
        if self.get(slot::DISK_TICK) == self.get(slot::TICKS) {
            return;
        }
        self.set(slot::DISK_TICK, self.get(slot::TICKS));
        let round = self.get(slot::DISK_ROUND);
        // What was read last time is still there, although only the disk wrote it.
        if round > 0 && stage == 1 && self.ram.bytes(READ_DATA, 512) != pattern(round - 1) {
            self.add(slot::ERRORS, 1);
        }
        // The stage names what comes next: write, flush, read (virtio 1.2, 5.2.6).
        let kind: u32 = [1, 4, 0][stage as usize];
        self.set(slot::DISK_STAGE, (stage + 1) % 3);
        let mut header = kind.to_le_bytes().to_vec();
        header.extend(0_u32.to_le_bytes());
        header.extend((round % DISK_SECTORS).to_le_bytes());
        self.ram.write(DISK_HEADER, &header);
        self.ram.write(DISK_STATUS, &[0xff]);
        if kind == 1 {
            self.ram.write(WRITE_DATA, &pattern(round));
        }
        let after_header = if kind == 4 { 2 } else { 1 };
        self.describe(DISK_RING, 0, DISK_HEADER, 16, 1, after_header);
        let (data, flags) = if kind == 0 {
            (READ_DATA, 3)
        } else {
            (WRITE_DATA, 1)
        };
        self.describe(DISK_RING, 1, data, 512, flags, 2);
        self.describe(DISK_RING, 2, DISK_STATUS, 1, 2, 0);
        self.offer(DISK_RING, slot::DISK_AVAILABLE, 0);
        self.set(slot::RING_DISK, 1);
    }
}

fn pattern(round: u64) -> Vec<u8> {
    round.to_le_bytes().repeat(64)
}
