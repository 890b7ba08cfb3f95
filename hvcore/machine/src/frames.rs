//! Frames between the guest's cards and the host.
//!
//! Exits and interrupts are what a frame costs a guest, so two of them are put off. A guest that is busy need
//! not ring for each frame it sends, since somebody looks at its rings whenever it comes out. And it is told late that
//! frames have left, since its driver looks for that by itself when the next frame arrives.

use alloc::vec::Vec;

use crate::{
    machine::Machine,
    processor::Processor,
    virtio::{net, queue::RingError, transport::Device},
};

/// How long a guest is left in the dark about frames that have left: longer than between two frames of a
/// steady conversation, shorter than a sender notices.
const TELL_AFTER_NS: u64 = 2_000_000;

/// How long a guest that is busy and has sent a frame need not ring for the next ones.
pub(crate) const WATCH_NS: u64 = 1_000_000;

/// What is put off. Sets of functions are bits.
#[derive(Debug, Default)]
pub(crate) struct PutOff {
    /// Cards with frames that have left and that the guest was not told of.
    untold: u64,
    /// When it must be told.
    tell_ns: u64,
    /// Cards whose guest need not ring.
    watched: u64,
    /// Until when.
    watch_until_ns: u64,
}

impl PutOff {
    /// Everything is due: after a restore nobody knows what the guest was told.
    pub fn all_due() -> Self {
        Self {
            untold: u64::MAX,
            ..Self::default()
        }
    }

    /// Whether a guest must be told something now.
    pub fn is_due(&self, now_ns: u64) -> bool {
        self.untold != 0 && self.tell_ns <= now_ns
    }

    /// When the host must look again.
    pub fn deadlines_ns(&self) -> impl Iterator<Item = u64> + use<> {
        let tell = (self.untold != 0).then_some(self.tell_ns);
        let watch = (self.watched != 0).then_some(self.watch_until_ns);
        tell.into_iter().chain(watch)
    }
}

impl Machine {
    /// The next Ethernet frame that the guest sends, and the card it leaves by.
    pub fn next_frame(&mut self) -> Option<(usize, Vec<u8>)> {
        for nic in 0..self.config.nics.len() {
            let function = self.config.disks.len() + nic;
            let rung = self.take_rung(function);
            let watched = self.put_off.watched & 1 << function != 0;
            if self.misbehaviour.is_some() || !(rung || watched) {
                continue;
            }
            let mut next = self.take_frame(function);
            let quiet = matches!(next, Ok(None));
            if quiet && !self.keep_watching(function, rung) {
                next = match self.ask_to_ring(function) {
                    Ok(true) => self.take_frame(function),
                    Ok(false) => Ok(None),
                    Err(error) => Err(error),
                };
            }
            match next {
                Ok(Some(frame)) => {
                    self.ring(function);
                    self.tell_later(function);
                    return Some((nic, frame));
                }
                Ok(None) => {}
                Err(error) => self.finish_queue(function, net::TRANSMIT, Err(error)),
            }
        }
        None
    }

    fn take_frame(&mut self, function: usize) -> Result<Option<Vec<u8>>, RingError> {
        match self.functions[function].device_and_queue(net::TRANSMIT) {
            Some((Device::Net(card), queue)) => card.next_frame(queue, &self.memory),
            _ => Ok(None),
        }
    }

    fn ask_to_ring(&mut self, function: usize) -> Result<bool, RingError> {
        match self.functions[function].device_and_queue(net::TRANSMIT) {
            Some((_, queue)) => queue.ask_to_ring(&self.memory),
            None => Ok(false),
        }
    }

    /// Whether a guest that has no frame to send at the moment need not ring for its next one: it has sent some
    /// lately and is still at work, so it will come out soon for other reasons, and an exit for each frame
    /// costs it more than the wait. `sent`: it has just done so.
    fn keep_watching(&mut self, function: usize, sent: bool) -> bool {
        let bit = 1 << function;
        if sent {
            self.put_off.watch_until_ns = self.seen_ns + WATCH_NS;
        }
        let watch = self.seen_ns < self.put_off.watch_until_ns && self.is_busy();
        self.put_off.watched = if watch {
            self.put_off.watched | bit
        } else {
            self.put_off.watched & !bit
        };
        watch
    }

    /// Whether any vCPU is at work.
    fn is_busy(&self) -> bool {
        self.processors.iter().any(Processor::is_runnable)
    }

    /// A vCPU has nothing more to do: if it was the last one, what it has sent without ringing is looked at now.
    pub(crate) fn ring_watched(&mut self) -> bool {
        if self.put_off.watched == 0 || self.is_busy() {
            return false;
        }
        self.ring_all_of(self.put_off.watched);
        true
    }

    /// Hands a frame to a card. `false`: no buffer is free; keep the frame and try again after the vCPU
    /// has run. A frame longer than the card's MTU, or for a card without driver, is dropped as a wire would (`true`).
    pub fn deliver_frame(&mut self, nic: usize, frame: &[u8]) -> bool {
        let function = self.config.disks.len() + nic;
        let delivered = match self.functions[function].device_and_queue(net::RECEIVE) {
            Some((Device::Net(card), queue)) => card.deliver(queue, &self.memory, frame),
            _ => return true,
        };
        let taken = !matches!(delivered, Ok(false));
        self.finish_queue(function, net::RECEIVE, delivered.map(|_| ()));
        taken
    }

    /// Asks the guest to announce its addresses on all its networks, which it does once it runs, where its driver
    /// can.
    pub fn announce(&mut self) {
        for function in 0..self.functions.len() {
            let function = &mut self.functions[function];
            let negotiated = function.driver_features();
            let live = function.is_live();
            let announces = match function.device_mut() {
                Device::Net(card) => live && card.announce(negotiated),
                _ => false,
            };
            if announces {
                let message = function.config_changed();
                self.send(message);
            }
        }
    }

    /// That a frame has left interests the guest little, and a driver looks for it anyway when the next one arrives:
    /// most of these interrupts need never be sent if they wait a little.
    fn tell_later(&mut self, function: usize) {
        if self.put_off.untold == 0 {
            self.put_off.tell_ns = self.seen_ns + TELL_AFTER_NS;
        }
        self.put_off.untold |= 1 << function;
    }

    /// Tells the guest of frames that have left, when it is time; forgets those that its driver has found by itself.
    pub(crate) fn tell_of_frames(&mut self, now_ns: u64) {
        let due = self.put_off.tell_ns <= now_ns;
        let disks = self.config.disks.len();
        let cards = disks..disks + self.config.nics.len();
        self.put_off.untold &= cards.clone().fold(0, |bits, card| bits | 1 << card);
        for function in cards {
            let bit = 1 << function;
            if self.put_off.untold & bit == 0 {
                continue;
            }
            let wanted = self.functions[function].wants_interrupt(net::TRANSMIT, &self.memory);
            if due || wanted != Ok(true) {
                self.put_off.untold &= !bit;
                self.finish_queue(function, net::TRANSMIT, wanted.map(|_| ()));
            }
        }
    }
}
