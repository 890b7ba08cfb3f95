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
//! | 12-15 | checksum | CRC-32C of bytes 4-11 and the body, or of what of it precedes pages' contents |
//!
//! The body of a message of pages is
//!
//! | bytes | field | |
//! |---|---|---|
//! | 0-3 | count | of pages, 1 to [`MAX_BATCH`] |
//! | 4-11 | digest | of the contents: [`PageHash::check`] of each, folded |
//! | 12-523 | table | for each page its index, and its origin: an earlier page with the same content, or [`CONTENT`] or [`ZERO`] |
//! | 524- | contents | of the pages whose origin is [`CONTENT`], in order |
//!
//! TCP's checksum misses about one damaged segment in 65 536, so each message has its own. A CRC over
//! all contents would cost more than all else that is done to a page where there is no instruction
//! for it, and none is in reach without `unsafe`; the digest takes a multiplication for eight bytes, and the
//! source needs it anyway to find pages that are equal. Both ends parse at the edge: nothing of a
//! message is used before all of it has been checked.

use alloc::{format, string::String, vec::Vec};

use crc::{CRC_32_ISCSI, Crc, Table};

use crate::page_hash::PageHash;
use guest_memory::{GuestMemory, PAGE_SIZE};
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
/// Bytes of a message of pages before the contents.
const TABLE_END: usize = 4 + 8 + MAX_BATCH * 8;
const MAX_PAGES_BODY: usize = TABLE_END + MAX_BATCH * PAGE_SIZE;

/// Longest message with its header. Who can hold less may wait for ever for the rest of one.
pub(crate) const MAX_MESSAGE: usize = HEADER + MAX_CONTROL;

const KIND_CONTROL: u16 = 1;
const KIND_PAGES: u16 = 2;

/// Origin of a page whose content is in the message.
const CONTENT: u32 = u32::MAX;
/// Origin of a page of zeroes.
const ZERO: u32 = u32::MAX - 1;

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
    /// A snapshot of the running guest, for the destination to run for a moment and throw away: what comes at the
    /// end then meets code that has run before. Until the answer to the end of this round, the frames that the guest
    /// receives follow, for the copy to receive them too.
    Rehearsal {
        /// The guest.
        snapshot: Snapshot,
    },
    /// The vCPUs are stopped and every page has been sent: the destination may take the leases.
    Final(FinalState),
    /// A frame for the guest: after [`Self::Rehearsal`] for its copy, after [`Self::Final`] one that reached the source
    /// after the stop.
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
        /// Pages that a rehearsal has changed: they must be sent again.
        spoilt: Vec<u32>,
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

/// Fills in the header at the beginning of `message`, whose checksum covers the body's first `covered` bytes.
fn seal(message: &mut [u8], kind: u16, covered: usize) {
    let (header, body) = message.split_at_mut(HEADER);
    header[0..4].copy_from_slice(&MAGIC);
    header[4..6].copy_from_slice(&VERSION.to_le_bytes());
    header[6..8].copy_from_slice(&kind.to_le_bytes());
    let length = u32::try_from(body.len()).expect("bodies are bounded far below 4 GiB");
    header[8..12].copy_from_slice(&length.to_le_bytes());
    let sum = checksum(&header[4..12], &body[..covered]);
    header[12..16].copy_from_slice(&sum.to_le_bytes());
}

/// Appends a control message.
pub(crate) fn encode<M: Serialize>(message: &M, out: &mut Vec<u8>) {
    let start = out.len();
    out.resize(start + HEADER, 0);
    let body = postcard::to_allocvec(message).expect("our own messages can be written");
    debug_assert!(body.len() <= MAX_CONTROL, "our own messages are bounded");
    out.extend_from_slice(&body);
    seal(&mut out[start..], KIND_CONTROL, body.len());
}

/// What a page is at the destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Page<'a> {
    /// This, which has this hash.
    Content(&'a [u8; PAGE_SIZE], PageHash),
    /// Zeroes.
    Zero,
    /// The same as another page, as that was sent before.
    SameAs(u32),
}

/// Pages on their way out: a message that is built where it will be sent from.
#[derive(Debug, Default)]
pub(crate) struct BatchWriter {
    /// Where in the output the message begins.
    start: usize,
    count: usize,
    digest: u64,
}

impl BatchWriter {
    /// Adds a page to the message at the end of `out`, and begins one if there is none. Gives the bytes added.
    pub fn push(&mut self, out: &mut Vec<u8>, page: u32, what: Page<'_>) -> usize {
        let before = out.len();
        if self.count == 0 {
            self.start = before;
            self.digest = 0;
            out.resize(before + HEADER + TABLE_END, 0);
        }
        let origin = match what {
            Page::Content(content, hash) => {
                out.extend_from_slice(content);
                self.digest = fold(self.digest, hash);
                CONTENT
            }
            Page::Zero => ZERO,
            Page::SameAs(other) => other,
        };
        let entry = self.start + HEADER + 12 + self.count * 8;
        out[entry..entry + 4].copy_from_slice(&page.to_le_bytes());
        out[entry + 4..entry + 8].copy_from_slice(&origin.to_le_bytes());
        self.count += 1;
        let added = out.len() - before;
        if self.count == MAX_BATCH {
            self.finish(out);
        }
        added
    }

    /// Ends the message, if one was begun. Nothing else may be written to `out` before that.
    pub fn finish(&mut self, out: &mut [u8]) {
        if self.count == 0 {
            return;
        }
        let message = &mut out[self.start..];
        let count = u32::try_from(self.count).expect("at most MAX_BATCH");
        message[HEADER..HEADER + 4].copy_from_slice(&count.to_le_bytes());
        message[HEADER + 4..HEADER + 12].copy_from_slice(&self.digest.to_le_bytes());
        seal(message, KIND_PAGES, TABLE_END);
        self.count = 0;
    }

    /// So many bytes of whole messages were taken away from the beginning of the output.
    pub fn moved_up(&mut self, bytes: usize) {
        self.start = self.start.saturating_sub(bytes);
    }

    /// How much of `out` is whole messages.
    pub fn finished(&self, out: &[u8]) -> usize {
        if self.count == 0 {
            out.len()
        } else {
            self.start
        }
    }
}

fn fold(digest: u64, hash: PageHash) -> u64 {
    digest.rotate_left(1) ^ hash.check()
}

/// Pages that have arrived.
#[derive(Debug)]
pub(crate) struct Batch<'a> {
    table: &'a [[u8; 8]],
    contents: &'a [[u8; PAGE_SIZE]],
}

/// A page that has arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Arrived<'a> {
    Content(&'a [u8; PAGE_SIZE]),
    Zero,
    SameAs(usize),
}

impl<'a> Batch<'a> {
    /// `body` has at least the table, whose checksum was right.
    fn parse(body: &'a [u8]) -> Result<Self, WireError> {
        let malformed = WireError::Malformed;
        let (head, contents) = body.split_at(TABLE_END);
        let count = u32::from_le_bytes([head[0], head[1], head[2], head[3]]) as usize;
        let digest = u64::from_le_bytes(head[4..12].try_into().expect("eight bytes"));
        if !(1..=MAX_BATCH).contains(&count) {
            return Err(malformed("it has no pages, or too many"));
        }
        let (table, _) = head[12..12 + count * 8].as_chunks::<8>();
        let (contents, tail) = contents.as_chunks::<PAGE_SIZE>();
        let filled = table
            .iter()
            .filter(|entry| entry[4..] == CONTENT.to_le_bytes())
            .count();
        if !tail.is_empty() || filled != contents.len() {
            return Err(malformed("its pages and contents do not match"));
        }
        let found = contents
            .iter()
            .fold(0, |digest, page| fold(digest, PageHash::of(page)));
        if found != digest {
            return Err(WireError::Checksum);
        }
        Ok(Self { table, contents })
    }

    /// Puts the pages where they belong.
    ///
    /// # Errors
    /// A sentence for people: one is not in the guest's RAM.
    pub fn load_into(&self, memory: &GuestMemory) -> Result<(), String> {
        let last = memory.pages() - 1;
        let mut copy = [0; PAGE_SIZE];
        for (page, what) in self.pages() {
            let beyond = match what {
                Arrived::SameAs(origin) => page.max(origin),
                _ => page,
            };
            if beyond > last {
                return Err(format!("page {beyond} is beyond the guest's RAM"));
            }
            match what {
                Arrived::Content(content) => memory.load_page(page, content),
                Arrived::Zero => memory.load_page(page, &[0; PAGE_SIZE]),
                Arrived::SameAs(origin) => {
                    memory.read_page(origin, &mut copy);
                    memory.load_page(page, &copy);
                }
            }
        }
        Ok(())
    }

    /// The pages with their indices.
    pub fn pages(&self) -> impl Iterator<Item = (usize, Arrived<'a>)> + '_ {
        let mut contents = self.contents.iter();
        self.table.iter().map(move |entry| {
            let word =
                |at: usize| u32::from_le_bytes(entry[at..at + 4].try_into().expect("four bytes"));
            let what = match word(4) {
                CONTENT => Arrived::Content(contents.next().expect("they were counted")),
                ZERO => Arrived::Zero,
                origin => Arrived::SameAs(origin as usize),
            };
            (word(0) as usize, what)
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
        // What was read is dropped only when it is the greater part, so that each byte is moved once at most.
        if self.consumed > self.waiting() {
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
        let covered = match kind {
            KIND_PAGES => body
                .get(..TABLE_END)
                .ok_or(WireError::Malformed("it is too short for pages"))?,
            _ => body,
        };
        if checksum(&header[4..12], covered) != u32_at(12) {
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
        let mut writer = BatchWriter::default();
        let page = [9; PAGE_SIZE];
        writer.push(&mut out, 7, Page::Content(&page, PageHash::of(&page)));
        writer.push(&mut out, 8, Page::Zero);
        writer.push(&mut out, 9, Page::SameAs(7));
        writer.finish(&mut out);
        encode(&FromSource::EndOfFrames, &mut out);
        out
    }

    #[test]
    fn a_message_goes_on_after_those_before_it_were_sent() {
        let (mut out, mut writer) = (Vec::new(), BatchWriter::default());
        let page = [9; PAGE_SIZE];
        writer.push(&mut out, 1, Page::Content(&page, PageHash::of(&page)));
        writer.finish(&mut out);
        writer.push(&mut out, 2, Page::Zero);
        let sent = writer.finished(&out);
        let mut stream: Vec<u8> = out.drain(..sent).collect();
        writer.moved_up(sent);
        writer.push(&mut out, 3, Page::SameAs(1));
        writer.finish(&mut out);
        stream.append(&mut out);
        let mut decoder = Decoder::default();
        decoder.push(&stream);
        let mut seen = Vec::new();
        while let Some(message) = decoder.next::<FromSource>().unwrap() {
            let Message::Pages(batch) = message else {
                panic!("only pages were sent");
            };
            seen.extend(batch.pages().map(|(number, _)| number));
        }
        assert_eq!(seen, [1, 2, 3]);
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
                            assert_eq!(
                                pages,
                                [
                                    (7, Arrived::Content(&[9; PAGE_SIZE])),
                                    (8, Arrived::Zero),
                                    (9, Arrived::SameAs(7))
                                ]
                            );
                        }
                        (_, other) => panic!("unexpected {other:?}"),
                    }
                    seen += 1;
                }
            }
            assert_eq!((seen, decoder.waiting()), (3, 0));
        }
    }

    /// Changes each of some bits of a message in turn; all must be noticed.
    fn notice_damage(message: &[u8], bytes: impl Iterator<Item = usize>) {
        for byte in bytes {
            for bit in 0..8 {
                let mut damaged = message.to_vec();
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
    fn one_changed_bit_anywhere_is_noticed() {
        let mut control = Vec::new();
        encode(&FromSource::EndOfRound { number: 3 }, &mut control);
        notice_damage(&control, 0..control.len());
        let mut pages = Vec::new();
        let mut writer = BatchWriter::default();
        let page = [9; PAGE_SIZE];
        writer.push(&mut pages, 7, Page::Content(&page, PageHash::of(&page)));
        writer.finish(&mut pages);
        let contents = HEADER + TABLE_END;
        notice_damage(
            &pages,
            (0..contents).chain((contents..pages.len()).step_by(97)),
        );
    }

    #[test]
    fn pages_that_do_not_add_up_are_refused() {
        let refuse = |count: u32, origin: u32, contents: usize| {
            let mut out = vec![0; HEADER + TABLE_END + contents];
            out[HEADER..HEADER + 4].copy_from_slice(&count.to_le_bytes());
            out[HEADER + 16..HEADER + 20].copy_from_slice(&origin.to_le_bytes());
            seal(&mut out, KIND_PAGES, TABLE_END);
            let mut decoder = Decoder::default();
            decoder.push(&out);
            assert!(decoder.next::<FromSource>().is_err());
        };
        refuse(0, ZERO, 0);
        refuse(65, ZERO, 0);
        refuse(u32::MAX, ZERO, 0);
        refuse(1, CONTENT, 0);
        refuse(1, ZERO, PAGE_SIZE);
        refuse(1, CONTENT, PAGE_SIZE - 1);
        refuse(1, CONTENT, 2 * PAGE_SIZE);
    }

    #[test]
    fn a_message_too_short_for_its_table_is_refused() {
        let mut out = vec![0; HEADER + 20];
        seal(&mut out, KIND_PAGES, 20);
        let mut decoder = Decoder::default();
        decoder.push(&out);
        assert!(matches!(
            decoder.next::<FromSource>(),
            Err(WireError::Malformed(_))
        ));
    }
}
