//! Base copies are merged while somebody has the disks open, with the chain as it was before.

mod support;

use nfs_sr::sr::{
    chain,
    check::Survey,
    image::Image,
    merge,
    store::Directory,
    vdi::{self, file_name, new_uuid},
};
use nfs3::Status;
use support::{Calls, TestServer};
use vhd::{DiskKind, Uuid};

const SIZE: u64 = 16 << 20;
const PIECE: u64 = 64 << 10;

/// A disk with a long history: each of its snapshots has seen other writes.
struct History {
    folder: tempfile::TempDir,
    disk: Uuid,
    snapshots: Vec<Uuid>,
}

impl History {
    fn new(snapshots: u64) -> Self {
        let folder = tempfile::tempdir().expect("folder");
        let disk = new_uuid();
        let mut history = Self {
            folder,
            disk,
            snapshots: Vec::new(),
        };
        let store = history.store();
        vdi::create(&store, disk, SIZE, DiskKind::Dynamic).expect("created");
        let mut random = fastrand::Rng::with_seed(snapshots);
        for _ in 0..snapshots {
            history.write(&mut random);
            let snapshot = new_uuid();
            chain::snapshot(&store, disk, snapshot).expect("snapshot");
            history.snapshots.push(snapshot);
        }
        history.write(&mut random);
        history
    }

    /// What another program sees: files that it has open stay open.
    fn store(&self) -> Directory {
        Directory::new(self.folder.path())
    }

    fn write(&self, random: &mut fastrand::Rng) {
        let store = self.store();
        let mut image = Image::open(&store, &file_name(self.disk)).expect("open");
        for _ in 0..6 {
            let at = random.u64(0..SIZE / PIECE) * PIECE + random.u64(0..64) * 512;
            let data = vec![random.u8(1..); 4096];
            image.write(at.min(SIZE - 4096), &data).expect("written");
        }
        image.flush().expect("flushed");
    }

    fn contents(&self, disk: Uuid) -> Vec<u8> {
        let store = self.store();
        read(&mut Image::open(&store, &file_name(disk)).expect("open"))
    }
}

fn read(image: &mut Image<'_, Directory>) -> Vec<u8> {
    let mut bytes = vec![0; SIZE as usize];
    image.read(0, &mut bytes).expect("read");
    bytes
}

#[test]
fn a_reader_of_the_old_chain_sees_the_same_and_a_new_one_has_a_shorter_chain() {
    let history = History::new(12);
    let (disk, kept) = (history.disk, history.snapshots[5]);
    let (before, then) = (history.contents(disk), history.contents(kept));
    let theirs = history.store();
    let mut reader = Image::open(&theirs, &file_name(disk)).expect("open");
    assert!(read(&mut reader) == before);
    assert_eq!(reader.layers.len(), 13);

    let store = history.store();
    for snapshot in history.snapshots.iter().filter(|one| **one != kept) {
        chain::delete(&store, *snapshot).expect("deleted");
        merge::merge_all(&store).expect("merged");
        assert!(read(&mut reader) == before, "the bitmaps it knows");
    }
    // With tables read before, and bitmaps read now.
    reader.layers.iter_mut().for_each(|layer| {
        let tables = layer.disk.clone();
        *layer = nfs_sr::sr::image::Layer::of(&layer.name, tables);
    });
    assert!(read(&mut reader) == before, "the bitmaps of now");

    // The leaf, what it shares with the snapshot, and what came after that.
    let mut fresh = Image::open(&store, &file_name(disk)).expect("open");
    assert_eq!(fresh.layers.len(), 3);
    assert!(read(&mut fresh) == before);
    assert!(history.contents(kept) == then);
    let survey = Survey::take(&store).expect("readable");
    assert_eq!(survey.merged().count(), 10);
    assert!(survey.problems.iter().all(|problem| problem.is_harmless()));

    let merged: Vec<String> = survey.merged().map(str::to_owned).collect();
    merge::forget(&store, &merged).expect("removed");
    assert!(history.contents(disk) == before && history.contents(kept) == then);
    assert_eq!(Survey::take(&store).expect("readable").problems, []);
}

/// A host finds the files that it has open also after the server was started anew, until they are given up.
#[test]
fn a_merged_file_is_found_by_its_handle_until_it_is_forgotten() {
    let history = History::new(2);
    let store = history.store();
    let child = {
        let image = Image::open(&store, &file_name(history.disk)).expect("open");
        image.layers[1].name.clone()
    };
    let handle = |server: &TestServer| {
        let mut client = server.client();
        let root = client.root();
        client.look_up(root, &child).expect("there")
    };
    let server = TestServer::start(history.folder.path());
    let old = handle(&server);
    let whole = server.client().read(old, 0, 4096).expect("read");
    for snapshot in &history.snapshots {
        chain::delete(&store, *snapshot).expect("deleted");
    }
    merge::merge_all(&store).expect("merged");
    assert_eq!(server.client().read(old, 0, 4096), Ok(whole.clone()));
    drop(server);
    let server = TestServer::start(history.folder.path());
    assert_eq!(server.client().read(old, 0, 4096), Ok(whole));
    assert_ne!(handle(&server), old, "the name is another file's");
    drop(server);
    // No host has anything open, so the tool that has the repository to itself removes it.
    chain::collect(&store, &()).expect("collected");
    let server = TestServer::start(history.folder.path());
    assert_eq!(server.client().read(old, 0, 4096), Err(Status::Stale));
}
