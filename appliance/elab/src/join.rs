//! How anyone joins the guest of a running lab with the machine's own `ssh`: a port on loopback, and a configuration for it in
//! the run folder that names the port, the user's key and the guest's host key.

use std::fs;
use std::net::{SocketAddrV4, TcpListener};
use std::path::Path;

use anyhow::{Context, Result};
use scenarios::session::Access;

use crate::assembly::{Artifacts, GUEST};
use crate::lab::Lab;
use crate::network::SESSION;

/// RFC 4253.
pub(crate) const SSH_PORT: u16 = 22;
/// The configuration's name in the run folder.
const CONFIGURATION: &str = "ssh.conf";
const KNOWN_HOSTS: &str = "ssh.known_hosts";

/// How to log in to the guest, for this program's own sessions.
///
/// # Errors
/// When a key cannot be read.
pub(crate) fn access(artifacts: &Artifacts) -> Result<Access> {
    let host_key = &artifacts.guest.ssh_host_key;
    let text = fs::read_to_string(host_key)
        .with_context(|| format!("cannot read {}", host_key.display()))?;
    Ok(Access::new("root", &artifacts.guest.ssh_key, &text)?)
}

/// Opens the port and gives the command that joins the guest.
///
/// # Errors
/// When no port is free, or the run folder cannot be written.
pub fn by_ssh(lab: &Lab, artifacts: &Artifacts) -> Result<String> {
    let port = forward(lab)?;
    let guest = &artifacts.guest;
    let host_key = &guest.ssh_host_key;
    let host_key = fs::read_to_string(host_key)
        .with_context(|| format!("cannot read {}", host_key.display()))?;
    let key = guest
        .ssh_key
        .canonicalize()
        .with_context(|| format!("cannot find {}", guest.ssh_key.display()))?;
    let folder = lab.folder();
    let known_hosts = folder.join(KNOWN_HOSTS);
    write(
        &known_hosts,
        &format!("[127.0.0.1]:{port} {}\n", host_key.trim()),
    )?;
    let configuration = folder.join(CONFIGURATION);
    write(
        &configuration,
        &format!(
            "Host {GUEST}\n  HostName 127.0.0.1\n  Port {port}\n  User root\n  IdentityFile {}\n  IdentitiesOnly yes\n  UserKnownHostsFile {}\n  StrictHostKeyChecking yes\n",
            quoted(&key),
            quoted(&known_hosts),
        ),
    )?;
    Ok(format!("ssh -F {} {GUEST}", quoted(&configuration)))
}

/// Opens a port on loopback that leads to the guest's SSH server.
fn forward(lab: &Lab) -> Result<u16> {
    let listener = TcpListener::bind("127.0.0.1:0").context("no port on loopback is free")?;
    let port = listener
        .local_addr()
        .context("the port has no number")?
        .port();
    let guest = SocketAddrV4::new(SESSION.guest_address(1), SSH_PORT);
    lab.client()
        .forward(listener, guest)
        .context("cannot forward the port")?;
    Ok(port)
}

/// Both `ssh_config(5)` and the shell take a path with spaces in double quotes.
fn quoted(path: &Path) -> String {
    let path = path.display().to_string();
    if path.contains(' ') {
        format!("\"{path}\"")
    } else {
        path
    }
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_with_spaces_is_quoted() {
        assert_eq!(quoted(Path::new("/a/b")), "/a/b");
        assert_eq!(quoted(Path::new("/a b/c")), "\"/a b/c\"");
    }
}
