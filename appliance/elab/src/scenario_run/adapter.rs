//! A lab as the scenario engine sees it.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddrV4;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::Result;
use lab_protocol::{Command, Event, ProbeKind, Record};
use scenarios::engine;
use scenarios::session::{Access, Stream};
use serde_json::Value;

use crate::endpoint::ProbeId;
use crate::endpoint::probe::ProbeConfig;
use crate::lab::Lab;
use crate::network::SESSION;

/// RFC 862.
const ECHO_PORT: u16 = 7;

/// A lab and the names of its guests.
pub struct ScenarioLab {
    lab: Lab,
    access: Access,
    /// Guests by name, with their numbers.
    guests: BTreeMap<String, u8>,
    probes: Mutex<BTreeMap<u64, ProbeId>>,
}

impl ScenarioLab {
    /// Wraps a lab. `guests` are in the order of their numbers, from 1.
    #[must_use]
    pub fn new(lab: Lab, access: Access, guests: &[String]) -> Self {
        Self {
            lab,
            access,
            guests: guests.iter().cloned().zip(1..).collect(),
            probes: Mutex::default(),
        }
    }

    /// The lab.
    #[must_use]
    pub fn lab(&self) -> &Lab {
        &self.lab
    }

    fn address(&self, guest: &str, port: u16) -> io::Result<SocketAddrV4> {
        let number = self.guests.get(guest).ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::NotFound,
                format!("there is no guest \"{guest}\""),
            )
        })?;
        Ok(SocketAddrV4::new(SESSION.guest_address(*number), port))
    }

    fn probes(&self) -> std::sync::MutexGuard<'_, BTreeMap<u64, ProbeId>> {
        self.probes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl engine::Lab for ScenarioLab {
    fn execute(&self, command: &Command) -> Result<Value, String> {
        self.lab
            .execute(command)
            .map_err(|error| format!("{error:#}"))
    }

    fn subscribe(&self, hear: Box<dyn FnMut(&Record) + Send>) {
        self.lab.journal().subscribe(hear);
    }

    fn record(&self, source: &str, event: Event) {
        self.lab
            .journal()
            .record(self.lab.clock().now_ns(), source, event);
    }

    fn now_ns(&self) -> u64 {
        self.lab.clock().now_ns()
    }

    fn connect(&self, guest: &str, port: u16) -> io::Result<Stream> {
        self.lab
            .client()
            .connect(self.address(guest, port)?)
            .map(Stream::Unix)
    }

    fn access(&self, _: &str) -> Result<Access, String> {
        Ok(self.access.clone())
    }

    fn start_probe(&self, guest: &str, kind: ProbeKind, interval: Duration) -> io::Result<u64> {
        let probe = self.lab.prober().start_probe(ProbeConfig {
            kind,
            to: self.address(guest, ECHO_PORT)?,
            interval_ns: u64::try_from(interval.as_nanos()).unwrap_or(u64::MAX),
        })?;
        let mut probes = self.probes();
        let number = probes.len() as u64;
        probes.insert(number, probe);
        Ok(number)
    }

    fn stop_probe(&self, probe: u64) -> io::Result<()> {
        let known = self.probes().get(&probe).copied();
        let probe = known.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
        self.lab.prober().stop_probe(probe)
    }

    fn folder(&self) -> &Path {
        self.lab.folder()
    }
}
