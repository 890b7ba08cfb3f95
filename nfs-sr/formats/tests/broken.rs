//! Archives that are broken, and what is said of them. Each text names the place; nothing panics, and nothing takes more memory
//! than a chunk.

mod support;

use std::io::Write;

use formats::{
    any,
    compress::Compression,
    vm::Vm,
    xva::{CHUNK, Checksum, Reader},
};
use rstest::rstest;
use support::{Memory, Others, contents, machine, xva};

fn disk() -> Memory {
    Memory::random(1, 3 * CHUNK)
}

fn vm() -> Vm {
    machine(&[disk()])
}

fn sound() -> Vec<u8> {
    xva(&vm(), &[disk()], Checksum::Sha1, Compression::None)
}

/// What is said of an archive.
fn said(bytes: &[u8]) -> String {
    let read = any::archive(bytes).and_then(|mut archive| contents(&mut *archive));
    match read {
        Ok(_) => "nothing".into(),
        Err(error) => error.to_string(),
    }
}

fn piece(n: usize) -> Vec<u8> {
    let chunk = CHUNK as usize;
    disk().0[n * chunk..(n + 1) * chunk].to_vec()
}

/// Our description, then these chunks.
fn chunks(names: &[(&str, &[u8])]) -> Vec<u8> {
    let mut archive = Others::new(&vm());
    for (name, data) in names {
        archive.chunk(name, data, Checksum::Xxhash);
    }
    archive.finish()
}

const FIRST: &str = "Ref:1000/00000000";

#[rstest]
#[case::nothing(b"".to_vec(), "the archive: it is neither XVA nor OVA")]
#[case::text(b"hello".repeat(200), "the archive: it is neither XVA nor OVA")]
#[case::another_archive(
    { let mut other = Others::empty(); other.member("holiday.jpg", b"x"); other.finish() },
    "the archive: it begins with \"holiday.jpg\"; an XVA begins with ova.xml, an OVA with an .ovf"
)]
#[case::old(
    { let mut other = Others::empty(); other.member("ova.xml", b"<appliance version=\"0.1\"/>"); other.finish() },
    "ova.xml: it is of XenServer 3 or 4 (version 0.1), which is not supported"
)]
#[case::no_version(
    { let mut other = Others::empty(); other.member("ova.xml", b"<value><struct></struct></value>"); other.finish() },
    "ova.xml: its version (export_vsn) is not 1 or 2: the archive has no checksums beside its chunks, which is not supported"
)]
#[case::not_xml(
    { let mut other = Others::empty(); other.member("ova.xml", b"<value><struct><member></value>"); other.finish() },
    "ova.xml, byte 31: ill-formed document: expected `</member>`, but `</value>` was found"
)]
#[case::entities(
    { let mut other = Others::empty(); other.member("ova.xml", b"<!DOCTYPE a [<!ENTITY b \"cc\">]><value>&b;</value>"); other.finish() },
    "ova.xml, byte 31: it defines types of its own"
)]
#[case::deep(
    { let mut other = Others::empty(); other.member("ova.xml", "<value><array><data>".repeat(10_000).as_bytes()); other.finish() },
    "ova.xml, byte 667: it is nested deeper than 32 levels"
)]
#[case::first_chunk_missing(
    chunks(&[("Ref:1000/00000001", &piece(1))]),
    "Ref:1000/00000001: the first chunk of the disk Ref:1000 is missing"
)]
#[case::wrong_order(
    chunks(&[(FIRST, &piece(0)), ("Ref:1000/00000002", &piece(2)), ("Ref:1000/00000001", &piece(1))]),
    "Ref:1000/00000001: it belongs to no disk of the machine"
)]
#[case::twice(
    chunks(&[(FIRST, &piece(0)), (FIRST, &piece(0))]),
    "Ref:1000/00000000: it comes after a chunk with a higher number, or twice"
)]
#[case::no_checksum(
    { let mut other = Others::new(&vm()); other.member(FIRST, &piece(0)); other.member("Ref:1000/00000001", &piece(1)); other.finish() },
    "Ref:1000/00000000: its checksum does not follow it"
)]
#[case::another_disk(
    chunks(&[("Ref:7/00000000", &piece(0))]),
    "Ref:7/00000000: a chunk of the disk Ref:1000 should be here"
)]
#[case::disk_too_short(
    chunks(&[(FIRST, &piece(0))]),
    "disk Ref:1000: the archive ends 2097152 bytes before the disk does"
)]
#[case::disk_too_long(
    chunks(&[(FIRST, &piece(0)), ("Ref:1000/00000009", &piece(1))]),
    "Ref:1000/00000009: it begins behind the end of the disk"
)]
#[case::number_without_end(
    chunks(&[(FIRST, &piece(0)), ("Ref:1000/99999999", &piece(1))]),
    "Ref:1000/99999999: it begins behind the end of the disk"
)]
#[case::odd_number(
    chunks(&[(FIRST, &piece(0)), ("Ref:1000/+0000001", &piece(1))]),
    "Ref:1000/+0000001: a chunk's name ends with eight digits"
)]
#[case::way_out(
    chunks(&[("../../etc/passwd", &piece(0))]),
    "member 2 of the archive: its name \"../../etc/passwd\" leads out of the archive"
)]
#[case::from_the_root(
    chunks(&[("/etc/passwd", &piece(0))]),
    "member 2 of the archive: its name \"/etc/passwd\" leads out of the archive"
)]
#[case::chunk_too_large(
    chunks(&[(FIRST, &vec![1; 17 << 20])]),
    "Ref:1000/00000000: it has 17825792 bytes; 16777216 are the most a chunk may have"
)]
fn what_is_said(#[case] bytes: Vec<u8>, #[case] expected: &str) {
    assert_eq!(said(&bytes), expected);
}

#[test]
fn a_flipped_bit_in_a_chunk_names_it() {
    let mut bytes = sound();
    let at = bytes
        .windows(17)
        .position(|some| some == b"Ref:1000/00000001")
        .expect("a chunk");
    bytes[at + 512 + 77] ^= 4;
    let said = said(&bytes);
    assert!(
        said.starts_with("Ref:1000/00000001: the data has "),
        "{said}"
    );
    assert!(
        said.ends_with("it is damaged: get the archive again"),
        "{said}"
    );
}

/// Cut off at every boundary of members, and a byte to either side.
#[test]
fn a_cut_at_each_boundary() {
    let bytes = sound();
    let boundaries = (0..bytes.len()).step_by(512);
    // Every one near the ends, some in the middle of chunks.
    let some = boundaries
        .filter(|at| *at < 64 << 10 || at % (96 << 10) == 0 || *at + (8 << 10) > bytes.len());
    for boundary in some {
        for at in boundary.saturating_sub(1)..(boundary + 2).min(bytes.len()) {
            assert_ne!(said(&bytes[..at]), "nothing", "cut at {at}");
        }
    }
}

/// A member that says it is huge, behind a compressor that makes much of little.
#[test]
fn bombs_do_not_go_off() {
    let bomb = |member: &str, kind: tar::EntryType, before: Vec<u8>| {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        encoder.write_all(&before).expect("memory takes it");
        let mut header = tar::Header::new_ustar();
        header.set_path(member).expect("a name");
        header.set_entry_type(kind);
        header.set_size(1 << 30);
        header.set_cksum();
        encoder
            .write_all(header.as_bytes())
            .expect("memory takes it");
        for _ in 0..64 {
            encoder
                .write_all(&[b' '; 1 << 20])
                .expect("memory takes it");
        }
        encoder.finish().expect("memory takes it")
    };
    let regular = tar::EntryType::Regular;
    assert_eq!(
        said(&bomb("ova.xml", regular, Vec::new())),
        "ova.xml: it has 1073741824 bytes; 16777216 are the most it may have"
    );
    let mut described = Others::new(&vm()).finish();
    described.truncate(described.len() - 1024);
    assert_eq!(
        said(&bomb(FIRST, regular, described.clone())),
        "Ref:1000/00000000: it has 1073741824 bytes; 16777216 are the most a chunk may have"
    );
    assert_eq!(
        said(&bomb(
            "long",
            tar::EntryType::GNULongName,
            described.clone()
        )),
        "member 2 of the archive: its extended header has 1073741824 bytes, which cannot be"
    );
    assert_eq!(
        said(&bomb("link", tar::EntryType::Symlink, described)),
        "member 'link': it is not a plain file; no archive of a machine holds links, folders or devices"
    );
}

/// A compressed archive that is cut off is no whole one, wherever it is cut.
#[test]
fn compressed_archives_that_are_cut_off() {
    for compression in [Compression::Gzip, Compression::Zstd] {
        let bytes = xva(&vm(), &[disk()], Checksum::Xxhash, compression);
        for at in [3, 100, bytes.len() / 2, bytes.len() - 9, bytes.len() - 1] {
            let read = Reader::new(&bytes[..at]).and_then(|mut reader| contents(&mut reader));
            // What decompresses to the end of the archive is all there, whatever follows in the compressor's own format.
            if let Ok(read) = read {
                assert!(
                    at + 9 >= bytes.len() && read == [&disk().0[..]],
                    "{compression:?}, {at}"
                );
            }
        }
    }
}
