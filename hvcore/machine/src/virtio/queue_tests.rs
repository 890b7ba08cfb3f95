//! Rings as a driver fills them, right and wrong.

use guest_memory::{Gpa, testing::memory};
use proptest::prelude::*;
use std::vec::Vec;

use super::super::testing::{Driver, INDIRECT, NEXT, WRITE};
use super::*;

const RAM: usize = 0x2_0000;
const BASE: u64 = 0x4000;
const DATA: u64 = 0x1_0000;

#[test]
fn a_chain_comes_out_as_it_went_in() {
    let memory = memory(RAM);
    let mut driver = Driver::new(&memory, BASE, 8);
    let mut queue = driver.queue();
    assert_eq!(queue.pop(&memory).unwrap(), None);
    let head = driver.add(&[
        (DATA, 16, false),
        (DATA + 16, 8, false),
        (DATA + 64, 4, true),
    ]);
    let chain = queue.pop(&memory).unwrap().unwrap();
    assert_eq!(chain.head, head);
    assert_eq!((chain.readable_len(), chain.writable_len()), (24, 4));
    assert_eq!(queue.pop(&memory).unwrap(), None);
    queue.push(&memory, chain.head, 4).unwrap();
    assert_eq!(driver.take_used(), Some((0, 4)));
}

#[test]
fn indices_wrap() {
    let memory = memory(RAM);
    let mut driver = Driver::new(&memory, BASE, 4);
    let mut queue = driver.queue();
    for _ in 0..70_000 {
        driver.add(&[(DATA, 1, true)]);
        let chain = queue.pop(&memory).unwrap().unwrap();
        queue.push(&memory, chain.head, 1).unwrap();
        assert_eq!(driver.take_used(), Some((chain.head.into(), 1)));
    }
}

#[test]
fn indirect_tables_are_followed() {
    let memory = memory(RAM);
    let mut driver = Driver::new(&memory, BASE, 4);
    let mut queue = driver.queue();
    let table = DATA + 0x1000;
    driver.descriptor(table, 0, DATA, 10, NEXT, 2);
    driver.descriptor(table, 2, DATA + 10, 5, WRITE, 0);
    driver.descriptor(BASE, 0, table, 48, INDIRECT, 0);
    driver.make_available(0);
    let chain = queue.pop(&memory).unwrap().unwrap();
    assert_eq!((chain.readable_len(), chain.writable_len()), (10, 5));
}

#[test]
fn copies_follow_the_buffers() {
    let memory = memory(RAM);
    memory.write(Gpa(DATA), b"abcdef").unwrap();
    let buffer = |offset, len| Buffer {
        gpa: Gpa(DATA + offset),
        len,
    };
    let chain = Chain {
        head: 0,
        readable: vec![buffer(0, 2), buffer(3, 3)],
        writable: vec![buffer(0x100, 1), buffer(0x200, 8)],
    };
    assert_eq!(chain.read(&memory, 1, 100).unwrap(), b"bdef");
    assert!(chain.read(&memory, 0, 4).is_err(), "longer than the limit");
    assert_eq!(chain.write(&memory, b"xyz").unwrap(), 3);
    let mut bytes = [0; 2];
    memory.read(Gpa(DATA + 0x200), &mut bytes).unwrap();
    assert_eq!(&bytes, b"yz");
}

#[test]
fn every_broken_ring_is_refused() {
    use RingError as E;
    type Break = fn(&mut Driver<'_>);
    type Expected = fn(&E) -> bool;
    let cases: [(&str, Break, Expected); 9] = [
        (
            "index ahead",
            |d| d.set_available_index(9),
            |e| matches!(e, E::AvailableIndex { .. }),
        ),
        (
            "head beyond table",
            |d| d.make_available(8),
            |e| matches!(e, E::DescriptorIndex { .. }),
        ),
        (
            "next beyond table",
            |d| {
                d.descriptor(BASE, 0, DATA, 1, NEXT, 99);
                d.make_available(0);
            },
            |e| matches!(e, E::DescriptorIndex { .. }),
        ),
        (
            "a loop",
            |d| {
                d.descriptor(BASE, 0, DATA, 1, NEXT, 0);
                d.make_available(0);
            },
            |e| matches!(e, E::ChainTooLong),
        ),
        (
            "a buffer outside RAM",
            |d| {
                d.add(&[(u64::MAX - 1, 16, false)]);
            },
            |e| matches!(e, E::OutOfRange(_)),
        ),
        (
            "readable after writable",
            |d| {
                d.add(&[(DATA, 1, true), (DATA, 1, false)]);
            },
            |e| matches!(e, E::Order),
        ),
        (
            "an indirect table of odd length",
            |d| {
                d.descriptor(BASE, 0, DATA, 17, INDIRECT, 0);
                d.make_available(0);
            },
            |e| matches!(e, E::BadIndirect),
        ),
        (
            "an indirect table in another",
            |d| {
                d.descriptor(DATA, 0, DATA, 16, INDIRECT, 0);
                d.descriptor(BASE, 0, DATA, 16, INDIRECT, 0);
                d.make_available(0);
            },
            |e| matches!(e, E::BadIndirect),
        ),
        (
            "an indirect table of 4 GiB",
            |d| {
                d.descriptor(BASE, 0, DATA, 0xffff_fff0, INDIRECT, 0);
                d.make_available(0);
            },
            |e| matches!(e, E::ChainTooLong),
        ),
    ];
    for (what, break_it, expected) in cases {
        let memory = memory(RAM);
        let mut driver = Driver::new(&memory, BASE, 8);
        let mut queue = driver.queue();
        break_it(&mut driver);
        let error = queue.pop(&memory).unwrap_err();
        assert!(expected(&error), "{what}: {error}");
    }
}

#[test]
fn a_ring_outside_ram_is_refused() {
    let memory = memory(RAM);
    let driver = Driver::new(&memory, BASE, 8);
    let mut queue = driver.queue();
    queue.available = u64::MAX - 3;
    assert!(matches!(queue.pop(&memory), Err(RingError::OutOfRange(_))));
    let mut queue = driver.queue();
    queue.used = 1 << 40;
    assert!(queue.push(&memory, 0, 0).is_err());
}

#[test]
fn event_indices_decide_about_interrupts_and_notifications() {
    let memory = memory(RAM);
    let mut driver = Driver::new(&memory, BASE, 8);
    let mut queue = driver.queue();
    queue.event_idx = true;
    let used_event = Gpa(driver.available() + 4 + 16);
    let avail_event = driver.used() + 4 + 64;
    for _ in 0..3 {
        driver.add(&[(DATA, 1, true)]);
    }
    // The driver wants to hear of the second buffer.
    memory.write(used_event, &1_u16.to_le_bytes()).unwrap();
    for expected in [false, true, false] {
        let chain = queue.pop(&memory).unwrap().unwrap();
        queue.push(&memory, chain.head, 0).unwrap();
        assert_eq!(queue.interrupt_due(&memory).unwrap(), expected);
    }
    assert_eq!(
        memory.read_u16(Gpa(avail_event)).unwrap(),
        0,
        "not wanted while there is work"
    );
    assert_eq!(queue.pop(&memory).unwrap(), None);
    assert_eq!(
        memory.read_u16(Gpa(avail_event)).unwrap(),
        3,
        "wanted from here on"
    );
}

#[test]
fn without_event_indices_a_flag_decides() {
    let memory = memory(RAM);
    let driver = Driver::new(&memory, BASE, 8);
    let mut queue = driver.queue();
    queue.push(&memory, 0, 0).unwrap();
    assert!(queue.interrupt_due(&memory).unwrap());
    assert!(!queue.interrupt_due(&memory).unwrap(), "nothing new");
    memory.write(Gpa(driver.available()), &[1, 0]).unwrap();
    queue.push(&memory, 0, 0).unwrap();
    assert!(!queue.interrupt_due(&memory).unwrap());
}

proptest! {
    /// Whatever is in memory, taking a chain ends, gives only buffers in RAM, and never too many.
    #[test]
    fn any_memory_is_survived(
        table in proptest::collection::vec(any::<u8>(), 256),
        small in proptest::collection::vec((0_u64..0x2_0100, 0_u32..64, 0_u16..8, 0_u16..20), 16),
        heads in proptest::collection::vec(0_u16..20, 8),
        ahead in 0_u16..12,
        use_small: bool,
    ) {
        let memory = memory(RAM);
        let mut driver = Driver::new(&memory, BASE, 16);
        let mut queue = driver.queue();
        memory.write(Gpa(DATA), &table).unwrap();
        if use_small {
            for (i, (gpa, len, flags, next)) in small.iter().enumerate() {
                driver.descriptor(BASE, i as u16, *gpa, *len, *flags, *next);
            }
        } else {
            memory.write(Gpa(BASE), &table).unwrap();
        }
        for head in heads {
            driver.make_available(head);
        }
        driver.set_available_index(ahead);
        let mut taken = 0;
        while let Ok(Some(chain)) = queue.pop(&memory) {
            taken += 1;
            prop_assert!(taken <= 16);
            let all: Vec<_> = chain.readable.iter().chain(&chain.writable).collect();
            prop_assert!(all.len() <= CHAIN_MAX);
            for buffer in all {
                prop_assert!(memory.offset_of(buffer.gpa, buffer.len as usize).is_ok());
            }
            let _ = queue.push(&memory, chain.head, 0);
        }
    }
}
