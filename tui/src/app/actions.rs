//! What can be done to the lab now, and if not, why not. Nothing is hidden: an action that is impossible says its reason.

use lab_protocol::command::DiskFault;
use lab_protocol::{Command, LinkFault};

use super::{App, Effect, Job, Level, LineEdit, Mode, Overlay, Pick, Run, View};
use crate::command;
use crate::keys::Action;
use crate::model::Lab;

/// A line of the overview.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// A host.
    Host(String),
    /// A VM.
    Vm(String),
}

/// What an action comes to.
#[derive(Clone, Debug, PartialEq)]
pub enum Plan {
    /// It is done at once.
    Do(Command),
    /// It is done when the question is answered with yes.
    Ask(String, Effect),
    /// One of several.
    Choose(String, Vec<Pick>),
    /// A VM's console takes the keyboard.
    Console(String),
    /// A mark is typed.
    Mark,
    /// A command is typed, which begins so.
    Type(String),
    /// One's own shell in the guest takes the keyboard.
    Shell,
    /// A recording starts, or ends and is written.
    Record,
    /// A run's report is opened.
    OpenReport(std::path::PathBuf),
    /// A run is put beside the next one that is chosen, or the one chosen before.
    Compare(Box<Run>),
}

/// Networks of a host, in the order of its cards.
pub const NETWORKS: [&str; 3] = ["mgmt", "storage", "session"];

/// The actions that change a lab, as the footer shows them, by view.
#[must_use]
pub fn shown(view: View) -> &'static [Action] {
    match view {
        View::Session => &[
            Action::Migrate,
            Action::Cancel,
            Action::Console,
            Action::TypeSession,
            Action::Record,
            Action::Pull,
            Action::FreezeHost,
        ],
        View::Overview | View::Migration => &[
            Action::Migrate,
            Action::Cancel,
            Action::StartVm,
            Action::Suspend,
            Action::Console,
            Action::Pull,
            Action::FreezeHost,
            Action::PowerOn,
        ],
        View::Network => &[Action::Cut, Action::Delay, Action::Loss, Action::Heal],
        View::Storage => &[
            Action::StoragePause,
            Action::StorageKill,
            Action::DiskFault,
            Action::Export,
            Action::Import,
            Action::Snapshot,
            Action::Clone,
        ],
        View::Events => &[Action::Mark],
        View::Runs => &[Action::OpenReport, Action::Compare, Action::RunScenario],
    }
}

impl App {
    /// Lines of the overview: hosts, then VMs.
    #[must_use]
    pub fn targets(&self) -> Vec<Target> {
        let lab = self.lab();
        let hosts = lab.hosts.keys().cloned().map(Target::Host);
        let vms = lab.vms.keys().cloned().map(Target::Vm);
        hosts.chain(vms).collect()
    }

    /// Lines of the network view: each host's links.
    #[must_use]
    pub fn links(&self) -> Vec<(String, &'static str)> {
        let hosts = self.lab().hosts.keys();
        hosts
            .flat_map(|host| NETWORKS.map(|network| (host.clone(), network)))
            .collect()
    }

    /// Whether commands can be sent at all.
    pub(super) fn may_command(&self) -> Result<(), String> {
        if self.readonly {
            return Err("this screen is read-only (--readonly)".into());
        }
        match self.mode {
            Mode::Replay { .. } => Err("this is a finished run; nothing can be done to it".into()),
            Mode::Live { .. } if self.lab().stopped.is_some() => {
                Err("the lab has ended; nothing can be done to it".into())
            }
            Mode::Live { .. } => Ok(()),
        }
    }

    fn target(&self) -> Option<Target> {
        let row = if self.view == View::Overview {
            self.selected()
        } else {
            self.selected[0]
        };
        self.targets().into_iter().nth(row)
    }

    fn target_vm(&self) -> Result<String, String> {
        let lab = self.lab();
        match self.target() {
            Some(Target::Vm(vm)) => return Ok(vm),
            Some(Target::Host(host)) if self.view == View::Overview => {
                let on_host = lab
                    .vms
                    .iter()
                    .find(|(_, vm)| vm.is_alive() && vm.host == host);
                if let Some((vm, _)) = on_host {
                    return Ok(vm.clone());
                }
            }
            _ => {}
        }
        let mut names = lab.vms.keys();
        match (names.next(), names.next()) {
            (Some(only), None) => Ok(only.clone()),
            (None, _) => Err("there is no VM".into()),
            _ => Err("select a VM in the overview first".into()),
        }
    }

    fn target_host(&self) -> Result<String, String> {
        match self.target() {
            Some(Target::Host(host)) => Ok(host),
            Some(Target::Vm(vm)) => Ok(self.lab().vms[&vm].host.clone()),
            None => Err("there is no host".into()),
        }
    }

    fn target_link(&self) -> Result<String, String> {
        if self.view != View::Network {
            return Err("select a link in the network view (4) first".into());
        }
        let links = self.links();
        let (host, network) = links.get(self.selected()).ok_or("there is no link")?;
        Ok(format!("{host}:{network}"))
    }

    /// What an action would do now.
    ///
    /// # Errors
    /// The reason why it is not possible.
    pub fn plan(&self, action: Action) -> Result<Plan, String> {
        if let Some(plan) = self.plan_of_runs(action) {
            return plan;
        }
        self.may_command()?;
        let lab = self.lab();
        let running = |host: &String| -> Result<(), String> {
            let known = lab.hosts.get(host).ok_or("there is no such host")?;
            if known.is_running() {
                Ok(())
            } else {
                Err(format!("{host} is {}", known.word()))
            }
        };
        match action {
            Action::Migrate => {
                let vm = self.target_vm()?;
                migration(lab, &vm)
            }
            Action::Cancel => {
                let vm = self.target_vm()?;
                if lab.migrations.under_way(&vm).is_none() {
                    return Err(format!("{vm} is not migrating"));
                }
                Ok(Plan::Do(Command::VmMigrateCancel { vm }))
            }
            Action::StartVm => {
                let vm = self.target_vm()?;
                if lab.vms[&vm].is_alive() {
                    return Err(format!("{vm} is {}", lab.vms[&vm].state));
                }
                if lab.vms[&vm].is_suspended() {
                    let key = self.keys.hint(Action::Suspend);
                    return Err(format!("{vm} is suspended; {key} lets it go on"));
                }
                let start = |host: &str| Command::VmStart {
                    vm: vm.clone(),
                    host: host.into(),
                };
                Ok(Plan::Choose(
                    format!("Start {vm} on"),
                    hosts(lab, None, start),
                ))
            }
            Action::Suspend => {
                let vm = self.target_vm()?;
                suspension(lab, &vm)
            }
            Action::Console => Ok(Plan::Console(self.target_vm()?)),
            Action::Pull => {
                let host = self.target_host()?;
                let known = lab.hosts.get(&host).ok_or("there is no such host")?;
                if !known.is_running() && !known.is_frozen() {
                    return Err(format!("{host} is {}", known.word()));
                }
                Ok(Plan::Ask(
                    format!("Pull the plug of {host}{}?", guests_on(lab, &host)),
                    Effect::Send(Command::HostPull { host }),
                ))
            }
            Action::FreezeHost => {
                let host = self.target_host()?;
                if lab
                    .hosts
                    .get(&host)
                    .is_some_and(crate::model::Host::is_frozen)
                {
                    return Ok(Plan::Do(Command::HostThaw { host }));
                }
                running(&host)?;
                Ok(Plan::Ask(
                    format!("Freeze {host}{}?", guests_on(lab, &host)),
                    Effect::Send(Command::HostFreeze { host }),
                ))
            }
            Action::PowerOn => {
                let host = self.target_host()?;
                if running(&host).is_ok() {
                    return Err(format!("{host} is on"));
                }
                Ok(Plan::Do(Command::HostPowerOn { host }))
            }
            Action::Cut => {
                let link = self.target_link()?;
                let fault = LinkFault {
                    cut: true,
                    ..LinkFault::default()
                };
                Ok(Plan::Ask(
                    format!("Cut {link}?"),
                    Effect::Send(Command::LinkSet { link, fault }),
                ))
            }
            Action::Delay => Ok(Plan::Do(Command::LinkSet {
                link: self.target_link()?,
                fault: LinkFault {
                    delay_us: 20_000,
                    ..LinkFault::default()
                },
            })),
            Action::Loss => Ok(Plan::Do(Command::LinkSet {
                link: self.target_link()?,
                fault: LinkFault {
                    loss: 0.01,
                    ..LinkFault::default()
                },
            })),
            Action::Heal => {
                let link = self.target_link()?;
                let (host, network) = link.split_once(':').unwrap_or((&link, ""));
                if lab.link_fault(host, network).is_none() {
                    return Err(format!("{link} has no fault"));
                }
                Ok(Plan::Do(Command::LinkHeal { link }))
            }
            Action::StoragePause => Ok(match lab.storage.as_str() {
                "paused" => Plan::Do(Command::StorageResume),
                "started" | "ready" | "resumed" => Plan::Ask(
                    "Pause the storage server? Guests' writes wait meanwhile.".into(),
                    Effect::Send(Command::StoragePause),
                ),
                other => return Err(format!("the storage server is {other}")),
            }),
            Action::StorageKill => Ok(match lab.storage.as_str() {
                "killed" | "died" | "stopped" | "off" | "" => Plan::Do(Command::StorageStart),
                _ => Plan::Ask(
                    "Kill the storage server, as a power cut would?".into(),
                    Effect::Send(Command::StorageKill),
                ),
            }),
            Action::Mark => Ok(Plan::Mark),
            Action::DiskFault => {
                let fault = |fault: DiskFault| Pick {
                    label: format!("{:<10} {}", fault.name(), command::disk_fault_words(fault)),
                    effect: match (fault, &lab.disk_fault) {
                        (DiskFault::Clear, None) => Err("the disk has no fault".into()),
                        _ => Ok(Effect::Send(Command::StorageFault { fault })),
                    },
                };
                match lab.storage.as_str() {
                    "started" | "ready" | "resumed" => Ok(Plan::Choose(
                        "The storage server's disk".into(),
                        DiskFault::ALL.into_iter().map(fault).collect(),
                    )),
                    "" => Err("there is no storage server".into()),
                    other => Err(format!("the storage server is {other}")),
                }
            }
            Action::TypeSession if self.joinable => Ok(Plan::Shell),
            Action::TypeSession => Err(
                "the way into the guest by SSH opens when it is up; o types at the console".into(),
            ),
            Action::Export => {
                let vm = self.target_vm()?;
                if lab.vms[&vm].is_alive() {
                    return Err(format!(
                        "{vm} is {}; it can be exported when it is off (:vm stop {vm})",
                        lab.vms[&vm].state
                    ));
                }
                Ok(Plan::Type(format!("export {vm} {vm}.xva")))
            }
            Action::Import => Ok(Plan::Type("import ".into())),
            Action::Snapshot => Ok(Plan::Type(format!("vm snapshot {}", self.target_vm()?))),
            Action::Clone => {
                let vm = self.target_vm()?;
                if lab.vms[&vm].is_alive() {
                    return Err(format!(
                        "{vm} is {}; it can be cloned when it is off, or from a snapshot (:vm clone {vm} NEW --snapshot NAME)",
                        lab.vms[&vm].state
                    ));
                }
                Ok(Plan::Type(format!("vm clone {vm} {vm}-2")))
            }
            _ => Err("this key does nothing here".into()),
        }
    }

    /// What needs no running lab.
    fn plan_of_runs(&self, action: Action) -> Option<Result<Plan, String>> {
        let run = || match self.view {
            View::Runs => self.runs.get(self.selected()).ok_or("there is no run"),
            _ => Err("select a run in the runs (7) first"),
        };
        Some(match action {
            Action::OpenReport => run()
                .map_err(str::to_owned)
                .and_then(|run| match run.gap_ms {
                    Some(_) => Ok(Plan::OpenReport(run.folder.join("report.html"))),
                    None => Err(format!("{} has no report", run.name)),
                }),
            Action::Compare => run()
                .map_err(str::to_owned)
                .and_then(|run| match run.gap_ms {
                    Some(_) => Ok(Plan::Compare(Box::new(run.clone()))),
                    None => Err(format!("{} has no report to compare", run.name)),
                }),
            Action::RunScenario if self.readonly => {
                Err("this screen is read-only (--readonly)".into())
            }
            Action::RunScenario => Ok(Plan::Type("run ".into())),
            Action::CancelRun => self.cancelling(),
            Action::Record if self.screens.has_session() => Ok(Plan::Record),
            Action::Record => Err("no session is open that could be recorded".into()),
            _ => return None,
        })
    }

    /// Ends what runs beside this screen: the one, or one of several.
    fn cancelling(&self) -> Result<Plan, String> {
        let cancel = |job: &Job| Effect::CancelRun(job.words.clone());
        match self.jobs.as_slice() {
            [] => Err("no command runs beside this screen".into()),
            [job] if job.ending => Ok(Plan::Ask(
                format!("elab {} is ending. End it at once?", job.words),
                cancel(job),
            )),
            [job] => Ok(Plan::Ask(
                format!("Cancel elab {}?", job.words),
                cancel(job),
            )),
            jobs => {
                let pick = |job: &Job| Pick {
                    label: format!("elab {}", job.words),
                    effect: Ok(cancel(job)),
                };
                let picks = jobs.iter().map(pick).collect();
                Ok(Plan::Choose("Cancel which".into(), picks))
            }
        }
    }

    pub(super) fn plan_and_ask(&mut self, action: Action) -> Vec<Effect> {
        match self.plan(action) {
            Ok(Plan::Do(command)) => return vec![Effect::Send(command)],
            Ok(Plan::Ask(question, effect)) => {
                self.overlay = Some(Overlay::Confirm { question, effect });
            }
            Ok(Plan::Choose(title, picks)) => {
                let at = picks
                    .iter()
                    .position(|pick| pick.effect.is_ok())
                    .unwrap_or(0);
                self.overlay = Some(Overlay::Choose { title, picks, at });
            }
            Ok(Plan::Console(vm)) => {
                self.screens.attach(&vm);
                self.overlay = Some(Overlay::Console { vm });
            }
            Ok(Plan::Mark) => self.overlay = Some(Overlay::MarkLine(LineEdit::default())),
            Ok(Plan::Type(words)) => {
                self.overlay = Some(Overlay::CommandLine(LineEdit::new(&words)));
            }
            Ok(Plan::Shell) => return self.type_into_session(),
            Ok(Plan::OpenReport(path)) => return vec![Effect::OpenReport(path)],
            Ok(Plan::Record) => return self.record(),
            Ok(Plan::Compare(run)) => match self.compared.take() {
                Some(first) if first.folder != run.folder => {
                    self.overlay = Some(Overlay::Compare(first, run));
                }
                _ => {
                    self.say(
                        Level::Note,
                        format!("{} and which other? choose it the same way", run.name),
                    );
                    self.compared = Some(run);
                }
            },
            Err(reason) => self.say(Level::Note, reason),
        }
        Vec::new()
    }

    /// Starts a recording, or ends it.
    fn record(&mut self) -> Vec<Effect> {
        let now_ns = self.lab_now_ns();
        match self.recording_since_ns.take() {
            Some(from_ns) => vec![Effect::SaveRecording {
                from_ns,
                to_ns: now_ns,
            }],
            None => {
                self.recording_since_ns = Some(now_ns);
                Vec::new()
            }
        }
    }
}

/// Suspends a VM that runs; one that is suspended goes on at a host of one's choice.
fn suspension(lab: &Lab, vm: &str) -> Result<Plan, String> {
    let known = lab.vms.get(vm).ok_or("there is no VM")?;
    if known.is_suspended() {
        let resume = |host: &str| Command::VmResume {
            vm: vm.into(),
            host: Some(host.into()),
        };
        let picks = hosts(lab, None, resume);
        return Ok(Plan::Choose(format!("Let {vm} go on at"), picks));
    }
    if known.state != "running" {
        return Err(format!(
            "{vm} is {}; only a running VM can be suspended",
            known.word()
        ));
    }
    if let Some(under_way) = lab.migrations.under_way(vm) {
        return Err(format!("{vm} is moving to {}", under_way.to));
    }
    Ok(Plan::Ask(
        format!("Suspend {vm}? Its memory goes to the repository, and its sessions stall."),
        Effect::Send(Command::VmSuspend { vm: vm.into() }),
    ))
}

fn migration(lab: &Lab, vm: &str) -> Result<Plan, String> {
    let known = lab.vms.get(vm).ok_or("there is no VM")?;
    if known.state != "running" {
        return Err(format!(
            "{vm} is {}; only a running VM can move",
            known.word()
        ));
    }
    if let Some(under_way) = lab.migrations.under_way(vm) {
        return Err(format!("{vm} is already moving to {}", under_way.to));
    }
    let picks = hosts(lab, Some(&known.host), |to| command::migrate(vm, to, false));
    if picks.len() < 2 {
        return Err("there is no other host".into());
    }
    Ok(Plan::Choose(
        format!("Migrate {vm} from {} to", known.host),
        picks,
    ))
}

/// Every host as a possibility, those that cannot take a VM with their reason.
fn hosts(lab: &Lab, current: Option<&str>, command: impl Fn(&str) -> Command) -> Vec<Pick> {
    lab.hosts
        .iter()
        .map(|(name, host)| {
            let reason = if current == Some(name) {
                Some("it is there already".to_owned())
            } else if host.is_running() {
                None
            } else {
                Some(format!("it is {}", host.word()))
            };
            match reason {
                Some(reason) => Pick {
                    label: format!("{name:<8} {reason}"),
                    effect: Err(format!("{name}: {reason}")),
                },
                None => Pick {
                    label: format!("{name:<8} {} MiB free", host.memory_free >> 20),
                    effect: Ok(Effect::Send(command(name))),
                },
            }
        })
        .collect()
}

fn guests_on(lab: &Lab, host: &str) -> String {
    let vms: Vec<&str> = lab
        .vms
        .iter()
        .filter(|(_, vm)| vm.is_alive() && vm.host == host)
        .map(|(name, _)| name.as_str())
        .collect();
    if vms.is_empty() {
        String::new()
    } else {
        format!(", which runs {}", vms.join(", "))
    }
}
