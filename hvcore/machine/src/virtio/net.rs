//! The network card (virtio 1.2, 5.1), without offloads: what it moves are whole Ethernet frames.
//!
//! A migration is announced through the card itself where the driver can (`GUEST_ANNOUNCE`), besides what
//! the host does.

use alloc::vec::Vec;

use guest_memory::GuestMemory;

use super::queue::{Chain, Queue, RingError};
use crate::machine::NicModel;

/// Entries of each queue.
pub const QUEUE_SIZE: u16 = 256;
/// Queue numbers (virtio 1.2, 5.1.2).
pub const RECEIVE: usize = 0;
/// Frames from the guest.
pub const TRANSMIT: usize = 1;
/// Commands from the guest.
pub const CONTROL: usize = 2;

/// Of `virtio_net_hdr` with `num_buffers`, which version 1 always has.
const HEADER_LEN: usize = 12;
const ETHERNET_HEADER: usize = 14;
/// A VLAN tag does not count towards the MTU.
const VLAN_TAG: usize = 4;
const CONTROL_MAX: usize = 4096;

/// Device feature bits.
mod feature {
    pub const MTU: u64 = 1 << 3;
    pub const MAC: u64 = 1 << 5;
    pub const STATUS: u64 = 1 << 16;
    pub const CONTROL_QUEUE: u64 = 1 << 17;
    pub const GUEST_ANNOUNCE: u64 = 1 << 21;
}

const STATUS_LINK_UP: u16 = 1;
const STATUS_ANNOUNCE: u16 = 2;

/// The only command this card has: the announcement was made.
const COMMAND_ANNOUNCE_ACK: [u8; 2] = [3, 0];
const COMMAND_OK: u8 = 0;
const COMMAND_ERROR: u8 = 1;

/// A network card.
#[derive(Debug)]
pub struct Net {
    // Fixed configuration.
    model: NicModel,
    // Volatile state.
    announce: bool,
}

impl Net {
    /// A card of this model.
    #[must_use]
    pub fn new(model: &NicModel) -> Self {
        Self {
            model: model.clone(),
            announce: false,
        }
    }

    /// What the device offers.
    #[must_use]
    pub fn features(&self) -> u64 {
        feature::MTU
            | feature::MAC
            | feature::STATUS
            | feature::CONTROL_QUEUE
            | feature::GUEST_ANNOUNCE
    }

    /// The device's configuration.
    #[must_use]
    pub fn config(&self) -> Vec<u8> {
        let announce = if self.announce { STATUS_ANNOUNCE } else { 0 };
        let mut config = self.model.mac.to_vec();
        config.extend((STATUS_LINK_UP | announce).to_le_bytes());
        // One pair of queues.
        config.extend(1_u16.to_le_bytes());
        config.extend(self.model.mtu.to_le_bytes());
        config
    }

    /// The driver reset the device.
    pub fn reset(&mut self) {
        self.announce = false;
    }

    /// Asks the guest to announce its addresses; the caller interrupts it. `false`: its driver cannot.
    pub fn announce(&mut self, negotiated: u64) -> bool {
        self.announce = negotiated & feature::GUEST_ANNOUNCE != 0;
        self.announce
    }

    /// Whether an announcement was asked for and not made.
    #[must_use]
    pub fn announcing(&self) -> bool {
        self.announce
    }

    fn frame_max(&self) -> usize {
        usize::from(self.model.mtu) + ETHERNET_HEADER + VLAN_TAG
    }

    /// The next frame that the guest sends, without asking it to ring for the one after it. Frames longer than the MTU
    /// allows are dropped, as by a wire.
    ///
    /// # Errors
    /// When the ring breaks the rules.
    pub fn next_frame(
        &mut self,
        queue: &mut Queue,
        memory: &GuestMemory,
    ) -> Result<Option<Vec<u8>>, RingError> {
        for _ in 0..=queue.size {
            let Some(chain) = queue.poll(memory)? else {
                return Ok(None);
            };
            let len = chain.readable_len();
            if len < HEADER_LEN as u64 {
                return Err(RingError::Request("a frame is shorter than its header"));
            }
            let fits = len - HEADER_LEN as u64 <= self.frame_max() as u64;
            let frame = match fits {
                true => chain.read(memory, HEADER_LEN as u64, self.frame_max())?,
                false => Vec::new(),
            };
            queue.push(memory, chain.head, 0)?;
            if frame.len() >= ETHERNET_HEADER {
                return Ok(Some(frame));
            }
        }
        Ok(None)
    }

    /// Hands a frame to the guest. `false`: no buffer is free.
    ///
    /// # Errors
    /// When the ring breaks the rules.
    pub fn deliver(
        &mut self,
        queue: &mut Queue,
        memory: &GuestMemory,
        frame: &[u8],
    ) -> Result<bool, RingError> {
        if !queue.ready || frame.len() > self.frame_max() {
            return Ok(true);
        }
        let Some(chain) = queue.pop(memory)? else {
            return Ok(false);
        };
        let len = HEADER_LEN + frame.len();
        if chain.writable_len() < len as u64 {
            return Err(RingError::Request(
                "a receive buffer is shorter than the MTU",
            ));
        }
        let mut bytes = Vec::with_capacity(len);
        bytes.resize(HEADER_LEN, 0);
        // num_buffers: the frame is in one chain.
        bytes[10] = 1;
        bytes.extend_from_slice(frame);
        let written = chain.write(memory, &bytes)?;
        queue.push(memory, chain.head, written)?;
        Ok(true)
    }

    /// Carries out the driver's commands.
    ///
    /// # Errors
    /// When the ring breaks the rules.
    pub fn control(&mut self, queue: &mut Queue, memory: &GuestMemory) -> Result<(), RingError> {
        for _ in 0..=queue.size {
            let Some(chain) = queue.pop(memory)? else {
                break;
            };
            let answer = self.command(&chain, memory)?;
            let written = chain.write(memory, &[answer])?;
            queue.push(memory, chain.head, written)?;
        }
        Ok(())
    }

    fn command(&mut self, chain: &Chain, memory: &GuestMemory) -> Result<u8, RingError> {
        let command = chain.read(memory, 0, CONTROL_MAX)?;
        if command.starts_with(&COMMAND_ANNOUNCE_ACK) {
            self.announce = false;
            Ok(COMMAND_OK)
        } else {
            Ok(COMMAND_ERROR)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::Driver;
    use super::*;
    use guest_memory::{Gpa, testing::memory};
    use std::vec;

    const RINGS: u64 = 0x4000;
    const DATA: u64 = 0x8000;

    fn card() -> Net {
        Net::new(&NicModel {
            mac: [2, 0, 0, 0, 0, 1],
            mtu: 1500,
        })
    }

    #[test]
    fn a_frame_goes_out_without_its_header() {
        let memory = memory(0x1_0000);
        let mut driver = Driver::new(&memory, RINGS, 8);
        let mut queue = driver.queue();
        memory.write(Gpa(DATA + 12), &[9; 60]).unwrap();
        driver.add(&[(DATA, 12, false), (DATA + 12, 60, false)]);
        let frame = card().next_frame(&mut queue, &memory).unwrap();
        assert_eq!(frame, Some(vec![9; 60]));
        assert_eq!(driver.take_used(), Some((0, 0)));
    }

    #[test]
    fn frames_too_long_or_too_short_are_dropped() {
        let memory = memory(0x1_0000);
        let mut driver = Driver::new(&memory, RINGS, 8);
        let mut queue = driver.queue();
        driver.add(&[(DATA, 12 + 1519, false)]);
        driver.add(&[(DATA, 12 + 13, false)]);
        assert_eq!(card().next_frame(&mut queue, &memory).unwrap(), None);
        assert!(driver.take_used().is_some() && driver.take_used().is_some());
        driver.add(&[(DATA, 11, false)]);
        assert!(card().next_frame(&mut queue, &memory).is_err());
    }

    #[test]
    fn a_frame_comes_in_with_a_header() {
        let memory = memory(0x1_0000);
        let mut driver = Driver::new(&memory, RINGS, 8);
        let mut queue = driver.queue();
        let mut card = card();
        let frame = [7; 60];
        assert!(
            !card.deliver(&mut queue, &memory, &frame).unwrap(),
            "no buffer"
        );
        driver.add(&[(DATA, 1526, true)]);
        assert!(card.deliver(&mut queue, &memory, &frame).unwrap());
        assert_eq!(driver.take_used(), Some((0, 72)));
        let mut bytes = [0; 13];
        memory.read(Gpa(DATA), &mut bytes).unwrap();
        assert_eq!(bytes, [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 7]);
        assert!(
            card.deliver(&mut queue, &memory, &[0; 2000]).unwrap(),
            "dropped"
        );
        driver.add(&[(DATA, 20, true)]);
        assert!(card.deliver(&mut queue, &memory, &frame).is_err());
    }

    #[test]
    fn an_announcement_lasts_until_the_driver_has_made_it() {
        let memory = memory(0x1_0000);
        let mut card = card();
        assert!(!card.announce(0), "the driver cannot");
        assert!(card.announce(feature::GUEST_ANNOUNCE));
        assert_eq!(card.config()[6], 3);
        let mut driver = Driver::new(&memory, RINGS, 8);
        let mut queue = driver.queue();
        memory.write(Gpa(DATA), &COMMAND_ANNOUNCE_ACK).unwrap();
        memory.write(Gpa(DATA + 8), &[0xff]).unwrap();
        driver.add(&[(DATA, 2, false), (DATA + 8, 1, true)]);
        card.control(&mut queue, &memory).unwrap();
        assert_eq!(card.config()[6], 1);
        let mut answer = [0xff];
        memory.read(Gpa(DATA + 8), &mut answer).unwrap();
        assert_eq!(answer, [COMMAND_OK]);
    }
}
