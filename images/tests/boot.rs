//! The hypervisor image on emulated machines: every way to boot it, and every way it declines to go on.

#![allow(missing_docs)]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::ops::Range;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use host_protocol::auth::{PoolKey, Purpose};
use host_protocol::{Notice, Request, codec};
use images::iso::Contents;
use images::{hypervisor, iso};
use rstest::rstest;
use tempfile::TempDir;

/// Long enough for UEFI firmware under emulation on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);
/// QEMU's UEFI firmware, from Debian's package `ovmf`.
const UEFI_FIRMWARE: &str = "/usr/share/ovmf/OVMF.fd";
/// Bytes of a PC's text screen.
const SCREEN: Range<usize> = 0xb8000..0xb8000 + 80 * 25 * 2;

fn image() -> &'static Path {
    static IMAGE: OnceLock<PathBuf> = OnceLock::new();
    IMAGE.get_or_init(|| hypervisor::build().unwrap())
}

fn iso_image(command_line: &str, modules: Vec<PathBuf>) -> PathBuf {
    let contents = Contents {
        hypervisor: image().to_owned(),
        command_line: command_line.to_owned(),
        modules,
    };
    iso::build(&contents, Path::new(env!("CARGO_TARGET_TMPDIR"))).unwrap()
}

/// A QEMU whose serial port is read line by line; killed when dropped.
struct Machine {
    qemu: Child,
    lines: Receiver<String>,
    seen: Vec<String>,
    deadline: Instant,
    folder: TempDir,
}

impl Machine {
    fn start(cpu: &str, arguments: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let monitor = folder.path().join("monitor");
        let mut qemu = Command::new("qemu-system-x86_64")
            .args(["-machine", "q35", "-accel", "tcg", "-m", "256", "-cpu", cpu])
            .args([
                "-display",
                "none",
                "-serial",
                "stdio",
                "-no-reboot",
                "-nic",
                "none",
            ])
            .arg("-qmp")
            .arg(format!("unix:{},server=on,wait=off", monitor.display()))
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("QEMU is installed: qemu-system-x86_64");
        let output = BufReader::new(qemu.stdout.take().unwrap());
        let (sender, lines) = channel();
        thread::spawn(move || {
            for line in output.split(b'\n').map_while(Result::ok) {
                let line = String::from_utf8_lossy(&line).trim_end().to_owned();
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Self {
            qemu,
            lines,
            seen: Vec::new(),
            deadline: Instant::now() + PATIENCE,
            folder,
        }
    }

    /// Waits for a line that contains `text`; gives the line.
    fn expect(&mut self, text: &str) -> String {
        loop {
            let left = self.deadline.saturating_duration_since(Instant::now());
            match self.lines.recv_timeout(left) {
                Ok(line) => {
                    self.seen.push(line.clone());
                    if line.contains(text) {
                        return line;
                    }
                }
                Err(why) => panic!(
                    "no {text:?} ({why}); the console said:\n{}",
                    self.seen.join("\n")
                ),
            }
        }
    }

    /// Waits until QEMU has ended.
    fn ended(&mut self) -> ExitStatus {
        loop {
            if let Some(status) = self.qemu.try_wait().unwrap() {
                return status;
            }
            assert!(
                Instant::now() < self.deadline,
                "QEMU goes on:\n{}",
                self.seen.join("\n")
            );
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// Asserts that nothing more is said; what halted stays silent.
    fn expect_silence(&mut self) {
        match self.lines.recv_timeout(Duration::from_millis(500)) {
            Err(RecvTimeoutError::Timeout) => {}
            other => panic!("expected silence, got {other:?}"),
        }
    }

    /// Gives QEMU a command of its machine protocol (QMP) and waits until it is done.
    fn command(&self, command: &str) {
        let mut stream = UnixStream::connect(self.folder.path().join("monitor")).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut replies = BufReader::new(stream.try_clone().unwrap()).lines();
        for command in [r#"{"execute": "qmp_capabilities"}"#, command] {
            writeln!(stream, "{command}").unwrap();
            // Greeting and events come in between.
            let reply = replies.by_ref().map(Result::unwrap).find(|line| {
                assert!(!line.contains("\"error\""), "{line}");
                line.contains("\"return\"")
            });
            assert!(reply.is_some(), "QEMU closed its monitor");
        }
    }

    /// The text on the screen.
    fn screen(&self) -> String {
        let file = self.folder.path().join("screen");
        self.command(&format!(
            r#"{{"execute": "pmemsave", "arguments": {{"val": {}, "size": {}, "filename": {file:?}}}}}"#,
            SCREEN.start,
            SCREEN.len()
        ));
        let cells = std::fs::read(file).unwrap();
        cells.chunks(2).map(|cell| char::from(cell[0])).collect()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}

#[derive(Clone, Copy, Debug)]
enum Way {
    Kernel,
    BiosCd,
    BiosDisk,
    UefiCd,
    UefiDisk,
}

impl Way {
    /// QEMU's arguments to boot the image in this way.
    fn arguments(self, command_line: &str, module: Option<&Path>) -> Vec<String> {
        let modules = module.map(Path::to_owned).into_iter().collect();
        let disc = || iso_image(command_line, modules).display().to_string();
        let disk = |disc: String| format!("file={disc},format=raw,snapshot=on");
        let strings = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
        match self {
            Self::Kernel => {
                let kernel = image().display().to_string();
                let mut all: Vec<String> = strings(&["-kernel", &kernel, "-append", command_line]);
                if let Some(module) = module {
                    all.extend(["-initrd".into(), module.display().to_string()]);
                }
                all
            }
            Self::BiosCd => strings(&["-cdrom", &disc()]),
            Self::BiosDisk => strings(&["-drive", &disk(disc())]),
            Self::UefiCd => strings(&["-bios", UEFI_FIRMWARE, "-cdrom", &disc()]),
            Self::UefiDisk => strings(&["-bios", UEFI_FIRMWARE, "-drive", &disk(disc())]),
        }
    }
}

fn as_strs(arguments: &[String]) -> Vec<&str> {
    arguments.iter().map(String::as_str).collect()
}

#[rstest]
#[case(Way::Kernel)]
#[case(Way::BiosCd)]
#[case(Way::BiosDisk)]
#[case(Way::UefiCd)]
#[case(Way::UefiDisk)]
fn it_boots_finds_its_module_and_switches_off(#[case] way: Way) {
    let folder = tempfile::tempdir().unwrap();
    let module = folder.path().join("module");
    // Not a kernel, which only somebody who reads it can tell. Large, so that a damaged module map shows.
    std::fs::write(&module, vec![0x5a; 3 << 20]).unwrap();
    let arguments = way.arguments("guest memory=32", Some(&module));
    let mut machine = Machine::start("max", &as_strs(&arguments));
    machine.expect("elab: hypervisor");
    machine.expect("MiB for VMs");
    machine.expect("guest 1 does not start");
    machine.expect("host switched off");
    assert!(machine.ended().success());
}

#[rstest]
#[case("qemu64,-svm", "does not offer AMD-V")]
#[case("EPYC,+svm,-npt", "has no nested paging")]
#[case("qemu32", "has no 64-bit mode")]
fn a_cpu_that_cannot_run_guests_is_told_on_serial_port_and_screen(
    #[case] cpu: &str,
    #[case] why: &str,
) {
    let arguments = Way::Kernel.arguments("", None);
    let mut machine = Machine::start(cpu, &as_strs(&arguments));
    let line = machine.expect(why);
    if !line.contains("host halted") {
        machine.expect("host halted");
    }
    machine.expect_silence();
    let screen = machine.screen();
    assert!(screen.contains(why), "the screen shows:\n{screen}");
    assert!(
        machine.qemu.try_wait().unwrap().is_none(),
        "it halts, it does not reset"
    );
}

#[rstest]
#[case("name=h1", "`management` is not set")]
#[case("name=h1 mtu=1 mtu=2", "`mtu` is set twice")]
#[case("memroy=32", "`memroy=32` does not describe a guest")]
fn a_mistake_in_the_settings_is_named(#[case] command_line: &str, #[case] what: &str) {
    let arguments = Way::Kernel.arguments(command_line, None);
    let mut machine = Machine::start("max", &as_strs(&arguments));
    machine.expect(what);
    machine.expect("host halted");
    machine.expect_silence();
}

/// Settings of a host of a pool, whose addresses are on networks that QEMU itself emulates.
fn pool_settings() -> String {
    format!(
        "name=h1 management=198.18.0.11/24 storage=198.18.1.11/24 nfs=198.18.1.1 export=/export key={}",
        "5a".repeat(32)
    )
}

#[test]
fn missing_network_cards_are_counted() {
    let mut arguments = Way::Kernel.arguments(&pool_settings(), None);
    arguments.extend(["-device".into(), "virtio-net-pci".into()]);
    let mut machine = Machine::start("max", &as_strs(&arguments));
    machine.expect("found 1 of 3 virtio network cards");
    machine.expect("host halted");
}

/// Network, interrupts, timers and randomness at once: a host that answers a connection has them all.
#[test]
fn a_host_proves_over_its_network_that_it_knows_the_pools_key() {
    let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .and_then(|listener| listener.local_addr())
        .unwrap()
        .port();
    let management = format!(
        "user,id=management,net=198.18.0.0/24,host=198.18.0.1,hostfwd=tcp:127.0.0.1:{port}-198.18.0.11:{}",
        host_protocol::PORT
    );
    let mut arguments = Way::Kernel.arguments(&pool_settings(), None);
    arguments.extend(["-netdev".into(), management]);
    for (slot, netdev) in [(2, ",netdev=management"), (3, ""), (4, "")] {
        arguments.extend([
            "-device".into(),
            format!("virtio-net-pci,addr={slot}{netdev}"),
        ]);
    }
    let mut machine = Machine::start("max", &as_strs(&arguments));
    machine.expect("host h1 is up");

    let nonce = [7; 16];
    let mut hello = Vec::new();
    let version = host_protocol::VERSION;
    codec::encode(&Request::Hello { version, nonce }, &mut hello).unwrap();
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(&hello).unwrap();
    let mut decoder = codec::Decoder::new();
    let notice = loop {
        if let Some(notice) = decoder.message::<Notice>().unwrap() {
            break notice;
        }
        let mut bytes = [0; 1024];
        let count = stream.read(&mut bytes).unwrap();
        assert!(count > 0, "the host closed the connection");
        decoder.push(&bytes[..count]);
    };
    let Notice::Welcome {
        nonce: theirs,
        mac,
        host,
        ..
    } = notice
    else {
        panic!("expected a welcome, got {notice:?}");
    };
    assert_eq!(host, "h1");
    let proves =
        |key: [u8; 32]| PoolKey::new(key).accepts(Purpose::ControlHost, &nonce, &theirs, &mac);
    assert!(proves([0x5a; 32]));
    assert!(!proves([0x5b; 32]), "any key would do");
}

#[test]
fn a_panic_says_where_and_nothing_runs_after_it() {
    let mut arguments = Way::Kernel.arguments(&pool_settings(), None);
    for _ in 0..3 {
        arguments.extend(["-device".into(), "virtio-net-pci".into()]);
    }
    let mut machine = Machine::start("max", &as_strs(&arguments));
    machine.expect("host h1 is up");
    machine.command(r#"{"execute": "inject-nmi"}"#);
    let place = machine.expect("host panic");
    assert!(place.contains("idt.rs:"), "{place}");
    machine.expect("non-maskable interrupt");
    let addresses = machine.expect("return addresses: 0x");
    assert!(addresses.matches("0x").count() >= 3, "{addresses}");
    machine.expect("host halted");
    machine.expect_silence();
    assert!(machine.screen().contains("host panic"));
    assert!(
        machine.qemu.try_wait().unwrap().is_none(),
        "it halts, it does not reset"
    );
}
