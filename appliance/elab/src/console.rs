//! `elab console`: joins this terminal with a VM's serial console, until Ctrl-].

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::AsFd;
use std::path::Path;

use anyhow::{Context, Result, bail};
use lab_protocol::Command;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::termios::{self, SetArg, Termios};

use crate::client::Client;

/// Ctrl-], as telnet has it.
const DETACH: u8 = 0x1d;
/// So much of what was printed before is shown at first.
const SHOWN: u64 = 4096;
/// How often the console's file is looked at.
const LOOK_EVERY_MS: u8 = 20;

/// Puts the terminal into raw mode and back.
struct RawMode {
    before: Termios,
}

impl RawMode {
    fn enter() -> Result<Self> {
        let before = termios::tcgetattr(io::stdin()).context("standard input is no terminal")?;
        let mut raw = before.clone();
        termios::cfmakeraw(&mut raw);
        termios::tcsetattr(io::stdin(), SetArg::TCSANOW, &raw)
            .context("cannot change the terminal")?;
        Ok(Self { before })
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        // A terminal that is gone needs nothing.
        let _ = termios::tcsetattr(io::stdin(), SetArg::TCSANOW, &self.before);
    }
}

/// Attaches to the console of `vm` until Ctrl-] or the end of input.
///
/// # Errors
/// When the VM has no console yet, or the lab ends.
pub fn attach(client: &mut Client, vm: &str) -> Result<()> {
    let path = client.folder().join(format!("{vm}.console.log"));
    let mut output = open_at_end(&path).with_context(|| {
        format!("VM \"{vm}\" has printed nothing yet; `elab vm list` shows whether it runs")
    })?;
    eprintln!("attached to {vm}; Ctrl-] detaches");
    let raw = RawMode::enter()?;
    let result = copy(client, vm, &mut output);
    drop(raw);
    eprintln!("\ndetached from {vm}");
    result
}

fn open_at_end(path: &Path) -> io::Result<File> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(SHOWN)))?;
    Ok(file)
}

fn copy(client: &mut Client, vm: &str, output: &mut File) -> Result<()> {
    let (stdin, mut stdout) = (io::stdin(), io::stdout());
    let mut bytes = [0; 4096];
    // Bytes of a character that has not arrived whole.
    let mut typed: Vec<u8> = Vec::new();
    loop {
        loop {
            match output.read(&mut bytes).context("cannot read the console")? {
                0 => break,
                count => stdout.write_all(&bytes[..count])?,
            }
        }
        stdout.flush()?;
        let mut fds = [PollFd::new(stdin.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, PollTimeout::from(LOOK_EVERY_MS)) {
            Ok(0) | Err(nix::errno::Errno::EINTR) => continue,
            Ok(_) => {}
            Err(errno) => bail!("cannot wait for keys: {errno}"),
        }
        // Not through std's buffer, which poll would not see.
        let count = nix::unistd::read(stdin.as_fd(), &mut bytes).context("cannot read keys")?;
        if count == 0 {
            return Ok(());
        }
        let detach = bytes[..count].iter().position(|byte| *byte == DETACH);
        typed.extend_from_slice(&bytes[..detach.unwrap_or(count)]);
        let whole = match std::str::from_utf8(&typed) {
            Ok(_) => typed.len(),
            Err(error) if error.error_len().is_none() => error.valid_up_to(),
            Err(_) => typed.len(),
        };
        if whole > 0 {
            let text = String::from_utf8_lossy(&typed[..whole]).into_owned();
            client.execute(&Command::ConsoleInput {
                vm: vm.into(),
                text,
            })?;
            typed.drain(..whole);
        }
        if detach.is_some() {
            return Ok(());
        }
    }
}
