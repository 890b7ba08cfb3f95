//! What comes over the management network: from the lab or another host, or from somebody who pretends to be one.

use crc::{CRC_32_ISCSI, Crc};
use guest_memory::{GuestMemory, PAGE_SIZE, testing};
use host_protocol::{
    Command, MigrationConfig, Notice, Request, VmConfig,
    auth::{PoolKey, Purpose},
    codec::{self, Decoder},
};
use migration::{
    Destination, DestinationOutcome, DestinationVm, FinalState, FromDestination, FromSource,
    Snapshot,
};

use crate::{bytes::Bytes, vcpu::machine};

const MILLISECOND_NS: u64 = 1_000_000;
const PAGES: usize = 16;
/// Messages in one input.
const MESSAGES_MAX: usize = 64;

/// Read or refused; a message that is read is written in the same way.
///
/// # Panics
/// When that does not hold.
pub fn host_protocol(data: &[u8]) {
    fn read<M: serde_like::Message>(data: &[u8]) {
        let mut decoder = Decoder::new();
        // In two pieces, as a network may bring it.
        let (first, second) = data.split_at(data.len() / 3);
        decoder.push(first);
        let mut at_once = Decoder::new();
        at_once.push(data);
        let early = decoder.message::<M>();
        decoder.push(second);
        let late = match early {
            Ok(None) => decoder.message::<M>(),
            other => other,
        };
        assert_eq!(late, at_once.message::<M>(), "pieces make a difference");
        if let Ok(Some(message)) = late {
            let mut written = Vec::new();
            codec::encode(&message, &mut written).expect("it was short enough");
            let mut again = Decoder::new();
            again.push(&written);
            assert_eq!(again.message::<M>(), Ok(Some(message)));
        }
    }
    read::<Request>(data);
    read::<Command>(data);
    read::<Notice>(data);
}

/// What messages have in common.
mod serde_like {
    pub trait Message:
        serde::Serialize + serde::de::DeserializeOwned + PartialEq + core::fmt::Debug
    {
    }
    impl<M: serde::Serialize + serde::de::DeserializeOwned + PartialEq + core::fmt::Debug> Message
        for M
    {
    }
}

/// A VM that is built at once and remembers what was done to it.
struct Vm {
    now_ns: u64,
    memory: GuestMemory,
    leases: u32,
    resumed: bool,
    discarded: bool,
}

impl DestinationVm for Vm {
    fn now_ns(&self) -> u64 {
        self.now_ns
    }
    fn build(&mut self, _: &VmConfig) -> Result<(), String> {
        Ok(())
    }
    fn is_built(&mut self) -> Result<bool, String> {
        Ok(true)
    }
    fn memory(&self) -> &GuestMemory {
        &self.memory
    }
    fn rehearse(&mut self, snapshot: &Snapshot) -> Result<(), String> {
        machine()
            .restore(&snapshot.devices)
            .map_err(|error| error.to_string())
    }
    fn deliver_to_copy(&mut self, _: usize, _: &[u8]) {}
    fn rehearsed(&mut self) -> Option<Vec<u32>> {
        Some(vec![1])
    }
    fn restore(&mut self, snapshot: &Snapshot, _: &[Option<vdi::DiskState>]) -> Result<(), String> {
        machine()
            .restore(&snapshot.devices)
            .map_err(|error| error.to_string())
    }
    fn take_lease(&mut self) -> bool {
        self.leases += 1;
        self.leases == 1
    }
    fn resume(&mut self, _: &Snapshot, _: u64, _: bool) {
        assert!(
            !self.discarded && self.leases > 0,
            "it ran without its lease"
        );
        self.resumed = true;
    }
    fn deliver(&mut self, _: usize, _: &[u8]) {}
    fn release_direct_frames(&mut self) {}
    fn discard(&mut self) {
        assert!(!self.resumed, "a VM that runs was thrown away");
        self.discarded = true;
    }
}

/// A message of the migration protocol with a header that is right, as `hvcore/migration/src/wire.rs` describes it.
fn sealed(kind: u16, body: &[u8], covered: usize) -> Vec<u8> {
    const VERSION: u16 = 1;
    let mut rest = Vec::new();
    rest.extend(VERSION.to_le_bytes());
    rest.extend(kind.to_le_bytes());
    rest.extend((body.len() as u32).to_le_bytes());
    let crc = Crc::<u32>::new(&CRC_32_ISCSI);
    let mut digest = crc.digest();
    digest.update(&rest);
    digest.update(&body[..covered.min(body.len())]);
    let mut message = b"ELMG".to_vec();
    message.extend(&rest);
    message.extend(digest.finalize().to_le_bytes());
    message.extend(body);
    message
}

fn control(message: &FromSource) -> Vec<u8> {
    let body = postcard::to_allocvec(message).expect("our own messages can be written");
    sealed(1, &body, body.len())
}

/// A message of pages that are zero or like another, which need no digest.
fn pages(bytes: &mut Bytes<'_>) -> Vec<u8> {
    const TABLE_END: usize = 524;
    let count = bytes.u8();
    let mut body = u32::from(count % 70).to_le_bytes().to_vec();
    body.extend([0; 8]);
    for _ in 0..count % 70 {
        let (page, origin) = (bytes.u8(), bytes.u8());
        body.extend(u32::from(page).to_le_bytes());
        let origin = if origin < 0x80 {
            u32::MAX - 1
        } else {
            u32::from(origin - 0x80)
        };
        body.extend(origin.to_le_bytes());
    }
    body.resize(TABLE_END, 0);
    sealed(2, &body, TABLE_END)
}

/// One input's messages, for a source that knows the key (or does not) and then says anything.
fn messages(data: &[u8], key: &PoolKey, own_nonce: [u8; 16]) -> Vec<Vec<u8>> {
    let mut bytes = Bytes(data);
    if bytes.u8() & 1 != 0 {
        return bytes.0.chunks(97).map(<[u8]>::to_vec).collect();
    }
    let nonce = [3; 16];
    let vm = VmConfig {
        id: [9; 16],
        name: "guest".into(),
        memory_mib: 1,
        vcpus: 2,
        weight: 256,
        kernel: "k".into(),
        initrd: None,
        cmdline: String::new(),
        disks: Vec::new(),
        nics: vec![[2, 0, 0, 0, 0, 1]],
    };
    let proof = key.prove(Purpose::MigrationSource, &nonce, &own_nonce);
    let config = MigrationConfig {
        verify: bytes.u8() & 1 != 0,
        ..MigrationConfig::default()
    };
    let mut messages = vec![
        control(&FromSource::Hello { nonce }),
        control(&FromSource::Prepare { proof, vm, config }),
    ];
    while !bytes.is_empty() && messages.len() < MESSAGES_MAX {
        let snapshot = || Snapshot {
            vcpus: Vec::new(),
            devices: machine().save(),
        };
        messages.push(match bytes.u8() & 7 {
            0 => pages(&mut bytes),
            1 => control(&FromSource::EndOfRound {
                number: bytes.u32(),
            }),
            2 => control(&FromSource::Rehearsal {
                snapshot: snapshot(),
            }),
            3 => control(&FromSource::Frame {
                nic: bytes.u8(),
                frame: bytes.take(20).to_vec(),
            }),
            4 => control(&FromSource::Final(FinalState {
                snapshot: snapshot(),
                disks: Vec::new(),
                transit_ns: bytes.u64(),
                hash: None,
            })),
            5 => control(&FromSource::EndOfFrames),
            6 => {
                let length = bytes.u16();
                let body = bytes.take(length.into());
                sealed(1, body, body.len())
            }
            _ => {
                let length = bytes.u8();
                bytes.take(length.into()).to_vec()
            }
        });
    }
    messages
}

/// A migration's destination, whatever its source says: it never runs a guest without its lease, and never throws away
/// one that runs.
///
/// # Panics
/// When that does not hold.
pub fn migration(data: &[u8]) {
    let (key, own_nonce) = (PoolKey::new([1; 32]), [7; 16]);
    let mut vm = Vm {
        now_ns: MILLISECOND_NS,
        memory: testing::memory(PAGES * PAGE_SIZE),
        leases: 0,
        resumed: false,
        discarded: false,
    };
    let mut destination = Destination::new(key.clone(), own_nonce, vm.now_ns);
    let mut room = [0; 4096];
    for message in messages(data, &key, own_nonce) {
        let mut rest = message.as_slice();
        while !rest.is_empty() {
            let taken = destination.receive(rest);
            if taken == 0 {
                break;
            }
            rest = &rest[taken..];
        }
        for _ in 0..8 {
            vm.now_ns += MILLISECOND_NS;
            let until_ns = vm.now_ns;
            destination.advance(&mut vm, until_ns);
            while destination.transmit(&mut room) > 0 {}
        }
        if vm.leases == 1 {
            destination.on_taken(&mut vm, &Ok(2));
        }
    }
    let proven = data.first().is_some_and(|first| first & 1 == 0);
    assert!(proven || vm.leases == 0, "a source without the key got far");
    destination.on_disconnected();
    for _ in 0..200 {
        vm.now_ns += 100 * MILLISECOND_NS;
        let until_ns = vm.now_ns;
        destination.advance(&mut vm, until_ns);
    }
    assert!(destination.outcome().is_some(), "it never ends");
    assert_eq!(
        destination.outcome() == Some(&DestinationOutcome::Arrived),
        vm.resumed
    );
    let _ = postcard::from_bytes::<FromDestination>(data);
}
