//! For tests of what a lab makes of what its hosts say: hosts that are no hypervisors, and one that speaks like one.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;

use host_protocol::auth::{PoolKey, Purpose};
use host_protocol::codec::{self, Decoder};
use host_protocol::{HostEvent, HostStatus, Notice, Reply, Request, VERSION, VmConfig};

use super::{HostSpec, Lab, LabConfig, Launcher, MachineFacts};

struct Sleeper;

impl Launcher for Sleeper {
    fn command(&self, _: &HostSpec, _: &Path) -> std::io::Result<Command> {
        let mut command = Command::new("sleep");
        command.arg("1000");
        Ok(command)
    }
}

pub fn vm(name: &str, number: u8) -> VmConfig {
    VmConfig {
        id: [number; 16],
        name: name.into(),
        memory_mib: 1,
        vcpus: 1,
        weight: 256,
        kernel: String::new(),
        initrd: None,
        cmdline: String::new(),
        disks: Vec::new(),
        nics: Vec::new(),
    }
}

/// A lab of two hosts that do nothing.
pub fn start(base: &Path, vms: Vec<VmConfig>) -> Lab {
    Lab::start(LabConfig {
        name: "test".into(),
        base: base.into(),
        hosts: 2,
        host_memory_mib: 256,
        launcher: Box::new(Sleeper),
        storage: None,
        vms,
        seed: 1,
        capture: false,
        facts: MachineFacts::default(),
    })
    .unwrap()
}

/// A host's control service on one connection. Its clock is that of the machine.
pub struct FakeHost {
    stream: UnixStream,
    decoder: Decoder,
    pub status: HostStatus,
    /// What it has been told, but for pings and questions about its status.
    pub told: Vec<host_protocol::Command>,
    /// Questions about its status that it has answered.
    pub asked: usize,
    /// The last event that the lab said it had heard.
    pub heard: u64,
}

impl FakeHost {
    /// Proves itself to whoever is at the other end of `stream`.
    pub fn new(stream: UnixStream, key: &PoolKey, status: HostStatus) -> Self {
        let mut this = Self {
            stream,
            decoder: Decoder::new(),
            status,
            told: Vec::new(),
            asked: 0,
            heard: 0,
        };
        let Some(Request::Hello { nonce, .. }) = this.next() else {
            panic!("a hello is expected")
        };
        let theirs = [7; 16];
        this.send(&Notice::Welcome {
            version: VERSION,
            nonce: theirs,
            mac: key.prove(Purpose::ControlHost, &nonce, &theirs),
            host: "fake".into(),
        });
        let Some(Request::Prove { mac, heard }) = this.next() else {
            panic!("a proof is expected")
        };
        this.heard = heard;
        assert!(key.accepts(Purpose::ControlClient, &nonce, &theirs, &mac));
        this
    }

    pub fn now_ns() -> u64 {
        let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC).unwrap();
        u64::try_from(now.tv_sec()).unwrap() * 1_000_000_000 + u64::try_from(now.tv_nsec()).unwrap()
    }

    pub fn report(&mut self, event: HostEvent) {
        self.report_numbered(0, event);
    }

    pub fn report_numbered(&mut self, number: u64, event: HostEvent) {
        let host_ns = Self::now_ns();
        self.send(&Notice::Event {
            number,
            host_ns,
            event,
        });
    }

    pub fn send(&mut self, notice: &Notice) {
        let mut bytes = Vec::new();
        codec::encode(notice, &mut bytes).unwrap();
        self.stream.write_all(&bytes).unwrap();
    }

    /// Answers whatever comes until `enough`; false when the lab has hung up.
    pub fn serve_until(&mut self, enough: impl Fn(&Self) -> bool) -> bool {
        while !enough(self) {
            match self.next() {
                None => return false,
                Some(Request::Ping { token }) => {
                    let host_ns = Self::now_ns();
                    self.send(&Notice::Pong { token, host_ns });
                }
                Some(Request::Command { number, command }) => {
                    let reply = if command == host_protocol::Command::Status {
                        self.asked += 1;
                        Reply::Status(self.status.clone())
                    } else {
                        self.told.push(command);
                        Reply::Ok
                    };
                    let result = Ok(reply);
                    self.send(&Notice::Done { number, result });
                }
                Some(other) => panic!("{other:?} is not expected"),
            }
        }
        true
    }

    fn next(&mut self) -> Option<Request> {
        let mut bytes = [0; 4096];
        loop {
            if let Some(request) = self.decoder.message().unwrap() {
                return Some(request);
            }
            match self.stream.read(&mut bytes) {
                Ok(0) | Err(_) => return None,
                Ok(count) => self.decoder.push(&bytes[..count]),
            }
        }
    }
}
