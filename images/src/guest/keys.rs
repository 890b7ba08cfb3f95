//! Keys of the session: the guest's host key and the client's key, both Ed25519, new for each built guest.
//!
//! The guest's own dropbear tools make them, run from the unpacked packages with their own loader and
//! libraries, because dropbear's key format is dropbear's business.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use xshell::{Shell, cmd};

/// The keys of a guest.
pub struct Keys {
    /// Dropbear's format.
    pub host_private: Vec<u8>,
    /// One line.
    pub host_public: String,
    /// A file in OpenSSH's format.
    pub client_private: PathBuf,
    /// One line.
    pub client_public: String,
}

/// Makes new keys with the programs below `root`; files go to `work`.
pub fn generate(sh: &Shell, root: &Path, work: &Path) -> Result<Keys> {
    let loader = root.join("lib64/ld-linux-x86-64.so.2");
    let libraries = root.join("usr/lib/x86_64-linux-gnu");
    let dropbearkey = root.join("usr/bin/dropbearkey");
    let make = |name: &str| -> Result<(PathBuf, String)> {
        let file = work.join(name);
        let text = cmd!(
            sh,
            "{loader} --library-path {libraries} {dropbearkey} -t ed25519 -f {file}"
        )
        .quiet()
        .ignore_stderr()
        .read()
        .context("cannot generate a key with the guest's dropbearkey")?;
        let line = text
            .lines()
            .find(|line| line.starts_with("ssh-ed25519 "))
            .context("dropbearkey printed no public key")?;
        // Without the comment, which names the user and the machine.
        let words: Vec<&str> = line.split(' ').take(2).collect();
        Ok((file, format!("{} elab\n", words.join(" "))))
    };
    let (host, host_public) = make("host_key")?;
    let (client, client_public) = make("client_key")?;
    let client_private = work.join("id_ed25519");
    let convert = root.join("usr/bin/dropbearconvert");
    cmd!(
        sh,
        "{loader} --library-path {libraries} {convert} dropbear openssh {client} {client_private}"
    )
    .quiet()
    .ignore_stdout()
    .ignore_stderr()
    .run()
    .context("cannot convert a key with the guest's dropbearconvert")?;
    Ok(Keys {
        host_private: fs::read(host)?,
        host_public,
        client_private,
        client_public,
    })
}
