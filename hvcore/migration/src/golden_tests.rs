//! The bytes of each version, as files: what an older host says and what it has suspended is understood, or is refused by its version.
//!
//! If one of these fails, something that is sent or stored has changed without a new [`wire::VERSION`]: give it one. With `ELAB_BLESS=1`
//! the files of the present version are written.

extern crate std;

use alloc::{format, string::ToString, vec, vec::Vec};
use std::path::Path;

use guest_memory::{Gpa, PAGE_SIZE, testing};
use host_protocol::{DiskConfig, MigrationConfig, NegativeControls, VmConfig};
use machine::{
    Section,
    vcpu::{Event, VcpuState},
};
use vdi::DiskState;

use crate::wire::{self, Decoder, Message, WireError};
use crate::{
    CheckpointReader, CheckpointStep, CheckpointWriter, FinalState, FromDestination, FromSource,
    Snapshot,
};

/// The file of this name, which is also written when that is asked for.
fn golden(name: &str, now: &[u8]) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("src/golden")
        .join(format!("{name}-{}.bin", wire::VERSION));
    if std::env::var_os("ELAB_BLESS").is_some() {
        std::fs::write(&path, now).unwrap();
    }
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn vm() -> VmConfig {
    VmConfig {
        id: [7; 16],
        name: "session".to_string(),
        memory_mib: 256,
        vcpus: 2,
        weight: 512,
        kernel: "boot/session/vmlinuz".to_string(),
        initrd: Some("boot/session/initrd.img".to_string()),
        cmdline: "console=ttyS0 quiet".to_string(),
        disks: vec![DiskConfig {
            path: "sr/vdi.vhd".to_string(),
            read_only: true,
        }],
        nics: vec![[2, 0xe1, 0xab, 0x10, 0, 1]],
    }
}

fn final_state() -> FinalState {
    let vcpu = VcpuState {
        gprs: core::array::from_fn(|index| index as u64 * 0x0101_0101),
        rip: 0xffff_ffff_8100_0000,
        cr0: 0x8005_0033,
        efer: 0xd01,
        xsave: vec![0x5a; 8],
        pending: Some(Event::Exception {
            vector: 14,
            error: Some(2),
        }),
        ..VcpuState::default()
    };
    FinalState {
        snapshot: Snapshot {
            vcpus: vec![vcpu],
            devices: vec![Section {
                kind: 3,
                version: 1,
                bytes: vec![1, 2, 3],
            }],
        },
        disks: vec![
            None,
            Some(DiskState {
                version: DiskState::VERSION,
                path: "sr/vdi.vhd".to_string(),
                epoch: 9,
                bytes: 1 << 30,
                allocated: vec![(4, 4096)],
                not_entered: vec![4],
                uncommitted: vec![],
            }),
        ],
        transit_ns: 1_500_000,
        hash: Some([0xab; 32]),
    }
}

fn from_source() -> Vec<FromSource> {
    let config = MigrationConfig {
        stop_pages: 64,
        max_rounds: 30,
        timeout_ms: 60_000,
        rehearse: true,
        verify: false,
        controls: NegativeControls::default(),
    };
    vec![
        FromSource::Hello { nonce: [1; 16] },
        FromSource::Prepare {
            proof: [2; 32],
            vm: vm(),
            config,
        },
        FromSource::EndOfRound { number: 5 },
        FromSource::Rehearsal {
            snapshot: final_state().snapshot,
        },
        FromSource::Final(final_state()),
        FromSource::Frame {
            nic: 1,
            frame: vec![0xff; 14],
        },
        FromSource::EndOfFrames,
        FromSource::Cancel {
            why: "asked for".to_string(),
        },
    ]
}

fn from_destination() -> Vec<FromDestination> {
    vec![
        FromDestination::Welcome {
            nonce: [4; 16],
            proof: [5; 32],
        },
        FromDestination::Ready,
        FromDestination::RoundApplied {
            number: 5,
            spoilt: vec![1, 300],
        },
        FromDestination::Committed,
        FromDestination::Failed {
            why: "no room".to_string(),
        },
    ]
}

/// Writes messages, and reads those of the file.
fn spoken<M>(name: &str, messages: &[M]) -> Vec<M>
where
    M: serde::Serialize + serde::de::DeserializeOwned,
{
    let mut now = Vec::new();
    for message in messages {
        wire::encode(message, &mut now);
    }
    let old = golden(name, &now);
    assert!(
        old == now,
        "{name}: other bytes are sent under the same version"
    );
    let mut decoder = Decoder::default();
    decoder.push(&old);
    let mut read = Vec::new();
    while let Some(message) = decoder.next::<M>().unwrap() {
        let Message::Control(message) = message else {
            panic!("no pages are in the file");
        };
        read.push(message);
    }
    read
}

#[test]
fn what_hosts_of_this_version_say_is_as_written_down() {
    assert_eq!(spoken("source", &from_source()), from_source());
    assert_eq!(
        spoken("destination", &from_destination()),
        from_destination()
    );
}

/// A suspended guest has none of these; one that moves takes them along.
#[test]
fn writes_that_are_not_committed_travel_as_written_down() {
    let mut state = final_state();
    let disk = state.disks[1].as_mut().expect("it has a disk");
    disk.uncommitted = vec![vdi::Uncommitted {
        offset: 1 << 33,
        verifier: [0xa5; 8],
        data: vec![0x77; 512],
    }];
    let said = [FromSource::Final(state)];
    assert_eq!(spoken("uncommitted", &said), said);
}

fn checkpoint() -> Vec<u8> {
    let memory = testing::memory(4 * PAGE_SIZE);
    memory.write(Gpa(PAGE_SIZE as u64 + 7), b"a page").unwrap();
    let mut writer = CheckpointWriter::new(&vm());
    assert!(writer.add_pages(&memory, 4));
    writer.end(final_state());
    writer.take(usize::MAX).unwrap()
}

#[test]
fn a_checkpoint_of_this_version_is_as_written_down_and_can_be_read() {
    let old = golden("checkpoint", &checkpoint());
    assert!(
        old == checkpoint(),
        "other bytes are stored under the same version"
    );
    let mut reader = CheckpointReader::default();
    reader.push(&old);
    let Ok(CheckpointStep::Vm(found)) = reader.step(None) else {
        panic!("it begins with its VM");
    };
    assert_eq!(found, vm());
    let memory = testing::memory(4 * PAGE_SIZE);
    assert!(matches!(
        reader.step(Some(&memory)),
        Ok(CheckpointStep::Loaded)
    ));
    let mut text = [0; 6];
    memory.read(Gpa(PAGE_SIZE as u64 + 7), &mut text).unwrap();
    assert_eq!(&text, b"a page");
    let Ok(CheckpointStep::End(found)) = reader.step(Some(&memory)) else {
        panic!("it ends with the state");
    };
    assert_eq!(found, final_state());
}

/// Bytes 4 and 5 of the header are the version, in every version.
#[test]
fn another_version_is_refused_by_its_number() {
    for other in [0, wire::VERSION + 1, u16::MAX] {
        let mut bytes = checkpoint();
        bytes[4..6].copy_from_slice(&other.to_le_bytes());
        let mut reader = CheckpointReader::default();
        reader.push(&bytes);
        let error = reader.step(None).unwrap_err();
        assert!(error.contains(&format!("version {other} ")), "{error}");
        let mut decoder = Decoder::default();
        decoder.push(&bytes);
        let refused = decoder.next::<FromSource>();
        assert!(matches!(refused, Err(WireError::Version(found)) if found == other));
    }
}
