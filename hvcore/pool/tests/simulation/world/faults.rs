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
        self.turn(host);
        let at = self.now + self.rng.u64(0..200 * MS);
        self.at(at, What::GuestWrites { host, life });
    }

    /// The plug is pulled. What was on its way to the storage may still arrive.
    pub fn pull(&mut self, host: usize) {
        let late = self.rng.bool();
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
            let until = self.now + duration;
            self.hosts[host].frozen_until = until;
            self.at(until, What::Thaw { host });
        }
    }

    pub fn jump_clock(&mut self, host: usize, by_ms: i64) {
        self.hosts[host].clock_offset += by_ms * MS as i64;
    }

    pub fn cut_storage(&mut self, host: usize, cut: bool) {
        self.hosts[host].storage_cut = cut;
        if !cut {
            self.release_waiting(host);
        }
    }

    pub fn storage_outage(&mut self, out: bool) {
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
        self.storage.slots[host][byte] ^= 1 << self.rng.u8(0..8);
    }

    pub fn inject(&mut self, to: usize, bytes: Rc<[u8]>) {
        self.at(self.now, What::Frame { to, bytes });
    }

    /// Somebody starts a VM by command.
    pub fn start_by_hand(&mut self, host: usize, vm: VmIndex) {
        let local = self.local(host);
        if let Some(pool) = &mut self.hosts[host].pool {
            pool.set_vm(local, vm, Some(VmReport::Starting));
            self.request(host, Request::Open { vm, attempt: 0 });
            self.turn(host);
        }
    }

    /// A migration up to its commit point: the source stands still, the destination takes the lease.
    pub fn migrate(&mut self, from: usize, to: usize, vm: VmIndex) {
        let Some(copy) = self.hosts[from].copies.get(&vm).copied() else {
            return;
        };
        if !copy.running || !self.is_up(to) || self.hosts[to].copies.contains_key(&vm) {
            return;
        }
        let local = self.local(to);
        let Some(pool) = &mut self.hosts[to].pool else {
            return;
        };
        pool.set_vm(local, vm, Some(VmReport::Starting));
        if let Some(copy) = self.hosts[from].copies.get_mut(&vm) {
            copy.running = false;
        }
        let expected = copy.epoch;
        // The last pages may never arrive.
        if self.rng.u8(0..4) != 0 {
            self.request(to, Request::TakeOver { vm, expected });
        }
        let life = self.hosts[from].life;
        self.at(
            self.now + SECOND,
            What::SourceAsks {
                host: from,
                life,
                vm,
            },
        );
        let life = self.hosts[to].life;
        self.at(
            self.now + 3 * SECOND,
            What::SourceAsks { host: to, life, vm },
        );
        self.turn(to);
    }
}
