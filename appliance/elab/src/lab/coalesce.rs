//! Coalescing: chains of base copies become shorter while VMs run.
//!
//! Merging is done with the files alone (`nfs_sr::sr::merge`) and disturbs nobody. What it leaves are old files that hosts have open; each
//! host with a running VM is then asked to open the chains anew, and when all have done so, the old files go. If one does not, they
//! stay for the next time.

use std::collections::BTreeMap;
use std::sync::{MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use host_protocol::{Command, VmId, VmState};
use nfs_sr::sr::check::Survey;
use nfs_sr::sr::merge;
use serde_json::{Value, json};

use super::Inner;
use super::suspended::Repository;

/// Opening some files anew, on a machine that may be busy.
const PATIENCE: Duration = Duration::from_secs(20);

impl Inner {
    /// Held by whoever changes how disks of the repository hang together.
    pub(super) fn lock_chains(&self) -> MutexGuard<'_, ()> {
        // It guards files, which are good at each step.
        self.chains.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Merges what can be merged, and frees its space.
    pub(crate) fn coalesce(&self) -> Result<Value> {
        let _chains = self.lock_chains();
        self.merge_chains()
    }

    /// The same after something was removed, by whoever holds the lock. What does not succeed can be done later.
    pub(super) fn reclaim(&self) {
        let later = "; `elab sr coalesce` tries again";
        match self.merge_chains() {
            Ok(outcome) => {
                if let Some(why) = outcome["kept"].as_str() {
                    self.message("info", format!("space is not freed yet: {why}{later}"));
                }
            }
            Err(error) => self.message("warning", format!("{error:#}{later}")),
        }
    }

    fn merge_chains(&self) -> Result<Value> {
        let store = Repository::main(self.export()?).store();
        let before = self.residents();
        let done = merge::merge_all(&store).context("cannot merge base copies")?;
        let survey = Survey::take(&store)?;
        let merged: Vec<String> = survey.merged().map(str::to_owned).collect();
        let kept = match merged.is_empty() {
            true => None,
            false => match self.reopen(&before) {
                Ok(()) => {
                    merge::forget(&store, &merged).context("cannot remove what was merged")?;
                    None
                }
                Err(why) => Some(format!("{why:#}")),
            },
        };
        Ok(json!({ "done": done, "kept": kept }))
    }

    /// Which VMs hosts have, and where; none if one is on its way.
    fn residents(&self) -> Option<BTreeMap<VmId, String>> {
        let state = self.lock();
        let here = state.vms.values().filter(|vm| vm.state != VmState::Halted);
        here.map(|vm| {
            let rests = vm.migration.is_none() && vm.state == VmState::Running;
            let host = vm.host.clone().filter(|_| rests)?;
            Some((vm.config.id, host))
        })
        .collect()
    }

    /// Has every host let go of the old files.
    fn reopen(&self, before: &Option<BTreeMap<VmId, String>>) -> Result<()> {
        let moved = || anyhow::anyhow!("a VM starts, moves or stands still at the moment");
        let residents = before.as_ref().with_context(moved)?;
        for (vm, host) in residents {
            self.connection(host)?
                .call(Command::Reopen(*vm), PATIENCE)
                .with_context(|| format!("{host} has not opened the chains anew"))?;
        }
        // One that came meanwhile may have opened the chain as it was.
        match self.residents() == *before {
            true => Ok(()),
            false => Err(moved()),
        }
    }
}
