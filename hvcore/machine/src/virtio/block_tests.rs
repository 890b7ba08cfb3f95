//! The disk as a driver uses it.

use guest_memory::testing::memory;
use std::{string::String, vec};

use super::super::testing::Driver;
use super::*;

const RAM: usize = 0x8_0000;
const RINGS: u64 = 0x4000;
const HEADER: u64 = 0x8000;
const STATUS: u64 = 0x8100;
const DATA: u64 = 0x1_0000;

struct Fixture {
    memory: GuestMemory,
    block: Block,
}

impl Fixture {
    fn new(read_only: bool) -> Self {
        Self {
            memory: memory(RAM),
            block: Block::new(&DiskModel {
                sectors: 1000,
                read_only,
                serial: String::from("serial"),
            }),
        }
    }

    fn header(&self, kind: u32, sector: u64) {
        let mut bytes = kind.to_le_bytes().to_vec();
        bytes.extend([0; 4]);
        bytes.extend(sector.to_le_bytes());
        self.memory.write(Gpa(HEADER), &bytes).unwrap();
        self.memory.write(Gpa(STATUS), &[0xff]).unwrap();
    }

    fn status(&self) -> u8 {
        let mut byte = [0];
        self.memory.read(Gpa(STATUS), &mut byte).unwrap();
        byte[0]
    }
}

#[test]
fn a_read_fills_the_buffer_and_marks_it_dirty() {
    let mut f = Fixture::new(false);
    f.header(request::IN, 7);
    let mut driver = Driver::new(&f.memory, RINGS, 8);
    let mut queue = driver.queue();
    driver.add(&[
        (HEADER, 16, false),
        (DATA, 512, true),
        (DATA + 0x1000, 512, true),
        (STATUS, 1, true),
    ]);
    let op = f.block.next_request(&mut queue, &f.memory, 9).unwrap();
    assert_eq!(
        op,
        Some(DiskOp::Read {
            offset: 7 * 512,
            len: 1024
        })
    );
    assert_eq!(f.block.in_flight(), 1);
    let mut dirty = guest_memory::PageSet::new(f.memory.pages());
    f.memory.harvest_into(&mut dirty);
    let data = [vec![1; 512], vec![2; 512]].concat();
    assert!(f.block.take(8).is_none(), "not this id");
    let request = f.block.take(9).unwrap();
    request.finish(&mut queue, &f.memory, &Ok(data)).unwrap();
    assert_eq!(driver.take_used(), Some((0, 1025)));
    assert_eq!(f.status(), status::OK);
    let mut byte = [0];
    f.memory.read(Gpa(DATA + 0x1000), &mut byte).unwrap();
    assert_eq!(byte, [2]);
    let mut dirty = guest_memory::PageSet::new(f.memory.pages());
    f.memory.harvest_into(&mut dirty);
    assert!(dirty.iter().any(|page| page == 0x10) && dirty.iter().any(|page| page == 0x11));
    assert_eq!(f.block.in_flight(), 0);
}

#[test]
fn a_write_carries_its_data_whatever_the_buffers() {
    let mut f = Fixture::new(false);
    f.header(request::OUT, 1);
    f.memory.write(Gpa(HEADER + 16), &[5; 12]).unwrap();
    f.memory.write(Gpa(DATA), &[6; 500]).unwrap();
    let mut driver = Driver::new(&f.memory, RINGS, 8);
    let mut queue = driver.queue();
    // The header shares its buffer with data, and is split as well.
    driver.add(&[
        (HEADER, 8, false),
        (HEADER + 8, 20, false),
        (DATA, 500, false),
        (STATUS, 1, true),
    ]);
    let op = f
        .block
        .next_request(&mut queue, &f.memory, 0)
        .unwrap()
        .unwrap();
    let DiskOp::Write { offset, data } = op else {
        panic!("{op:?}");
    };
    assert_eq!((offset, data.len()), (512, 512));
    assert_eq!((data[0], data[11], data[12]), (5, 5, 6));
    let request = f.block.take(0).unwrap();
    request
        .finish(&mut queue, &f.memory, &Err(DiskError))
        .unwrap();
    assert_eq!(f.status(), status::IO_ERROR);
}

#[test]
fn what_needs_no_backend_is_answered_at_once() {
    let mut f = Fixture::new(true);
    let cases = [
        (request::GET_ID, 0, 20, false, status::OK),
        (77, 0, 512, false, status::UNSUPPORTED),
        (request::IN, 1000, 512, true, status::IO_ERROR),
        (request::IN, u64::MAX, 512, true, status::IO_ERROR),
        (request::IN, 0, 100, true, status::IO_ERROR),
        (request::OUT, 0, 512, false, status::IO_ERROR),
    ];
    for (kind, sector, len, device_writes, expected) in cases {
        f.header(kind, sector);
        let mut driver = Driver::new(&f.memory, RINGS, 8);
        driver.set_available_index(0);
        f.memory.write(Gpa(driver.used() + 2), &[0, 0]).unwrap();
        let mut queue = driver.queue();
        let writes = device_writes || kind == request::GET_ID;
        driver.add(&[(HEADER, 16, false), (DATA, len, writes), (STATUS, 1, true)]);
        assert_eq!(
            f.block.next_request(&mut queue, &f.memory, 0).unwrap(),
            None
        );
        assert_eq!(f.status(), expected, "request {kind} at {sector}");
        assert!(driver.take_used().is_some());
    }
    let mut id = [0; 7];
    f.memory.read(Gpa(DATA), &mut id).unwrap();
    assert_eq!(&id, b"serial\0");
}

#[test]
fn requests_that_cannot_be_are_refused() {
    let buffers: [&[(u64, u32, bool)]; 3] = [
        &[(HEADER, 16, false), (DATA, 512, false)],
        &[(HEADER, 8, false), (STATUS, 1, true)],
        &[(HEADER, 16, false), (STATUS, 0, true)],
    ];
    for buffers in buffers {
        let mut f = Fixture::new(false);
        f.header(request::OUT, 0);
        let mut driver = Driver::new(&f.memory, RINGS, 8);
        let mut queue = driver.queue();
        driver.add(buffers);
        assert!(f.block.next_request(&mut queue, &f.memory, 0).is_err());
    }
}

#[test]
fn what_one_guest_makes_the_host_hold_is_bounded() {
    let mut f = Fixture::new(false);
    f.block.model.sectors = 1 << 30;
    f.header(request::IN, 0);
    let mut driver = Driver::new(&f.memory, RINGS, 256);
    let mut queue = driver.queue();
    for _ in 0..64 {
        driver.add(&[
            (HEADER, 16, false),
            (DATA, 0x6_0000, true),
            (STATUS, 1, true),
        ]);
    }
    let mut ids = Vec::new();
    while let Some(op) = f
        .block
        .next_request(&mut queue, &f.memory, ids.len() as u64)
        .unwrap()
    {
        assert!(matches!(op, DiskOp::Read { .. }));
        ids.push(ids.len() as u64);
    }
    assert!(ids.len() * 0x6_0000 < IN_FLIGHT_MAX + 0x6_0000);
    assert!(ids.len() < 64);
    assert!(f.block.take(0).is_some());
    let next = f.block.next_request(&mut queue, &f.memory, 100).unwrap();
    assert!(next.is_some(), "memory is free again");
}

#[test]
fn requests_in_flight_elsewhere_are_issued_again() {
    let mut f = Fixture::new(false);
    f.header(request::FLUSH, 0);
    let mut driver = Driver::new(&f.memory, RINGS, 8);
    let mut queue = driver.queue();
    driver.add(&[(HEADER, 16, false), (STATUS, 1, true)]);
    f.block.next_request(&mut queue, &f.memory, 0).unwrap();
    let heads = f.block.heads_in_flight();
    assert_eq!(heads, [0]);
    let mut other = Block::new(&f.block.model);
    other.repeat(heads);
    assert_eq!(other.in_flight(), 1);
    let op = other.next_request(&mut queue, &f.memory, 5).unwrap();
    assert_eq!(op, Some(DiskOp::Flush));
    assert_eq!(other.in_flight(), 1);
    let request = other.take(5).unwrap();
    request.finish(&mut queue, &f.memory, &Ok(vec![])).unwrap();
    assert_eq!(driver.take_used(), Some((0, 1)));
    assert_eq!(other.next_request(&mut queue, &f.memory, 6).unwrap(), None);
}

#[test]
fn a_read_of_another_length_is_an_error_for_the_guest() {
    let mut f = Fixture::new(false);
    f.header(request::IN, 0);
    let mut driver = Driver::new(&f.memory, RINGS, 8);
    let mut queue = driver.queue();
    driver.add(&[(HEADER, 16, false), (DATA, 512, true), (STATUS, 1, true)]);
    f.block.next_request(&mut queue, &f.memory, 0).unwrap();
    let request = f.block.take(0).unwrap();
    request
        .finish(&mut queue, &f.memory, &Ok(vec![0; 511]))
        .unwrap();
    assert_eq!(f.status(), status::IO_ERROR);
}
