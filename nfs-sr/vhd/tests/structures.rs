//! Structures survive a round trip, damage is noticed, and no bytes make a parser panic.

use proptest::prelude::*;
use vhd::{Bat, Disk, DiskKind, Error, Footer, Header, LocatorCode, NewDisk, Parent, Place, Uuid};

fn new_disk() -> NewDisk {
    NewDisk {
        size: 9 << 20,
        uuid: Uuid::from_random([1; 16]),
        timestamp: 5,
    }
}

fn child() -> (Disk, Vec<u8>) {
    let parent = Parent {
        uuid: Uuid::from_random([2; 16]),
        timestamp: 4,
        name: "parent.vhd".into(),
    };
    let (disk, extents) = new_disk().differencing(&parent).expect("valid");
    let mut file = vec![0; disk.footer_at() as usize + 512];
    for extent in extents {
        file[extent.at as usize..][..extent.bytes.len()].copy_from_slice(&extent.bytes);
    }
    (disk, file)
}

#[test]
fn a_differencing_disk_names_its_parent() {
    let (disk, file) = child();
    let header = Header::parse(&file[512..]).expect("header");
    assert_eq!(Some(&header), disk.header());
    assert_eq!(Footer::parse(&file).as_ref(), Ok(disk.footer()));
    assert_eq!(disk.footer().kind, DiskKind::Differencing);
    assert_eq!(
        (header.parent, header.parent_name.as_str()),
        (Uuid::from_random([2; 16]), "parent.vhd")
    );
    let url = header
        .locators
        .iter()
        .find(|l| l.code == LocatorCode::FileUrl)
        .expect("a URL");
    let path = &file[url.offset as usize..][..url.length as usize];
    assert_eq!(path, b"file://./parent.vhd");
}

/// The longest name fills its field and has no zero behind it.
#[test]
fn the_longest_name_of_a_parent_survives() {
    let (disk, _) = child();
    let header = Header {
        parent_name: "n".repeat(256),
        ..disk.header().expect("sparse").clone()
    };
    assert_eq!(Header::parse(&header.encode()), Ok(header));
}

#[test]
fn blocks_of_a_differencing_disk_are_masked() {
    let (mut disk, _) = child();
    let new = disk.allocate(2);
    assert_eq!((new.data_at % 4096, new.data_at - new.bitmap_at), (0, 512));
    let places: Vec<Place> = disk
        .locate((4 << 20) - 512, 1024)
        .expect("in range")
        .map(|s| s.place)
        .collect();
    assert_eq!(
        places,
        [
            Place::Absent,
            Place::Masked {
                at: new.data_at,
                bitmap_at: new.bitmap_at
            }
        ]
    );
    assert!(disk.new_bitmap(3, 1).get(3) && !disk.new_bitmap(3, 1).get(4));
    assert_eq!(
        disk.locate(9 << 20, 1).err(),
        Some(Error::Range {
            offset: 9 << 20,
            length: 1
        })
    );
    assert!(disk.locate(u64::MAX, 2).is_err());
}

#[test]
fn overlapping_blocks_are_refused() {
    let (disk, _) = child();
    let header = disk.header().expect("sparse").clone();
    for (sectors, block) in [([Some(100), Some(101)], 1), ([Some(1), None], 0)] {
        let mut bat = Bat::empty(header.bat_entries);
        bat.set(0, sectors[0]);
        bat.set(1, sectors[1]);
        let result = Disk::sparse(disk.footer().clone(), header.clone(), bat);
        assert!(
            matches!(result, Err(Error::Block { block: b, .. }) if b == block),
            "{result:?}"
        );
    }
}

#[test]
fn sizes_that_a_vhd_cannot_have_are_refused() {
    for size in [0, 511, (2 << 20) + 1, (2040 << 30) + 512, u64::MAX] {
        assert_eq!(
            NewDisk { size, ..new_disk() }.dynamic().err(),
            Some(Error::Size(size))
        );
    }
}

proptest! {
    #[test]
    fn a_changed_byte_is_noticed(at in 0usize..1536, flip in 1u8..=255) {
        let (disk, mut file) = child();
        file[at] ^= flip;
        let whole = Footer::parse(&file).as_ref() == Ok(disk.footer())
            && Header::parse(&file[512..]).as_ref().ok() == disk.header();
        prop_assert!(!whole);
    }

    #[test]
    fn no_bytes_make_a_parser_panic(at in 0usize..1536, bytes in proptest::collection::vec(any::<u8>(), 0..64), cut in 0usize..3000) {
        let (_, mut file) = child();
        let end = (at + bytes.len()).min(file.len());
        file[at..end].copy_from_slice(&bytes[..end - at]);
        fix_checksum(&mut file[..512], 64);
        fix_checksum(&mut file[512..1536], 36);
        file.truncate(cut.max(1));
        let footer = Footer::parse(&file);
        let header = Header::parse(file.get(512..).unwrap_or_default());
        if let (Ok(footer), Ok(header)) = (footer, header) {
            let bat = usize::try_from(header.bat_offset).ok().and_then(|at| file.get(at..)).unwrap_or_default();
            if let Ok(bat) = Bat::parse(bat, header.bat_entries) {
                let _ = Disk::sparse(footer, header, bat);
            }
        }
    }
}

fn fix_checksum(bytes: &mut [u8], at: usize) {
    bytes[at..at + 4].fill(0);
    let sum = !bytes.iter().map(|b| u32::from(*b)).sum::<u32>();
    bytes[at..at + 4].copy_from_slice(&sum.to_be_bytes());
}
