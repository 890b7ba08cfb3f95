//! The device's registers as a driver uses them (virtio 1.2, 3.1.1 and 4.1).

use guest_memory::{Gpa, testing::memory};
use proptest::prelude::*;
use std::{string::String, vec::Vec};

use super::super::testing::Driver;
use super::*;
use crate::machine::{DiskModel, NicModel};

const RINGS: u64 = 0x4000;
const DRIVER_OK: u64 = 0xf;

fn disk() -> Function {
    let model = DiskModel {
        sectors: 10,
        read_only: false,
        serial: String::new(),
    };
    Function::new(Device::Block(Block::new(&model)), 0xe000_0000)
}

fn card() -> Function {
    let model = NicModel {
        mac: [2, 0, 0, 0, 0, 1],
        mtu: 1500,
    };
    Function::new(Device::Net(Net::new(&model)), 0xe000_0000)
}

/// What a driver does up to the last status bit.
fn set_up(function: &mut Function, driver: &Driver<'_>) -> Result<(), RingError> {
    let mut write = |offset, size, value| function.write(offset, size, value).map(|_| ());
    write(common::STATUS, 1, 0)?;
    write(common::STATUS, 1, 3)?;
    write(common::DRIVER_FEATURE_SELECT, 4, 0)?;
    write(common::DRIVER_FEATURE, 4, feature::EVENT_IDX)?;
    write(common::DRIVER_FEATURE_SELECT, 4, 1)?;
    write(common::DRIVER_FEATURE, 4, 1)?;
    write(common::STATUS, 1, 0xb)?;
    write(common::QUEUE_SELECT, 2, 0)?;
    write(common::QUEUE_SIZE, 2, driver.size.into())?;
    write(common::QUEUE_DESCRIPTORS, 4, driver.descriptors())?;
    write(common::QUEUE_DESCRIPTORS + 4, 4, 0)?;
    write(common::QUEUE_AVAILABLE, 8, driver.available())?;
    write(common::QUEUE_USED, 8, driver.used())?;
    write(common::QUEUE_VECTOR, 2, 1)?;
    write(common::QUEUE_ENABLE, 2, 1)
}

#[test]
fn a_driver_finds_its_way_by_the_capabilities() {
    let function = disk();
    let config = function.config();
    let mut place = config.read(0x34, 1) as usize;
    let mut found = Vec::new();
    while place != 0 {
        let id = config.read(place, 1);
        let kind = if id == 9 {
            config.read(place + 3, 1)
        } else {
            0
        };
        let offset = config.read(place + 8, 4);
        found.push((id, kind, offset));
        place = config.read(place + 1, 1) as usize;
    }
    let expected = [
        (9, 1, 0),
        (9, 2, 0x3000),
        (9, 3, 0x1000),
        (9, 4, 0x2000),
        (0x11, 0, 0x5000),
    ];
    assert_eq!(found, expected);
}

#[test]
fn a_queue_is_live_only_after_the_last_step() {
    let memory = memory(0x1_0000);
    let driver = Driver::new(&memory, RINGS, 8);
    let mut function = disk();
    set_up(&mut function, &driver).unwrap();
    assert_eq!(function.read(common::STATUS, 1), 0xb, "features accepted");
    assert_eq!(
        function.write(NOTIFY, 2, 0).unwrap().rung,
        None,
        "too early"
    );
    assert!(function.device_and_queue(0).is_none());
    assert_eq!(
        function.write(common::STATUS, 1, DRIVER_OK).unwrap().rung,
        Some(0)
    );
    assert!(function.device_and_queue(0).is_some());
    assert_eq!(function.write(NOTIFY, 2, 0).unwrap().rung, Some(0));
    assert_eq!(
        function.write(NOTIFY + 4, 2, 0).unwrap().rung,
        None,
        "no such queue"
    );
    function.write(common::STATUS, 1, 0).unwrap();
    assert!(function.device_and_queue(0).is_none(), "reset");
}

#[test]
fn features_that_were_not_offered_are_not_accepted() {
    let mut function = disk();
    function.write(common::DRIVER_FEATURE, 4, 1 << 27).unwrap();
    function.write(common::DRIVER_FEATURE_SELECT, 4, 1).unwrap();
    function.write(common::DRIVER_FEATURE, 4, 1).unwrap();
    function.write(common::STATUS, 1, 0xb).unwrap();
    assert_eq!(function.read(common::STATUS, 1), 3);
}

#[test]
fn a_queue_that_cannot_be_is_refused() {
    let memory = memory(0x1_0000);
    for (size, base) in [(3, RINGS), (0, RINGS), (512, RINGS), (8, RINGS + 1)] {
        let mut driver = Driver::new(&memory, RINGS, 8);
        driver.size = size;
        driver.base = base;
        assert!(set_up(&mut disk(), &driver).is_err(), "{size} {base:#x}");
    }
}

#[test]
fn an_interrupt_goes_by_the_vector_of_its_queue() {
    let memory = memory(0x1_0000);
    let driver = Driver::new(&memory, RINGS, 8);
    let mut function = disk();
    set_up(&mut function, &driver).unwrap();
    function.write(common::STATUS, 1, DRIVER_OK).unwrap();
    let entry = MSIX_TABLE + 16;
    function.write(entry, 4, 0xfee0_0000).unwrap();
    function.write(entry + 8, 4, 0x61).unwrap();
    function.write(entry + 12, 4, 0).unwrap();
    let control = function.msix_capability + 2;
    function.write_config(control, 2, 0x8000);
    let (_, queue) = function.device_and_queue(0).unwrap();
    queue.push(&memory, 0, 0).unwrap();
    let message = function.interrupt(0, &memory).unwrap().unwrap();
    assert_eq!(message.vector, 0x61);
    assert_eq!(function.interrupt(0, &memory).unwrap(), None, "once");
    function.write(common::QUEUE_VECTOR, 2, 9).unwrap();
    assert_eq!(function.read(common::QUEUE_VECTOR, 2), u64::from(NO_VECTOR));
}

#[test]
fn a_saved_device_goes_on_and_a_foreign_one_is_refused() {
    let memory = memory(0x1_0000);
    let driver = Driver::new(&memory, RINGS, 8);
    let mut function = disk();
    set_up(&mut function, &driver).unwrap();
    function.write(common::STATUS, 1, DRIVER_OK).unwrap();
    function.write_config(0x10, 4, 0xe765_8000);
    let saved = function.save();
    let again = disk().restore(&saved).unwrap();
    assert_eq!(again.save(), saved);
    assert!(again.is_live());
    assert_eq!(again.config().memory_offset(0xe765_8004), Some(4));
    assert!(card().restore(&saved).is_err());
    let mut odd = saved.clone();
    odd.queues[0].size = 7;
    assert!(disk().restore(&odd).is_err());
    let mut rich = saved;
    rich.driver_features |= 1 << 50;
    assert!(disk().restore(&rich).is_err());
}

#[test]
fn a_driver_that_asked_for_too_much_can_still_move() {
    let mut function = disk();
    function
        .write(common::DRIVER_FEATURE, 4, u64::from(u32::MAX))
        .unwrap();
    let saved = function.save();
    assert_eq!(disk().restore(&saved).unwrap().save(), saved);
}

proptest! {
    /// No sequence of register accesses does harm.
    #[test]
    fn any_access_is_survived(
        accesses in proptest::collection::vec(
            (any::<bool>(), 0_u64..0x8000, prop_oneof![Just(1_u8), Just(2), Just(4), Just(8)], any::<u64>()),
            0..200,
        ),
        low in proptest::collection::vec((0_u64..0x40, 0_u64..0x20), 0..50),
    ) {
        let memory = memory(0x1_0000);
        let mut function = card();
        for (write, offset, size, value) in accesses {
            if write {
                let _ = function.write(offset, size, value);
            } else {
                function.read(offset, size);
            }
            function.write_config((offset % 300) as usize, size.min(4), value as u32);
        }
        for (register, value) in low {
            let _ = function.write(register, 2, value);
        }
        for queue in 0..3 {
            if let Some((_, ring)) = function.device_and_queue(queue) {
                let _ = ring.pop(&memory);
            }
            let _ = function.interrupt(queue, &memory);
        }
        let saved = function.save();
        if let Ok(again) = card().restore(&saved) {
            prop_assert_eq!(again.save(), saved);
        }
        let _ = memory.read_u16(Gpa(0));
    }
}
