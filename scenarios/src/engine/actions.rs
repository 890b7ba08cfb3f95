//! What steps do.

use std::sync::Arc;
use std::time::Duration;

use lab_protocol::Command;
use lab_protocol::command::DiskFault;

use super::{Engine, Input, Lab, sessions};
use crate::scenario::Scenario;
use crate::scenario::step::{
    GuestFault, GuestFaultKind, HostFaultKind, Link, Migrate, OTHER, Outcome, Step,
    StorageFaultKind,
};

/// Between two attempts to reach a guest that starts.
const RETRY: Duration = Duration::from_millis(500);
const SSH_PORT: u16 = 22;

/// An action under way, on its own thread.
struct Action {
    lab: Arc<dyn Lab>,
    scenario: Arc<Scenario>,
    factor: f64,
}

impl Engine {
    /// Starts a step's action; its end reaches the loop.
    pub(super) fn start_action(&mut self, index: usize, step: &Step, name: &str) {
        let action = Action {
            lab: Arc::clone(&self.lab),
            scenario: Arc::clone(&self.scenario),
            factor: self.drive.factor,
        };
        let (step, sender) = (step.clone(), self.sender.clone());
        let started = std::thread::Builder::new()
            .name(format!("step {}", index + 1))
            .spawn(move || {
                let result = action.carry_out(&step);
                // The engine may have ended.
                let _ = sender.send(Input::Done {
                    step: index,
                    result,
                });
            });
        if let Err(error) = started {
            self.results[index] = Some(Err(format!("{name}: cannot start a thread: {error}")));
        }
    }
}

impl Action {
    fn carry_out(&self, step: &Step) -> Result<String, String> {
        if let Some(migrate) = &step.migrate {
            return self.migrate(migrate);
        }
        if let Some(guest) = &step.cancel {
            let vm = guest.get_ref().clone();
            // Too late is no failure: the `outcome` of the migration says what it must come to.
            return Ok(match self.tell(&Command::VmMigrateCancel { vm }) {
                Ok(_) => "accepted".into(),
                Err(error) => format!("refused: {error}"),
            });
        }
        if let Some(guest) = step.snapshot.as_ref().or(step.checkpoint.as_ref()) {
            return self.tell(&Command::VmSnapshot {
                vm: guest.get_ref().clone(),
                snapshot: None,
                memory: step.checkpoint.is_some(),
            });
        }
        if let Some(evacuate) = &step.evacuate {
            return self.evacuate(evacuate.host.get_ref(), evacuate.to.get_ref());
        }
        if let Some(link) = &step.link {
            return self.link(link);
        }
        if let Some(link) = &step.heal {
            let link = link.get_ref().clone();
            return self.tell(&Command::LinkHeal { link });
        }
        if let Some(fault) = &step.host {
            let host = fault.host.get_ref().clone();
            let command = match fault.fault {
                HostFaultKind::Pull => Command::HostPull { host },
                HostFaultKind::Reset => Command::HostReset { host },
                HostFaultKind::Freeze => {
                    self.tell(&Command::HostFreeze { host: host.clone() })?;
                    let Some(lasts) = fault.lasts else {
                        return Ok(String::new());
                    };
                    std::thread::sleep(lasts.0);
                    Command::HostThaw { host }
                }
                HostFaultKind::Thaw => Command::HostThaw { host },
                HostFaultKind::PowerOn => Command::HostPowerOn { host },
                HostFaultKind::PowerOff => Command::HostPowerOff { host },
            };
            return self.tell(&command);
        }
        if let Some(fault) = &step.storage {
            let (begin, end) = match (fault.fault, fault.fault.of_disk()) {
                (_, Some(fault)) => (
                    Command::StorageFault { fault },
                    Some(Command::StorageFault {
                        fault: DiskFault::Clear,
                    }),
                ),
                (StorageFaultKind::Pause, _) => {
                    (Command::StoragePause, Some(Command::StorageResume))
                }
                (StorageFaultKind::Kill, _) => (Command::StorageKill, Some(Command::StorageStart)),
                (StorageFaultKind::Resume, _) => (Command::StorageResume, None),
                (StorageFaultKind::Start, _) => (Command::StorageStart, None),
                (_, None) => {
                    self.tell(&Command::StorageKill)?;
                    return self.tell(&Command::StorageStart);
                }
            };
            self.tell(&begin)?;
            return match fault.lasts.zip(end) {
                Some((lasts, end)) => {
                    std::thread::sleep(lasts.0);
                    self.tell(&end)
                }
                None => Ok(String::new()),
            };
        }
        if let Some(fault) = &step.guest {
            return self.guest(fault);
        }
        if let Some(run) = &step.run {
            let said = sessions::output(&*self.lab, run.guest.get_ref(), &run.command)?;
            return Ok(said.trim().lines().next().unwrap_or_default().to_owned());
        }
        if let Some(text) = &step.mark {
            return self.tell(&Command::Mark { text: text.clone() });
        }
        Ok(String::new())
    }

    fn tell(&self, command: &Command) -> Result<String, String> {
        self.lab.execute(command).map(|_| String::new())
    }

    fn migrate(&self, migrate: &Migrate) -> Result<String, String> {
        let guest = migrate.guest.get_ref();
        let mut last = String::new();
        for number in 1..=migrate.times {
            let from = self.host_of(guest)?;
            let to = self.destination(&from, migrate.to.get_ref());
            let result = self.lab.execute(&Command::VmMigrate {
                vm: guest.clone(),
                to: to.clone(),
                verify: migrate.verify,
            });
            last = match (result, migrate.outcome) {
                (Ok(_), Outcome::Moved | Outcome::Either) => format!("{guest} is on {to}"),
                (Ok(_), Outcome::Stayed) => {
                    return Err(format!("{guest} has moved to {to}, but should have stayed"));
                }
                (Err(error), Outcome::Stayed | Outcome::Either) => {
                    format!("{guest} has stayed on {from}: {error}")
                }
                (Err(error), Outcome::Moved) => return Err(error),
            };
            if migrate.times > 1 {
                last = format!("{number} of {}: {last}", migrate.times);
            }
            if number < migrate.times {
                std::thread::sleep(migrate.pause.0);
            }
        }
        Ok(last)
    }

    /// One after another, the most important first: together they would share the link, and each would take longer.
    fn evacuate(&self, host: &str, to: &str) -> Result<String, String> {
        let mut guests: Vec<_> = self
            .scenario
            .guests
            .get_ref()
            .iter()
            .map(|guest| (guest.priority, guest.name.get_ref().clone()))
            .collect();
        // Stable: equals go in the order of the file.
        guests.sort_by_key(|(priority, _)| std::cmp::Reverse(*priority));
        let to = self.destination(host, to);
        let mut moved = Vec::new();
        for (_, guest) in guests {
            if self.host_of(&guest).is_ok_and(|at| at == host) {
                self.lab.execute(&Command::VmMigrate {
                    vm: guest.clone(),
                    to: to.clone(),
                    verify: false,
                })?;
                moved.push(guest);
            }
        }
        Ok(format!("{} to {to}: {}", moved.len(), moved.join(", ")))
    }

    fn link(&self, link: &Link) -> Result<String, String> {
        let name = link.link.get_ref().clone();
        self.lab.execute(&Command::LinkSet {
            link: name.clone(),
            fault: link.quality().fault(),
        })?;
        if let Some(lasts) = link.lasts {
            std::thread::sleep(lasts.0);
            self.lab.execute(&Command::LinkHeal { link: name })?;
        }
        Ok(String::new())
    }

    fn guest(&self, fault: &GuestFault) -> Result<String, String> {
        let guest = fault.guest.get_ref().as_str();
        let vm = guest.to_owned();
        match fault.fault {
            GuestFaultKind::Kill => self.tell(&Command::VmDestroy { vm }),
            // Without the first the kernel would reboot after its panic, as the session guest is told to.
            GuestFaultKind::Hang => {
                let crash = "echo 0 > /proc/sys/kernel/panic; echo 1 > /proc/sys/kernel/sysrq; (sleep 0.2; echo c > /proc/sysrq-trigger) >/dev/null 2>&1 &";
                sessions::output(&*self.lab, guest, crash).map(drop)?;
                Ok(String::new())
            }
            GuestFaultKind::Reboot => {
                let reboot = "(sleep 0.2; busybox reboot -f) </dev/null >/dev/null 2>&1 &";
                sessions::output(&*self.lab, guest, reboot).map(drop)?;
                Ok(String::new())
            }
            GuestFaultKind::PowerOff => {
                let off = "(sleep 0.2; sync; busybox poweroff -f) </dev/null >/dev/null 2>&1 &";
                sessions::output(&*self.lab, guest, off).map(drop)?;
                Ok(String::new())
            }
            GuestFaultKind::Start => {
                let mut guests = self.scenario.guests.get_ref().iter();
                let first = guests.find(|one| one.name.get_ref() == guest);
                let host = fault.host.as_ref().or(first.map(|one| &one.host));
                let host = host.map_or_else(String::new, |host| host.get_ref().clone());
                self.tell(&Command::VmStart { vm, host })?;
                self.wait_until_reachable(guest)
            }
        }
    }

    fn wait_until_reachable(&self, guest: &str) -> Result<String, String> {
        let patience = super::STEP_DEADLINE.mul_f64(self.factor);
        let begun = std::time::Instant::now();
        loop {
            match self.lab.connect(guest, SSH_PORT) {
                Ok(_) => {
                    return Ok(format!("up after {:.1} s", begun.elapsed().as_secs_f64()));
                }
                Err(error) if begun.elapsed() > patience => {
                    return Err(format!("{guest} does not come up: {error}"));
                }
                Err(_) => std::thread::sleep(RETRY),
            }
        }
    }

    fn host_of(&self, guest: &str) -> Result<String, String> {
        let status = self.lab.execute(&Command::Status)?;
        status["vms"]
            .as_array()
            .and_then(|vms| vms.iter().find(|vm| vm["name"] == guest))
            .and_then(|vm| vm["host"].as_str())
            .map(str::to_owned)
            .ok_or_else(|| format!("{guest} runs nowhere"))
    }

    fn destination(&self, from: &str, to: &str) -> String {
        if to != OTHER {
            return to.to_owned();
        }
        let hosts = u32::from(*self.scenario.pool.hosts.get_ref());
        let number: u32 = from
            .strip_prefix('h')
            .and_then(|number| number.parse().ok())
            .unwrap_or(1);
        format!("h{}", number % hosts + 1)
    }
}

/// A step's action in words.
pub(super) fn words(step: &Step) -> String {
    if let Some(time) = step.wait {
        return format!("wait {:?}", time.0);
    }
    if let Some(migrate) = &step.migrate {
        let times = match migrate.times {
            1 => String::new(),
            times => format!(" {times} times"),
        };
        return format!(
            "migrate {} to {}{times}",
            migrate.guest.get_ref(),
            migrate.to.get_ref()
        );
    }
    if let Some(guest) = &step.cancel {
        return format!("cancel the migration of {}", guest.get_ref());
    }
    if let Some(evacuate) = &step.evacuate {
        return format!("evacuate {}", evacuate.host.get_ref());
    }
    if let Some(link) = &step.link {
        return format!("fault on {}", link.link.get_ref());
    }
    if let Some(link) = &step.heal {
        return format!("heal {}", link.get_ref());
    }
    if let Some(fault) = &step.host {
        return format!("{:?} {}", fault.fault, fault.host.get_ref()).to_lowercase();
    }
    if let Some(fault) = &step.storage {
        return match fault.fault.of_disk() {
            Some(disk) => format!("the storage server's disk: {}", disk.name()),
            None => format!("{:?} the storage server", fault.fault).to_lowercase(),
        };
    }
    if let Some(fault) = &step.guest {
        return format!("{:?} {}", fault.fault, fault.guest.get_ref()).to_lowercase();
    }
    if let Some(run) = &step.run {
        return format!("run \"{}\" in {}", run.command, run.guest.get_ref());
    }
    match &step.mark {
        Some(text) => format!("mark \"{text}\""),
        None => "nothing".into(),
    }
}
