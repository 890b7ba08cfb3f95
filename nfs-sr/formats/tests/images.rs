//! Images of single disks, with `qemu-img` as the judge: it reads what is written here, and its files are read here.

mod support;

use std::{
    fs::{self, File},
    path::Path,
    process::Command,
};

use formats::{
    disk::{self, Raw, Sink, Source},
    qcow2, vmdk,
};
use proptest::prelude::*;
use support::Memory;

fn qemu_img(folder: &Path, args: &[&str]) {
    let output = Command::new("qemu-img")
        .args(args)
        .current_dir(folder)
        .output()
        .expect("qemu-img is needed: run cargo xtask setup");
    let text = [output.stdout, output.stderr].concat();
    assert!(
        output.status.success(),
        "{args:?}: {}",
        String::from_utf8_lossy(&text)
    );
}

fn new(path: &Path) -> File {
    File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(path)
        .expect("a new file")
}

/// A disk with data at its start, at its end, and here and there.
fn some_disk(size: u64) -> Memory {
    let mut disk = Memory(vec![0; size as usize]);
    let random = Memory::random(size, 200_000);
    for at in [0, size / 3, size.saturating_sub(200_000)] {
        let n = random.0.len().min((size - at) as usize);
        disk.0[at as usize..at as usize + n].copy_from_slice(&random.0[..n]);
    }
    disk
}

fn write_vmdk(disk: &mut Memory) -> Vec<u8> {
    let mut writer = vmdk::Writer::new(Vec::new(), "disk.vmdk", disk.size()).expect("begun");
    disk::copy(disk, &mut writer).expect("copied");
    writer.finish().expect("ended")
}

fn read_vmdk(bytes: &[u8]) -> Result<Vec<u8>, formats::Error> {
    let mut reader = vmdk::Reader::new(bytes, "disk.vmdk")?;
    let mut disk = vec![0; reader.size() as usize];
    while reader.advance()? {
        let (offset, data) = reader.current();
        disk[offset as usize..offset as usize + data.len()].copy_from_slice(data);
    }
    Ok(disk)
}

fn read_qcow2(path: &Path) -> Result<Vec<u8>, formats::Error> {
    let mut reader = qcow2::Reader::open(File::open(path).expect("open"), "disk.qcow2")?;
    let mut disk = Collected(vec![0; reader.size() as usize]);
    disk::copy(&mut reader, &mut disk)?;
    Ok(disk.0)
}

struct Collected(Vec<u8>);

impl Sink for Collected {
    fn write(&mut self, offset: u64, data: &[u8]) -> Result<(), formats::Error> {
        self.0[offset as usize..offset as usize + data.len()].copy_from_slice(data);
        Ok(())
    }
}

#[test]
fn qemu_img_reads_our_vmdk_and_we_read_its() {
    let folder = tempfile::tempdir().expect("folder");
    let path = folder.path();
    let mut disk = some_disk(70 << 20);
    fs::write(path.join("disk.raw"), &disk.0).expect("written");
    fs::write(path.join("ours.vmdk"), write_vmdk(&mut disk)).expect("written");
    qemu_img(path, &["check", "ours.vmdk"]);
    qemu_img(path, &["compare", "disk.raw", "ours.vmdk"]);
    qemu_img(
        path,
        &[
            "convert",
            "-O",
            "vmdk",
            "-o",
            "subformat=streamOptimized",
            "ours.vmdk",
            "theirs.vmdk",
        ],
    );
    let theirs = fs::read(path.join("theirs.vmdk")).expect("read");
    assert!(read_vmdk(&theirs).expect("sound") == disk.0);
    qemu_img(path, &["convert", "-O", "vmdk", "disk.raw", "other.vmdk"]);
    let other = fs::read(path.join("other.vmdk")).expect("read");
    let error = read_vmdk(&other).expect_err("another kind").to_string();
    assert!(error.contains("not streamOptimized"), "{error}");
}

#[test]
fn qemu_img_reads_our_qcow2_and_we_read_its() {
    let folder = tempfile::tempdir().expect("folder");
    let path = folder.path();
    let mut disk = some_disk(600 << 20);
    fs::write(path.join("disk.raw"), &disk.0).expect("written");
    let mut writer = qcow2::Writer::new(new(&path.join("ours.qcow2")), "ours.qcow2", disk.size());
    disk::copy(&mut disk, &mut writer).expect("copied");
    writer.finish().expect("ended");
    qemu_img(path, &["check", "ours.qcow2"]);
    qemu_img(path, &["compare", "disk.raw", "ours.qcow2"]);
    assert!(read_qcow2(&path.join("ours.qcow2")).expect("sound") == disk.0);
    for options in [
        &["-c"][..],
        &["-o", "cluster_size=4096"],
        &["-o", "compat=0.10"],
        &[],
    ] {
        let args = [
            &["convert", "-O", "qcow2"],
            options,
            &["ours.qcow2", "theirs.qcow2"],
        ]
        .concat();
        qemu_img(path, &args);
        assert!(
            read_qcow2(&path.join("theirs.qcow2")).expect("sound") == disk.0,
            "{options:?}"
        );
    }
    qemu_img(
        path,
        &[
            "create",
            "-f",
            "qcow2",
            "-F",
            "qcow2",
            "-b",
            "ours.qcow2",
            "child.qcow2",
        ],
    );
    let error = read_qcow2(&path.join("child.qcow2"))
        .expect_err("a backing file")
        .to_string();
    assert!(
        error.contains("it has a backing file; flatten it"),
        "{error}"
    );
}

/// Where there is nothing, nothing is written.
#[test]
fn holes_stay_holes() {
    use std::os::unix::fs::MetadataExt;
    let folder = tempfile::tempdir().expect("folder");
    let from = folder.path().join("from.raw");
    let mut source = Raw::create(new(&from), "from.raw", 1 << 40).expect("created");
    Sink::write(&mut source, 1 << 39, &[1; 4096]).expect("written");
    let to = folder.path().join("to.raw");
    let mut sink = Raw::create(new(&to), "to.raw", 1 << 40).expect("created");
    disk::copy(&mut source, &mut sink).expect("copied");
    let mut byte = [0; 1];
    Source::read(&mut sink, 1 << 39, &mut byte).expect("read");
    assert_eq!(byte, [1]);
    assert!(to.metadata().expect("metadata").blocks() * 512 <= 2 << 20);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn any_disk_is_the_same_after_a_vmdk(sectors in 1..3000u64) {
        let mut disk = some_disk(sectors * 512);
        let read = read_vmdk(&write_vmdk(&mut disk))?;
        prop_assert!(read == disk.0);
    }

    /// Whatever is changed: an error, or a disk of the same size; no panic, no endless memory.
    #[test]
    fn a_changed_vmdk_does_no_harm(at in any::<prop::sample::Index>(), to in any::<u8>()) {
        let mut bytes = write_vmdk(&mut some_disk(1 << 20));
        let at = at.index(bytes.len());
        bytes[at] = to;
        let _ = read_vmdk(&bytes);
        let cut = read_vmdk(&bytes[..at]);
        prop_assert!(cut.is_err());
    }

    #[test]
    fn a_changed_qcow2_does_no_harm(at in 0..0x30000usize, to in any::<u8>()) {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("disk.qcow2");
        let mut disk = some_disk(1 << 20);
        let mut writer = qcow2::Writer::new(new(&path), "disk.qcow2", disk.size());
        disk::copy(&mut disk, &mut writer)?;
        writer.finish()?;
        let mut bytes = fs::read(&path)?;
        bytes[at] = to;
        // The size may have become any; what is read of it must not.
        fs::write(&path, bytes)?;
        if let Ok(mut reader) = qcow2::Reader::open(File::open(&path)?, "disk.qcow2") {
            let end = reader.size().min(4 << 20);
            let _ = disk::pieces(&mut reader, 0..end, formats::UNIT, &mut |_, _| Ok(()));
        }
    }
}
