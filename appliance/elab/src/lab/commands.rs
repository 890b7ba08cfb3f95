//! Carries out commands.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::{Result, anyhow};
use host_protocol::{NegativeControls, VmState};
use lab_protocol::{Command, Event, LinkFault, Restart};
use serde_json::{Value, json};
use switch::Direction;

use super::clones::New;
use super::translate::state_word;
use super::{Inner, State};
use crate::network::LinkName;

impl Inner {
    pub(crate) fn execute(self: &Arc<Self>, command: &Command) -> Result<Value> {
        match command {
            Command::Status => return self.status(),
            Command::Down => self.tell_to_stop(),
            Command::HostPowerOn { host } => self.power_on(host)?,
            Command::HostPowerOff { host } => self.power_off(host)?,
            Command::HostPull { host } => self.pull(host)?,
            Command::HostReset { host } => {
                self.pull(host)?;
                self.power_on(host)?;
            }
            Command::HostFreeze { host } => self.freeze(host, true)?,
            Command::HostThaw { host } => self.freeze(host, false)?,
            Command::VmStart { vm, host } => self.vm_start(vm, host)?,
            Command::VmShutdown { vm } => self.vm_shutdown(vm)?,
            Command::VmDestroy { vm } => self.vm_destroy(vm)?,
            Command::VmSet {
                vm,
                priority,
                order,
                start_delay_ms,
                best_effort,
                from,
            } => {
                return self.vm_set(vm, |restart| {
                    *restart = Restart {
                        priority: priority.unwrap_or(restart.priority),
                        order: order.unwrap_or(restart.order),
                        start_delay_ms: start_delay_ms.unwrap_or(restart.start_delay_ms),
                        best_effort: best_effort.unwrap_or(restart.best_effort),
                        from: from.unwrap_or(restart.from),
                    };
                });
            }
            Command::VmSuspend { vm } => self.vm_suspend(vm)?,
            Command::VmSnapshot {
                vm,
                snapshot,
                memory,
            } => {
                let taken = self.vm_snapshot(vm, snapshot.as_deref(), *memory);
                // The disk has another file now, or there is a later checkpoint.
                self.prepare_restart(vm);
                return taken;
            }
            Command::VmSnapshots { vm } => return self.vm_snapshots(vm.as_deref()),
            Command::VmSnapshotDelete { vm, snapshot } => {
                self.vm_snapshot_delete(vm, snapshot)?;
                self.prepare_restart(vm);
            }
            Command::VmRevert {
                vm,
                snapshot,
                host,
                cold,
            } => {
                self.drop_restart_point(vm)?;
                self.vm_revert(vm, snapshot, host.as_deref(), *cold)?;
                self.prepare_restart(vm);
            }
            Command::VmClone {
                vm,
                snapshot,
                new,
                template,
                full,
                changes,
            } => {
                let new = New {
                    name: new,
                    template: *template,
                    full: *full,
                    changes,
                };
                self.vm_clone(vm, snapshot.as_deref(), new)?;
            }
            Command::Templates => return self.templates(),
            Command::TemplateDelete { template } => self.template_delete(template)?,
            Command::VmResume { vm, host } => self.vm_resume(vm, host.as_deref())?,
            Command::VmMigrate { vm, to, verify } => {
                let number = self.vm_migrate(vm, to, *verify, NegativeControls::default())?;
                return Ok(json!({ "migration": number }));
            }
            Command::VmMigrateCancel { vm } => self.vm_migrate_cancel(vm)?,
            Command::ConsoleInput { vm, text } => self.console_input(vm, text)?,
            Command::LinkSet { link, fault } => self.set_link(link, fault)?,
            Command::LinkHeal { link } => self.set_link(link, &LinkFault::default())?,
            Command::HaEnable { failures } => return self.ha_enable(*failures),
            Command::HaStatus => return self.ha_status(),
            Command::StoragePause => self.pause_storage(true)?,
            Command::StorageResume => self.pause_storage(false)?,
            Command::StorageKill => self.kill_storage()?,
            Command::StorageStart => self.start_storage()?,
            Command::StorageCoalesce => return self.coalesce(),
            Command::StorageFault { fault } => self.fault_storage(*fault)?,
            Command::Mark { text } => self.record(Event::Mark { text: text.clone() }),
        }
        Ok(Value::Null)
    }

    fn set_link(&self, link: &str, fault: &LinkFault) -> Result<()> {
        let name: LinkName = link.parse().map_err(|words: String| anyhow!(words))?;
        for direction in name.directions {
            self.switch
                .set_fault(&name.network, &name.port, direction, fault.clone())?;
            self.record(Event::LinkFault {
                link: link_name(&name.port, &name.network, direction),
                fault: fault_words(fault),
            });
        }
        Ok(())
    }

    fn status(&self) -> Result<Value> {
        let links: Vec<_> = self
            .switch
            .links()?
            .into_iter()
            .map(|link| {
                json!({
                    "link": link_name(&link.port, &link.network, link.direction),
                    "words": fault_words(&link.fault),
                    "fault": link.fault,
                })
            })
            .collect();
        let ports: Vec<_> = self
            .switch
            .ports()?
            .into_iter()
            .map(|port| {
                json!({
                    "network": port.network,
                    "port": port.port,
                    "connected": port.connected,
                    "sent_frames": port.counters.sent_frames,
                    "sent_bytes": port.counters.sent_bytes,
                    "received_frames": port.counters.received_frames,
                    "received_bytes": port.counters.received_bytes,
                    "dropped": port.counters.dropped,
                })
            })
            .collect();
        let protection = self.protection();
        let state = self.lock();
        Ok(json!({
            "name": self.name,
            "folder": self.folder.path(),
            "accelerator": self.facts.accelerator,
            "uptime_ns": self.clock.now_ns(),
            "hosts": hosts(&state),
            "vms": vms(&state, protection.as_ref()),
            "storage": match (&state.storage, state.storage_paused) {
                (None, _) => "off",
                (Some(_), true) => "paused",
                (Some(_), false) => "on",
            },
            "links": links,
            "ports": ports,
        }))
    }
}

fn hosts(state: &State) -> Vec<Value> {
    let host = |(name, host): (&String, &super::state::Host)| {
        json!({
            "name": name,
            "power": host.power,
            "reachable": host.connection.is_some(),
            "memory_total": host.status.as_ref().map(|status| status.memory_total),
            "memory_free": host.status.as_ref().map(|status| status.memory_free),
            "storage_up": host.status.as_ref().map(|status| status.storage_up),
            "died": host.died,
        })
    };
    state.hosts.iter().map(host).collect()
}

/// `protection` by name; `None` when no host says.
fn vms(state: &State, protection: Option<&BTreeMap<String, String>>) -> Vec<Value> {
    let level = |name: &String| match protection {
        Some(known) => known.get(name).map_or("none", String::as_str),
        None => "unknown",
    };
    let vm = |(name, vm): (&String, &super::state::Vm)| {
        json!({
            "name": name,
            "state": state_word(vm.state),
            "host": vm.host.as_ref().filter(|_| vm.state != VmState::Halted),
            "memory_mib": vm.config.memory_mib,
            "vcpus": vm.config.vcpus,
            "migrating_to": vm.migration.as_ref().map(|migration| &migration.to),
            "stopped": vm.stopped,
            "protection": level(name),
            "restart": vm.restart.words(),
        })
    };
    state.vms.iter().map(vm).collect()
}

fn link_name(port: &str, network: &str, direction: Direction) -> String {
    let arrow = match direction {
        Direction::Sending => '>',
        Direction::Receiving => '<',
    };
    format!("{port}:{network}{arrow}")
}

/// A fault in words; `healed` for none.
fn fault_words(fault: &LinkFault) -> String {
    let mut words = Vec::new();
    if fault.cut {
        words.push("cut".to_owned());
    }
    if fault.delay_us > 0 {
        words.push(format!("delay {} ms", fault.delay_us as f64 / 1000.0));
    }
    if fault.jitter_us > 0 {
        words.push(format!("jitter {} ms", fault.jitter_us as f64 / 1000.0));
    }
    for (name, probability) in [
        ("loss", fault.loss),
        ("duplicate", fault.duplicate),
        ("corrupt", fault.corrupt),
        ("reorder", fault.reorder),
    ] {
        if probability > 0.0 {
            words.push(format!("{name} {} %", probability * 100.0));
        }
    }
    if fault.rate_bps > 0 {
        words.push(format!("rate {} Mbit/s", fault.rate_bps as f64 / 1e6));
    }
    if words.is_empty() {
        "healed".into()
    } else {
        words.join(", ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_read_well() {
        assert_eq!(fault_words(&LinkFault::default()), "healed");
        let fault = LinkFault {
            cut: true,
            delay_us: 1500,
            loss: 0.25,
            rate_bps: 8_000_000,
            ..LinkFault::default()
        };
        assert_eq!(
            fault_words(&fault),
            "cut, delay 1.5 ms, loss 25 %, rate 8 Mbit/s"
        );
    }
}
