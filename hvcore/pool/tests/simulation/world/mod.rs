//! A simulated pool: hosts with clocks of their own, links, a storage server, and guests that write.

mod copies;
mod faults;

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap, VecDeque},
    rc::Rc,
};

use fastrand::Rng;
use host_protocol::auth::PoolKey;
use pool::{
    Action, Event, HostId, HostPolicy, LeaseAnswer, LeaseCall, LeaseFile, Pool, PoolConfig,
    Safeguards, Timing, Token, VmIndex, VmPolicy, VmReport,
};

use crate::storage::Storage;
use copies::{Copy, Stage, ToCopy};

pub const MS: u64 = 1_000_000;
pub const SECOND: u64 = 1000 * MS;
/// Frames that a frozen host's card keeps.
const RING: usize = 256;

pub fn host_name(host: HostId) -> String {
    format!("h{}", host.0 + 1)
}

/// What a host does with storage.
#[derive(Clone)]
pub enum Request {
    Read {
        token: Token,
        first: usize,
        count: usize,
    },
    Write {
        token: Token,
        block: Rc<[u8]>,
    },
    Lease {
        token: Token,
        file: LeaseFile,
        call: LeaseCall,
    },
    /// Opening a VM's disk before it starts.
    Open {
        vm: VmIndex,
        number: u64,
        attempt: u16,
    },
    /// A guest's own write.
    Guest {
        vm: VmIndex,
        epoch: u64,
    },
    /// The commit point of a migration, or the source that asks whether it was passed.
    TakeOver {
        vm: VmIndex,
        number: u64,
        expected: u64,
    },
}

enum Answer {
    Read(Token, Vec<u8>),
    Written(Token),
    Lease(Token, LeaseAnswer),
    Opened(VmIndex, u64, u16, Option<u64>),
    Stale(VmIndex, u64),
    TakenOver(VmIndex, u64, Option<u64>),
}

enum What {
    Frame {
        to: usize,
        bytes: Rc<[u8]>,
    },
    Wake {
        host: usize,
        alarm: u64,
    },
    /// A request reaches the server.
    Arrive {
        host: usize,
        life: u32,
        request: Request,
    },
    Reply {
        host: usize,
        life: u32,
        answer: Answer,
    },
    GuestWrites {
        host: usize,
        life: u32,
    },
    Thaw {
        host: usize,
    },
    ToCopy {
        host: usize,
        vm: VmIndex,
        number: u64,
        what: ToCopy,
    },
}

/// A host.
pub struct Host {
    /// `None`: switched off.
    pub pool: Option<Pool>,
    /// Counts its boots.
    pub life: u32,
    pub frozen_until: u64,
    inbox: VecDeque<Rc<[u8]>>,
    /// Answers of the storage that came while it was frozen.
    answers: VecDeque<Answer>,
    alarm: u64,
    /// Parts per million that its clock is fast.
    ppm: i64,
    clock_offset: i64,
    /// Its clock was set back, and it has not looked at it since.
    clock_set_back: bool,
    pub copies: BTreeMap<VmIndex, Copy>,
    pub storage_cut: bool,
    /// Requests that wait for the storage link.
    waiting: Vec<(u32, Request)>,
}

/// A directed link of the management network.
#[derive(Clone, Copy)]
pub struct Link {
    pub cut: bool,
    pub delay: u64,
    pub loss_percent: u8,
}

/// Something a pool told people.
pub struct Told {
    pub at: u64,
    pub host: usize,
    pub event: Event,
}

pub struct World {
    pub now: u64,
    pub rng: Rng,
    pub config: PoolConfig,
    pub hosts: Vec<Host>,
    pub links: Vec<Link>,
    pub storage: Storage,
    pub storage_out: bool,
    /// Longest time the server takes for a request.
    pub storage_delay: u64,
    /// Longest time a host takes to notice that something is due.
    pub lateness: u64,
    pub told: Vec<Told>,
    /// What was done to hosts from outside, for the history.
    pub done: Vec<(u64, usize, String)>,
    /// Frames that an eavesdropper has kept.
    pub overheard: Option<Vec<Rc<[u8]>>>,
    /// First violation of a promise that always holds.
    pub violation: Option<String>,
    /// For a test of what follows: when a VM was seen to run twice, which is then no violation.
    pub overlaps: Option<Vec<u64>>,
    /// Longest time a guest takes from its start until it runs.
    pub longest_boot: u64,
    /// Starts that will fail before one succeeds.
    pub failing_starts: u32,
    /// Standstills of guests that were running.
    pub lapses: u32,
    queue: BinaryHeap<Reverse<(u64, u64, usize)>>,
    events: Vec<Option<What>>,
    free: Vec<usize>,
    order: u64,
    pub steps: u64,
}

pub struct Shape {
    pub hosts: usize,
    pub vms: usize,
    pub safeguards: Safeguards,
    pub timing: Timing,
}

impl World {
    pub fn new(shape: &Shape, mut rng: Rng) -> Self {
        let config = PoolConfig {
            pool: [9; 16],
            key: PoolKey::new([3; 32]),
            hosts: (0..shape.hosts)
                .map(|host| HostPolicy {
                    name: host_name(HostId(host as u16)),
                    memory_mib: 64 * 1024,
                })
                .collect(),
            vms: (0..shape.vms)
                .map(|vm| VmPolicy {
                    name: format!("vm{vm}"),
                    memory_mib: 256,
                    disks: 1,
                    priority: 0,
                    order: (vm % 2) as u16,
                    start_delay_ms: 0,
                    best_effort: false,
                })
                .collect(),
            failures_to_tolerate: 1.min(shape.hosts as u8 - 1),
            timing: shape.timing,
            safeguards: shape.safeguards,
        };
        let hosts = (0..shape.hosts)
            .map(|_| Host {
                pool: None,
                life: 0,
                frozen_until: 0,
                inbox: VecDeque::new(),
                answers: VecDeque::new(),
                alarm: 0,
                // Worse than any clock that keeps time.
                ppm: rng.i64(-2000..=2000),
                // Far from zero, so that it can be set back.
                clock_offset: rng.i64(1_000_000_000_000..2_000_000_000_000),
                clock_set_back: false,
                copies: BTreeMap::new(),
                storage_cut: false,
                waiting: Vec::new(),
            })
            .collect();
        let link = Link {
            cut: false,
            delay: MS,
            loss_percent: 0,
        };
        Self {
            now: SECOND,
            rng,
            config,
            hosts,
            links: vec![link; shape.hosts * shape.hosts],
            storage: Storage::new(shape.hosts),
            storage_out: false,
            storage_delay: 10 * MS,
            lateness: 3 * MS,
            told: Vec::new(),
            done: Vec::new(),
            overheard: None,
            violation: None,
            overlaps: None,
            longest_boot: 600 * MS,
            failing_starts: 0,
            lapses: 0,
            queue: BinaryHeap::new(),
            events: Vec::new(),
            free: Vec::new(),
            order: 0,
            steps: 0,
        }
    }

    /// The host's own clock.
    fn local(&self, host: usize) -> u64 {
        let host = &self.hosts[host];
        let drift = (i128::from(self.now) * i128::from(host.ppm) / 1_000_000) as i64;
        (self.now as i64 + drift + host.clock_offset).max(1) as u64
    }

    fn at(&mut self, time: u64, what: What) {
        let slot = match self.free.pop() {
            Some(slot) => {
                self.events[slot] = Some(what);
                slot
            }
            None => {
                self.events.push(Some(what));
                self.events.len() - 1
            }
        };
        self.order += 1;
        self.queue
            .push(Reverse((time.max(self.now), self.order, slot)));
    }

    fn request(&mut self, host: usize, request: Request) {
        let life = self.hosts[host].life;
        let at = self.now + self.rng.u64(MS / 4..=self.storage_delay);
        self.at(
            at,
            What::Arrive {
                host,
                life,
                request,
            },
        );
    }

    pub fn run_until(&mut self, end: u64) {
        while self.violation.is_none() {
            match self.queue.peek() {
                Some(Reverse((time, ..))) if *time <= end => {}
                _ => break,
            }
            self.step();
        }
        self.now = self.now.max(end);
    }

    fn step(&mut self) {
        let Some(Reverse((time, _, slot))) = self.queue.pop() else {
            return;
        };
        self.now = time;
        self.steps += 1;
        let what = self.events[slot].take().expect("queued once");
        self.free.push(slot);
        match what {
            What::Frame { to, bytes } => self.on_frame(to, bytes),
            What::Wake { host, alarm } => {
                if self.hosts[host].alarm == alarm && self.hosts[host].frozen_until <= self.now {
                    self.turn(host);
                }
            }
            What::Arrive {
                host,
                life,
                request,
            } => self.on_arrive(host, life, request),
            What::Reply { host, life, answer } => {
                if self.hosts[host].life == life && self.is_up(host) {
                    if self.hosts[host].frozen_until > self.now {
                        self.hosts[host].answers.push_back(answer);
                    } else {
                        self.on_answer(host, answer);
                        self.turn(host);
                    }
                }
            }
            What::GuestWrites { host, life } => self.on_guest_writes(host, life),
            What::Thaw { host } => self.on_thaw(host),
            What::ToCopy {
                host,
                vm,
                number,
                what,
            } => self.on_copy_told(host, vm, number, what),
        }
        self.check();
    }

    fn on_frame(&mut self, to: usize, bytes: Rc<[u8]>) {
        let local = self.local(to);
        let it = &mut self.hosts[to];
        let Some(pool) = &mut it.pool else { return };
        if it.frozen_until > self.now {
            if it.inbox.len() < RING {
                it.inbox.push_back(bytes);
            }
            return;
        }
        pool.on_heartbeat(local, &bytes);
        self.turn(to);
    }

    fn on_thaw(&mut self, host: usize) {
        if !self.is_up(host) || self.hosts[host].frozen_until > self.now {
            return;
        }
        // In any order, as the cards' interrupts come.
        let frames_first = self.rng.bool();
        let frames = core::mem::take(&mut self.hosts[host].inbox);
        let answers = core::mem::take(&mut self.hosts[host].answers);
        let deliver = |world: &mut Self| {
            for bytes in &frames {
                let local = world.local(host);
                if let Some(pool) = &mut world.hosts[host].pool {
                    pool.on_heartbeat(local, bytes);
                }
                world.turn(host);
            }
        };
        if frames_first {
            deliver(self);
        }
        for answer in answers {
            self.on_answer(host, answer);
            self.turn(host);
        }
        if !frames_first {
            deliver(self);
        }
        self.turn(host);
    }

    fn on_arrive(&mut self, host: usize, life: u32, request: Request) {
        if self.storage_out || self.hosts[host].storage_cut {
            self.hosts[host].waiting.push((life, request));
            return;
        }
        let id = HostId(host as u16);
        let answer = match request {
            Request::Read {
                token,
                first,
                count,
            } => Answer::Read(token, self.storage.slots[first..first + count].concat()),
            Request::Write { token, block } => {
                self.storage.slots[host] = block.to_vec();
                Answer::Written(token)
            }
            Request::Lease { token, file, call } => {
                Answer::Lease(token, self.storage.call(id, file, call))
            }
            Request::Open {
                vm,
                number,
                attempt,
            } => Answer::Opened(vm, number, attempt, self.storage.acquire(vm, id)),
            Request::Guest { vm, epoch } => match self.storage.write(vm, epoch) {
                Ok(true) => return,
                Ok(false) => Answer::Stale(vm, epoch),
                Err(violation) => {
                    self.violation.get_or_insert(violation);
                    return;
                }
            },
            Request::TakeOver {
                vm,
                number,
                expected,
            } => {
                let call = LeaseCall::Take {
                    expected_epoch: expected,
                    owner: id,
                };
                let epoch = match self.storage.call(id, LeaseFile::Disk(vm, 0), call) {
                    LeaseAnswer::Granted { epoch } => Some(epoch),
                    _ => None,
                };
                Answer::TakenOver(vm, number, epoch)
            }
        };
        let at = self.now + self.rng.u64(MS / 4..=self.storage_delay);
        self.at(at, What::Reply { host, life, answer });
    }

    fn on_answer(&mut self, host: usize, answer: Answer) {
        let local = self.local(host);
        let Some(pool) = &mut self.hosts[host].pool else {
            return;
        };
        match answer {
            Answer::Read(token, blocks) => pool.on_slots(local, token, Some(&blocks)),
            Answer::Written(token) => pool.on_written(local, token, true),
            Answer::Lease(token, answer) => pool.on_lease(local, token, answer),
            Answer::Opened(vm, number, attempt, epoch) => {
                self.on_opened(host, vm, number, attempt, epoch);
            }
            Answer::Stale(vm, epoch) => self.on_stale(host, vm, epoch),
            Answer::TakenOver(vm, number, epoch) => self.on_taken_over(host, vm, number, epoch),
        }
    }

    /// Does what a pool asks for, and sets the alarm for its next deadline.
    fn turn(&mut self, host: usize) {
        let local = self.local(host);
        self.hosts[host].clock_set_back = false;
        match &mut self.hosts[host].pool {
            Some(pool) => pool.poll(local),
            None => return,
        }
        while let Some(action) = self.hosts[host].pool.as_mut().and_then(Pool::next_action) {
            self.act(host, action);
        }
        let Some(pool) = &self.hosts[host].pool else {
            return;
        };
        let wait = pool.next_deadline_ns().saturating_sub(local).max(MS / 10);
        let late = self.rng.u64(0..=self.lateness);
        self.order += 1;
        let alarm = self.order;
        self.hosts[host].alarm = alarm;
        self.at(self.now + wait + late, What::Wake { host, alarm });
    }

    fn act(&mut self, host: usize, action: Action) {
        match action {
            Action::Heartbeat(bytes) => {
                let bytes: Rc<[u8]> = bytes.into();
                if let Some(overheard) = &mut self.overheard {
                    overheard.push(bytes.clone());
                }
                for to in (0..self.hosts.len()).filter(|to| *to != host) {
                    let link = *self.link(host, to);
                    if !link.cut && self.rng.u8(0..100) >= link.loss_percent {
                        let at = self.now + self.rng.u64(MS / 10..=link.delay);
                        self.at(
                            at,
                            What::Frame {
                                to,
                                bytes: bytes.clone(),
                            },
                        );
                    }
                }
            }
            Action::ReadSlots {
                token,
                first,
                count,
            } => {
                let (first, count) = (first.index(), usize::from(count));
                self.request(
                    host,
                    Request::Read {
                        token,
                        first,
                        count,
                    },
                );
            }
            Action::WriteSlot { token, block } => {
                let block = block.into();
                self.request(host, Request::Write { token, block });
            }
            Action::Lease { token, file, call } => {
                self.request(host, Request::Lease { token, file, call });
            }
            Action::Start { vm, attempt } => self.start(host, vm, attempt),
            Action::Stop { vm } => {
                self.hosts[host].copies.remove(&vm);
            }
            Action::Fence(_) => self.hosts[host].copies.clear(),
            Action::Event(event) => {
                let runs = |copy: &Copy| copy.stage == Stage::Running;
                if event == Event::PermitLapsed && self.hosts[host].copies.values().any(runs) {
                    self.lapses += 1;
                }
                self.told.push(Told {
                    at: self.now,
                    host,
                    event,
                });
            }
        }
    }

    pub fn count(&self, since: u64, which: impl Fn(&Event) -> bool) -> usize {
        self.told
            .iter()
            .filter(|told| told.at >= since && which(&told.event))
            .count()
    }
}
