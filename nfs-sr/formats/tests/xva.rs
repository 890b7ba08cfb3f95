//! XVA archives: what is written is read, by us and by others.

mod support;

use std::process::Command;

use formats::{
    Error,
    compress::Compression,
    vm::{Archive, Disk, Vm},
    xva::{CHUNK, Checksum, Reader, Start, Writer},
};
use proptest::prelude::*;
use rstest::rstest;
use support::{Memory, contents, machine, xva};

#[rstest]
fn what_is_written_is_read(
    #[values(Checksum::Sha1, Checksum::Xxhash)] checksum: Checksum,
    #[values(Compression::None, Compression::Gzip, Compression::Zstd)] compression: Compression,
) {
    let disks = [
        Memory::random(1, 5 * CHUNK + 512),
        Memory::random(2, 2 * CHUNK),
    ];
    let vm = machine(&disks);
    let bytes = xva(&vm, &disks, checksum, compression);
    let mut reader = Reader::new(&bytes[..]).expect("an archive");
    assert_eq!(reader.vm(), &vm);
    let read = contents(&mut reader).expect("sound");
    assert!(read == [&disks[0].0[..], &disks[1].0[..]]);
}

/// Debian's `xva-img` unpacks an archive of ours, verifying each SHA-1, and makes a disk of the chunks.
#[test]
fn xva_img_reads_what_is_written() {
    let folder = tempfile::tempdir().expect("folder");
    let mut disk = Memory::random(3, 7 * CHUNK);
    // A chunk that is left out.
    disk.0[2 * CHUNK as usize..4 * CHUNK as usize].fill(0);
    let disks = [disk];
    let bytes = xva(&machine(&disks), &disks, Checksum::Sha1, Compression::None);
    let archive = folder.path().join("machine.xva");
    std::fs::write(&archive, &bytes).expect("written");
    let run = |program: &str, args: &[&str]| {
        let output = Command::new(program)
            .args(args)
            .current_dir(folder.path())
            .output()
            .unwrap_or_else(|error| panic!("{program} is needed ({error}): run cargo xtask setup"));
        (
            output.status.success(),
            String::from_utf8_lossy(&output.stderr).into_owned(),
        )
    };
    let (ok, errors) = run("tar", &["--extract", "--file", "machine.xva"]);
    assert!(ok, "{errors}");
    let (ok, errors) = run("xva-img", &["-p", "disk-export", "Ref:1000/", "disk.raw"]);
    assert!(ok, "{errors}");
    let raw = std::fs::read(folder.path().join("disk.raw")).expect("a disk");
    assert!(raw == disks[0].0);
    // And it does look: a byte that is changed is seen.
    let chunk = folder.path().join("Ref:1000/00000004");
    let mut data = std::fs::read(&chunk).expect("a chunk");
    data[17] ^= 1;
    std::fs::write(&chunk, data).expect("written");
    let (ok, _) = run("xva-img", &["-p", "disk-export", "Ref:1000/", "other.raw"]);
    assert!(!ok, "xva-img verifies nothing");
}

/// xapi keeps a connection alive by chunks of no length, others leave zeros out, or fill the last chunk up.
#[test]
fn archives_of_others() {
    let disks = [Memory::random(4, 4 * CHUNK + 1000)];
    let vm = machine(&disks);
    let mut other = support::Others::new(&vm);
    let piece = |n: u64| &disks[0].0[(n * CHUNK) as usize..((n + 1) * CHUNK) as usize];
    other.chunk("Ref:1000/00000000", piece(0), Checksum::Xxhash);
    other.chunk("Ref:1000/00000001", b"", Checksum::Xxhash);
    other.chunk("Ref:1000/00000002", piece(1), Checksum::Sha1);
    other.chunk("Ref:1000/00000003", piece(2), Checksum::Xxhash);
    other.chunk("Ref:1000/00000004", b"", Checksum::Sha1);
    other.chunk("Ref:1000/00000005", piece(3), Checksum::Xxhash);
    let mut last = disks[0].0[4 * CHUNK as usize..].to_vec();
    last.resize(CHUNK as usize, 0);
    other.chunk("Ref:1000/00000006", &last, Checksum::Xxhash);
    let bytes = other.finish();
    assert!(
        contents(&mut Reader::new(&bytes[..]).expect("an archive")).expect("sound")
            == [&disks[0].0[..]]
    );
}

#[test]
fn an_interrupted_archive_is_gone_on_with() {
    let disks = [Memory::random(5, 6 * CHUNK)];
    let vm = machine(&disks);
    for compression in [Compression::None, Compression::Gzip, Compression::Zstd] {
        let (checksum, mut disk) = (Checksum::Xxhash, disks[0].clone());
        let mut writer =
            Writer::new(Vec::new(), &vm, checksum, compression, Start::Beginning).expect("begun");
        writer.write(0, &mut disk, 0..3).expect("written");
        let kept = writer.checkpoint().expect("a checkpoint").clone();
        // Lost with the process.
        writer.write(0, &mut disk, 3..4).expect("written");
        let mut writer =
            Writer::new(kept, &vm, checksum, compression, Start::Middle).expect("goes on");
        writer.write(0, &mut disk, 3..6).expect("written");
        let bytes = writer.finish().expect("ended");
        assert!(
            contents(&mut Reader::new(&bytes[..]).expect("an archive")).expect("sound")
                == [&disks[0].0[..]]
        );
    }
}

#[test]
fn names_are_written_as_they_are() {
    let vm = Vm {
        name: "<&> \"quotes\" and ünïcode".into(),
        disks: vec![Disk {
            size: CHUNK,
            ..Disk::default()
        }],
        ..machine(&[])
    };
    let bytes = xva(
        &vm,
        &[Memory(vec![0; CHUNK as usize])],
        Checksum::Xxhash,
        Compression::None,
    );
    assert_eq!(
        Reader::new(&bytes[..]).expect("an archive").vm().name,
        vm.name
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Any size, any pattern of data and zeros, any chunks at a time.
    #[test]
    fn any_disk(size in 1..6 * CHUNK, filled in any::<u8>(), step in 1..4u64, seed in any::<u64>()) {
        let mut disk = Memory::random(seed, size);
        for (n, chunk) in disk.0.chunks_mut(CHUNK as usize).enumerate() {
            if filled >> n & 1 == 0 {
                chunk.fill(0);
            }
        }
        let vm = machine(std::slice::from_ref(&disk));
        let mut writer = Writer::new(Vec::new(), &vm, Checksum::Xxhash, Compression::None, Start::Beginning)?;
        let chunks = Writer::<Vec<u8>>::chunks(size);
        for from in (0..chunks).step_by(step as usize) {
            writer.write(0, &mut disk, from..(from + step).min(chunks))?;
        }
        let bytes = writer.finish()?;
        let mut reader = Reader::new(&bytes[..])?;
        prop_assert!(contents(&mut reader)? == [&disk.0[..]]);
    }

    /// Whatever is changed in an archive: it is an error, or the disks are what they were.
    #[test]
    fn a_changed_byte_is_found(at in any::<prop::sample::Index>(), bit in 0..8u8) {
        let disks = [Memory::random(6, 2 * CHUNK)];
        let mut bytes = xva(&machine(&disks), &disks, Checksum::Xxhash, Compression::None);
        let description = bytes.windows(9).position(|some| some == b"Ref:1000/").expect("a chunk");
        // What the description says is not protected by anything.
        let at = description + at.index(bytes.len() - description);
        bytes[at] ^= 1 << bit;
        match Reader::new(&bytes[..]).and_then(|mut reader| contents(&mut reader)) {
            Ok(read) => prop_assert!(read == [&disks[0].0[..]]),
            Err(error) => prop_assert!(!error.to_string().is_empty()),
        }
    }

    /// Wherever an archive is cut off, that is an error.
    #[test]
    fn a_cut_is_found(at in any::<prop::sample::Index>()) {
        let disks = [Memory::random(7, 2 * CHUNK)];
        let bytes = xva(&machine(&disks), &disks, Checksum::Sha1, Compression::None);
        let bytes = &bytes[..at.index(bytes.len())];
        let read = Reader::new(bytes).and_then(|mut reader| contents(&mut reader));
        prop_assert!(matches!(read, Err(Error::CutOff { .. } | Error::Damaged { .. })), "{read:?}");
    }
}
