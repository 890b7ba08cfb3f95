//! Changes of a file that must happen as a whole: written to `.journal-<name>` first, then done, and done again after a crash.
//!
//! `crc u32 | count u32 | count times: offset u64, length u32, bytes`, big-endian. The name is the file's, so a journal without
//! a file is left over and removed.

use crc::{CRC_32_ISCSI, Crc};

use super::{
    image::{SrError, at},
    store::Store,
};

const PREFIX: &str = ".journal-";
const CRC: Crc<u32> = Crc::<u32>::new(&CRC_32_ISCSI);

/// The file that a journal is about.
pub fn subject(name: &str) -> Option<&str> {
    name.strip_prefix(PREFIX)
}

/// Does `writes` to the file `name`, all or none, durably.
pub fn write<S: Store>(store: &S, name: &str, writes: &[(u64, Vec<u8>)]) -> Result<(), SrError> {
    let journal = format!("{PREFIX}{name}");
    let mut body = (writes.len() as u32).to_be_bytes().to_vec();
    for (offset, bytes) in writes {
        body.extend(offset.to_be_bytes());
        body.extend((bytes.len() as u32).to_be_bytes());
        body.extend(bytes);
    }
    let bytes = [&CRC.checksum(&body).to_be_bytes()[..], &body].concat();
    at(&journal, store.create(&journal))?;
    at(&journal, store.write(&journal, 0, &bytes))?;
    at(&journal, store.sync(&journal))?;
    at(&journal, store.sync_names())?;
    redo(store, &journal)
}

/// Does again what journals say, after a crash. Gives the files that were changed.
pub fn redo_all<S: Store>(store: &S) -> Result<Vec<String>, SrError> {
    let journals: Vec<String> = at("the repository", store.list())?
        .into_iter()
        .filter(|name| subject(name).is_some())
        .collect();
    for journal in &journals {
        redo(store, journal)?;
    }
    Ok(journals)
}

fn redo<S: Store>(store: &S, journal: &str) -> Result<(), SrError> {
    let length = at(journal, store.length(journal))?;
    let mut bytes = vec![0; length.min(1 << 20) as usize];
    at(journal, store.read(journal, 0, &mut bytes))?;
    let name = subject(journal).unwrap_or_default();
    let exists = at("the repository", store.list())?
        .iter()
        .any(|known| known == name);
    // A journal that is not whole was not begun to be carried out.
    if let Some(writes) = parse(&bytes)
        && exists
    {
        for (offset, bytes) in writes {
            at(name, store.write(name, offset, bytes))?;
        }
        at(name, store.sync(name))?;
    }
    at(journal, store.remove(journal))?;
    at(journal, store.sync_names())
}

fn parse(bytes: &[u8]) -> Option<Vec<(u64, &[u8])>> {
    let (crc, body) = bytes.split_first_chunk::<4>()?;
    if u32::from_be_bytes(*crc) != CRC.checksum(body) {
        return None;
    }
    let (count, mut rest) = body.split_first_chunk::<4>()?;
    let mut writes = Vec::new();
    for _ in 0..u32::from_be_bytes(*count) {
        let (offset, after) = rest.split_first_chunk::<8>()?;
        let (length, after) = after.split_first_chunk::<4>()?;
        let (bytes, after) = after.split_at_checked(u32::from_be_bytes(*length) as usize)?;
        writes.push((u64::from_be_bytes(*offset), bytes));
        rest = after;
    }
    Some(writes)
}
