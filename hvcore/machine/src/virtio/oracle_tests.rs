//! Rings read by two implementations, ours and the `virtio-queue` crate of rust-vmm: where ours accepts a ring, both see
//! the same.

use guest_memory::{Gpa, testing::memory};
use proptest::prelude::*;
use std::{vec, vec::Vec};
use virtio_queue::{Queue as OtherQueue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::super::testing::{Driver, INDIRECT, NEXT, WRITE};
use super::*;

const RAM: usize = 0x1_0000;
const BASE: u64 = 0x4000;
const TABLE: u64 = 0x8000;
const SIZE: u16 = 8;

/// A chain's buffers: address, length, whether the device writes.
type Buffers = Vec<(u64, u32, bool)>;

fn ours(queue: &mut Queue, memory: &GuestMemory) -> Result<Option<(u16, Buffers)>, RingError> {
    Ok(queue.pop(memory)?.map(|chain| {
        let read = chain.readable.iter().map(|b| (b.gpa.0, b.len, false));
        let write = chain.writable.iter().map(|b| (b.gpa.0, b.len, true));
        (chain.head, read.chain(write).collect())
    }))
}

fn theirs(queue: &mut OtherQueue, memory: &GuestMemoryMmap) -> Option<(u16, Buffers)> {
    let chain = queue.pop_descriptor_chain(memory)?;
    let head = chain.head_index();
    let buffers = chain
        .map(|d| (d.addr().0, d.len(), d.is_write_only()))
        .collect();
    Some((head, buffers))
}

/// Descriptors that mostly make sense.
fn descriptor() -> impl Strategy<Value = (u64, u32, u16, u16)> {
    let flags = prop_oneof![
        4 => Just(0_u16),
        4 => Just(NEXT),
        4 => Just(WRITE),
        4 => Just(WRITE | NEXT),
        2 => Just(INDIRECT),
        1 => any::<u16>(),
    ];
    let address = prop_oneof![4 => 0x9000_u64..0xf000, 2 => Just(TABLE), 1 => any::<u64>()];
    let len =
        prop_oneof![2 => 1_u32..0x100, 2 => (1_u32..5).prop_map(|n| n * 16), 1 => any::<u32>()];
    (address, len, flags, 0_u16..SIZE + 1)
}

proptest! {
    #[test]
    fn both_see_the_same_chains(
        direct in proptest::collection::vec(descriptor(), usize::from(SIZE)),
        indirect in proptest::collection::vec(descriptor(), usize::from(SIZE)),
        heads in proptest::collection::vec(0_u16..SIZE, 1..8),
        used_by_driver: u16,
        event_idx: bool,
    ) {
        let memory = memory(RAM);
        let mut driver = Driver::new(&memory, BASE, SIZE);
        for (i, (gpa, len, flags, next)) in direct.into_iter().enumerate() {
            driver.descriptor(BASE, i as u16, gpa, len, flags, next);
        }
        for (i, (gpa, len, flags, next)) in indirect.into_iter().enumerate() {
            driver.descriptor(TABLE, i as u16, gpa, len, flags, next);
        }
        for head in &heads {
            driver.make_available(*head);
        }
        let used_event = Gpa(driver.available() + 4 + 2 * u64::from(SIZE));
        memory.write(used_event, &used_by_driver.to_le_bytes()).unwrap();

        let mut bytes = vec![0; RAM];
        memory.read(Gpa(0), &mut bytes).unwrap();
        let other_memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), RAM)]).unwrap();
        other_memory.write_slice(&bytes, GuestAddress(0)).unwrap();

        let mut queue = driver.queue();
        queue.event_idx = event_idx;
        let mut other = OtherQueue::new(SIZE).unwrap();
        other.set_size(SIZE);
        other.set_desc_table_address(Some(BASE as u32), Some(0));
        other.set_avail_ring_address(Some(driver.available() as u32), Some(0));
        other.set_used_ring_address(Some(driver.used() as u32), Some(0));
        other.set_event_idx(event_idx);
        other.set_ready(true);

        for _ in &heads {
            // Ours refuses more than the other, which leaves buffers outside RAM and their order to devices.
            let Ok(chain) = ours(&mut queue, &memory) else {
                return Ok(());
            };
            prop_assert_eq!(&chain, &theirs(&mut other, &other_memory));
            let Some((head, _)) = chain else { break };
            queue.push(&memory, head, 7).unwrap();
            other.add_used(&other_memory, head, 7).unwrap();
            prop_assert_eq!(
                queue.interrupt_due(&memory).unwrap(),
                other.needs_notification(&other_memory).unwrap()
            );
        }
        let used = driver.used();
        let mut bytes = vec![0; 4 + 8 * usize::from(SIZE)];
        memory.read(Gpa(used), &mut bytes).unwrap();
        let mut other_bytes = bytes.clone();
        other_memory.read_slice(&mut other_bytes, GuestAddress(used)).unwrap();
        prop_assert_eq!(bytes, other_bytes);
    }
}
