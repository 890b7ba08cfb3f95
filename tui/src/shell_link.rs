//! The way into the guest: by the file that a lab writes for `ssh` into its folder.

use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::mpsc::Sender;
use std::time::Instant;

use anyhow::{Context, Result};
use scenarios::session::{Access, Said, Shell, Stream};

use crate::app::Input;

/// Name of the file in a run's folder; see `ssh_config(5)`.
pub const CONFIGURATION: &str = "ssh.conf";

/// What of the file is needed.
#[derive(Debug, PartialEq, Eq)]
struct Way {
    address: SocketAddr,
    user: String,
    key: String,
    known_hosts: String,
}

impl Way {
    fn parse(text: &str) -> Option<Self> {
        let field = |name: &str| {
            text.lines().find_map(|line| {
                let (word, value) = line.trim().split_once(' ')?;
                (word == name).then(|| value.trim().trim_matches('"').to_owned())
            })
        };
        Some(Self {
            address: format!("{}:{}", field("HostName")?, field("Port")?)
                .parse()
                .ok()?,
            user: field("User")?,
            key: field("IdentityFile")?,
            known_hosts: field("UserKnownHostsFile")?,
        })
    }
}

/// Opens a shell in the guest of the run in `folder`. What it prints comes as inputs, stamped by a clock that began at `began`.
///
/// # Errors
/// When the lab is not joinable.
pub fn open(
    folder: &Path,
    size: (u16, u16),
    began: Instant,
    inputs: Sender<Input>,
) -> Result<Shell> {
    let path = folder.join(CONFIGURATION);
    let text = std::fs::read_to_string(&path)
        .with_context(|| format!("cannot read {}", path.display()))?;
    let way = Way::parse(&text).with_context(|| format!("{} lacks a field", path.display()))?;
    let known = std::fs::read_to_string(&way.known_hosts)
        .with_context(|| format!("cannot read {}", way.known_hosts))?;
    // A line is the host's name and its key.
    let (_, host_key) = known
        .lines()
        .next()
        .and_then(|line| line.split_once(' '))
        .with_context(|| format!("{} names no key", way.known_hosts))?;
    let access = Access::new(&way.user, Path::new(&way.key), host_key)?;
    let stream = TcpStream::connect(way.address)
        .with_context(|| format!("nobody listens at {}", way.address))?;
    let said = move |said| {
        let input = match said {
            Said::Output { bytes, at } => Input::ShellPrinted {
                bytes,
                at_ns: u64::try_from(at.saturating_duration_since(began).as_nanos())
                    .unwrap_or(u64::MAX),
            },
            Said::Ended(reason) => Input::ShellEnded(reason),
        };
        // Nobody looks any more when this fails.
        let _ = inputs.send(input);
    };
    Shell::start(Stream::Tcp(stream), access, size, said).context("cannot start a thread")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_way_is_read_as_it_is_written() {
        let text = "Host session\n  HostName 127.0.0.1\n  Port 40123\n  User root\n  IdentityFile \"/a b/key\"\n  IdentitiesOnly yes\n  UserKnownHostsFile /run/ssh.known_hosts\n";
        let way = Way::parse(text).unwrap();
        assert_eq!(way.address, "127.0.0.1:40123".parse().unwrap());
        assert_eq!(
            (
                way.user.as_str(),
                way.key.as_str(),
                way.known_hosts.as_str()
            ),
            ("root", "/a b/key", "/run/ssh.known_hosts")
        );
        assert_eq!(Way::parse("Host session\n"), None);
    }
}
