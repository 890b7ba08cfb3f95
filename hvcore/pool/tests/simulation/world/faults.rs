//! What is done to a simulated pool from outside: faults, and people's commands.

use super::*;

impl World {
    pub fn link(&mut self, from: usize, to: usize) -> &mut Link {
        let hosts = self.hosts.len();
        &mut self.links[from * hosts + to]
    }

    pub fn is_up(&self, host: usize) -> bool {
        self.hosts[host].pool.is_some()
    }

    /// Notes it for the history.
    pub(super) fn did(&mut self, host: usize, what: String) {
        self.done.push((self.now, host, what));
    }

    pub fn boot(&mut self, host: usize) {
        if self.is_up(host) {
            return;
        }
        let local = self.local(host);
        let pool = Pool::new(self.config.clone(), HostId(host as u16), local)
            .expect("the configuration is sound");
        let it = &mut self.hosts[host];
        it.life += 1;
        it.pool = Some(pool);
        it.frozen_until = 0;
        let life = it.life;
        self.did(host, "boots".into());
        self.turn(host);
        let at = self.now + self.rng.u64(0..200 * MS);
        self.at(at, What::GuestWrites { host, life });
    }

    /// The plug is pulled. What was on its way to the storage may still arrive.
    pub fn pull(&mut self, host: usize) {
        let late = self.rng.bool();
        self.did(host, "loses power".into());
        let it = &mut self.hosts[host];
        it.pool = None;
        it.copies.clear();
        it.inbox.clear();
        it.answers.clear();
        if !late {
            it.waiting.clear();
        }
    }

    pub fn freeze(&mut self, host: usize, duration: u64) {
        if self.is_up(host) {
            if self.hosts[host].clock_set_back {
                self.turn(host);
            }
            let until = self.now + duration;
            self.hosts[host].frozen_until = until;
            self.did(host, format!("stands still for {} ms", duration / MS));
            self.at(until, What::Thaw { host });
        }
    }

    /// A clock that is set back shows it: the host has not stood still meanwhile for as long. One that stands still for as
    /// long as its host does is what no host can see, and no pool can bear (see `found.rs`).
    pub fn jump_clock(&mut self, host: usize, by_ms: i64) {
        if by_ms >= 0 || self.hosts[host].frozen_until <= self.now {
            self.set_clock(host, by_ms);
            self.hosts[host].clock_set_back |= by_ms < 0;
        }
    }

    /// The same, whatever the host does.
    pub fn set_clock(&mut self, host: usize, by_ms: i64) {
        self.did(host, format!("has its clock set by {by_ms} ms"));
        self.hosts[host].clock_offset += by_ms * MS as i64;
    }

    pub fn cut_storage(&mut self, host: usize, cut: bool) {
        self.did(host, format!("storage cut: {cut}"));
        self.hosts[host].storage_cut = cut;
        if !cut {
            self.release_waiting(host);
        }
    }

    pub fn storage_outage(&mut self, out: bool) {
        self.did(0, format!("storage out for all: {out}"));
        self.storage_out = out;
        if !out {
            (0..self.hosts.len()).for_each(|host| self.release_waiting(host));
        }
    }

    fn release_waiting(&mut self, host: usize) {
        if self.storage_out || self.hosts[host].storage_cut {
            return;
        }
        for (life, request) in core::mem::take(&mut self.hosts[host].waiting) {
            let at = self.now + self.rng.u64(MS..300 * MS);
            self.at(
                at,
                What::Arrive {
                    host,
                    life,
                    request,
                },
            );
        }
    }

    /// Of a host that will mend it, if nothing happens to it: when all are gone, nobody else knows.
    pub fn corrupt_slot(&mut self, host: usize) {
        if !self.is_up(host) {
            return;
        }
        let byte = self.rng.usize(0..600);
        self.did(host, "its slot is damaged".into());
        self.storage.slots[host][byte] ^= 1 << self.rng.u8(0..8);
    }

    pub fn inject(&mut self, to: usize, bytes: Rc<[u8]>) {
        self.at(self.now, What::Frame { to, bytes });
    }
}
