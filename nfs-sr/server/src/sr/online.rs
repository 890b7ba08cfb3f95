//! A snapshot of a disk that a host has open.
//!
//! Three steps, of which the host does the second while its guest stands still:
//!
//! 1. [`prepare`]: an empty child of the disk, as `<disk>.vhd.new`, and a second name for the disk's own file.
//! 2. The host has the server put the child in the disk's place (REPLACE of the LEASE program).
//! 3. [`finish`]: the snapshot itself, another child, and the mark that the file is a base copy now.
//!
//! These are the steps of [`super::chain::snapshot`] in the same order, so [`super::check`] tells from the files where one that was
//! interrupted has stopped, and repairs it.

use vhd::{MAX_CHAIN, NewDisk, Parent, Uuid};

use super::{
    chain::hide,
    image::{Image, Layer, SrError, at, ends},
    store::Store,
    vdi::{file_name, new_uuid, publish, timestamp, write_extents},
};

fn child_of(uuid: Uuid) -> String {
    format!("{}.new", file_name(uuid))
}

/// Writes an empty child of the disk `base` is or will be.
fn write_child(store: &impl Store, name: &str, parent: &Parent, size: u64) -> Result<(), SrError> {
    let child = NewDisk {
        size,
        uuid: new_uuid(),
        timestamp: timestamp(),
    };
    let (_, extents) = child.differencing(parent).map_err(|error| SrError::Vhd {
        name: name.to_owned(),
        error,
    })?;
    write_extents(store, name, &extents)
}

/// Makes what a host needs to branch a disk; gives the identity that the disk's file has as a base copy.
///
/// # Errors
/// When there is no such disk, or its chain is too long already.
pub fn prepare(store: &impl Store, disk: Uuid) -> Result<Uuid, SrError> {
    abandon(store, disk)?;
    let leaf = file_name(disk);
    let image = Image::open(store, &leaf)?;
    if image.layers.len() >= MAX_CHAIN {
        return Err(SrError::ChainTooLong { name: leaf });
    }
    let footer = image.layers[0].disk.footer().clone();
    let base_uuid = new_uuid();
    let base = file_name(base_uuid);
    let parent = Parent {
        uuid: footer.uuid,
        timestamp: footer.timestamp,
        name: base.clone(),
    };
    let child = child_of(disk);
    at(&child, store.create(&child))?;
    write_child(store, &child, &parent, footer.size)?;
    at(&child, store.sync(&child))?;
    at(&child, store.sync_names())?;
    at(&base, store.link(&leaf, &base))?;
    at(&base, store.sync_names())?;
    Ok(base_uuid)
}

/// Removes what [`prepare`] has made and no host has used.
///
/// # Errors
/// When the files cannot be changed.
pub fn abandon(store: &impl Store, disk: Uuid) -> Result<(), SrError> {
    let (leaf, child) = (file_name(disk), child_of(disk));
    if store.length(&child).is_err() {
        return Ok(());
    }
    // The child tells which of the disk's two names is to go; it goes last.
    if let Ok(layer) = Layer::open(store, &child)
        && let Some(base) = layer.parent_name()
        && base != leaf
        && store.same(base, &leaf).unwrap_or(false)
    {
        at(base, store.remove(base))?;
    }
    at(&child, store.remove(&child))?;
    at(&child, store.sync_names())
}

/// After a host has refused: removes what it has not used, and keeps what it has.
///
/// # Errors
/// When the files cannot be changed.
pub fn undo(store: &impl Store, disk: Uuid, base: Uuid) -> Result<(), SrError> {
    match store.length(&child_of(disk)).is_ok() {
        true => abandon(store, disk),
        // The disk was branched, and another one of the same machine was not: a base copy with one child.
        false => hide(store, &file_name(base), true),
    }
}

/// Makes `snapshot` a disk with what the base copy holds, and marks that as one.
///
/// # Errors
/// When the files cannot be changed.
pub fn finish(store: &impl Store, base: Uuid, snapshot: Uuid) -> Result<(), SrError> {
    let base = file_name(base);
    let (footer, _) = ends(store, &base)?;
    let parent = Parent {
        uuid: footer.uuid,
        timestamp: footer.timestamp,
        name: base.clone(),
    };
    publish(store, &file_name(snapshot), |name| {
        write_child(store, name, &parent, footer.size)
    })?;
    hide(store, &base, true)
}
