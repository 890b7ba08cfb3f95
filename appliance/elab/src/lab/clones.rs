//! VMs made from others, and templates, which exist to have VMs made from them.
//!
//! A template is a machine of the repository whose record says that it is one (XenAPI's `is_a_template`); no host is ever told of
//! it. Its disks are children of base copies that nobody writes to, so a VM made from it shares them, at no cost whatever their size.

use std::collections::BTreeMap;
use std::fs;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use formats::vm::{Nic, Vm as Machine};
use host_protocol::VmState;
use lab_protocol::command::Changes;
use nfs_sr::sr::store::Store;
use nfs_sr::sr::{chain, vdi};
use serde_json::{Value, json};
use vhd::Uuid;

use super::snapshots::{find, identity};
use super::state::Vm;
use super::suspended::Repository;
use super::{Inner, records};
use crate::network::{PREFIX, SESSION, guest_mac};

/// The last guest of the session network.
const LAST_GUEST: u8 = 99;

/// What is made.
pub(super) struct New<'a> {
    pub(super) name: &'a str,
    /// A template, and not a VM.
    pub(super) template: bool,
    /// Its disks are copies that share nothing.
    pub(super) full: bool,
    pub(super) changes: &'a Changes,
}

impl Inner {
    /// Makes a VM, or a template, whose disks begin with what a snapshot, a VM that is off, or a template holds.
    pub(super) fn vm_clone(
        self: &Arc<Self>,
        origin: &str,
        snapshot: Option<&str>,
        new: New<'_>,
    ) -> Result<()> {
        let New {
            name,
            template,
            full,
            changes,
        } = new;
        let _chains = self.lock_chains();
        let repository = Repository::main(self.export()?);
        let known = transfer::machines(&repository.path)?;
        let taken = known.iter().any(|one| one.name == name);
        if taken || self.lock().vms.contains_key(name) {
            bail!("there is a VM or a template \"{name}\" already");
        }
        let mut machine = self.origin(&repository, origin, snapshot)?;
        let origins: Vec<Uuid> = machine
            .disks
            .iter()
            .map(|disk| identity(&disk.uuid))
            .collect::<Result<_>>()?;
        {
            let _held = repository.hold(self, &origins)?;
            for (disk, origin) in machine.disks.iter_mut().zip(origins) {
                let new = vdi::new_uuid();
                let store = repository.store();
                match full {
                    true => vdi::copy(&store, &vdi::file_name(origin), &store, new)?,
                    false => chain::snapshot(&store, origin, new)?,
                }
                disk.uuid = new.to_string();
            }
        }
        machine.uuid = vdi::new_uuid().to_string();
        machine.name = name.into();
        machine.template = template;
        change(&mut machine, changes)?;
        if !template {
            move_in(&known, &mut machine)?;
        }
        transfer::record(&repository.path, &machine)
            .with_context(|| format!("cannot record \"{name}\""))?;
        match template {
            true => Ok(()),
            false => self.know(name),
        }
    }

    /// The machine that another is made from, with disks that nobody writes to meanwhile.
    fn origin(
        &self,
        repository: &Repository,
        origin: &str,
        snapshot: Option<&str>,
    ) -> Result<Machine> {
        if let Some(template) = records::template(&repository.path, origin)? {
            return match snapshot {
                None => Ok(template),
                Some(_) => bail!("\"{origin}\" is a template, and has no snapshots"),
            };
        }
        if let Some(snapshot) = snapshot {
            return Ok(find(&repository.path, origin, snapshot)?.vm);
        }
        let config = self.config(origin)?;
        if self.lock().vms[origin].state != VmState::Halted {
            bail!(
                "VM \"{origin}\" runs; take a snapshot first, and name that: elab vm snapshot {origin}"
            );
        }
        self.refuse_suspended(&config)?;
        records::described(&repository.path, &config)
    }

    /// The templates of the repository.
    pub(crate) fn templates(&self) -> Result<Value> {
        let mut known = transfer::machines(&Repository::main(self.export()?).path)?;
        known.retain(|one| one.template);
        let shown = known.iter().map(|one| {
            json!({
                "template": one.name,
                "memory_mib": one.memory >> 20,
                "vcpus": one.vcpus,
                "weight": one.weight,
                "networks": one.nics.iter().map(|nic| &nic.network).collect::<Vec<_>>(),
                "start_on_boot": one.start_on_boot,
                "disk_bytes": one.disks.iter().map(|disk| disk.size).sum::<u64>(),
            })
        });
        Ok(Value::Array(shown.collect()))
    }

    /// Removes a template. VMs that were made from it stay: what they share is in base copies.
    pub(crate) fn template_delete(&self, name: &str) -> Result<()> {
        let _chains = self.lock_chains();
        let repository = Repository::main(self.export()?);
        let Some(template) = records::template(&repository.path, name)? else {
            bail!("there is no template \"{name}\"; `elab template list` lists them");
        };
        let record = repository.path.join(format!("{}.vm", template.uuid));
        fs::remove_file(&record)
            .and_then(|()| repository.store().sync_names())
            .with_context(|| format!("cannot remove {}", record.display()))?;
        for disk in &template.disks {
            chain::delete(&repository.store(), identity(&disk.uuid)?)?;
        }
        self.reclaim();
        Ok(())
    }

    /// A host has come up: what is to be started on boot, and was there last, is started there. In a pool that restarts VMs, that
    /// decides instead.
    pub(super) fn start_on_boot(self: &Arc<Self>, host: &str) {
        if self.lock().pool.is_some() {
            return;
        }
        let Ok(export) = self.export() else { return };
        let repository = Repository::main(export).path;
        let known = match repository.is_dir() {
            true => transfer::machines(&repository),
            false => return,
        };
        let chosen = known.map(|known| {
            let first = self.specs[0].name.as_str();
            to_start(&known, &self.lock().vms, host, first)
        });
        let chosen = chosen.unwrap_or_else(|error| {
            self.message("warning", format!("nothing is started on boot: {error}"));
            Vec::new()
        });
        for vm in chosen {
            match self.vm_start(&vm, host) {
                Ok(()) => self.message("info", format!("{vm} was started with {host}")),
                Err(error) => self.message("warning", format!("{error:#}")),
            }
        }
    }
}

/// The machines that are to be started with `host`: those that were on it last, and on the first host those that have never been on any.
fn to_start(known: &[Machine], vms: &BTreeMap<String, Vm>, host: &str, first: &str) -> Vec<String> {
    let belongs = |machine: &&Machine| {
        let vm = vms.get(&machine.name);
        let off = vm.is_none_or(|vm| vm.state == VmState::Halted);
        let home = vm.and_then(|vm| vm.host.as_deref()).unwrap_or(first);
        machine.start_on_boot && !machine.template && off && home == host
    };
    let chosen = known.iter().filter(belongs);
    chosen.map(|machine| machine.name.clone()).collect()
}

fn change(machine: &mut Machine, changes: &Changes) -> Result<()> {
    if let Some(mib) = changes.memory_mib {
        machine.memory = u64::from(mib) << 20;
    }
    machine.vcpus = changes.vcpus.map_or(machine.vcpus, Into::into);
    machine.weight = changes.weight.map_or(machine.weight, Into::into);
    machine.start_on_boot = changes.start_on_boot.unwrap_or(machine.start_on_boot);
    if let Some(other) = changes.networks.iter().find(|name| **name != SESSION.name) {
        bail!(
            "hosts connect guests to the network \"{}\" only, not to \"{other}\"",
            SESSION.name
        );
    }
    if !changes.networks.is_empty() {
        let mut before = std::mem::take(&mut machine.nics).into_iter();
        let card = |network: &String| Nic {
            network: network.clone(),
            ..before.next().unwrap_or_default()
        };
        machine.nics = changes.networks.iter().map(card).collect();
    }
    Ok(())
}

/// Gives a new machine a name, an address and network cards that nobody on the session network has. What its kernel is told of
/// an address is the only thing that is known of how a guest is configured.
fn move_in(known: &[Machine], machine: &mut Machine) -> Result<()> {
    let mac = |number| {
        guest_mac(number)
            .map(|byte| format!("{byte:02x}"))
            .join(":")
    };
    let cards = known.iter().filter(|vm| !vm.template);
    let used: Vec<&str> = cards
        .flat_map(|vm| &vm.nics)
        .map(|nic| nic.mac.as_str())
        .collect();
    let mut free = (1..=LAST_GUEST).filter(|number| !used.contains(&mac(*number).as_str()));
    let mut address = None;
    for nic in &mut machine.nics {
        let number = free.next().context("the session network is full")?;
        nic.mac = mac(number);
        address.get_or_insert(SESSION.guest_address(number));
    }
    if let Some(boot) = &mut machine.direct_boot {
        let words =
            boot.command_line
                .split(' ')
                .map(|word| match (word.split_once('='), address) {
                    (Some(("elab.name", _)), _) => format!("elab.name={}", machine.name),
                    (Some(("elab.address", _)), Some(address)) => {
                        format!("elab.address={address}/{PREFIX}")
                    }
                    _ => word.to_owned(),
                });
        boot.command_line = words.collect::<Vec<_>>().join(" ");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::test_lab;
    use formats::vm::DirectBoot;

    fn machine(name: &str, mac: &str) -> Machine {
        Machine {
            name: name.into(),
            memory: 256 << 20,
            vcpus: 1,
            weight: 256,
            nics: vec![Nic {
                mac: mac.into(),
                network: "session".into(),
                model: String::new(),
            }],
            direct_boot: Some(DirectBoot {
                command_line: "quiet elab.name=old elab.address=198.18.2.101/24".into(),
                ..DirectBoot::default()
            }),
            start_on_boot: true,
            ..Machine::default()
        }
    }

    #[test]
    fn a_new_machine_has_what_was_asked_for_and_an_address_of_its_own() {
        let template = Machine {
            template: true,
            ..machine("template", "02:e1:ab:10:00:02")
        };
        let known = [machine("one", "02:e1:ab:10:00:01"), template.clone()];
        let mut new = Machine {
            template: false,
            name: "new".into(),
            ..template
        };
        let changes = Changes {
            memory_mib: Some(512),
            networks: vec!["session".into(), "session".into()],
            start_on_boot: Some(false),
            ..Changes::default()
        };
        change(&mut new, &changes).unwrap();
        move_in(&known, &mut new).unwrap();
        assert_eq!((new.memory >> 20, new.vcpus, new.weight), (512, 1, 256));
        assert!(!new.start_on_boot);
        // A template's cards are on no network.
        let macs: Vec<_> = new.nics.iter().map(|nic| nic.mac.as_str()).collect();
        assert_eq!(macs, ["02:e1:ab:10:00:02", "02:e1:ab:10:00:03"]);
        let line = new.direct_boot.unwrap().command_line;
        assert_eq!(line, "quiet elab.name=new elab.address=198.18.2.102/24");
        let elsewhere = Changes {
            networks: vec!["wan".into()],
            ..Changes::default()
        };
        let error = change(&mut machine("x", ""), &elsewhere).unwrap_err();
        assert!(error.to_string().contains("not to \"wan\""), "{error}");
    }

    #[test]
    fn what_is_started_with_a_host_was_there_last_or_nowhere() {
        let known = [
            machine("here", ""),
            machine("there", ""),
            machine("runs", ""),
            machine("new", ""),
            Machine {
                template: true,
                ..machine("template", "")
            },
            Machine {
                start_on_boot: false,
                ..machine("by-hand", "")
            },
        ];
        let vm = |name: &str, host: &str, state| {
            let vm = Vm {
                host: Some(host.into()),
                state,
                ..Vm::halted(test_lab::vm(name, 1))
            };
            (name.to_owned(), vm)
        };
        let vms = BTreeMap::from([
            vm("here", "h1", VmState::Halted),
            vm("there", "h2", VmState::Halted),
            vm("runs", "h1", VmState::Running),
        ]);
        assert_eq!(to_start(&known, &vms, "h1", "h1"), ["here", "new"]);
        assert_eq!(to_start(&known, &vms, "h2", "h1"), ["there"]);
    }
}
