//! Two hosts, their networks, storage and lab, under one virtual clock.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
};

use host::{Host, HostConfig, platform::Nic};
use host_protocol::pool::{HEARTBEAT_PORT, PoolHost, PoolSetup, ProtectedVm};
use host_protocol::{
    Command, DiskConfig, HostEvent, MigrationConfig, VERSION, VmConfig, auth::PoolKey,
};
use vhd::{DiskKind, Footer, Uuid};

use crate::{
    lab::{Client, Probe, Storage},
    platform::{Outside, Simulated},
    program::{DISK_SECTORS, ETHER_TYPE, STATE, slot},
    server::Server,
    wire::{Endpoint, LAB, Wire},
};

pub const VM: [u8; 16] = [9; 16];
const GUEST_MAC: [u8; 6] = [2, 0xe1, 0xab, 0x10, 0, 1];
const MEMORY_MIB: u32 = 4;
/// Room for all of the guest's memory.
const SUSPEND_SECTORS: u64 = (MEMORY_MIB as u64 + 1) << 11;
/// EtherType of announcements: reverse ARP (RFC 903).
const RARP: [u8; 2] = [0x80, 0x35];
/// How long a card's interrupt may be late.
const INTERRUPT_NS: u64 = 20_000;

/// A kernel of the smallest kind: a header, and the instructions of the simulated guest.
fn kernel() -> Vec<u8> {
    let mut image = vec![0; 4096 + 0x400];
    image[0x1f1] = 7;
    image[0x201] = 0x66;
    image[0x202..0x206].copy_from_slice(b"HdrS");
    image[0x206..0x208].copy_from_slice(&0x020f_u16.to_le_bytes());
    image[0x22c..0x230].copy_from_slice(&0x7fff_ffff_u32.to_le_bytes());
    image[0x236..0x238].copy_from_slice(&1_u16.to_le_bytes());
    image[0x238..0x23c].copy_from_slice(&2047_u32.to_le_bytes());
    image[0x258..0x260].copy_from_slice(&crate::KERNEL_AT.to_le_bytes());
    image[0x260..0x264].copy_from_slice(&0x1_0000_u32.to_le_bytes());
    let code = 4096 + 0x200;
    image[code..code + crate::cpu::CODE.len()].copy_from_slice(crate::cpu::CODE);
    image
}

fn disk(sectors: u64) -> Vec<u8> {
    let bytes = sectors * 512;
    let mut content = vec![0; bytes as usize];
    content.extend_from_slice(&Footer::new(DiskKind::Fixed, bytes, Uuid([1; 16]), 0).encode());
    content
}

pub fn address(host: usize) -> [u8; 4] {
    [198, 18, 0, 11 + host as u8]
}

pub struct World {
    pub now: Rc<Cell<u64>>,
    pub wire: Wire,
    hosts: Vec<Option<Host<Simulated>>>,
    pub outside: Vec<Outside>,
    management: Endpoint,
    pub storage: Storage,
    pub clients: Vec<Client>,
    pub probe: Probe,
    pub rng: fastrand::Rng,
    key: PoolKey,
    /// Which host's guest was heard last, and how often that changed.
    runs_on: Option<usize>,
    pub moves: u32,
    /// When a guest's frame last left a host.
    pub spoke_at: [Option<u64>; 2],
    server_back_at: Option<u64>,
    /// Each announcement reaches the host that the guest has left in one batch with a probe that came before it.
    pub probe_before_announcements: bool,
    /// Heartbeats as they left the hosts.
    pub heartbeats: Vec<(usize, Vec<u8>)>,
}

/// Where a heartbeat begins in its frame: after Ethernet, IPv4 and UDP.
pub const HEARTBEAT_AT: usize = 14 + 20 + 8;

fn is_heartbeat(frame: &[u8]) -> bool {
    frame.len() > HEARTBEAT_AT
        && frame[12..14] == [8, 0]
        && frame[23] == 17
        && frame[36..38] == HEARTBEAT_PORT.to_be_bytes()
}

impl World {
    pub fn new(seed: u64) -> Self {
        let now = Rc::new(Cell::new(0));
        let mut rng = fastrand::Rng::with_seed(seed);
        let key = PoolKey::new([6; 32]);
        let mut server = Server::new();
        server.put("vmlinuz", kernel());
        server.put("disk.vhd", disk(DISK_SECTORS));
        server.put("suspend.vhd", disk(SUSPEND_SECTORS));
        server.put("small.vhd", disk(16));
        server.put("statefile", vec![0; 4 * 4096]);
        server.put("pool", Vec::new());
        let outside: Vec<_> = (0..2).map(|_| Outside::default()).collect();
        let hosts = (0..2_u8)
            .map(|number| {
                let platform = Simulated {
                    number,
                    now: Rc::clone(&now),
                    outside: outside[usize::from(number)].clone(),
                    random: RefCell::new(rng.fork()),
                    memory: 64 << 20,
                };
                let config = HostConfig {
                    name: format!("h{number}"),
                    version: String::from("test"),
                    management: (address(number.into()).into(), 24),
                    storage: ([198, 18, 1, 11 + number].into(), 24),
                    nfs: ([198, 18, 1, 1].into(), 2049),
                    export: String::from("/export"),
                    key: key.clone(),
                    mtu: 9000,
                };
                Some(Host::new(config, platform))
            })
            .collect();
        let mut management = Endpoint::new(Nic::Management, [198, 18, 0, 1]);
        let clients = (0..2)
            .map(|host| Client::new(&mut management, address(host), VERSION))
            .collect();
        Self {
            now,
            wire: Wire::default(),
            hosts,
            outside,
            management,
            storage: Storage::new(Endpoint::new(Nic::Storage, [198, 18, 1, 1]), server),
            clients,
            probe: Probe {
                guest: GUEST_MAC,
                next_at: u64::MAX,
                sent: 0,
                echoes: Vec::new(),
            },
            rng,
            key,
            runs_on: None,
            moves: 0,
            spoke_at: [None; 2],
            server_back_at: None,
            probe_before_announcements: false,
            heartbeats: Vec::new(),
        }
    }

    pub fn vm(work: &str) -> VmConfig {
        VmConfig {
            id: VM,
            name: String::from("guest"),
            memory_mib: MEMORY_MIB,
            vcpus: 1,
            weight: 256,
            kernel: String::from("sr/vmlinuz"),
            initrd: None,
            cmdline: work.to_string(),
            disks: vec![DiskConfig {
                path: String::from("sr/disk.vhd"),
                read_only: false,
            }],
            nics: vec![GUEST_MAC],
        }
    }

    /// The pool of both hosts, which protects the guest.
    pub fn pool(work: &str) -> PoolSetup {
        PoolSetup {
            pool: [4; 16],
            repository: String::from("sr"),
            hosts: (0..2)
                .map(|number| PoolHost {
                    name: format!("h{number}"),
                    memory_mib: 64,
                })
                .collect(),
            vms: vec![ProtectedVm {
                config: Self::vm(work),
                priority: 0,
                order: 0,
                start_delay_ms: 0,
                best_effort: false,
                restart_point: None,
            }],
            failures_to_tolerate: 1,
        }
    }

    /// Another client of a host, which speaks this version.
    pub fn connect(&mut self, host: usize, version: u32) -> usize {
        let client = Client::new(&mut self.management, address(host), version);
        self.clients.push(client);
        self.clients.len() - 1
    }

    pub fn kill(&mut self, host: usize) {
        self.hosts[host] = None;
        self.wire.dead[host] = true;
    }

    pub fn crash_server(&mut self) {
        self.storage.crash(&mut self.rng);
        self.server_back_at = Some(self.now.get() + 1_500_000_000);
    }

    pub fn migrate(&mut self, from: usize, to: usize, config: MigrationConfig) -> u32 {
        self.clients[from].command(Command::Migrate {
            vm: VM,
            destination: address(to),
            config,
        })
    }

    /// Where a guest has answered the probe in the last moments. Nothing else shows that a copy is *the* guest: the
    /// copy in a rehearsal runs too, but cannot be heard.
    pub fn running(&self) -> Vec<usize> {
        (0..2)
            .filter(|host| {
                self.hosts[*host].is_some()
                    && self.spoke_at[*host].is_some_and(|at| at + 20_000_000 > self.now.get())
            })
            .collect()
    }

    /// A word of the program's state, in the copy on a host.
    pub fn word(&self, host: usize, slot: u64) -> u64 {
        let ram = self.outside[host].ram.borrow();
        ram.as_ref().map_or(0, |ram| ram.u64(STATE + slot * 8))
    }

    pub fn check_guest(&self, host: usize) -> Result<(), String> {
        match self.word(host, slot::ERRORS) {
            0 => Ok(()),
            errors => Err(format!("the guest found {errors} errors")),
        }
    }

    /// Runs until `done`, at most for so long.
    pub fn run_until(
        &mut self,
        limit_ns: u64,
        mut done: impl FnMut(&mut Self) -> bool,
    ) -> Result<(), String> {
        let end = self.now.get() + limit_ns;
        while !done(self) {
            if self.now.get() >= end {
                return Err(format!("not done after {} ms", limit_ns / 1_000_000));
            }
            self.step()?;
        }
        Ok(())
    }

    pub fn run_for(&mut self, span_ns: u64) -> Result<(), String> {
        let end = self.now.get() + span_ns;
        self.run_until(u64::MAX / 2, |world| world.now.get() >= end)
    }

    pub fn events(&self, host: usize) -> &[HostEvent] {
        &self.clients[host].events
    }

    fn step(&mut self) -> Result<(), String> {
        let now = self.now.get();
        let mut busy = false;
        if self.server_back_at.is_some_and(|at| at <= now) {
            self.server_back_at = None;
            self.storage.down = false;
        }
        if self.probe.next_at <= now {
            let frame = self.probe.frame(now);
            self.wire.send(LAB, Nic::Session, frame, now);
        }
        while let Some((port, nic, frame)) = self.wire.take(now) {
            busy = true;
            match (port, nic) {
                (LAB, Nic::Management) => self.management.card.received.push_back(frame),
                (LAB, Nic::Storage) => self.storage.endpoint.card.received.push_back(frame),
                (LAB, Nic::Session) => self.probe.on_frame(&frame, now),
                _ => {
                    if let Some(host) = &mut self.hosts[port] {
                        if self.probe_before_announcements && frame[12..14] == RARP {
                            host.on_frame(nic, &self.probe.frame(now));
                        }
                        host.on_frame(nic, &frame);
                    }
                }
            }
        }
        self.management.poll(now);
        for client in &mut self.clients {
            client.poll(&mut self.management, &self.key);
        }
        self.management.poll(now);
        self.storage.poll(now, &mut self.rng);
        for frame in self.management.card.sent.drain(..) {
            self.wire.send(LAB, Nic::Management, frame, now);
        }
        for frame in self.storage.endpoint.card.sent.drain(..) {
            self.wire.send(LAB, Nic::Storage, frame, now);
        }
        let mut next = [
            self.wire.next_at(),
            self.management.next_at(now),
            self.storage.endpoint.next_at(now),
            Some(self.probe.next_at),
            self.server_back_at,
        ]
        .into_iter()
        .flatten()
        .min()
        .unwrap_or(u64::MAX);
        for number in 0..2 {
            let Some(host) = &mut self.hosts[number] else {
                continue;
            };
            let outside = &self.outside[number];
            host.poll();
            outside.card_interrupt_at.set(self.now.get() + INTERRUPT_NS);
            busy |= host.run_slice();
            let deadline = host.next_deadline_ns().unwrap_or(u64::MAX);
            next = next.min(deadline.saturating_sub(outside.ahead_ns.get()));
            for (nic, frame) in outside.outbox.borrow_mut().drain(..) {
                busy = true;
                // An echo can only come from a guest that runs; announcements are the host's.
                if nic == Nic::Session && frame[12..14] == ETHER_TYPE {
                    self.spoke_at[number] = Some(self.now.get());
                    if self.runs_on.is_some_and(|other| other != number) {
                        self.moves += 1;
                    }
                    self.runs_on = Some(number);
                }
                if nic == Nic::Management && is_heartbeat(&frame) {
                    self.heartbeats.push((number, frame.clone()));
                }
                self.wire.send(number, nic, frame, self.now.get());
            }
        }
        if !busy {
            self.now.set(next.max(now + 1000));
        }
        Ok(())
    }
}
