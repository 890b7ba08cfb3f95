//! Two pools: a guest goes out of one as a file, and comes up in the other with what its user had written.
//!
//! The pools are two labs, each with hosts, switch and storage server of its own.

use std::net::SocketAddrV4;
use std::process::{Command as Program, Output};
use std::time::{Duration, Instant};

use elab::assembly::{self, Artifacts, Choices, GUEST, GuestChoice};
use elab::lab::Lab;
use elab::network::SESSION;
use lab_protocol::Command;
use scenarios::session::{self, Access, Stream};

use crate::real_lab::{end, take_turn};

/// Whatever is waited for comes within this, however busy the machine is.
const PATIENCE: Duration = Duration::from_secs(120);
const SSH_PORT: u16 = 22;
const MOVED: &str = "moved";

struct Pool {
    lab: Lab,
    artifacts: Artifacts,
}

impl Pool {
    fn start(name: &str) -> Self {
        let choices = Choices {
            name: name.into(),
            hosts: 1,
            host_memory_mib: 512,
            fast_boot: true,
            image: None,
            first_image: None,
            seed: 1,
            capture: false,
            guests: vec![GuestChoice::default()],
        };
        let progress = |text: &str| eprintln!("{text}");
        let accelerator = assembly::choose_accelerator(&progress);
        let artifacts = assembly::artifacts(&choices, &progress).unwrap();
        let mut config = assembly::lab_config(&choices, &artifacts, &accelerator).unwrap();
        // By itself it is this very program, which is a test here.
        config.storage.as_mut().unwrap().program = env!("CARGO_BIN_EXE_elab").into();
        let lab = Lab::start(config).unwrap();
        lab.power_on_all(PATIENCE).unwrap();
        Self { lab, artifacts }
    }

    fn boot(&self, vm: &str) {
        let (vm, host) = (vm.to_owned(), "h1".into());
        let start = Command::VmStart {
            vm: vm.clone(),
            host,
        };
        self.lab.execute(&start).unwrap();
        self.lab
            .wait_for_console(&vm, images::guest::READY, PATIENCE)
            .unwrap();
    }

    /// What a command in the guest prints.
    fn run(&self, command: &str) -> String {
        let guest = &self.artifacts.guest;
        let host_key = std::fs::read_to_string(&guest.ssh_host_key).unwrap();
        let access = Access::new("root", &guest.ssh_key, &host_key).unwrap();
        let address = SocketAddrV4::new(SESSION.guest_address(1), SSH_PORT);
        let stream = Stream::Unix(self.lab.client().connect(address).unwrap());
        let output = session::output(stream, &access, command);
        String::from_utf8(output.unwrap_or_else(|error| panic!("{command}: {error}"))).unwrap()
    }
}

fn elab(arguments: &[&str]) -> Output {
    Program::new(env!("CARGO_BIN_EXE_elab"))
        .args(arguments)
        .output()
        .unwrap()
}

fn succeeds(output: &Output) {
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
fn a_guest_comes_up_in_another_pool_with_what_its_user_had_written() {
    let _turn = take_turn();
    let folder = tempfile::tempdir().unwrap();
    let archive = folder.path().join("session.xva");
    let archive = archive.to_str().unwrap();
    let (a, b) = (Pool::start("test-pool-a"), Pool::start("test-pool-b"));
    a.boot(GUEST);
    let document = a.run("seq 1 20000 > /root/library && sync && sha256sum /root/library");

    let refused = elab(&["export", GUEST, archive, "--name", "test-pool-a"]);
    let words = String::from_utf8_lossy(&refused.stderr);
    assert!(
        !refused.status.success() && words.contains("is open at"),
        "{words}"
    );

    let gone = Instant::now();
    a.lab
        .execute(&Command::VmShutdown { vm: GUEST.into() })
        .unwrap();
    let off = gone.elapsed();
    succeeds(&elab(&["export", GUEST, archive, "--name", "test-pool-a"]));
    let exported = gone.elapsed();
    succeeds(&elab(&[
        "import",
        archive,
        "--name",
        "test-pool-b",
        "--vm-name",
        MOVED,
    ]));
    let imported = gone.elapsed();
    b.boot(MOVED);
    let there = b.run("sha256sum /root/library");
    let back = gone.elapsed();
    assert_eq!(there, document);
    println!(
        "the user was without the guest for {:.1} s: shutdown {:.1}, export {:.1}, import {:.1}, boot {:.1}",
        back.as_secs_f64(),
        off.as_secs_f64(),
        (exported - off).as_secs_f64(),
        (imported - exported).as_secs_f64(),
        (back - imported).as_secs_f64(),
    );
    end(&a.lab);
    end(&b.lab);
}
