//! The tools for disks, with `qemu-img` as second opinion.

mod support;

use std::{
    fs::File,
    os::unix::fs::FileExt,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use nfs_sr::sr::{
    chain,
    check::{Problem, Survey, repair},
    delta,
    image::{Image, Layer},
    store::Directory,
    vdi::{self, file_name, new_uuid},
};
use vhd::{Batmap, DiskKind};

fn qemu_img_agrees(vhd: &Path, raw: &Path) -> bool {
    let output = Command::new("qemu-img")
        .args(["compare", "-f", "vpc", "-F", "raw"])
        .args([vhd, raw])
        .output()
        .expect("qemu-img is needed: install the package qemu-utils");
    output.status.success()
}

#[test]
fn an_image_comes_in_and_goes_out_unchanged() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let (raw, back) = (dir.path().join("in.raw"), dir.path().join("out.raw"));
    let file = File::create(&raw).expect("create");
    file.set_len((9 << 20) + 512).expect("set length");
    file.write_all_at(b"first", 0).expect("write");
    file.write_all_at(&[7; 5000], (4 << 20) - 100)
        .expect("write");
    file.write_all_at(b"last", (9 << 20) + 508).expect("write");
    let (store, uuid) = (Directory::new(dir.path()), new_uuid());
    vdi::import(&store, uuid, &raw, None).expect("imported");
    let name = file_name(uuid);
    assert!(qemu_img_agrees(&dir.path().join(&name), &raw));
    let info = vdi::info(&store, &name).expect("a good disk");
    assert_eq!(
        (info.kind, info.virtual_size, info.allocated),
        ("dynamic", (9 << 20) + 512, 4 * (2 << 20))
    );
    vdi::export(&store, &name, &back).expect("exported");
    assert!(std::fs::read(&raw).expect("read") == std::fs::read(&back).expect("read"));
}

#[test]
fn new_disks_are_empty_and_whole() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let (store, raw) = (Directory::new(dir.path()), dir.path().join("zero.raw"));
    File::create(&raw)
        .and_then(|file| file.set_len(64 << 20))
        .expect("zeros");
    for kind in [DiskKind::Dynamic, DiskKind::Fixed] {
        let uuid = new_uuid();
        vdi::create(&store, uuid, 64 << 20, kind).expect("created");
        assert!(
            qemu_img_agrees(&dir.path().join(file_name(uuid)), &raw),
            "{kind:?}"
        );
        assert!(
            vdi::create(&store, uuid, 64 << 20, kind).is_err(),
            "the name is taken"
        );
    }
    assert!(
        vdi::create(&store, new_uuid(), 1000, DiskKind::Dynamic).is_err(),
        "no such size"
    );
}

#[test]
fn a_snapshot_keeps_what_the_disk_was_and_can_be_flattened() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let (store, raw) = (Directory::new(dir.path()), dir.path().join("in.raw"));
    let before: Vec<u8> = (0..5 << 20).map(|i: u32| (i >> 10) as u8).collect();
    std::fs::write(&raw, &before).expect("write");
    let (disk, snapshot) = (new_uuid(), new_uuid());
    vdi::import(&store, disk, &raw, None).expect("imported");
    chain::snapshot(&store, disk, snapshot).expect("snapshot");
    let mut image = Image::open(&store, &file_name(disk)).expect("a good disk");
    image.write(1 << 20, &[0xaa; 512]).expect("written");
    image
        .write((2 << 20) - 512, &[0xbb; 1024])
        .expect("written");
    let mut after = before.clone();
    after[1 << 20..][..512].fill(0xaa);
    after[(2 << 20) - 512..][..1024].fill(0xbb);
    assert_eq!(
        vdi::info(&store, &file_name(disk))
            .expect("a good disk")
            .parents
            .len(),
        1
    );
    let exported = |uuid| {
        let out = dir.path().join("out.raw");
        vdi::export(&store, &file_name(uuid), &out).expect("exported");
        std::fs::read(out).expect("read")
    };
    assert!(exported(disk) == after && exported(snapshot) == before);
    // A single child is merged into its parent, and the disk is one that qemu-img reads again.
    chain::delete(&store, snapshot).expect("deleted");
    chain::collect(&store, &()).expect("collected");
    assert_eq!(
        vdi::info(&store, &file_name(disk))
            .expect("a good disk")
            .parents
            .len(),
        0
    );
    std::fs::write(&raw, &after).expect("write");
    assert!(qemu_img_agrees(&dir.path().join(file_name(disk)), &raw));
    chain::resize(&store, disk, 300 << 20).expect("resized");
    File::options()
        .write(true)
        .open(&raw)
        .and_then(|file| file.set_len(300 << 20))
        .expect("set length");
    assert!(qemu_img_agrees(&dir.path().join(file_name(disk)), &raw));
}

#[test]
fn a_copy_is_equal_shares_nothing_and_costs_what_is_allocated() {
    let dirs = [(); 2].map(|()| support::power::fast_directory());
    let [store, other] = dirs.each_ref().map(|dir| Directory::new(dir.path()));
    let (disk, copy) = (new_uuid(), new_uuid());
    // At 1 TiB, reading what is not there would take minutes.
    vdi::create(&store, disk, 1 << 40, DiskKind::Dynamic).expect("created");
    let write = |offset, byte| {
        let mut image = Image::open(&store, &file_name(disk)).expect("a good disk");
        image.write(offset, &[byte; 1024]).expect("written");
    };
    write((1 << 39) - 512, 0xaa);
    chain::snapshot(&store, disk, new_uuid()).expect("snapshot");
    write(1 << 20, 0xbb);
    vdi::copy(&store, &file_name(disk), &other, copy).expect("copied");
    write(1 << 20, 0xcc);
    let info = vdi::info(&other, &file_name(copy)).expect("a good disk");
    assert_eq!((info.virtual_size, info.parents.len()), (1 << 40, 0));
    assert_eq!(info.allocated, 3 * u64::from(vhd::BLOCK));
    let mut image = Image::open(&other, &file_name(copy)).expect("a good disk");
    for (offset, expected) in [((1 << 39) - 512, 0xaa), (1 << 20, 0xbb), (0, 0)] {
        let mut bytes = [1; 1024];
        image.read(offset, &mut bytes).expect("read");
        assert_eq!(bytes, [expected; 1024], "at {offset}");
    }
    vdi::copy(&store, &file_name(disk), &other, copy).expect_err("it exists");
}

/// What was copied while the disk was in use becomes what the disk is, by what came after.
#[test]
fn a_copy_of_a_snapshot_follows_its_disk() {
    let dirs = [(); 2].map(|()| support::power::fast_directory());
    let [store, other] = dirs.each_ref().map(|dir| Directory::new(dir.path()));
    let [disk, snapshot, later, copy] = [(); 4].map(|()| new_uuid());
    vdi::create(&store, disk, 16 << 20, DiskKind::Dynamic).expect("created");
    let write = |offset, byte, length| {
        let mut image = Image::open(&store, &file_name(disk)).expect("a good disk");
        image.write(offset, &vec![byte; length]).expect("written");
    };
    let whole = |store: &Directory, disk| {
        let mut image = Image::open(store, &file_name(disk)).expect("a good disk");
        let mut bytes = vec![0; 16 << 20];
        image.read(0, &mut bytes).expect("read");
        bytes
    };
    write(0, 1, 8 << 20);
    chain::snapshot(&store, disk, snapshot).expect("snapshot");
    vdi::copy(&store, &file_name(snapshot), &other, copy).expect("copied");
    write(1 << 20, 2, 4096);
    chain::snapshot(&store, disk, later).expect("snapshot");
    write((1 << 20) + 512, 3, 1024);
    write(12 << 20, 4, 512);
    let sent = delta::send(&store, (disk, snapshot), &other, copy).expect("sent");
    assert_eq!(sent, 4096 + 1024 + 512);
    assert!(whole(&other, copy) == whole(&store, disk));
    // Not by what is no snapshot of it, or is not any more.
    let error = delta::send(&store, (disk, disk), &other, copy).expect_err("itself");
    assert!(error.to_string().contains("is no snapshot"), "{error}");
    let mut image = Image::open(&store, &file_name(snapshot)).expect("a good disk");
    image.write(0, &[9; 512]).expect("written");
    assert!(delta::send(&store, (disk, snapshot), &other, copy).is_err());
}

#[test]
fn disks_are_exchanged_as_vhd() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let path = |name: &str| dir.path().join(name);
    let raw = File::create(path("in.raw")).expect("create");
    raw.set_len(11 << 20).expect("set length");
    raw.write_all_at(&[3; 3 << 20], 1 << 20).expect("write");
    // Another program's disk comes in.
    let made = Command::new("qemu-img")
        .args(["convert", "-f", "raw", "-O", "vpc", "-o", "force_size=on"])
        .args([path("in.raw"), path("other.vhd")])
        .status();
    assert!(made.expect("qemu-img is needed").success());
    let (store, uuid) = (Directory::new(dir.path()), new_uuid());
    vdi::import(&store, uuid, &path("other.vhd"), None).expect("imported");
    assert!(qemu_img_agrees(&path(&file_name(uuid)), &path("in.raw")));
    // And goes out, from the end of a chain, in one file.
    let child = new_uuid();
    chain::snapshot(&store, uuid, child).expect("snapshot");
    let mut image = Image::open(&store, &file_name(child)).expect("a good disk");
    image.write(5 << 20, &[9; 4096]).expect("write");
    image.flush().expect("flush");
    raw.write_all_at(&[9; 4096], 5 << 20).expect("write");
    vdi::export_vhd(&store, &file_name(child), &path("out.vhd")).expect("exported");
    assert!(qemu_img_agrees(&path("out.vhd"), &path("in.raw")));
    vdi::export_vhd(&store, &file_name(child), &path("out.vhd")).expect_err("it exists");
}

/// Blocks that are full are marked where XenServer looks for it, also after a merge, and marks are never believed blindly.
#[test]
fn full_blocks_are_marked_and_marks_are_checked() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let store = Directory::new(dir.path());
    let (disk, other) = (new_uuid(), new_uuid());
    let name = file_name(disk);
    vdi::create(&store, disk, 64 << 20, DiskKind::Dynamic).expect("created");
    for leaf in [disk, disk] {
        chain::snapshot(&store, leaf, new_uuid()).expect("snapshot");
    }
    chain::snapshot(&store, disk, other).expect("snapshot");
    let mut image = Image::open(&store, &name).expect("a good disk");
    image.write(2 << 20, &vec![5; 2 << 20]).expect("write");
    image.write(8 << 20, &[6; 512]).expect("write");
    image.flush().expect("flush");
    chain::snapshot(&store, disk, new_uuid()).expect("snapshot");
    let parent = vdi::info(&store, &name).expect("a good disk").parents[0].clone();
    let full = |name: &str| -> Vec<u32> {
        let layer = Layer::open(&store, name).expect("a good disk");
        layer.disk.batmap().expect("it has one").full().collect()
    };
    assert!(full(&parent).is_empty(), "nobody has looked yet");
    // What only the disk needs is merged, so the full block comes into an older file.
    for leaf in Survey::take(&store).expect("readable").disks {
        let uuid = vdi::uuid_of(&leaf.0).expect("a disk");
        if !leaf.1.footer.hidden && uuid != disk {
            chain::delete(&store, uuid).expect("deleted");
        }
    }
    chain::collect(&store, &()).expect("collected");
    assert_eq!(full(&name), [1, 4], "a dynamic disk has no other blocks");
    let problems = || Survey::take(&store).expect("readable").problems;
    assert_eq!(problems(), []);
    let content = || {
        let mut image = Image::open(&store, &name).expect("a good disk");
        let mut bytes = vec![0; 1024];
        image.read(8 << 20, &mut bytes).expect("read");
        bytes
    };
    let before = content();
    // The batmap lies behind the BAT of 32 entries, its map a sector further.
    let file = File::options()
        .write(true)
        .open(dir.path().join(&name))
        .expect("there");
    file.write_all_at(&[0xff], 2048 + 512).expect("write");
    assert!(
        matches!(&problems()[..], [Problem::Batmap { .. }]),
        "{:?}",
        problems()
    );
    assert_eq!(content(), before);
    assert_eq!(repair(&store).expect("repaired"), []);
    let mut batmap = Batmap::empty(32);
    batmap.set(9);
    file.write_all_at(&batmap.encode(2048), 2048)
        .expect("write");
    assert!(matches!(
        &problems()[..],
        [Problem::NotFull { block: 9, .. }]
    ));
}

/// The table of a 1 TiB disk has 2 MiB, which is written twice and read a few times; code that is not optimized dawdles over it.
const CLONE_LIMIT: Duration = Duration::from_millis(if cfg!(debug_assertions) { 2000 } else { 50 });

#[test]
fn clones_take_no_time_whatever_the_size_and_however_many_there_are() {
    // In one case more than a chain may be long.
    for (size, count) in [(1 << 30, 40), (1 << 40, 4)] {
        let dir = support::power::fast_directory();
        let (store, template) = (Directory::new(dir.path()), new_uuid());
        vdi::create(&store, template, size, DiskKind::Dynamic).expect("created");
        let clone = |_| {
            let (begun, new) = (Instant::now(), new_uuid());
            chain::snapshot(&store, template, new).expect("cloned");
            (begun.elapsed(), new)
        };
        let clones: Vec<_> = (0..count).map(clone).collect();
        let fastest = clones.iter().map(|(time, _)| *time).min();
        println!("{} GiB: {fastest:?}", size >> 30);
        // The best of them: others may be at work on the machine.
        assert!(fastest.is_some_and(|time| time <= CLONE_LIMIT));
        for (_, uuid) in clones {
            let info = vdi::info(&store, &file_name(uuid)).expect("a good disk");
            assert_eq!((info.virtual_size, info.parents.len()), (size, 1));
        }
    }
}

#[test]
fn a_disk_gets_back_what_its_snapshot_holds() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let (store, raw) = (Directory::new(dir.path()), dir.path().join("in.raw"));
    std::fs::write(&raw, vec![1; 4 << 20]).expect("write");
    let (disk, snapshot) = (new_uuid(), new_uuid());
    vdi::import(&store, disk, &raw, None).expect("imported");
    chain::snapshot(&store, disk, snapshot).expect("snapshot");
    for _ in 0..2 {
        let mut image = Image::open(&store, &file_name(disk)).expect("a good disk");
        image.write(1 << 20, &[2; 512]).expect("written");
        drop(image);
        chain::revert(&store, disk, snapshot).expect("reverted");
        let whole = dir.path().join("whole.vhd");
        vdi::export_vhd(&store, &file_name(disk), &whole).expect("exported");
        assert!(qemu_img_agrees(&whole, &raw));
        std::fs::remove_file(whole).expect("remove");
        let info = vdi::info(&store, &file_name(disk)).expect("a good disk");
        assert_eq!(info.parents.len(), 1, "an unwritten snapshot is no layer");
    }
    assert!(chain::revert(&store, disk, disk).is_err());
    assert!(chain::revert(&store, new_uuid(), snapshot).is_err());
}
