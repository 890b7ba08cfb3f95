//! What two hosts say to each other during a live migration.
//!
//! A stream of messages, each with this header (integers little-endian):
//!
//! | bytes | field | |
//! |---|---|---|
//! | 0-3 | magic | `ELMG` |
//! | 4-5 | version | [`VERSION`] |
//! | 6-7 | kind | 1: a [`FromSource`] or [`FromDestination`] in postcard; 2: pages |
//! | 8-11 | length | bytes of the body, bounded by kind |
//! | 12-15 | checksum | CRC-32C of bytes 4-11 and the body |
//!
//! The body of a message of pages is a `u32` count, so many `u32` page indices (bit 31: the page is zero and has no
//! content here), and the contents of the other pages, in order.
//!
//! TCP's checksum misses about one damaged segment in 65 536, so each message has its own. Both ends
//! parse at the edge: nothing of a message is used before all of it has been checked.

use alloc::{string::String, vec::Vec};

use crc::{CRC_32_ISCSI, Crc, Table};
use guest_memory::PAGE_SIZE;
use host_protocol::{
    MigrationConfig, VmConfig,
    auth::{Nonce, Proof},
};
use machine::{Section, vcpu::VcpuState};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use vdi::DiskState;

/// Version of this protocol. A host refuses another.
pub const VERSION: u16 = 1;

const MAGIC: [u8; 4] = *b"ELMG";
const HEADER: usize = 16;
const CRC: Crc<u32, Table<16>> = Crc::<u32, Table<16>>::new(&CRC_32_ISCSI);

/// Longest control message: a snapshot with its disks' uncommitted data is below 1 MiB.
const MAX_CONTROL: usize = 4 << 20;

/// Most pages in one message.
pub const MAX_BATCH: usize = 64;
const MAX_PAGES_BODY: usize = 4 + MAX_BATCH * (4 + PAGE_SIZE);

const KIND_CONTROL: u16 = 1;
const KIND_PAGES: u16 = 2;

/// Marks a page of zeroes in a list of indices.
const ZERO: u32 = 1 << 31;

/// From the host that has the guest.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum FromSource {
    /// First message.
    Hello {
        /// Random.
        nonce: Nonce,
    },
    /// Proves the key and describes the VM; the destination builds it.
    Prepare {
        /// Proof of the pool's key.
        proof: Proof,
        /// The VM.
        vm: VmConfig,
        /// How the migration runs.
        config: MigrationConfig,
    },
    /// All pages of a round have been sent.
    EndOfRound {
        /// Which round.
        number: u32,
    },
    /// A snapshot of the running guest, for the destination to load once and throw away: what comes at the end
    /// then meets code that has run before.
    Rehearsal(Snapshot),
    /// The vCPUs are stopped and every page has been sent: the destination may take the leases.
    Final(FinalState),
    /// A frame for the guest that reached the source after the stop.
    Frame {
        /// Which of the guest's cards.
        nic: u8,
        /// The frame.
        frame: Vec<u8>,
    },
    /// No frames follow: the network sends them to the destination now.
    EndOfFrames,
    /// The migration is called off.
    Cancel {
        /// Why.
        why: String,
    },
}

/// From the host that gets the guest.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum FromDestination {
    /// Answer to [`FromSource::Hello`].
    Welcome {
        /// Random.
        nonce: Nonce,
        /// Proof of the pool's key.
        proof: Proof,
    },
    /// The VM is built; pages may come.
    Ready,
    /// A round's pages are in place.
    RoundApplied {
        /// Which round.
        number: u32,
    },
    /// The leases are the destination's.
    Committed,
    /// Given up; the destination will not take the leases any more.
    Failed {
        /// Why.
        why: String,
    },
}

/// A guest without its RAM.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Snapshot {
    /// Its vCPUs.
    pub vcpus: Vec<VcpuState>,
    /// Its devices.
    pub devices: Vec<Section>,
}

/// All that is left to say when the vCPUs are stopped.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FinalState {
    /// vCPUs and devices.
    pub snapshot: Snapshot,
    /// Its disks, in order; `None` for a read-only one, which has no lease.
    pub disks: Vec<Option<DiskState>>,
    /// Time from the reading of the counters in the snapshot to the arrival at the destination, as the source
    /// estimates it.
    pub transit_ns: u64,
    /// Hash of RAM, if asked for.
    pub hash: Option<[u8; 32]>,
}

/// A peer's bytes are not this protocol.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// Something else is speaking.
    #[error("the peer does not speak the migration protocol")]
    Magic,
    /// The peer's version is another.
    #[error(
        "the peer speaks version {0} of the migration protocol, this host {VERSION}; update the older host"
    )]
    Version(u16),
    /// An unknown kind of message, or one that has no place here.
    #[error("the peer sent a message of kind {0}, which has no place here")]
    Kind(u16),
    /// Too long.
    #[error("the peer announced a message of {0} bytes, which is too long")]
    TooLong(usize),
    /// Damaged on the way.
    #[error("a message was damaged on its way: its checksum is wrong")]
    Checksum,
    /// The body is not what its kind says.
    #[error("a message cannot be read: {0}")]
    Malformed(&'static str),
}

/// A message as it was received.
#[derive(Debug)]
pub(crate) enum Message<'a, M> {
    Control(M),
    Pages(Batch<'a>),
}

fn checksum(header: &[u8], body: &[u8]) -> u32 {
    let mut digest = CRC.digest();
    digest.update(header);
    digest.update(body);
    digest.finalize()
}

/// Fills in a header in front of the body that begins at `start + HEADER`.
fn seal(out: &mut [u8], start: usize, kind: u16) {
    let (header, body) = out[start..].split_at_mut(HEADER);
    header[0..4].copy_from_slice(&MAGIC);
    header[4..6].copy_from_slice(&VERSION.to_le_bytes());
    header[6..8].copy_from_slice(&kind.to_le_bytes());
    let length = u32::try_from(body.len()).expect("bodies are bounded far below 4 GiB");
    header[8..12].copy_from_slice(&length.to_le_bytes());
    let sum = checksum(&header[4..12], body);
    header[12..16].copy_from_slice(&sum.to_le_bytes());
}

/// Appends a control message.
pub(crate) fn encode<M: Serialize>(message: &M, out: &mut Vec<u8>) {
    let start = out.len();
    out.resize(start + HEADER, 0);
    let body = postcard::to_allocvec(message).expect("our own messages can be written");
    debug_assert!(body.len() <= MAX_CONTROL, "our own messages are bounded");
    out.extend_from_slice(&body);
    seal(out, start, KIND_CONTROL);
}

/// Pages on their way out: a message that is filled page by page.
#[derive(Debug)]
pub(crate) struct BatchWriter {
    indices: Vec<u32>,
    contents: Vec<u8>,
}

impl BatchWriter {
    pub fn new() -> Self {
        Self {
            indices: Vec::with_capacity(MAX_BATCH),
            contents: Vec::with_capacity(MAX_BATCH * PAGE_SIZE),
        }
    }

    pub fn is_full(&self) -> bool {
        self.indices.len() == MAX_BATCH
    }

    pub fn push(&mut self, page: u32, content: Option<&[u8; PAGE_SIZE]>) {
        match content {
            Some(content) => {
                self.indices.push(page);
                self.contents.extend_from_slice(content);
            }
            None => self.indices.push(page | ZERO),
        }
    }

    /// Appends the message, if there is a page in it, and begins a new one. Gives the bytes appended.
    pub fn finish(&mut self, out: &mut Vec<u8>) -> usize {
        if self.indices.is_empty() {
            return 0;
        }
        let start = out.len();
        out.reserve(HEADER + 4 + self.indices.len() * 4 + self.contents.len());
        out.resize(start + HEADER, 0);
        let count = u32::try_from(self.indices.len()).expect("at most MAX_BATCH");
        out.extend_from_slice(&count.to_le_bytes());
        for index in &self.indices {
            out.extend_from_slice(&index.to_le_bytes());
        }
        out.extend_from_slice(&self.contents);
        seal(out, start, KIND_PAGES);
        self.indices.clear();
        self.contents.clear();
        out.len() - start
    }
}

/// Pages that have arrived.
#[derive(Debug)]
pub(crate) struct Batch<'a> {
    indices: &'a [[u8; 4]],
    contents: &'a [[u8; PAGE_SIZE]],
}

impl<'a> Batch<'a> {
    fn parse(body: &'a [u8]) -> Result<Self, WireError> {
        let (count, rest) = body
            .split_first_chunk::<4>()
            .ok_or(WireError::Malformed("pages without a count"))?;
        let count = u32::from_le_bytes(*count) as usize;
        if count > MAX_BATCH {
            return Err(WireError::Malformed("too many pages"));
        }
        let (indices, contents) = rest
            .split_at_checked(count * 4)
            .ok_or(WireError::Malformed("fewer indices than announced"))?;
        let (indices, _) = indices.as_chunks::<4>();
        let (contents, tail) = contents.as_chunks::<PAGE_SIZE>();
        let filled = indices
            .iter()
            .filter(|index| u32::from_le_bytes(**index) & ZERO == 0)
            .count();
        if !tail.is_empty() || filled != contents.len() {
            return Err(WireError::Malformed("pages and contents do not match"));
        }
        Ok(Self { indices, contents })
    }

    /// The pages, each with its content, or `None` for zeroes.
    pub fn pages(&self) -> impl Iterator<Item = (usize, Option<&'a [u8; PAGE_SIZE]>)> + '_ {
        let mut contents = self.contents.iter();
        self.indices.iter().map(move |index| {
            let index = u32::from_le_bytes(*index);
            let content = if index & ZERO == 0 {
                contents.next()
            } else {
                None
            };
            ((index & !ZERO) as usize, content)
        })
    }
}

/// Cuts a byte stream into messages.
#[derive(Debug, Default)]
pub(crate) struct Decoder {
    buffer: Vec<u8>,
    consumed: usize,
}

impl Decoder {
    /// Bytes that wait to be read; whoever feeds the decoder stops at some bound.
    pub fn waiting(&self) -> usize {
        self.buffer.len() - self.consumed
    }

    pub fn push(&mut self, bytes: &[u8]) {
        if self.consumed > 0 {
            self.buffer.drain(..self.consumed);
            self.consumed = 0;
        }
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole message.
    pub fn next<M: DeserializeOwned>(&mut self) -> Result<Option<Message<'_, M>>, WireError> {
        let pending = &self.buffer[self.consumed..];
        let Some((header, rest)) = pending.split_first_chunk::<HEADER>() else {
            return Ok(None);
        };
        let u16_at = |at: usize| u16::from_le_bytes([header[at], header[at + 1]]);
        let u32_at = |at: usize| {
            u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
        };
        if header[0..4] != MAGIC {
            return Err(WireError::Magic);
        }
        if u16_at(4) != VERSION {
            return Err(WireError::Version(u16_at(4)));
        }
        let kind = u16_at(6);
        let length = u32_at(8) as usize;
        let longest = match kind {
            KIND_CONTROL => MAX_CONTROL,
            KIND_PAGES => MAX_PAGES_BODY,
            _ => return Err(WireError::Kind(kind)),
        };
        if length > longest {
            return Err(WireError::TooLong(length));
        }
        let Some(body) = rest.get(..length) else {
            return Ok(None);
        };
        if checksum(&header[4..12], body) != u32_at(12) {
            return Err(WireError::Checksum);
        }
        self.consumed += HEADER + length;
        if kind == KIND_PAGES {
            return Batch::parse(body).map(|batch| Some(Message::Pages(batch)));
        }
        let (message, tail) = postcard::take_from_bytes(body)
            .map_err(|_| WireError::Malformed("not a message of this version"))?;
        if tail.is_empty() {
            Ok(Some(Message::Control(message)))
        } else {
            Err(WireError::Malformed("bytes after its end"))
        }
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec;

    use super::*;

    fn stream() -> Vec<u8> {
        let mut out = Vec::new();
        encode(&FromSource::EndOfRound { number: 3 }, &mut out);
        let mut writer = BatchWriter::new();
        writer.push(7, Some(&[9; PAGE_SIZE]));
        writer.push(8, None);
        writer.finish(&mut out);
        encode(&FromSource::EndOfFrames, &mut out);
        out
    }

    #[test]
    fn a_stream_survives_any_cutting() {
        let stream = stream();
        for chunk in [1, 7, 16, 1000, stream.len()] {
            let mut decoder = Decoder::default();
            let mut seen = 0;
            for piece in stream.chunks(chunk) {
                decoder.push(piece);
                while let Some(message) = decoder.next::<FromSource>().unwrap() {
                    match (seen, message) {
                        (0, Message::Control(FromSource::EndOfRound { number: 3 }))
                        | (2, Message::Control(FromSource::EndOfFrames)) => {}
                        (1, Message::Pages(batch)) => {
                            let pages: Vec<_> = batch.pages().collect();
                            assert_eq!(pages, [(7, Some(&[9; PAGE_SIZE])), (8, None)]);
                        }
                        (_, other) => panic!("unexpected {other:?}"),
                    }
                    seen += 1;
                }
            }
            assert_eq!((seen, decoder.waiting()), (3, 0));
        }
    }

    #[test]
    fn one_changed_bit_anywhere_is_noticed() {
        let mut short = Vec::new();
        encode(&FromSource::EndOfRound { number: 3 }, &mut short);
        for byte in 0..short.len() {
            for bit in 0..8 {
                let mut damaged = short.clone();
                damaged[byte] ^= 1 << bit;
                let mut decoder = Decoder::default();
                decoder.push(&damaged);
                // A longer length only makes the reader wait; the connection's time-outs end that.
                let waits_for_more = (8..12).contains(&byte);
                match decoder.next::<FromSource>() {
                    Err(_) => {}
                    Ok(None) => assert!(waits_for_more, "byte {byte}"),
                    Ok(Some(message)) => panic!("byte {byte} bit {bit}: {message:?}"),
                }
            }
        }
    }

    #[test]
    fn pages_that_do_not_add_up_are_refused() {
        let refuse = |body: &[u8]| {
            let mut out = vec![0; HEADER];
            out.extend_from_slice(body);
            seal(&mut out, 0, KIND_PAGES);
            let mut decoder = Decoder::default();
            decoder.push(&out);
            assert!(matches!(
                decoder.next::<FromSource>(),
                Err(WireError::Malformed(_))
            ));
        };
        refuse(&[]);
        refuse(&[1, 0, 0, 0]);
        refuse(&[1, 0, 0, 0, 5, 0, 0, 0]);
        refuse(&[1, 0, 0, 0, 5, 0, 0, 0x80, 1]);
        refuse(&[0xff, 0xff, 0, 0]);
    }
}
