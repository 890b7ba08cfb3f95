//! The memory balloon (virtio 1.2, 5.5): the guest gives pages that it does not use, and takes them back.
//!
//! A page that is given is filled with zeroes: so its old content is not kept, and a migration finds a zero page, which
//! costs a few bytes. Rejected: a list of given pages that migration consults, a second truth about what RAM
//! holds.

use alloc::vec::Vec;

use guest_memory::{Gpa, GuestMemory, PAGE_SIZE};

use super::queue::{Queue, RingError};

/// Entries of the queues.
pub const QUEUE_SIZE: u16 = 16;
/// The queue by which the guest gives pages; it takes them back by the other one.
pub const INFLATE: usize = 0;
/// The guest says so before it uses a page again (`VIRTIO_BALLOON_F_MUST_TELL_HOST`).
pub const MUST_TELL_HOST: u64 = 1 << 0;

/// Bytes of page numbers in one request, four for each page: four times what Linux sends.
const REQUEST_MAX: usize = 4096;
/// The configuration's field that the driver writes.
const ACTUAL: u64 = 4;

/// A balloon.
#[derive(Debug, Default)]
pub struct Balloon {
    /// Pages that the host would like to have.
    pub target: u32,
    /// Pages that the guest says it has given.
    pub actual: u32,
}

impl Balloon {
    /// What the driver reads (virtio 1.2, 5.5.4).
    #[must_use]
    pub fn config(&self) -> Vec<u8> {
        [self.target.to_le_bytes(), self.actual.to_le_bytes()].concat()
    }

    /// The driver writes to the configuration.
    pub fn write_config(&mut self, offset: u64, size: u8, value: u32) {
        if (offset, size) == (ACTUAL, 4) {
            self.actual = value;
        }
    }

    /// The driver has gone, and with it the knowledge of what it gave.
    pub fn reset(&mut self) {
        self.actual = 0;
    }
}

/// Answers all requests in one of the queues.
///
/// # Errors
/// When the ring breaks the rules, or a page is not RAM.
pub fn serve(number: usize, queue: &mut Queue, memory: &GuestMemory) -> Result<(), RingError> {
    for _ in 0..=queue.size {
        let Some(chain) = queue.pop(memory)? else {
            break;
        };
        let request = chain.read(memory, 0, REQUEST_MAX)?;
        if number == INFLATE {
            for page in request.as_chunks::<4>().0 {
                let page = u64::from(u32::from_le_bytes(*page));
                memory.write(Gpa(page * PAGE_SIZE as u64), &[0; PAGE_SIZE])?;
            }
        }
        queue.push(memory, chain.head, 0)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use guest_memory::{PageSet, testing::memory};

    use super::*;
    use crate::{
        Machine, MachineConfig,
        testing::{cpuid, start_driver},
        virtio::testing::Driver,
    };

    #[test]
    fn a_page_that_is_given_becomes_zero_and_counts_as_written() {
        let memory = memory(0x1_0000);
        memory.load_page(9, &[7; PAGE_SIZE]);
        memory.load_page(10, &[7; PAGE_SIZE]);
        let mut driver = Driver::new(&memory, 0x1000, 8);
        memory.write(Gpa(0x8000), &9_u32.to_le_bytes()).unwrap();
        driver.add(&[(0x8000, 4, false)]);
        let mut dirty = PageSet::new(memory.pages());
        memory.harvest_into(&mut dirty);
        let mut queue = driver.queue();
        serve(INFLATE, &mut queue, &memory).unwrap();
        let mut page = [1; PAGE_SIZE];
        memory.read_page(9, &mut page);
        assert_eq!(page, [0; PAGE_SIZE]);
        memory.read_page(10, &mut page);
        assert_eq!(page, [7; PAGE_SIZE]);
        let mut dirty = PageSet::new(memory.pages());
        memory.harvest_into(&mut dirty);
        assert!(dirty.contains(9) && !dirty.contains(10));
        assert_eq!(driver.take_used(), Some((0, 0)));
    }

    #[test]
    fn taking_back_changes_nothing_and_a_page_beyond_ram_is_refused() {
        let memory = memory(0x1_0000);
        memory.load_page(9, &[7; PAGE_SIZE]);
        let mut driver = Driver::new(&memory, 0x1000, 8);
        memory.write(Gpa(0x8000), &9_u32.to_le_bytes()).unwrap();
        memory.write(Gpa(0x8004), &u32::MAX.to_le_bytes()).unwrap();
        let mut queue = driver.queue();
        driver.add(&[(0x8000, 4, false)]);
        serve(INFLATE + 1, &mut queue, &memory).unwrap();
        let mut page = [1; PAGE_SIZE];
        memory.read_page(9, &mut page);
        assert_eq!(page, [7; PAGE_SIZE]);
        driver.add(&[(0x8004, 4, false)]);
        assert!(serve(INFLATE, &mut queue, &memory).is_err());
    }

    /// A machine with a balloon, whose driver is at work on the inflate queue.
    fn machine_with_balloon() -> (Machine, usize) {
        let config = MachineConfig {
            vcpus: 1,
            disks: Vec::new(),
            nics: Vec::new(),
            balloon: true,
        };
        let mut machine = Machine::new(&config, memory(0x1_0000), cpuid);
        let function = 1;
        start_driver(&mut machine.functions[function], INFLATE as u16, 0x4000);
        (machine, function)
    }

    #[test]
    fn what_the_host_wants_is_read_by_the_guest_and_what_it_gave_by_the_host() {
        let (mut machine, function) = machine_with_balloon();
        assert!(machine.set_balloon_target(5));
        let registers = &mut machine.functions[function];
        assert_eq!(registers.read(0x15, 1), 1, "a new generation");
        assert_eq!(registers.read(0x2000, 4), 5);
        registers.write(0x2000, 4, 9).unwrap();
        registers.write(0x2004, 4, 3).unwrap();
        assert_eq!(registers.read(0x2000, 4), 5, "the target is the host's");
        assert_eq!(machine.balloon_pages(), Some(3));
        let (mut second, _) = machine_with_balloon();
        second.restore(&machine.save()).unwrap();
        assert_eq!(second.balloon_pages(), Some(3));
        assert_eq!(second.functions[function].read(0x2000, 4), 5);
        second.functions[function].write(0x14, 1, 0).unwrap();
        assert_eq!(second.balloon_pages(), Some(0), "its driver has gone");
    }

    #[test]
    fn a_machine_without_one_says_so() {
        let mut machine = crate::testing::machine(1);
        assert!(!machine.set_balloon_target(5));
        assert_eq!(machine.balloon_pages(), None);
    }
}
