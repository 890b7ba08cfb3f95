//! Snapshots, clones, reverting, deletion, and taking chains apart again (coalescing). In the order of writes of XenServer's
//! storage manager, so that its tools and these understand what the other left behind.
//!
//! XenServer writes its intent to `filelog.txt` first. That is not needed: each state between two steps
//! can be told from the files (two names of one file, a parent that is not hidden, a hidden disk without
//! children), and [`super::check`] names and repairs them.

use vhd::{DiskKind, Footer, Header, MAX_CHAIN, NewDisk, Parent, SECTOR, Uuid};

use super::{
    check::Survey,
    image::{Image, Layer, SrError, at, ends},
    journal, merge,
    store::Store,
    vdi::{file_name, new_uuid, publish, timestamp, uuid_of, write_extents},
};

/// Read and written at a time.
const CHUNK: u64 = 256 * 1024;

/// Makes `new` a disk with the contents that `leaf` has now. The data stays where it is, in a base copy that both read
/// from; what either writes from now on is its own.
pub fn snapshot<S: Store>(store: &S, leaf: Uuid, new: Uuid) -> Result<(), SrError> {
    let new = file_name(new);
    branch(store, leaf, |child| publish(store, &new, child))
}

/// Gives a disk the contents that another one has now, such as a snapshot of it. What it held is gone; nothing is copied.
pub fn revert<S: Store>(store: &S, disk: Uuid, to: Uuid) -> Result<(), SrError> {
    let name = file_name(disk);
    if disk == to {
        return Err(SrError::Refused(format!(
            "{name} is what it is; name another disk, such as a snapshot of it"
        )));
    }
    journal::redo_all(store)?;
    if !at(&name, store.list())?.contains(&name) {
        return Err(SrError::Refused(format!("there is no disk {name}")));
    }
    if let Some(child) = children(store, &name)?.first() {
        return Err(SrError::Refused(format!(
            "{name} is the parent of {child}, which needs what it holds"
        )));
    }
    branch(store, to, |child| replace(store, &name, child))
}

/// Writes a file anew under another name and, when it is whole and durable, lets it take the place of the old one.
fn replace<S: Store>(
    store: &S,
    name: &str,
    fill: impl FnOnce(&str) -> Result<(), SrError>,
) -> Result<(), SrError> {
    let replacement = format!("{name}.new");
    at(&replacement, store.create(&replacement))?;
    let filled = fill(&replacement).and_then(|()| at(&replacement, store.sync(&replacement)));
    if let Err(error) = filled {
        // What is left is found by `sr check`; the error that matters is the first one.
        let _ = store.remove(&replacement);
        return Err(error);
    }
    at(name, store.rename(&replacement, name))?;
    at(name, store.sync_names())
}

/// Has `place` make a disk that reads from what `leaf` holds now. Its argument writes that disk's file.
fn branch<S: Store>(
    store: &S,
    leaf: Uuid,
    place: impl FnOnce(&dyn Fn(&str) -> Result<(), SrError>) -> Result<(), SrError>,
) -> Result<(), SrError> {
    journal::redo_all(store)?;
    let leaf = file_name(leaf);
    if !children(store, &leaf)?.is_empty() {
        return Err(SrError::Refused(format!(
            "{leaf} is a base copy; take a snapshot of one of its children"
        )));
    }
    let image = Image::open(store, &leaf)?;
    let own = &image.layers[0].disk;
    let footer = own.footer().clone();
    let child = |parent: &Parent, name: &str| {
        let child = NewDisk {
            size: footer.size,
            uuid: new_uuid(),
            timestamp: timestamp(),
        };
        let made = child.differencing(parent);
        let (_, extents) = made.map_err(|error| SrError::Vhd {
            name: name.to_owned(),
            error,
        })?;
        write_extents(store, name, &extents)
    };
    // What has written nothing since it was made is no layer: a template can be cloned for ever.
    let unwritten = own
        .bat()
        .is_some_and(|bat| bat.allocated().next().is_none());
    if let Some(base) = image.layers.get(1).filter(|_| unwritten) {
        let parent = parent_of(base.disk.footer(), &base.name);
        return place(&|name| child(&parent, name));
    }
    if image.layers.len() >= MAX_CHAIN {
        return Err(SrError::ChainTooLong { name: leaf });
    }
    let base = file_name(new_uuid());
    let parent = parent_of(&footer, &base);
    let child = |name: &str| child(&parent, name);
    // The leaf's new file comes first: after a crash it tells which of the data's two names is the base copy's.
    let replacement = format!("{leaf}.new");
    at(&replacement, store.create(&replacement))?;
    child(&replacement)?;
    at(&replacement, store.sync(&replacement))?;
    at(&replacement, store.sync_names())?;
    at(&base, store.link(&leaf, &base))?;
    at(&base, store.sync_names())?;
    at(&leaf, store.rename(&replacement, &leaf))?;
    at(&leaf, store.sync_names())?;
    place(&child)?;
    // Last: until here the base might still have become the leaf again.
    hide(store, &base, true)
}

/// Files whose parent is `name`, by two sectors or so of each file: a survey reads all tables.
fn children<S: Store>(store: &S, name: &str) -> Result<Vec<String>, SrError> {
    let mut children = Vec::new();
    for file in at("the repository", store.list())? {
        if uuid_of(&file).is_none() {
            continue;
        }
        let header = match ends(store, &file) {
            Ok((footer, header)) => header.filter(|_| footer.kind == DiskKind::Differencing),
            Err(error @ SrError::Io { .. }) => return Err(error),
            // Damaged, which is for `sr check` to say.
            Err(_) => None,
        };
        if header.is_some_and(|header| header.parent_name == name) {
            children.push(file);
        }
    }
    Ok(children)
}

fn parent_of(footer: &Footer, name: &str) -> Parent {
    Parent {
        uuid: footer.uuid,
        timestamp: footer.timestamp,
        name: name.to_owned(),
    }
}

/// Marks a disk as a base copy, or as a disk of its own.
pub fn hide<S: Store>(store: &S, name: &str, hidden: bool) -> Result<(), SrError> {
    let mut layer = Layer::open(store, name)?;
    let footer = Footer {
        hidden,
        ..layer.disk.footer().clone()
    };
    layer.write_footer(store, footer)
}

/// Removes a disk. What only it needed of its parents is reclaimed by [`collect`].
pub fn delete<S: Store>(store: &S, uuid: Uuid) -> Result<(), SrError> {
    journal::redo_all(store)?;
    let name = file_name(uuid);
    if let Some(child) = children(store, &name)?.first() {
        return Err(SrError::Refused(format!(
            "{name} is the parent of {child}; delete that first"
        )));
    }
    at(&name, store.remove(&name))?;
    at(&name, store.sync_names())
}

/// Makes a disk larger. Its BAT must grow, so its structures move: the blocks are copied to a new file, which then takes the
/// name. What it has from its parents stays there.
pub fn resize<S: Store>(store: &S, uuid: Uuid, size: u64) -> Result<(), SrError> {
    journal::redo_all(store)?;
    let name = file_name(uuid);
    let mut old = Layer::open(store, &name)?;
    let footer = old.disk.footer().clone();
    let refuse = |why: &str| Err(SrError::Refused(format!("{name}: {why}")));
    if footer.kind == DiskKind::Fixed {
        return refuse("fixed disks keep their size; import it into a new disk");
    }
    if size < footer.size {
        return refuse("disks do not become smaller, since what is at the end would be lost");
    }
    if !children(store, &name)?.is_empty() {
        return refuse("a base copy keeps its size");
    }
    let new = NewDisk {
        size,
        uuid: footer.uuid,
        timestamp: timestamp(),
    };
    let made = match (old.disk.header(), footer.kind) {
        (Some(header), DiskKind::Differencing) => new.differencing(&Parent {
            uuid: header.parent,
            timestamp: header.parent_timestamp,
            name: header.parent_name.clone(),
        }),
        _ => new.dynamic(),
    };
    let (_, extents) = made.map_err(|error| SrError::Vhd {
        name: name.clone(),
        error,
    })?;
    replace(store, &name, |replacement| {
        write_extents(store, replacement, &extents)?;
        let mut copy = Layer::open(store, replacement)?;
        copy_data((store, &mut old), (store, &mut copy))?;
        match copy.mark_full_blocks(store)? {
            Some((offset, bytes)) => at(replacement, store.write(replacement, offset, &bytes)),
            None => Ok(()),
        }
    })
}

/// What keeps hosts from opening a disk while it is worked on.
pub trait Hold {
    /// Holds a disk; false if a host has it open.
    fn hold(&self, name: &str) -> bool;
    /// Lets go of all that is held.
    fn release(&self);
}

/// Where there are no hosts.
impl Hold for () {
    fn hold(&self, _: &str) -> bool {
        true
    }

    fn release(&self) {}
}

/// Reclaims space: removes base copies that nobody needs, and merges those that have one child only. What a host has open, or
/// a descendant of which it has open, is left alone. Gives what was done, as sentences.
pub fn collect<S: Store>(store: &S, hold: &impl Hold) -> Result<Vec<String>, SrError> {
    journal::redo_all(store)?;
    let mut done = Vec::new();
    loop {
        let survey = Survey::take(store)?;
        for (child, base) in survey.half_merged() {
            merge::take_place(store, base, child)?;
        }
        if survey.half_merged().next().is_some() {
            continue;
        }
        let Some(action) = next_action(&survey, hold) else {
            return Ok(done);
        };
        match action {
            Action::Forget(merged) => {
                merge::forget(store, &merged)?;
                let removed = merged
                    .iter()
                    .map(|name| format!("removed {name}, which no host has open"));
                done.extend(removed);
            }
            Action::Remove(name) => {
                at(&name, store.remove(&name))?;
                at(&name, store.sync_names())?;
                done.push(format!("removed {name}, a base copy without children"));
            }
            Action::Merge { base, child } => {
                coalesce(store, &survey, &base, &child)?;
                done.push(format!("merged {child} into its parent {base}"));
            }
        }
        hold.release();
    }
}

enum Action {
    Forget(Vec<String>),
    Remove(String),
    Merge { base: String, child: String },
}

fn next_action(survey: &Survey, hold: &impl Hold) -> Option<Action> {
    let merged: Vec<String> = survey.merged().map(str::to_owned).collect();
    if !merged.is_empty() && survey.disks.keys().all(|name| hold.hold(name)) {
        return Some(Action::Forget(merged));
    }
    hold.release();
    for (name, disk) in &survey.disks {
        if !disk.footer.hidden {
            continue;
        }
        let action = match survey.children(name)[..] {
            [] => Action::Remove(name.clone()),
            [child] => {
                let child_disk = &survey.disks[child];
                // A hidden child without children goes first; a child that has grown does not fit into its parent.
                let gone = child_disk.footer.hidden && survey.children(child).is_empty();
                if gone || child_disk.footer.size > disk.footer.size {
                    continue;
                }
                Action::Merge {
                    base: name.clone(),
                    child: child.to_owned(),
                }
            }
            _ => continue,
        };
        if survey.all_below(name, &|name| hold.hold(name)) {
            return Some(action);
        }
        hold.release();
    }
    None
}

/// Merges `child`, the only one, into `base`.
fn coalesce<S: Store>(store: &S, survey: &Survey, base: &str, child: &str) -> Result<(), SrError> {
    // While the child exists it hides whatever is written to the base here, so a crash on the way changes nothing.
    merge_data(store, base, child)?;
    let grandchildren = survey.children(child);
    if grandchildren.is_empty() {
        // First visible, then under the leaf's name: a hidden leaf would be taken for garbage.
        hide(store, base, false)?;
        at(child, store.rename(base, child))?;
    } else {
        for grandchild in grandchildren {
            relink(store, grandchild, base)?;
        }
        at(child, store.remove(child))?;
    }
    at(child, store.sync_names())
}

/// Writes whatever `child` holds to `base`.
pub(super) fn merge_data<S: Store>(store: &S, base: &str, child: &str) -> Result<(), SrError> {
    let (mut from, mut to) = (Layer::open(store, child)?, Layer::open(store, base)?);
    copy_data((store, &mut from), (store, &mut to))?;
    at(base, store.sync(base))?;
    // All or nothing: XenServer refuses a disk whose batmap does not fit its checksum.
    match to.mark_full_blocks(store)? {
        Some(change) => journal::write(store, base, &[change]),
        None => Ok(()),
    }
}

/// Writes to one file whatever the other one holds itself. Gives how many bytes that are.
pub(super) fn copy_data<S: Store, T: Store>(
    (source, from): (&S, &mut Layer),
    (target, to): (&T, &mut Layer),
) -> Result<u64, SrError> {
    let name = from.name.clone();
    let size = from.disk.size();
    let blocks: Vec<u32> = from
        .disk
        .bat()
        .map(|bat| bat.allocated().map(|(block, _)| block).collect())
        .unwrap_or_default();
    let block_size = from
        .disk
        .header()
        .map_or(0, |header: &Header| u64::from(header.block_size));
    let mut buffer = vec![0; CHUNK as usize];
    let mut bytes = 0;
    for block in blocks {
        let start = u64::from(block) * block_size;
        let located = from
            .disk
            .locate(start, block_size.min(size.saturating_sub(start)));
        let segments: Vec<_> = located
            .map_err(|error| SrError::Vhd {
                name: name.clone(),
                error,
            })?
            .collect();
        for segment in segments {
            for (offset, length, place) in from.runs(source, &segment)? {
                let Some(place) = place else { continue };
                bytes += length;
                let mut done = 0;
                while done < length {
                    let n = (length - done).min(CHUNK);
                    let piece = &mut buffer[..n as usize];
                    at(&name, source.read(&name, place + done, piece))?;
                    to.write(target, offset + done, piece)?;
                    done += n;
                }
            }
        }
    }
    Ok(bytes)
}

/// Gives a disk another parent, which must hold the same data. The header takes two sectors and the paths are
/// elsewhere, so the change goes through a journal.
fn relink<S: Store>(store: &S, name: &str, parent: &str) -> Result<(), SrError> {
    let layer = Layer::open(store, name)?;
    let new_parent = Layer::open(store, parent)?;
    let (footer, Some(header)) = (layer.disk.footer(), layer.disk.header()) else {
        return Err(SrError::Refused(format!(
            "{name} is a fixed disk and has no parent"
        )));
    };
    if footer.kind != DiskKind::Differencing {
        return Err(SrError::Refused(format!("{name} has no parent")));
    }
    let parent = parent_of(new_parent.disk.footer(), parent);
    let mut header = Header {
        parent: parent.uuid,
        parent_timestamp: parent.timestamp,
        parent_name: parent.name.clone(),
        ..header.clone()
    };
    let mut writes = Vec::new();
    for locator in &mut header.locators {
        if let Some(path) = locator.code.path(&parent.name)
            && path.len() as u64 <= u64::from(locator.space).max(SECTOR)
        {
            locator.length = path.len() as u32;
            writes.push((locator.offset, path));
        }
    }
    let header_at = footer
        .header_offset
        .expect("differencing disks have a header");
    writes.push((header_at, header.encode().to_vec()));
    journal::write(store, name, &writes)
}
