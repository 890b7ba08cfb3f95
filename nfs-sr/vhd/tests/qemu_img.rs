//! `qemu-img` as a second opinion: it reads what is written here, and its files are read here.

use std::{
    fs::File,
    os::unix::fs::FileExt,
    path::Path,
    process::{Command, Output},
};

use proptest::prelude::*;
use vhd::{Disk, DiskKind, Extent, Footer, Header, NewDisk, Place, SECTOR, Tables, Uuid};

fn qemu_img(args: &[&str]) -> Output {
    Command::new("qemu-img")
        .args(args)
        .output()
        .expect("qemu-img is needed: install the package qemu-utils")
}

fn expect_success(output: Output) {
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

fn write(file: &File, extents: &[Extent]) {
    for extent in extents {
        file.write_all_at(&extent.bytes, extent.at).expect("write");
    }
}

fn read(file: &File, at: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    file.read_exact_at(&mut bytes, at).expect("read");
    bytes
}

/// Opens a disk as any user of the crate does.
fn open(file: &File) -> Disk {
    let length = file.metadata().expect("metadata").len();
    let footer = Footer::parse(&read(file, length - SECTOR, 512)).expect("footer");
    let Some(header_at) = footer.header_offset else {
        return Disk::fixed(footer);
    };
    assert_eq!(
        Footer::parse(&read(file, 0, 512)).as_ref(),
        Ok(&footer),
        "copy of the footer"
    );
    let header = Header::parse(&read(file, header_at, 1024)).expect("header");
    let end = length - SECTOR;
    let size = Tables::size(&header).min(end - header.bat_offset);
    let tables = read(file, header.bat_offset, size as usize);
    let tables = Tables::parse(&tables, &header).expect("BAT");
    Disk::sparse(footer, header, tables).expect("consistent")
}

/// Writes through the map, allocating as needed.
fn write_at(disk: &mut Disk, file: &File, offset: u64, data: &[u8]) {
    let segments: Vec<_> = disk
        .locate(offset, data.len() as u64)
        .expect("in range")
        .collect();
    for segment in segments {
        let from = (segment.offset - offset) as usize;
        let data = &data[from..from + segment.length as usize];
        match segment.place {
            Place::Present { at } => file.write_all_at(data, at).expect("write"),
            Place::Absent => {
                let new = disk.allocate(segment.block);
                file.write_all_at(data, new.data_at + segment.within)
                    .expect("data");
                let sectors = (segment.length / SECTOR) as u32;
                let bitmap = disk.new_bitmap((segment.within / SECTOR) as u32, sectors);
                file.write_all_at(bitmap.as_bytes(), new.bitmap_at)
                    .expect("bitmap");
                file.write_all_at(&new.bat_entry.bytes, new.bat_entry.at)
                    .expect("BAT");
                file.write_all_at(&disk.footer().encode(), new.footer_at)
                    .expect("footer");
            }
            Place::Masked { .. } => panic!("not a differencing disk"),
        }
    }
}

fn create(path: &Path) -> File {
    File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(path)
        .expect("create")
}

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

fn new_disk(size: u64) -> NewDisk {
    NewDisk {
        size,
        uuid: Uuid::from_random([9; 16]),
        timestamp: 700_000_000,
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]

    /// Whatever is written, qemu-img finds it where it was written, and nothing else.
    #[test]
    fn qemu_img_reads_what_is_written(
        kind in prop_oneof![Just(DiskKind::Dynamic), Just(DiskKind::Fixed)],
        megabytes in 2u64..40,
        odd_sectors in 0u64..2,
        writes in proptest::collection::vec((any::<u64>(), 1u64..9000, any::<u64>()), 1..12),
    ) {
        let dir = tempfile::tempdir().expect("temporary directory");
        let (vhd, raw) = (dir.path().join("a.vhd"), dir.path().join("a.raw"));
        let size = (megabytes << 20) + odd_sectors * SECTOR;
        let file = create(&vhd);
        let new = new_disk(size);
        let (mut disk, extents) =
            if kind == DiskKind::Fixed { new.fixed() } else { new.dynamic() }.expect("valid");
        write(&file, &extents);
        let model = create(&raw);
        model.set_len(size).expect("set length");
        for (at, sectors, seed) in writes {
            let sectors = sectors.min(size / SECTOR);
            let at = at % (size / SECTOR - sectors + 1) * SECTOR;
            let mut data = vec![0; (sectors * SECTOR) as usize];
            fastrand::Rng::with_seed(seed).fill(&mut data);
            write_at(&mut disk, &file, at, &data);
            model.write_all_at(&data, at).expect("write");
        }
        prop_assert_eq!(&open(&file), &disk);
        expect_success(qemu_img(&["compare", "-f", "vpc", "-F", "raw", text(&vhd), text(&raw)]));
        // The check must be able to fail.
        let byte = read(&model, 0, 1)[0];
        model.write_all_at(&[!byte], 0).expect("write");
        prop_assert!(!qemu_img(&["compare", "-f", "vpc", "-F", "raw", text(&vhd), text(&raw)]).status.success());
    }
}

#[test]
fn disks_of_qemu_img_are_read() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let path = dir.path().join("q.vhd");
    for (subformat, kind) in [("dynamic", DiskKind::Dynamic), ("fixed", DiskKind::Fixed)] {
        let options = format!("subformat={subformat},force_size=on");
        expect_success(qemu_img(&[
            "create",
            "-q",
            "-f",
            "vpc",
            "-o",
            &options,
            text(&path),
            "33M",
        ]));
        let file = File::open(&path).expect("open");
        let disk = open(&file);
        assert_eq!((disk.footer().kind, disk.size()), (kind, 33 << 20));
    }
}

#[test]
fn geometry_agrees_with_qemu_img() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let path = dir.path().join("q.vhd");
    for megabytes in [
        2,
        16,
        100,
        503,
        504,
        511,
        1024,
        4096,
        8192,
        32 * 1024,
        130 * 1024,
    ] {
        let size = format!("{megabytes}M");
        expect_success(qemu_img(&[
            "create",
            "-q",
            "-f",
            "vpc",
            "-o",
            "force_size=off",
            text(&path),
            &size,
        ]));
        let footer = open(&File::open(&path).expect("open")).footer().clone();
        // Without force_size qemu-img rounds up until the geometry holds the size.
        let g = vhd::Geometry::for_bytes(footer.size);
        assert_eq!(g, footer.geometry, "{megabytes} MiB");
    }
}
