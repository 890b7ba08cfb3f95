//! Telling the network where a guest is, and hearing that it has been told.

use crate::{
    Host,
    net::announce,
    platform::{Nic, Platform},
};

/// A MAC address to be announced.
pub(crate) struct Announcement {
    pub(super) at_ns: u64,
    mac: [u8; 6],
}

impl<P: Platform> Host<P> {
    /// A frame from the session network: an announcement there means that it knows a departed guest's place.
    pub(crate) fn notice_announcement(&mut self, frame: &[u8]) {
        for departure in &mut self.departures {
            let vm = self.vms.iter().find(|vm| vm.number == departure.vm);
            // The last card's is sent last.
            let mac = vm.and_then(|vm| vm.config.nics.last());
            if mac.is_some_and(|mac| announce::announces(frame, *mac)) {
                departure.source.announce_seen();
            }
        }
    }

    /// Announces a guest's cards now, and again later for whoever missed it.
    pub(crate) fn announce(&mut self, macs: &[[u8; 6]]) {
        let now = self.platform.now_ns();
        for delay in announce::REPEATS_NS {
            self.announcements
                .extend(macs.iter().map(|mac| Announcement {
                    at_ns: now + delay,
                    mac: *mac,
                }));
        }
        let all = self.announcements.make_contiguous();
        all.sort_by_key(|announcement| announcement.at_ns);
        self.send_announcements();
    }

    /// Sends the announcements that are due.
    pub(super) fn send_announcements(&mut self) {
        let now = self.platform.now_ns();
        while let Some(next) = self.announcements.front()
            && next.at_ns <= now
        {
            let frame = announce::frame(next.mac);
            // A guest that has left again is not announced from here.
            if self.bridge.has(next.mac) {
                self.platform.transmit(Nic::Session, &frame);
            }
            self.announcements.pop_front();
        }
    }
}
