//! A lab of two real hosts with the session guest on the first.

use std::fs::File;
use std::net::SocketAddrV4;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Result;
use elab::assembly::{self, Artifacts, Choices, GUEST};
use elab::lab::Lab;
use elab::network::SESSION;
use elab::run_folder::RUNS;
use lab_protocol::{Command, LinkFault};
use scenarios::session::{self, Access, Stream};
use serde_json::Value;

use crate::log::Log;

/// Where images and run folders lie, as for the program.
pub const WORKSPACE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");
/// Whatever is waited for comes within this, however busy the machine is.
pub const PATIENCE: Duration = Duration::from_secs(90);
const SSH_PORT: u16 = 22;

/// Waits until no other test has a lab, also in other processes. The turn ends with the value.
pub fn take_turn() -> File {
    std::env::set_current_dir(WORKSPACE).unwrap();
    std::fs::create_dir_all(RUNS).unwrap();
    let turn = File::create(Path::new(RUNS).join("tests.lock")).unwrap();
    turn.lock().unwrap();
    turn
}

/// Ends a lab whose test has passed. Its disks go with it; those of a test that fails stay, to be looked at.
pub fn end(lab: &Lab) {
    lab.stop("the test is over").unwrap();
    std::fs::remove_dir_all(lab.folder()).unwrap();
}

pub struct RealLab {
    lab: Lab,
    artifacts: Artifacts,
    _turn: File,
}

impl RealLab {
    /// Boots it; the guest is ready.
    pub fn start(name: &str) -> Self {
        Self::with_hosts(name, 2)
    }

    /// Boots it with so many hosts; the guest is ready on the first.
    pub fn with_hosts(name: &str, hosts: u8) -> Self {
        let turn = take_turn();
        let choices = Choices {
            name: name.into(),
            hosts,
            host_memory_mib: 768,
            fast_boot: true,
            image: None,
            first_image: None,
            seed: 1,
            capture: false,
            guests: vec![elab::assembly::GuestChoice::default()],
        };
        let progress = |text: &str| eprintln!("{text}");
        let accelerator = assembly::choose_accelerator(&progress);
        let artifacts = assembly::artifacts(&choices, &progress).unwrap();
        let mut config = assembly::lab_config(&choices, &artifacts, &accelerator).unwrap();
        // By itself it is this very program, which is a test here.
        let storage = config.storage.as_mut().unwrap();
        storage.program = env!("CARGO_BIN_EXE_elab").into();
        let lab = Lab::start(config).unwrap();
        lab.power_on_all(PATIENCE).unwrap();
        let this = Self {
            lab,
            artifacts,
            _turn: turn,
        };
        this.start_guest("h1").unwrap();
        this.wait_for_console(0);
        this
    }

    pub fn lab(&self) -> &Lab {
        &self.lab
    }

    pub fn log(&self) -> Log {
        Log::new(self.lab.folder().join("events.jsonl"))
    }

    pub fn stop(self) {
        end(&self.lab);
    }

    pub fn start_guest(&self, host: &str) -> Result<Value> {
        self.lab.execute(&Command::VmStart {
            vm: GUEST.into(),
            host: host.into(),
        })
    }

    pub fn migrate(&self, to: &str, verify: bool) -> Result<Value> {
        self.lab.execute(&Command::VmMigrate {
            vm: GUEST.into(),
            to: to.into(),
            verify,
        })
    }

    pub fn pull(&self, host: &str) {
        let host = host.into();
        self.lab.execute(&Command::HostPull { host }).unwrap();
    }

    /// Switches a host on and waits until it can be talked to.
    pub fn power_on(&self, host: &str) {
        let command = Command::HostPowerOn { host: host.into() };
        self.lab.execute(&command).unwrap();
        self.wait_until_reachable(host);
    }

    pub fn wait_until_reachable(&self, host: &str) {
        self.wait_for_status(&format!("{host} can be reached"), |status| {
            let hosts = status["hosts"].as_array().unwrap();
            hosts
                .iter()
                .any(|entry| entry["name"] == host && entry["reachable"] == true)
        });
    }

    /// Cuts a host from the management network, or heals that.
    pub fn cut_management(&self, host: &str, cut: bool) {
        let fault = LinkFault {
            cut,
            ..LinkFault::default()
        };
        let link = format!("{host}:mgmt");
        self.lab.execute(&Command::LinkSet { link, fault }).unwrap();
    }

    pub fn kill_storage(&self) {
        self.lab.execute(&Command::StorageKill).unwrap();
    }

    pub fn start_storage(&self) {
        self.lab.execute(&Command::StorageStart).unwrap();
    }

    /// Where the lab says that the guest runs.
    pub fn guest_host(&self) -> Option<String> {
        let status = self.lab.execute(&Command::Status).unwrap();
        let vm = &status["vms"][0];
        let host = (vm["state"] == "running").then(|| vm["host"].as_str())?;
        host.map(str::to_owned)
    }

    pub fn wait_for_status(&self, what: &str, holds: impl Fn(&Value) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !holds(&self.lab.execute(&Command::Status).unwrap()) {
            assert!(Instant::now() < deadline, "not in time: {what}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// How much the guest's console has shown.
    pub fn console_length(&self) -> usize {
        self.console().len()
    }

    /// Waits until the guest says, after so much console output, that it is ready.
    pub fn wait_for_console(&self, after: usize) {
        let deadline = Instant::now() + PATIENCE;
        let ready = images::guest::READY.as_bytes();
        while !self.console()[after..]
            .windows(ready.len())
            .any(|shown| shown == ready)
        {
            assert!(Instant::now() < deadline, "the guest did not boot in time");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn console(&self) -> Vec<u8> {
        let file = self.lab.folder().join(format!("{GUEST}.console.log"));
        match std::fs::read(file) {
            Ok(shown) => shown,
            // It has shown nothing yet.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            Err(error) => panic!("{error}"),
        }
    }

    /// Runs a command in the guest, over a session of its own, and gives what it prints.
    pub fn run(&self, command: &str) -> String {
        let output = session::output(self.ssh(), &self.access(), command);
        String::from_utf8(output.unwrap_or_else(|error| panic!("{command}: {error}"))).unwrap()
    }

    /// A connection to the guest's SSH server.
    pub fn ssh(&self) -> Stream {
        let guest = SocketAddrV4::new(SESSION.guest_address(1), SSH_PORT);
        Stream::Unix(self.lab.client().connect(guest).unwrap())
    }

    pub fn access(&self) -> Access {
        let guest = &self.artifacts.guest;
        let host_key = std::fs::read_to_string(&guest.ssh_host_key).unwrap();
        Access::new("root", &guest.ssh_key, &host_key).unwrap()
    }
}
