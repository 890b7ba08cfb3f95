//! What hosts tell each other: over the management network as heartbeats, through the storage as slots of the
//! statefile. Both carry the same [`Report`], sealed with the pool's key.
//!
//! A heartbeat is
//!
//! | bytes | field | |
//! |---|---|---|
//! | 0-3 | magic | `EHB1` |
//! | 4-19 | pool | identity of the pool |
//! | 20- | body | a [`Heartbeat`] in postcard |
//! | last 32 | seal | HMAC-SHA-256 over pool and body |
//!
//! The payload of a slot is the same without the magic, with a [`Report`] as its body. Nothing is used before the seal was found
//! right. One counter numbers both, so a reader knows which of two reports is newer whichever way they came.

use alloc::vec::Vec;

use host_protocol::auth::{Proof, Seal};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use statefile::Slot;
use vhd::Uuid;

use crate::{
    config::{HostId, VmIndex},
    event::Fault,
    table::Table,
};

const MAGIC: &[u8; 4] = b"EHB1";
const POOL: usize = 16;
const SEAL: usize = 32;

/// Longest heartbeat: it fits a packet of the management network.
pub const MAX_HEARTBEAT: usize = 8192;

/// Where a host stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Standing {
    /// It is up, and asks to be let in.
    Joining,
    /// It is in the liveset, as far as it knows.
    Member,
    /// It has stopped its guests, and will not run any before it is let in again.
    Fenced,
}

/// What a host says of a VM. Those that it does not have are not mentioned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum VmReport {
    /// It is being built here, or is arriving from another host.
    Starting,
    /// It runs here.
    Running,
    /// It could not be started: the attempt's number.
    Failed(u16),
    /// It was switched off here, by its own or by command: it shall stay off.
    Off,
}

/// What a host says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Who.
    pub from: HostId,
    /// Which of its lives: grows with every boot, and when it joins again after it was fenced.
    pub incarnation: u32,
    /// Grows with every report.
    pub sequence: u64,
    /// Where it stands.
    pub standing: Standing,
    /// The generation it knows, or is about to announce.
    pub generation: u64,
    /// The version of that generation's table.
    pub version: u32,
    /// Its VMs.
    pub vms: Vec<(VmIndex, VmReport)>,
    /// The table, in slots and for those who do not have it.
    pub table: Option<Table>,
}

/// The last that was heard of a host, directly.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Heard {
    /// Its incarnation; 0 for none.
    pub incarnation: u32,
    /// The number of its report.
    pub sequence: u64,
}

/// A heartbeat.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heartbeat {
    /// What the sender says of itself.
    pub report: Report,
    /// How long ago, in ms, it sent the last of its writes to the statefile that was answered.
    pub storage_age_ms: u32,
    /// What it has heard of each host.
    pub heard: Vec<Heard>,
}

impl Heartbeat {
    /// Its bytes.
    pub fn encode(&self, pool: &[u8; POOL], seal: &Seal) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        put(&mut bytes, self, pool, seal);
        bytes
    }

    /// Reads and checks one.
    pub fn decode(
        bytes: &[u8],
        pool: &[u8; POOL],
        seal: &Seal,
        authenticate: bool,
    ) -> Result<Self, Fault> {
        let bytes = bytes
            .strip_prefix(MAGIC)
            .filter(|rest| rest.len() <= MAX_HEARTBEAT)
            .ok_or(Fault::Malformed)?;
        get(bytes, pool, seal, authenticate)
    }
}

impl Report {
    /// The whole block of the sender's slot. `None` if it does not fit, which [`crate::PoolConfig::check`] excludes.
    pub fn encode_slot(&self, pool: &[u8; POOL], seal: &Seal) -> Option<[u8; statefile::BLOCK]> {
        let mut payload = Vec::new();
        put(&mut payload, self, pool, seal);
        let slot = Slot {
            index: self.from.0.into(),
            host: Uuid(*pool),
            sequence: self.sequence,
            payload: &payload,
        };
        slot.encode().ok()
    }

    /// Reads and checks the slot of a host; `None` if it was never written.
    pub fn decode_slot(
        host: HostId,
        block: &[u8],
        pool: &[u8; POOL],
        seal: &Seal,
        authenticate: bool,
    ) -> Result<Option<Self>, Fault> {
        let Some(slot) = Slot::parse(host.0.into(), block).map_err(Fault::Slot)? else {
            return Ok(None);
        };
        let report: Self = get(slot.payload, pool, seal, authenticate)?;
        if report.from != host {
            return Err(Fault::Malformed);
        }
        Ok(Some(report))
    }
}

fn put(bytes: &mut Vec<u8>, body: &impl Serialize, pool: &[u8; POOL], seal: &Seal) {
    let start = bytes.len();
    bytes.extend_from_slice(pool);
    let body = postcard::to_allocvec(body).expect("our own messages can be written");
    bytes.extend_from_slice(&body);
    let proof = seal.prove(&bytes[start..]);
    bytes.extend_from_slice(&proof);
}

fn get<T: DeserializeOwned>(
    bytes: &[u8],
    pool: &[u8; POOL],
    seal: &Seal,
    authenticate: bool,
) -> Result<T, Fault> {
    let (sealed, proof): (&[u8], &Proof) =
        bytes.split_last_chunk::<SEAL>().ok_or(Fault::Malformed)?;
    let body = match sealed.split_first_chunk::<POOL>() {
        Some((theirs, body)) if theirs == pool => body,
        Some(_) => return Err(Fault::OtherPool),
        None => return Err(Fault::Malformed),
    };
    if authenticate && !seal.accepts(sealed, proof) {
        return Err(Fault::Forged);
    }
    match postcard::take_from_bytes(body) {
        Ok((message, [])) => Ok(message),
        _ => Err(Fault::Malformed),
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec;

    use host_protocol::auth::{PoolKey, Purpose};

    use super::*;

    const POOL: [u8; 16] = [5; 16];

    fn heartbeat() -> Heartbeat {
        Heartbeat {
            report: Report {
                from: HostId(1),
                incarnation: 3,
                sequence: 77,
                standing: Standing::Member,
                generation: 9,
                version: 2,
                vms: vec![(VmIndex(0), VmReport::Running)],
                table: Some(Table::empty(2, 1)),
            },
            storage_age_ms: 12,
            heard: vec![Heard::default(); 2],
        }
    }

    #[test]
    fn only_what_the_pool_has_sealed_is_read() {
        let seal = PoolKey::new([7; 32]).seal(Purpose::Heartbeat);
        let bytes = heartbeat().encode(&POOL, &seal);
        let read = |bytes: &[u8]| Heartbeat::decode(bytes, &POOL, &seal, true);
        assert_eq!(read(&bytes), Ok(heartbeat()));
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(read(&damaged).is_err(), "bit {bit}");
        }
        for length in 0..bytes.len() {
            assert!(read(&bytes[..length]).is_err(), "{length} bytes");
        }
        let other = heartbeat().encode(&[6; 16], &seal);
        assert_eq!(read(&other), Err(Fault::OtherPool));
        let stranger = PoolKey::new([8; 32]).seal(Purpose::Heartbeat);
        assert_eq!(
            read(&heartbeat().encode(&POOL, &stranger)),
            Err(Fault::Forged)
        );
    }

    #[test]
    fn a_slot_is_read_only_as_its_own_and_whole() {
        let seal = PoolKey::new([7; 32]).seal(Purpose::Statefile);
        let report = heartbeat().report;
        let block = report.encode_slot(&POOL, &seal).unwrap();
        let read = |host, block: &[u8]| Report::decode_slot(host, block, &POOL, &seal, true);
        assert_eq!(read(HostId(1), &block), Ok(Some(report)));
        assert!(read(HostId(0), &block).is_err());
        assert!(read(HostId(1), &block[..2048]).is_err());
        assert_eq!(read(HostId(1), &[0; statefile::BLOCK]), Ok(None));
        let heartbeats = PoolKey::new([7; 32]).seal(Purpose::Heartbeat);
        let carried = heartbeat().report.encode_slot(&POOL, &heartbeats).unwrap();
        assert_eq!(read(HostId(1), &carried), Err(Fault::Forged));
    }
}
