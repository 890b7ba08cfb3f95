//! Snapshots, clones, deletion and coalescing keep the contents of every disk, also if the power goes at any step.

mod support;

use std::collections::BTreeMap;

use fastrand::Rng;
use nfs_sr::sr::{
    chain,
    check::{Problem, Survey, repair},
    image::{self, Image, SrError},
    merge, online,
    store::Store,
    vdi::{self, file_name},
};
use support::memory_store::MemoryStore;
use vhd::{DiskKind, Uuid};

const SIZE: u64 = 6 << 20;
const PIECE: usize = 4096;

/// What each disk holds: pieces of 4 KiB of one value.
type Contents = BTreeMap<u64, u8>;
type Model = BTreeMap<Uuid, Contents>;

fn write(store: &MemoryStore, uuid: Uuid, at: u64, value: u8) -> Result<(), SrError> {
    let mut image = Image::open(store, &file_name(uuid))?;
    image.write(at * PIECE as u64, &[value; PIECE])?;
    image.flush()
}

/// The disk holds exactly this, at the places that any disk was written to and around them.
fn holds(
    store: &MemoryStore,
    uuid: Uuid,
    contents: &Contents,
    places: &[u64],
) -> Result<(), String> {
    let mut image = Image::open(store, &file_name(uuid)).map_err(|error| error.to_string())?;
    for at in places {
        let mut bytes = [0; PIECE];
        image
            .read(at * PIECE as u64, &mut bytes)
            .map_err(|error| error.to_string())?;
        let expected = contents.get(at).copied().unwrap_or(0);
        if bytes != [expected; PIECE] {
            return Err(format!(
                "{uuid} at {at}: {} instead of {expected}",
                bytes[0]
            ));
        }
    }
    Ok(())
}

fn places(random: &mut Rng) -> Vec<u64> {
    let pieces = SIZE / PIECE as u64;
    (0..6).map(|_| random.u64(0..pieces)).collect()
}

/// A repository with some history.
fn history(random: &mut Rng, places: &[u64]) -> (MemoryStore, Model) {
    let (store, mut model) = (MemoryStore::default(), Model::new());
    let first = Uuid::from_random([1; 16]);
    let kind = if random.u8(0..4) == 0 {
        DiskKind::Fixed
    } else {
        DiskKind::Dynamic
    };
    vdi::create(&store, first, SIZE, kind).expect("created");
    model.insert(first, Contents::new());
    for step in 0..random.u8(2..14) {
        let disks: Vec<Uuid> = model.keys().copied().collect();
        let uuid = disks[random.usize(0..disks.len())];
        match random.u8(0..10) {
            9 => drop(merge::merge_all(&store).expect("merged")),
            8 if model.len() > 1 => {
                let to = disks[random.usize(0..disks.len())];
                if to != uuid {
                    chain::revert(&store, uuid, to).expect("reverted");
                    model.insert(uuid, model[&to].clone());
                }
            }
            0 | 1 if model.len() < 6 => {
                let new = Uuid::from_random([step + 2; 16]);
                chain::snapshot(&store, uuid, new).expect("snapshot");
                model.insert(new, model[&uuid].clone());
            }
            2 if model.len() > 1 => {
                chain::delete(&store, uuid).expect("deleted");
                model.remove(&uuid);
            }
            3 => drop(chain::collect(&store, &()).expect("collected")),
            _ => {
                let (at, value) = (places[random.usize(0..places.len())], random.u8(1..));
                write(&store, uuid, at, value).expect("written");
                model.get_mut(&uuid).expect("there").insert(at, value);
            }
        }
    }
    (store, model)
}

fn all_hold(store: &MemoryStore, model: &Model, places: &[u64]) -> Result<(), String> {
    model
        .iter()
        .try_for_each(|(uuid, contents)| holds(store, *uuid, contents, places))
}

#[test]
fn disks_keep_their_contents_whatever_becomes_of_the_others() {
    for seed in 0..60 {
        let mut random = Rng::with_seed(seed);
        let places = places(&mut random);
        let (store, model) = history(&mut random, &places);
        all_hold(&store, &model, &places).unwrap_or_else(|why| panic!("seed {seed}: {why}"));
        chain::collect(&store, &()).expect("collected");
        all_hold(&store, &model, &places)
            .unwrap_or_else(|why| panic!("seed {seed}, collected: {why}"));
        let survey = Survey::take(&store).expect("readable");
        assert_eq!(survey.problems, [], "seed {seed}");
        let hidden = survey.disks.iter().filter(|(_, disk)| disk.footer.hidden);
        assert!(
            hidden
                .clone()
                .all(|(name, _)| survey.children(name).len() > 1),
            "seed {seed}: all space is reclaimed"
        );
    }
}

/// What is done when the power goes.
#[derive(Clone, Copy, Debug)]
enum Operation {
    Snapshot,
    /// With the server's step in the middle, as while a host has the disk open.
    Online,
    Revert,
    Delete,
    Collect,
    /// While hosts have the disks open.
    Merge,
    Resize,
    Write,
}

fn perform(
    store: &MemoryStore,
    operation: Operation,
    (uuid, other): (Uuid, Uuid),
    at: u64,
) -> Result<(), SrError> {
    match operation {
        Operation::Snapshot => chain::snapshot(store, uuid, NEW),
        Operation::Online => {
            let base = online::prepare(store, uuid)?;
            let leaf = file_name(uuid);
            image::at(&leaf, store.rename(&format!("{leaf}.new"), &leaf))?;
            image::at(&leaf, store.sync_names())?;
            online::finish(store, base, NEW)
        }
        Operation::Revert => chain::revert(store, uuid, other),
        Operation::Delete => chain::delete(store, uuid),
        Operation::Collect => chain::collect(store, &()).map(drop),
        Operation::Merge => merge::merge_all(store).map(drop),
        Operation::Resize => chain::resize(store, uuid, 2 * SIZE),
        Operation::Write => write(store, uuid, at, 255),
    }
}

const NEW: Uuid = Uuid([0xee; 16]);

const OPERATIONS: [Operation; 8] = [
    Operation::Snapshot,
    Operation::Online,
    Operation::Revert,
    Operation::Delete,
    Operation::Collect,
    Operation::Merge,
    Operation::Resize,
    Operation::Write,
];

/// Power cuts at every step of every operation, on many histories; then a repair; then every disk is as it was before, or as
/// it is after.
#[test]
fn a_power_cut_at_any_step_leaves_every_disk_whole() {
    let mut cuts = 0;
    for seed in 0..40 {
        for operation in OPERATIONS {
            cuts += cut_everywhere(seed, operation, false).unwrap_or_else(|why| panic!("{why}"));
        }
    }
    assert!(cuts > 1000, "only {cuts}");
}

#[test]
fn negative_control_without_syncs_disks_are_lost() {
    for operation in [
        Operation::Snapshot,
        Operation::Online,
        Operation::Collect,
        Operation::Merge,
    ] {
        let lost = (0..40).any(|seed| cut_everywhere(seed, operation, true).is_err());
        assert!(
            lost,
            "{operation:?}: the test must see what a disk that does not sync does"
        );
    }
}

/// Gives the number of cuts, or what was lost.
fn cut_everywhere(seed: u64, operation: Operation, lazy: bool) -> Result<u64, String> {
    let mut random = Rng::with_seed(seed);
    let places = places(&mut random);
    let (store, model) = history(&mut random, &places);
    let store = if lazy { store.lazy() } else { store };
    let disks: Vec<Uuid> = model.keys().copied().collect();
    let uuid = disks[random.usize(0..disks.len())];
    let other = disks[random.usize(0..disks.len())];
    let whole = store.clone();
    whole.cut_after(u64::MAX);
    if let Err(refused @ SrError::Refused(_)) = perform(&whole, operation, (uuid, other), places[0])
    {
        let refusable = matches!(operation, Operation::Resize | Operation::Revert);
        assert!(refusable, "{refused}");
        return Ok(0);
    }
    let steps = whole.changes();
    // Long operations repeat themselves; their begin, end and a part of the middle tell.
    let interesting =
        |cut: &u64| steps < 60 || *cut < 20 || *cut + 25 > steps || cut.is_multiple_of(7);
    let mut cuts = 0;
    for cut in (0..steps).filter(interesting) {
        let broken = store.clone();
        broken.cut_after(cut);
        perform(&broken, operation, (uuid, other), places[0]).expect_err("the power is gone");
        let after = broken.after_cut(&mut random);
        let context = format!("seed {seed}, {operation:?} of {uuid}, cut at {cut} of {steps}");
        check_after(&after, &model, operation, (uuid, other), &places)
            .map_err(|why| format!("{context}: {why}"))?;
        cuts += 1;
    }
    Ok(cuts)
}

fn check_after(
    store: &MemoryStore,
    model: &Model,
    operation: Operation,
    (uuid, other): (Uuid, Uuid),
    places: &[u64],
) -> Result<(), String> {
    let left = repair(store).map_err(|error| error.to_string())?;
    if let Some(problem) = left
        .iter()
        .find(|problem| !matches!(problem, Problem::Garbage { .. } | Problem::Merged { .. }))
    {
        return Err(format!("after the repair: {problem}"));
    }
    let names = Survey::take(store)
        .map_err(|error| error.to_string())?
        .disks;
    let mut expected = model.clone();
    match operation {
        Operation::Delete if !names.contains_key(&file_name(uuid)) => drop(expected.remove(&uuid)),
        Operation::Snapshot | Operation::Online if names.contains_key(&file_name(NEW)) => {
            expected.insert(NEW, model[&uuid].clone());
        }
        Operation::Revert if holds(store, uuid, &model[&other], places).is_ok() => {
            expected.insert(uuid, model[&other].clone());
        }
        Operation::Write => {
            // Not acknowledged: the piece is old, new, or torn between sectors; everything else is as it was.
            let places: Vec<u64> = places
                .iter()
                .copied()
                .filter(|at| *at != places[0])
                .collect();
            return all_hold(store, &expected, &places);
        }
        _ => {}
    }
    all_hold(store, &expected, places)?;
    chain::collect(store, &()).map_err(|error| error.to_string())?;
    all_hold(store, &expected, places)
}
