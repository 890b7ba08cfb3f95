//! The server as a program of its own.

use std::{
    io::{BufRead, BufReader, Write},
    net::SocketAddr,
    path::Path,
    process::{Child, Command, Stdio},
};

/// A running `nfs-sr serve`. Killed, as by SIGKILL, when dropped.
pub struct Program {
    child: Child,
    pub address: SocketAddr,
    /// What it said when it was ready.
    pub ready: serde_json::Value,
}

impl Program {
    /// On a port of its own.
    pub fn start(directory: &Path, arguments: &[&str]) -> Self {
        Self::on(directory, "127.0.0.1:0", arguments)
    }

    pub fn on(directory: &Path, listen: &str, arguments: &[&str]) -> Self {
        // A command that does nothing but run its arguments.
        Self::spawn(Command::new("env"), directory, listen, arguments)
    }

    /// As the arguments of `command`.
    pub fn spawn(command: Command, directory: &Path, listen: &str, arguments: &[&str]) -> Self {
        let (program, reports) = Self::heard(command, directory, listen, arguments);
        // They are of no interest, but must be read.
        std::thread::spawn(move || reports.for_each(drop));
        program
    }

    /// The same, with what it reports after it was ready, until it ends. If nobody reads that, it stays unsaid.
    pub fn heard(
        mut command: Command,
        directory: &Path,
        listen: &str,
        arguments: &[&str],
    ) -> (Self, impl Iterator<Item = serde_json::Value> + use<>) {
        let mut child = command
            .stdin(Stdio::piped())
            .arg(env!("CARGO_BIN_EXE_nfs-sr"))
            .arg("serve")
            .arg(directory)
            .args(["--listen", listen])
            .args(arguments)
            .stdout(Stdio::piped())
            .spawn()
            .expect("start");
        let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        let ready: serde_json::Value =
            serde_json::from_str(&lines.next().expect("a line").expect("UTF-8")).expect("JSON");
        let address = ready["tcp"].as_str().expect("an address");
        let address = address.parse().expect("an address");
        let program = Self {
            child,
            address,
            ready,
        };
        // The last line may have been cut off.
        let reports = lines.map_while(|line| serde_json::from_str(&line.expect("UTF-8")).ok());
        (program, reports)
    }

    /// Writes to its standard input.
    pub fn tell(&mut self, line: &str) {
        let stdin = self.child.stdin.as_mut().expect("piped");
        writeln!(stdin, "{line}").expect("it reads");
    }

    pub fn pid(&self) -> rustix::process::Pid {
        rustix::process::Pid::from_child(&self.child)
    }

    /// Until it has ended.
    pub fn wait(&mut self) {
        self.child.wait().expect("reaped");
    }

    /// Most memory that was ever in use, in MiB.
    pub fn peak_mib(&self) -> u64 {
        let status =
            std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).expect("it runs");
        let line = status
            .lines()
            .find(|line| line.starts_with("VmHWM"))
            .expect("Linux says so");
        line.split_whitespace()
            .nth(1)
            .and_then(|kib| kib.parse::<u64>().ok())
            .expect("a number")
            / 1024
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.child.kill().expect("kill");
        self.wait();
    }
}
