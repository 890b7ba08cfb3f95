//! The command line of a host's QEMU.
//!
//! A card is joined to the switch by a connected Unix socket that QEMU inherits (`-netdev socket,fd=`, which takes a socket's
//! kind from the socket; `net/socket.c`). `-netdev stream` would connect by itself, but came with QEMU 7.2 only, and is
//! no faster.

use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::fcntl::{FcntlArg, FdFlag, fcntl};

use crate::accelerator::Accelerator;
use crate::lab::{HostSpec, Launcher};
use crate::network::NETWORKS;

/// What a host boots from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Boot {
    /// The hybrid ISO through firmware and GRUB, as on a real machine.
    Iso(PathBuf),
    /// The ELF by QEMU's own loader: faster, and not what a real machine does.
    Kernel(PathBuf),
}

impl Boot {
    /// The file.
    #[must_use]
    pub fn path(&self) -> &Path {
        match self {
            Self::Iso(path) | Self::Kernel(path) => path,
        }
    }
}

/// Starts hosts in QEMU.
#[derive(Clone, Debug)]
pub struct Qemu {
    /// The program.
    pub program: PathBuf,
    /// What hosts boot from.
    pub boot: Boot,
    /// What the first host boots from instead: another version, from and to which guests then move.
    pub first: Option<Boot>,
    /// KVM or TCG.
    pub accelerator: Accelerator,
}

impl Launcher for Qemu {
    fn command(&self, host: &HostSpec, folder: &Path) -> io::Result<Command> {
        let mut command = Command::new(&self.program);
        command.current_dir(folder);
        let mut cards = Vec::new();
        let mut arg = |name: &str, value: String| {
            command.arg(name).arg(value);
        };
        arg("-name", format!("{0},process=elab-{0}", host.name));
        arg("-machine", self.accelerator.machine().into());
        arg("-accel", self.accelerator.name().into());
        arg("-cpu", self.accelerator.cpu_model().into());
        arg("-smp", "1".into());
        arg("-m", host.memory_mib.to_string());
        arg("-display", "none".into());
        arg("-monitor", "none".into());
        arg("-serial", format!("file:{}.serial.log", host.name));
        for (network, slot) in NETWORKS.iter().zip(2..) {
            let id = network.name;
            let card = UnixStream::connect(folder.join(socket_name(&host.name, id)))?;
            arg("-netdev", format!("socket,id={id},fd={}", card.as_raw_fd()));
            cards.push(card);
            let mac = network
                .host_mac(host.number)
                .map(|byte| format!("{byte:02x}"))
                .join(":");
            let mtu = network.mtu;
            arg(
                "-device",
                format!("virtio-net-pci,netdev={id},mac={mac},addr={slot},host_mtu={mtu},romfile="),
            );
        }
        arg(
            "-fw_cfg",
            format!("name=opt/elab/config,file={}.conf", host.name),
        );
        let other = self.first.as_ref().filter(|_| host.number == 1);
        match other.unwrap_or(&self.boot) {
            Boot::Iso(path) => {
                arg("-cdrom", path.display().to_string());
                arg("-boot", "d".into());
            }
            Boot::Kernel(path) => arg("-kernel", path.display().to_string()),
        }
        command.args(["-nodefaults", "-no-user-config", "-no-reboot"]);
        inherit(&mut command, cards);
        Ok(command)
    }
}

/// Has this command's process, and no other, inherit the sockets; they are closed here when the command is dropped.
fn inherit(command: &mut Command, sockets: Vec<UnixStream>) {
    // SAFETY: between fork and exec the closure calls fcntl alone, which is async-signal-safe, and allocates nothing.
    unsafe {
        command.pre_exec(move || {
            for socket in &sockets {
                fcntl(socket, FcntlArg::F_SETFD(FdFlag::empty()))?;
            }
            Ok(())
        });
    }
}

/// Name of the socket below the run folder on which the switch waits for a host's card.
#[must_use]
pub fn socket_name(host: &str, network: &str) -> String {
    format!("{host}-{network}.sock")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cards_are_in_the_order_and_slots_the_image_expects() {
        let qemu = Qemu {
            program: "qemu-system-x86_64".into(),
            boot: Boot::Kernel("/images/hvcore".into()),
            first: None,
            accelerator: Accelerator::tcg("no KVM in a test"),
        };
        let host = HostSpec {
            name: "h1".into(),
            number: 1,
            memory_mib: 1024,
        };
        let folder = tempfile::tempdir().unwrap();
        let _switch = NETWORKS.map(|network| {
            let socket = folder.path().join(socket_name("h1", network.name));
            std::os::unix::net::UnixListener::bind(socket).unwrap()
        });
        let command = qemu.command(&host, folder.path()).unwrap();
        let args: Vec<_> = command
            .get_args()
            .map(|arg| arg.to_string_lossy().into_owned())
            .collect();
        let cards: Vec<_> = args
            .iter()
            .filter(|arg| arg.starts_with("virtio-net-pci"))
            .collect();
        assert!(
            cards[0].contains("netdev=mgmt,mac=02:e1:ab:00:00:01,addr=2,host_mtu=9000"),
            "{cards:?}"
        );
        assert!(
            cards[1].contains("netdev=storage,mac=02:e1:ab:01:00:01,addr=3"),
            "{cards:?}"
        );
        assert!(
            cards[2].contains("netdev=session,mac=02:e1:ab:02:00:01,addr=4,host_mtu=1500"),
            "{cards:?}"
        );
        assert!(args.iter().any(|arg| arg.starts_with("socket,id=mgmt,fd=")));
        assert!(
            args.windows(2)
                .any(|pair| pair == ["-kernel", "/images/hvcore"])
        );
    }

    #[test]
    fn only_the_first_host_boots_the_other_version() {
        let qemu = Qemu {
            program: "qemu-system-x86_64".into(),
            boot: Boot::Iso("/images/new.iso".into()),
            first: Some(Boot::Iso("/images/old.iso".into())),
            accelerator: Accelerator::tcg("no KVM in a test"),
        };
        let folder = tempfile::tempdir().unwrap();
        for (number, image) in [(1, "/images/old.iso"), (2, "/images/new.iso")] {
            let host = HostSpec {
                name: format!("h{number}"),
                number,
                memory_mib: 1024,
            };
            let _switch = NETWORKS.map(|network| {
                let socket = folder.path().join(socket_name(&host.name, network.name));
                std::os::unix::net::UnixListener::bind(socket).unwrap()
            });
            let command = qemu.command(&host, folder.path()).unwrap();
            let args: Vec<_> = command.get_args().collect();
            assert!(args.windows(2).any(|pair| pair == ["-cdrom", image]));
        }
    }

    #[test]
    fn a_card_is_inherited_by_its_host_alone_and_falls_with_it() {
        use std::io::{Read, Write};
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        let mut host = Command::new("sh");
        host.args(["-c", &format!("cat <&{0} >&{0}", theirs.as_raw_fd())]);
        inherit(&mut host, vec![theirs]);
        let mut host = {
            let child = host.spawn().unwrap();
            drop(host);
            child
        };
        // A process that is started meanwhile holds nothing of it.
        let mut other = Command::new("sleep").arg("1000").spawn().unwrap();
        ours.write_all(b"frame").unwrap();
        let mut echo = [0; 5];
        ours.read_exact(&mut echo).unwrap();
        assert_eq!(&echo, b"frame");
        host.kill().unwrap();
        host.wait().unwrap();
        // `cat` may outlive its shell until its input ends.
        ours.shutdown(std::net::Shutdown::Write).unwrap();
        assert_eq!(ours.read(&mut echo).unwrap(), 0);
        other.kill().unwrap();
        other.wait().unwrap();
    }
}
