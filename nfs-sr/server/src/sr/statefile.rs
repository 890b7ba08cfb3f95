//! The repository's statefile, where hosts leave their heartbeats: made with the repository, looked at by its tools. What is in it is
//! described in the crate `statefile`.

use ::statefile::{BLOCK, Bad, Header, NAME, SIZE, SLOTS, Slot, slot_offset};
use vhd::Uuid;

use super::{
    image::{SrError, at},
    store::Store,
    vdi::publish,
};

/// A host's heartbeat.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Heartbeat {
    /// Index of the host in its pool.
    pub index: u32,
    /// The host, and the number of its last heartbeat; or why they cannot be read.
    pub last: Result<(Uuid, u64), Bad>,
}

/// Makes the statefile of a repository. Fails if there is one.
pub fn create<S: Store>(store: &S, repository: Uuid) -> Result<(), SrError> {
    publish(store, NAME, |new| {
        let mut bytes = vec![0; SIZE as usize];
        bytes[..BLOCK].copy_from_slice(&Header { repository }.encode());
        // All of it, not a hole: a heartbeat must not fail because the disk is full.
        at(new, store.write(new, 0, &bytes))
    })
}

/// What is wrong with the file as a whole, if anything.
pub fn fault<S: Store>(store: &S) -> Result<Option<String>, SrError> {
    let length = at(NAME, store.length(NAME))?;
    if length != SIZE {
        return Ok(Some(format!("it has {length} bytes instead of {SIZE}")));
    }
    let mut block = [0; BLOCK];
    at(NAME, store.read(NAME, 0, &mut block))?;
    Ok(Header::parse(&block)
        .err()
        .map(|bad| format!("its header: {bad}")))
}

/// The slots that hosts have written.
pub fn heartbeats<S: Store>(store: &S) -> Result<Vec<Heartbeat>, SrError> {
    let mut bytes = vec![0; SIZE as usize];
    at(NAME, store.read(NAME, 0, &mut bytes))?;
    let slots = (0..SLOTS).filter_map(|index| {
        let offset = slot_offset(index)? as usize;
        let slot = Slot::parse(index, &bytes[offset..offset + BLOCK]).transpose()?;
        let last = slot.map(|slot| (slot.host, slot.sequence));
        Some(Heartbeat { index, last })
    });
    Ok(slots.collect())
}
