//! A running lab: its hosts, its switch with endpoints, its storage server and its VMs.
//!
//! [`Lab`] owns everything and is driven by [`lab_protocol::Command`]s alone, whether they come from this process, from
//! `lab.sock` or from a test. Whoever waits, waits on one condition variable over [`state::State`], with a deadline;
//! host connections and child processes report from threads of their own.

mod availability;
mod clones;
mod coalesce;
mod commands;
mod hosts;
mod reconcile;
pub mod records;
mod repository_use;
mod restart_points;
mod server;
pub mod snapshots;
mod state;
mod statistics;
mod storage;
mod suspended;
#[cfg(test)]
mod test_lab;
mod translate;
mod vms;

use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use host_protocol::auth::PoolKey;
use host_protocol::{NegativeControls, VmConfig};
use lab_protocol::Event;
use switch::{LabClock, Noticed, Switch, SwitchConfig, SwitchNotice};

use crate::endpoint::{Endpoint, EndpointConfig};
use crate::entropy;
use crate::journal::{Journal, JournalWriter};
use crate::network::{MANAGEMENT, NETWORKS, Network, PREFIX, SESSION};
use crate::run_folder::RunFolder;

pub use state::Power;
use state::State;
pub use storage::StorageProgram;

/// Builds the command that is a host: QEMU, or a stand-in in tests.
pub trait Launcher: Send + Sync {
    /// The command; it runs in `folder`, where the host's settings are in `<name>.conf` and the switch listens for its
    /// cards.
    ///
    /// # Errors
    /// When the system lacks what the command needs.
    fn command(&self, host: &HostSpec, folder: &Path) -> io::Result<Command>;
}

/// A host of the lab.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostSpec {
    /// `h1`, `h2`, ...
    pub name: String,
    /// Counted from 1; its addresses follow from it.
    pub number: u8,
    /// Size of its RAM.
    pub memory_mib: u32,
}

/// What a lab is made of.
pub struct LabConfig {
    /// Name; also that of its folder.
    pub name: String,
    /// Where run folders lie.
    pub base: PathBuf,
    /// Number of hosts.
    pub hosts: u8,
    /// RAM of each.
    pub host_memory_mib: u32,
    /// Starts them.
    pub launcher: Box<dyn Launcher>,
    /// The storage server, if there is one.
    pub storage: Option<StorageProgram>,
    /// VMs that can be started.
    pub vms: Vec<VmConfig>,
    /// Decides what link faults leave to chance.
    pub seed: u64,
    /// Write what passes each port of a host to a pcapng file.
    pub capture: bool,
    /// For the log's first record.
    pub facts: MachineFacts,
}

/// What a lab runs on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MachineFacts {
    /// `tcg` or `kvm`.
    pub accelerator: String,
    /// Version of QEMU.
    pub qemu: String,
    /// Model of the CPU.
    pub cpu: String,
}

/// A running lab. Ends with [`Lab::stop`], or in haste when dropped.
pub struct Lab {
    inner: Arc<Inner>,
    writer: Mutex<Option<JournalWriter>>,
}

/// What the lab's threads share.
pub(crate) struct Inner {
    pub(crate) name: String,
    pub(crate) folder: RunFolder,
    pub(crate) clock: LabClock,
    pub(crate) journal: Journal,
    pub(crate) key: PoolKey,
    key_hex: String,
    specs: Vec<HostSpec>,
    launcher: Box<dyn Launcher>,
    storage_program: Option<StorageProgram>,
    facts: MachineFacts,
    // Endpoints go before the switch that carries them.
    control: Endpoint,
    pub(crate) client: Endpoint,
    pub(crate) prober: Endpoint,
    pub(crate) switch: Switch,
    pub(crate) state: Mutex<State>,
    pub(crate) changed: Condvar,
    /// How the repository's disks hang together is changed by one at a time.
    chains: Mutex<()>,
}

impl Lab {
    /// Starts switch, endpoints, storage server and command socket; hosts stay off.
    ///
    /// # Errors
    /// When the folder is taken, the system lacks something, or the storage server does not start.
    pub fn start(config: LabConfig) -> Result<Self> {
        let folder = RunFolder::take(&config.base, &config.name)?;
        let clock = LabClock::start();
        let (journal, writer) =
            Journal::create(&folder.file("events.jsonl")).context("cannot begin the event log")?;
        journal.record(
            0,
            "lab",
            Event::LabStarted {
                name: config.name.clone(),
                version: env!("CARGO_PKG_VERSION").into(),
                accelerator: config.facts.accelerator.clone(),
                qemu: config.facts.qemu.clone(),
                cpu: config.facts.cpu.clone(),
                unix_ns: clock.start_unix_ns(),
            },
        );
        let (notices, noticed) = mpsc::channel();
        let switch = Switch::start(
            SwitchConfig {
                networks: NETWORKS.map(Network::config).to_vec(),
                seed: config.seed,
                clock,
                prepare_thread: crate::priority::raise,
            },
            notices,
        )?;
        let specs: Vec<_> = (1..=config.hosts)
            .map(|number| HostSpec {
                name: format!("h{number}"),
                number,
                memory_mib: config.host_memory_mib,
            })
            .collect();
        for spec in &specs {
            for network in NETWORKS {
                let socket = folder.file(&crate::qemu::socket_name(&spec.name, network.name));
                switch.listen(network.name, &spec.name, &socket)?;
                if config.capture {
                    let file = folder.file(&format!("{}-{}.pcapng", spec.name, network.name));
                    switch.capture(network.name, &spec.name, Some(&file))?;
                }
            }
        }
        let endpoint = |network: Network, name: &str, number: u8, address| -> Result<Endpoint> {
            Endpoint::start(EndpointConfig {
                name: name.into(),
                mac: network.endpoint_mac(number),
                address,
                prefix: PREFIX,
                mtu: network.mtu,
                stream: switch.endpoint(network.name, name)?,
                clock,
                journal: journal.clone(),
            })
            .with_context(|| format!("cannot start the endpoint \"{name}\""))
        };
        let control = endpoint(MANAGEMENT, "control", 1, MANAGEMENT.lab_address())?;
        let client = endpoint(SESSION, "client", 1, SESSION.lab_address())?;
        let prober = endpoint(SESSION, "probe", 2, SESSION.probe_address())?;
        let key = entropy::bytes::<32>().context("cannot make the pool's key")?;
        let inner = Arc::new(Inner {
            name: config.name,
            clock,
            journal,
            key: PoolKey::new(key),
            key_hex: entropy::hex(&key),
            state: Mutex::new(State::new(&specs, config.vms)),
            specs,
            launcher: config.launcher,
            storage_program: config.storage,
            facts: config.facts,
            control,
            client,
            prober,
            switch,
            changed: Condvar::new(),
            chains: Mutex::new(()),
            folder,
        });
        let lab = Self {
            inner,
            writer: Mutex::new(Some(writer)),
        };
        lab.inner.watch_switch(noticed)?;
        lab.inner.watch_ports()?;
        if let Some(program) = &lab.inner.storage_program {
            let vms: Vec<VmConfig> = {
                let state = lab.inner.lock();
                state.vms.values().map(|vm| vm.config.clone()).collect()
            };
            // Without them nothing can be exported, and everything else works.
            if let Err(error) = records::write(&program.export, &vms) {
                lab.inner.message("warning", format!("{error:#}"));
            }
            lab.inner.watch_repositories(&program.export)?;
            lab.inner.start_storage()?;
        }
        lab.inner.serve()?;
        Ok(lab)
    }

    /// Carries out a command; see [`lab_protocol::Command`].
    ///
    /// # Errors
    /// In words for people.
    pub fn execute(&self, command: &lab_protocol::Command) -> Result<serde_json::Value> {
        self.inner.execute(command)
    }

    /// Migrates without some of the protections, for a test that shows what these protect from.
    ///
    /// # Errors
    /// As the command's.
    pub fn migrate_without(
        &self,
        vm: &str,
        to: &str,
        verify: bool,
        controls: NegativeControls,
    ) -> Result<u32> {
        self.inner.vm_migrate(vm, to, verify, controls)
    }

    /// Powers all hosts on and waits until their control services answer.
    ///
    /// # Errors
    /// When one does not come up in time; its console is in the run folder.
    pub fn power_on_all(&self, patience: Duration) -> Result<()> {
        for spec in &self.inner.specs {
            self.inner.power_on(&spec.name)?;
        }
        for spec in &self.inner.specs {
            self.inner.wait_for_host(&spec.name, patience)?;
        }
        Ok(())
    }

    /// Waits until a VM has printed `text` on its console.
    ///
    /// # Errors
    /// When it has not in time, or has stopped.
    pub fn wait_for_console(&self, vm: &str, text: &str, patience: Duration) -> Result<()> {
        self.inner.wait_for_console(vm, text, patience)
    }

    /// Waits for so long; `true`, and sooner, when the lab is told to end.
    #[must_use]
    pub fn wait_or_stop(&self, time: Duration) -> bool {
        self.inner.wait(time, |_| None::<()>) == Err(state::GaveUp::Stopping)
    }

    /// Blocks until the lab is told to end (`elab down`, [`Stopper::stop`]).
    pub fn wait_until_told_to_stop(&self) {
        self.inner.wait_until_told_to_stop();
    }

    /// Tells the lab to end, from any thread.
    #[must_use]
    pub fn stopper(&self) -> Stopper {
        Stopper(Arc::clone(&self.inner))
    }

    /// The run folder.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.inner.folder.path()
    }

    /// The lab's clock.
    #[must_use]
    pub fn clock(&self) -> LabClock {
        self.inner.clock
    }

    /// The lab's event log.
    #[must_use]
    pub fn journal(&self) -> &Journal {
        &self.inner.journal
    }

    /// The client's endpoint on the session network.
    #[must_use]
    pub fn client(&self) -> &Endpoint {
        &self.inner.client
    }

    /// The probes' endpoint on the session network.
    #[must_use]
    pub fn prober(&self) -> &Endpoint {
        &self.inner.prober
    }

    /// Ends hosts, storage server and log.
    ///
    /// # Errors
    /// When the log could not be written.
    pub fn stop(&self, reason: &str) -> Result<()> {
        let writer = self
            .writer
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        let Some(writer) = writer else {
            return Ok(());
        };
        self.inner.tell_to_stop();
        self.inner.end_processes();
        let event = Event::LabStopped {
            reason: reason.into(),
        };
        self.inner
            .journal
            .record(self.inner.clock.now_ns(), "lab", event);
        // Commands that arrive from now on find no socket.
        let _ = std::fs::remove_file(self.inner.folder.file(server::SOCKET));
        let finished = writer.finish().context("the event log is not complete");
        self.inner.folder.release();
        finished
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        // Whoever wanted to know of errors has called `stop`.
        let _ = self.stop("dropped");
    }
}

/// Tells a lab to end.
#[derive(Clone)]
pub struct Stopper(Arc<Inner>);

impl Stopper {
    /// Everything that waits on the lab returns soon.
    pub fn stop(&self) {
        self.0.tell_to_stop();
    }
}

impl Inner {
    fn watch_switch(self: &Arc<Self>, noticed: mpsc::Receiver<SwitchNotice>) -> Result<()> {
        let journal = self.journal.clone();
        // Ends when the switch does.
        std::thread::Builder::new()
            .name("switch notices".into())
            .spawn(move || {
                for notice in noticed {
                    let event = match notice.what {
                        Noticed::Moved { mac, from, to } => Event::MacMoved {
                            mac: mac.to_string(),
                            from,
                            to,
                        },
                        // The log's own mark of this is the host's; the wire's view of it is evidence beside it.
                        Noticed::FirstFrame { mac, port } => Event::Message {
                            level: "debug".into(),
                            text: format!("first frame of {mac} from {port} since it moved"),
                        },
                        Noticed::Connected { .. } => continue,
                        Noticed::Disconnected { port, reason } => Event::Message {
                            level: "info".into(),
                            text: format!("{port} left network {}: {reason}", notice.network),
                        },
                    };
                    journal.record(notice.t_ns, "switch", event);
                }
            })
            .context("cannot start a thread")?;
        Ok(())
    }

    /// Records what the lab itself saw, now.
    pub(crate) fn record(&self, event: Event) {
        self.journal.record(self.clock.now_ns(), "lab", event);
    }

    /// Records something people should read.
    pub(crate) fn message(&self, level: &str, text: impl Into<String>) {
        self.record(Event::Message {
            level: level.into(),
            text: text.into(),
        });
    }
}
