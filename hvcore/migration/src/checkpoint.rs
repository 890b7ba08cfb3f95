//! A guest in a file: what a migration says of it, without the conversation.
//!
//! A checkpoint is the VM's configuration, its pages, and the final state, in the messages and with the checks of the
//! wire. Pages of zeroes are left out, since a VM that is built has nothing else. It knows no file:
//! bytes come out of [`CheckpointWriter`] and go into [`CheckpointReader`].
//!
//! The final state names the epoch of each disk's lease. Whoever goes on from a checkpoint takes the leases by
//! compare-and-swap on these epochs, as at the end of a migration: so a checkpoint is good once, and only while nobody
//! has opened its disks since. Rejected: a file that says "used", which a crash can leave behind or lose.

use alloc::{string::String, string::ToString, vec::Vec};

use guest_memory::{GuestMemory, PAGE_SIZE};
use host_protocol::VmConfig;
use serde::{Deserialize, Serialize};

use crate::{
    hash::is_zero,
    page_hash::PageHash,
    wire::{self, BatchWriter, Decoder, FinalState, Message, Page},
};

/// What is said beside pages.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
enum Record {
    /// The first: the VM to build.
    Vm(VmConfig),
    /// The last.
    End(FinalState),
}

/// Writes a guest that stands still.
#[derive(Debug)]
pub struct CheckpointWriter {
    next_page: usize,
    batch: BatchWriter,
    unsent: Vec<u8>,
    ended: bool,
}

impl CheckpointWriter {
    /// Begins with what the VM is.
    #[must_use]
    pub fn new(vm: &VmConfig) -> Self {
        let mut unsent = Vec::new();
        wire::encode(&Record::Vm(vm.clone()), &mut unsent);
        Self {
            next_page: 0,
            batch: BatchWriter::default(),
            unsent,
            ended: false,
        }
    }

    /// Looks at up to `pages` more pages. True when all of RAM is in.
    pub fn add_pages(&mut self, memory: &GuestMemory, pages: usize) -> bool {
        let end = memory.pages().min(self.next_page + pages);
        let mut content = [0; PAGE_SIZE];
        for page in self.next_page..end {
            memory.read_page(page, &mut content);
            if !is_zero(&content) {
                let number = u32::try_from(page).expect("guests have less than 16 TiB");
                let what = Page::Content(&content, PageHash::of(&content));
                self.batch.push(&mut self.unsent, number, what);
            }
        }
        self.next_page = end;
        end == memory.pages()
    }

    /// Adds all that is left to say, after the last page.
    pub fn end(&mut self, state: FinalState) {
        self.batch.finish(&mut self.unsent);
        wire::encode(&Record::End(state), &mut self.unsent);
        self.ended = true;
    }

    /// Whether [`Self::end`] was called and all has been taken.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.ended && self.unsent.is_empty()
    }

    /// Takes `bytes` bytes out, less only at the end; `None` when more must be added first.
    pub fn take(&mut self, bytes: usize) -> Option<Vec<u8>> {
        let ready = self.batch.finished(&self.unsent);
        if ready < bytes && !self.ended {
            return None;
        }
        let taken = self.unsent.drain(..ready.min(bytes)).collect::<Vec<_>>();
        self.batch.moved_up(taken.len());
        Some(taken)
    }
}

/// What a [`CheckpointReader`] has come to.
#[derive(Debug)]
pub enum CheckpointStep {
    /// More bytes are needed.
    Hungry,
    /// The VM to build; pages follow.
    Vm(VmConfig),
    /// Pages were put into RAM.
    Loaded,
    /// All is there.
    End(FinalState),
}

/// Reads a checkpoint, which may be damaged or something else.
#[derive(Debug, Default)]
pub struct CheckpointReader {
    decoder: Decoder,
}

impl CheckpointReader {
    /// Takes in the next bytes.
    pub fn push(&mut self, bytes: &[u8]) {
        self.decoder.push(bytes);
    }

    /// Goes on to the next step. `memory` is the RAM of the VM that was built, once it is.
    ///
    /// # Errors
    /// A sentence for people: this is no whole checkpoint.
    pub fn step(&mut self, memory: Option<&GuestMemory>) -> Result<CheckpointStep, String> {
        match self.decoder.next::<Record>() {
            Ok(None) => Ok(CheckpointStep::Hungry),
            Ok(Some(Message::Control(Record::Vm(vm)))) if memory.is_none() => {
                Ok(CheckpointStep::Vm(vm))
            }
            Ok(Some(Message::Pages(batch))) => {
                let memory = memory.ok_or("it has pages before its VM")?;
                batch.load_into(memory)?;
                Ok(CheckpointStep::Loaded)
            }
            Ok(Some(Message::Control(Record::End(state)))) if memory.is_some() => {
                Ok(CheckpointStep::End(state))
            }
            Ok(Some(Message::Control(_))) => Err("its parts are in the wrong order".to_string()),
            Err(error) => Err(error.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec;

    use guest_memory::{Gpa, testing};

    use super::*;
    use crate::wire::Snapshot;

    const PAGES: usize = 200;

    fn config() -> VmConfig {
        VmConfig {
            id: [1; 16],
            name: "guest".to_string(),
            memory_mib: 1,
            vcpus: 1,
            weight: 256,
            kernel: String::new(),
            initrd: None,
            cmdline: String::new(),
            disks: vec![],
            nics: vec![],
        }
    }

    fn state() -> FinalState {
        FinalState {
            snapshot: Snapshot {
                vcpus: vec![],
                devices: vec![],
            },
            disks: vec![],
            transit_ns: 0,
            hash: None,
        }
    }

    /// RAM with some pages of content among pages of zeroes.
    fn filled() -> GuestMemory {
        let memory = testing::memory(PAGES * PAGE_SIZE);
        for page in (0..PAGES).step_by(3) {
            let at = Gpa((page * PAGE_SIZE) as u64);
            memory.write(at, &[page as u8 + 1; 100]).unwrap();
        }
        memory
    }

    fn written(memory: &GuestMemory, chunk: usize) -> Vec<u8> {
        let mut writer = CheckpointWriter::new(&config());
        let mut bytes = Vec::new();
        while !writer.add_pages(memory, 7) {
            bytes.extend(writer.take(chunk).unwrap_or_default());
        }
        writer.end(state());
        while !writer.is_done() {
            bytes.extend(writer.take(chunk).unwrap());
        }
        bytes
    }

    /// Reads until the end, or until something is missing or wrong.
    fn read(bytes: &[u8], chunk: usize) -> Result<Option<GuestMemory>, String> {
        let mut reader = CheckpointReader::default();
        let mut chunks = bytes.chunks(chunk);
        let mut memory = None;
        loop {
            match reader.step(memory.as_ref())? {
                CheckpointStep::Hungry => match chunks.next() {
                    Some(chunk) => reader.push(chunk),
                    None => return Ok(None),
                },
                CheckpointStep::Vm(vm) => {
                    assert_eq!(vm, config());
                    memory = Some(testing::memory(PAGES * PAGE_SIZE));
                }
                CheckpointStep::Loaded => {}
                CheckpointStep::End(found) => {
                    assert_eq!(found, state());
                    return Ok(memory);
                }
            }
        }
    }

    #[test]
    fn a_guest_comes_back_from_pieces_of_any_size() {
        let memory = filled();
        for chunk in [4096, 100_000, 1 << 20] {
            let found = read(&written(&memory, chunk), chunk / 2 + 1)
                .unwrap()
                .unwrap();
            let (mut one, mut other) = ([0; PAGE_SIZE], [0; PAGE_SIZE]);
            for page in 0..PAGES {
                memory.read_page(page, &mut one);
                found.read_page(page, &mut other);
                assert_eq!(one, other, "page {page}");
            }
        }
    }

    #[test]
    fn a_part_of_a_checkpoint_is_none_and_damage_is_noticed() {
        let bytes = written(&filled(), 1 << 20);
        for end in (0..bytes.len()).step_by(1009) {
            assert!(read(&bytes[..end], 4096).unwrap().is_none(), "{end} bytes");
        }
        for place in (0..bytes.len()).step_by(997) {
            let mut damaged = bytes.clone();
            damaged[place] ^= 1;
            // A longer length makes the reader wait for more than there is.
            assert!(!matches!(read(&damaged, 4096), Ok(Some(_))), "byte {place}");
        }
    }
}
