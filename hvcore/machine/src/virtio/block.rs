//! The disk (virtio 1.2, 5.2).
//!
//! Requests are checked and copied out of guest memory before the backend sees them, and data comes back
//! through [`GuestMemory`], so that the pages are marked dirty. The device knows no storage.

use alloc::{collections::BTreeMap, vec::Vec};

use guest_memory::{Gpa, GuestMemory};

use super::queue::{Chain, Queue, RingError};
use crate::machine::{DiskError, DiskModel, DiskOp};

/// Entries of the request queue.
pub const QUEUE_SIZE: u16 = 256;

const SECTOR: u64 = 512;
/// Data descriptors in a request; with header and status they fit the queue.
const SEGMENTS_MAX: u32 = 126;
/// Largest segment, so that a request is at most about 4 MiB.
const SEGMENT_SIZE_MAX: u32 = 32 * 1024;
const REQUEST_MAX: usize = (SEGMENTS_MAX * SEGMENT_SIZE_MAX) as usize;
/// Data of all requests in flight: what one guest can make the host hold.
const IN_FLIGHT_MAX: usize = 8 << 20;

const HEADER_LEN: u64 = 16;
const SERIAL_LEN: usize = 20;

/// Device feature bits.
mod feature {
    pub const SIZE_MAX: u64 = 1 << 1;
    pub const SEG_MAX: u64 = 1 << 2;
    pub const READ_ONLY: u64 = 1 << 5;
    pub const BLOCK_SIZE: u64 = 1 << 6;
    pub const FLUSH: u64 = 1 << 9;
    pub const TOPOLOGY: u64 = 1 << 10;
}

/// Request types.
mod request {
    pub const IN: u32 = 0;
    pub const OUT: u32 = 1;
    pub const FLUSH: u32 = 4;
    pub const GET_ID: u32 = 8;
}

/// Request outcomes.
mod status {
    pub const OK: u8 = 0;
    pub const IO_ERROR: u8 = 1;
    pub const UNSUPPORTED: u8 = 2;
}

/// A request that the backend works on.
#[derive(Debug)]
pub struct InFlight {
    chain: Chain,
    /// Bytes of data it moves, either way.
    len: usize,
    read: bool,
}

/// What the device makes of a chain.
enum Parsed {
    /// For the backend.
    Operation(DiskOp),
    /// Answered here.
    Answer(u8, Vec<u8>),
}

/// A disk.
#[derive(Debug)]
pub struct Block {
    // Fixed configuration.
    model: DiskModel,
    // Volatile state.
    in_flight: BTreeMap<u64, InFlight>,
    in_flight_bytes: usize,
    /// Heads of requests that were in flight on another host.
    to_repeat: Vec<u16>,
}

impl Block {
    /// A disk of this model.
    #[must_use]
    pub fn new(model: &DiskModel) -> Self {
        Self {
            model: model.clone(),
            in_flight: BTreeMap::new(),
            in_flight_bytes: 0,
            to_repeat: Vec::new(),
        }
    }

    /// What the device offers.
    #[must_use]
    pub fn features(&self) -> u64 {
        let read_only = if self.model.read_only {
            feature::READ_ONLY
        } else {
            0
        };
        feature::SIZE_MAX
            | feature::SEG_MAX
            | feature::BLOCK_SIZE
            | feature::FLUSH
            | feature::TOPOLOGY
            | read_only
    }

    /// The device's configuration.
    #[must_use]
    pub fn config(&self) -> Vec<u8> {
        let mut config = Vec::new();
        config.extend(self.model.sectors.to_le_bytes());
        config.extend(SEGMENT_SIZE_MAX.to_le_bytes());
        config.extend(SEGMENTS_MAX.to_le_bytes());
        // Geometry: none.
        config.extend([0; 4]);
        config.extend((SECTOR as u32).to_le_bytes());
        // Physical block of 4 KiB (2^3 sectors), aligned; optimal requests of 64 KiB.
        config.extend([3, 0]);
        config.extend(1_u16.to_le_bytes());
        config.extend(128_u32.to_le_bytes());
        config
    }

    /// Forgets all requests: the driver reset the device. Their completions find nothing and are dropped.
    pub fn reset(&mut self) {
        self.in_flight.clear();
        self.in_flight_bytes = 0;
        self.to_repeat.clear();
    }

    /// Requests that the backend has.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.in_flight.len() + self.to_repeat.len()
    }

    /// Heads of the requests that the backend has, oldest first.
    #[must_use]
    pub fn heads_in_flight(&self) -> Vec<u16> {
        let sent = self.in_flight.values().map(|request| request.chain.head);
        self.to_repeat.iter().copied().chain(sent).collect()
    }

    /// Requests to issue again.
    pub fn repeat(&mut self, heads: Vec<u16>) {
        self.to_repeat = heads;
    }

    /// The next request for the backend, which it will know as `id`. Requests that need no backend are answered on
    /// the way; the caller looks whether an interrupt is due.
    ///
    /// # Errors
    /// When the ring or a request breaks the rules.
    pub fn next_request(
        &mut self,
        queue: &mut Queue,
        memory: &GuestMemory,
        id: u64,
    ) -> Result<Option<DiskOp>, RingError> {
        // A ring gives at most its size of chains before one comes back.
        for _ in 0..=queue.size {
            if self.in_flight_bytes >= IN_FLIGHT_MAX {
                return Ok(None);
            }
            let chain = if self.to_repeat.is_empty() {
                queue.pop(memory)?
            } else {
                let head = self.to_repeat.remove(0);
                Some(queue.chain(memory, head)?)
            };
            let Some(chain) = chain else {
                return Ok(None);
            };
            if chain.writable_len() == 0 {
                return Err(RingError::Request(
                    "a disk request has no room for its status",
                ));
            }
            match self.parse(&chain, memory)? {
                Parsed::Answer(status, data) => {
                    finish(queue, memory, &chain, status, &data)?;
                }
                Parsed::Operation(op) => {
                    let (len, read) = match &op {
                        DiskOp::Read { len, .. } => (*len as usize, true),
                        DiskOp::Write { data, .. } => (data.len(), false),
                        DiskOp::Flush => (0, false),
                    };
                    self.in_flight_bytes += len;
                    self.in_flight.insert(id, InFlight { chain, len, read });
                    return Ok(Some(op));
                }
            }
        }
        Ok(None)
    }

    fn parse(&self, chain: &Chain, memory: &GuestMemory) -> Result<Parsed, RingError> {
        let header = Chain {
            readable: first_bytes(chain, HEADER_LEN)?,
            ..Chain::default()
        }
        .read(memory, 0, HEADER_LEN as usize)?;
        let word =
            |i: usize| u32::from_le_bytes([header[i], header[i + 1], header[i + 2], header[i + 3]]);
        let sector = u64::from(word(8)) | u64::from(word(12)) << 32;
        Ok(match word(0) {
            request::IN => {
                let len = chain.writable_len() - 1;
                match self.range(sector, len) {
                    Some(offset) => Parsed::Operation(DiskOp::Read {
                        offset,
                        len: len as u32,
                    }),
                    None => Parsed::Answer(status::IO_ERROR, Vec::new()),
                }
            }
            request::OUT => {
                let len = chain.readable_len() - HEADER_LEN;
                match self.range(sector, len) {
                    Some(offset) if !self.model.read_only => Parsed::Operation(DiskOp::Write {
                        offset,
                        data: chain.read(memory, HEADER_LEN, REQUEST_MAX)?,
                    }),
                    _ => Parsed::Answer(status::IO_ERROR, Vec::new()),
                }
            }
            request::FLUSH => Parsed::Operation(DiskOp::Flush),
            request::GET_ID => {
                let mut id: Vec<u8> = self.model.serial.bytes().take(SERIAL_LEN).collect();
                id.resize(SERIAL_LEN, 0);
                Parsed::Answer(status::OK, id)
            }
            _ => Parsed::Answer(status::UNSUPPORTED, Vec::new()),
        })
    }

    /// Byte offset of a transfer, if it is whole sectors within the disk and not too long.
    fn range(&self, sector: u64, len: u64) -> Option<u64> {
        let end = sector.checked_add(len.div_ceil(SECTOR))?;
        let fits = end <= self.model.sectors
            && len.is_multiple_of(SECTOR)
            && len != 0
            && len <= REQUEST_MAX as u64;
        fits.then(|| sector * SECTOR)
    }

    /// Takes back a request that the backend has done, if it is one of this disk's.
    pub fn take(&mut self, id: u64) -> Option<InFlight> {
        let request = self.in_flight.remove(&id)?;
        self.in_flight_bytes -= request.len;
        Some(request)
    }
}

impl InFlight {
    /// Gives the guest its answer.
    ///
    /// # Errors
    /// When the ring breaks the rules.
    pub fn finish(
        &self,
        queue: &mut Queue,
        memory: &GuestMemory,
        result: &Result<Vec<u8>, DiskError>,
    ) -> Result<(), RingError> {
        let (status, data) = match result {
            Ok(data) if self.read && data.len() != self.len => (status::IO_ERROR, &[][..]),
            Ok(data) if self.read => (status::OK, data.as_slice()),
            Ok(_) => (status::OK, &[][..]),
            Err(DiskError) => (status::IO_ERROR, &[][..]),
        };
        finish(queue, memory, &self.chain, status, data)
    }
}

/// The buffers of the first `len` readable bytes.
fn first_bytes(chain: &Chain, len: u64) -> Result<Vec<super::queue::Buffer>, RingError> {
    let mut left = len as u32;
    let mut buffers = Vec::new();
    for buffer in &chain.readable {
        let mut part = *buffer;
        part.len = part.len.min(left);
        left -= part.len;
        buffers.push(part);
        if left == 0 {
            return Ok(buffers);
        }
    }
    Err(RingError::Request(
        "a disk request is shorter than its header",
    ))
}

/// Writes data and status and gives the chain back. The status is the last writable byte.
fn finish(
    queue: &mut Queue,
    memory: &GuestMemory,
    chain: &Chain,
    status: u8,
    data: &[u8],
) -> Result<(), RingError> {
    let room = chain.writable_len() - 1;
    let data = &data[..data.len().min(usize::try_from(room).unwrap_or(usize::MAX))];
    let written = chain.write(memory, data)?;
    let last = chain.writable.iter().rfind(|buffer| buffer.len != 0);
    let last = last.expect("a request without room for its status was refused");
    let place = Gpa(last.gpa.0 + u64::from(last.len) - 1);
    memory.write(place, &[status])?;
    queue.push(memory, chain.head, written + 1)
}

#[cfg(test)]
#[path = "block_tests.rs"]
mod tests;
