//! Linux's own NFS client, in a small machine under QEMU: Connectathon's basic and special tests, a busy client whose server
//! is killed and started again, `fsx` and `pjdfstest`.
//!
//! Needs the packages `qemu-system-x86`, `dpkg` and `kmod` or what takes their place, and a C library for static linking; the
//! rest is fetched and built the first time.

mod cpio;
mod machine;
#[path = "../support/mod.rs"]
mod support;
mod system;

use std::time::{Duration, Instant};

use machine::{Machine, initramfs};
use support::program::Program;
use system::System;

/// What pjdfstest may find, each with its reason. NFS-Ganesha has six.
const EXPECTED_FAILURES: [(&str, &str); 1] = [(
    "unlink::open_file_not_freed",
    "version 3 of NFS knows no open files: Linux renames one that is removed while it is open, and so it keeps its link",
)];
/// Checks in `init.sh`; all of them must be made.
const CHECKS: usize = 34;
/// Linux connects again three seconds after a server has refused it, at the earliest (XS_TCP_INIT_REEST_TO in net/sunrpc/xprtsock.c),
/// and an emulated machine takes its time for the rest.
const RETRY: Duration = Duration::from_secs(5);

#[test]
fn linux_mounts_works_and_survives_restarts_of_the_server() {
    let system = System::get();
    let dir = tempfile::tempdir().expect("temporary directory");
    let export = dir.path().join("export");
    std::fs::create_dir(&export).expect("directory");
    let mut server = Program::start(&export, &[]);
    let listen = server.address.to_string();
    let archive = dir.path().join("initramfs");
    std::fs::write(&archive, initramfs(&system, server.address.port())).expect("write");
    let (_machine, output) = Machine::start(&system.kernel, &archive);
    let (mut lines, mut restart, begun) = (Vec::new(), Duration::ZERO, Instant::now());
    for line in output {
        println!("{:>6.1} {line}", begun.elapsed().as_secs_f64());
        let pauses: &[u64] = match &*line {
            "BUSY" => &[300, 700, 200, 500],
            "GAP" => &[3000],
            _ => &[],
        };
        for pause in pauses {
            // The client is to be met at whatever it is doing just then.
            std::thread::sleep(Duration::from_millis(*pause));
            let killed = Instant::now();
            drop(server);
            if line == "GAP" {
                // Long enough for the client to try in vain.
                std::thread::sleep(Duration::from_secs(1));
            }
            server = Program::on(&export, &listen, &[]);
            restart = killed.elapsed();
        }
        lines.push(line);
    }
    assert!(
        lines.iter().any(|line| line == "END"),
        "the machine did not come to its end"
    );
    let beginning = |word: &str| -> Vec<&String> {
        lines.iter().filter(|line| line.starts_with(word)).collect()
    };
    let none: [&String; 0] = [];
    assert_eq!(beginning("FAIL"), none);
    assert_eq!(beginning("PASS").len(), CHECKS);
    let longest = beginning("LONGEST ")[0].trim_start_matches("LONGEST ");
    let longest = Duration::from_millis(longest.parse().expect("milliseconds"));
    println!("a write waited for {longest:?} at most; the server was away for {restart:?}");
    assert!(longest <= restart + RETRY);
    assert!(!beginning("Summary").is_empty(), "pjdfstest ran to its end");
    let unexpected: Vec<&String> = lines
        .iter()
        .filter(|line| line.ends_with("FAILED"))
        .filter(|line| {
            !EXPECTED_FAILURES
                .iter()
                .any(|(known, _)| line.starts_with(known))
        })
        .collect();
    assert_eq!(unexpected, none);
}
