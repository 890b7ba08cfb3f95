//! Base copies that only one other base copy needs, merged with it while hosts have their descendants open.
//!
//! ```text
//! before   leaf ──► child ──► base ──► ...        both are base copies, and the base has no other child
//! 1        what the child holds is written to the base: whoever reads the base comes by the child, and sees no difference
//! 2        the child's file gets a second name, under which hosts that have it open find it until they have let go of it
//! 3        the base gets the child's identity
//! 4        and its name: leaf ──► child (the base's file) ──► ...
//! ```
//!
//! No file that a host may write to is changed, nobody's parent gets another name or identity, and at each moment the chain that
//! is found by names holds the same. Between 3 and 4 a parent has its child's own identity, which readers take for what it is. Where
//! hosts run, [`forget`] removes the child's old file when all of them have opened their chains anew.
//!
//! Changing the leaf's header instead was rejected: the leaf belongs to its host, and what remembers its parent's identity (the memory
//! of a checkpoint) would have to be changed with it.

use vhd::Footer;

use super::{
    chain::merge_data,
    check::Survey,
    image::{Layer, SrError, at},
    journal,
    store::Store,
    vdi::new_uuid,
};

/// How the second name of a merged file ends.
pub const MERGED: &str = ".merged";

/// Merges whatever can be merged, and removes base copies that nobody needs. Gives what was done, as sentences.
///
/// # Errors
/// When the files cannot be read or changed; every disk is then as it was.
pub fn merge_all(store: &impl Store) -> Result<Vec<String>, SrError> {
    journal::redo_all(store)?;
    let mut done = Vec::new();
    loop {
        let survey = Survey::take(store)?;
        if let Some((child, base)) = survey.half_merged().next() {
            take_place(store, base, child)?;
        } else if let Some(name) = unneeded(&survey) {
            at(&name, store.remove(&name))?;
            at(&name, store.sync_names())?;
            done.push(format!("removed {name}, a base copy without children"));
        } else if let Some((base, child)) = mergeable(&survey) {
            merge(store, &base, &child)?;
            done.push(format!("merged {child} into its parent {base}"));
        } else {
            return Ok(done);
        }
    }
}

/// A base copy without children. That nobody needs it is certain only when every file can be read.
fn unneeded(survey: &Survey) -> Option<String> {
    let mut hidden = survey.disks.iter().filter(|(_, disk)| disk.footer.hidden);
    let found = hidden.find(|(name, _)| survey.children(name).is_empty());
    found
        .filter(|_| !survey.is_uncertain())
        .map(|(name, _)| name.clone())
}

/// A base copy and its only child, another one.
fn mergeable(survey: &Survey) -> Option<(String, String)> {
    survey.disks.iter().find_map(|(base, disk)| {
        let [child] = survey.children(base)[..] else {
            return None;
        };
        let above = &survey.disks[child].footer;
        let fits = above.size <= disk.footer.size;
        let both = disk.footer.hidden && above.hidden && !survey.children(child).is_empty();
        (both && fits).then(|| (base.clone(), child.to_owned()))
    })
}

fn merge(store: &impl Store, base: &str, child: &str) -> Result<(), SrError> {
    merge_data(store, base, child)?;
    let second = format!("{}{MERGED}", new_uuid());
    at(&second, store.link(child, &second))?;
    at(&second, store.sync_names())?;
    let mut layer = Layer::open(store, base)?;
    let theirs = Layer::open(store, child)?.disk.footer().clone();
    let footer = Footer {
        uuid: theirs.uuid,
        timestamp: theirs.timestamp,
        ..layer.disk.footer().clone()
    };
    layer.write_footer(store, footer)?;
    take_place(store, base, child)
}

/// The last step: what holds all of it gets the name.
pub(super) fn take_place(store: &impl Store, base: &str, child: &str) -> Result<(), SrError> {
    at(child, store.rename(base, child))?;
    at(child, store.sync_names())
}

/// Removes old files of children that were merged. No host may have them open.
///
/// # Errors
/// When they cannot be removed.
pub fn forget(store: &impl Store, merged: &[String]) -> Result<(), SrError> {
    for name in merged {
        at(name, store.remove(name))?;
    }
    at("the repository", store.sync_names())
}
