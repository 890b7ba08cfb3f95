//! The guest's reads and writes.

use alloc::{collections::BTreeSet, vec::Vec};

use nfs_client::{Call, CallError, Payload, Reply};
use vhd::{Bitmap, Place, SECTOR, Segment};

use super::{Context, Disk, HARD_LIMIT, server_error};
use crate::{
    error::IoError,
    layer::{Missing, Source, resolve},
    request::Completion,
    tag::{DiskJob, WritePurpose},
};

/// Bitmaps kept of each ancestor: 8 MiB with blocks of the usual size.
const MAX_BITMAPS: usize = 16 << 10;

/// A read or write under way.
#[derive(Debug)]
pub(super) struct Active {
    /// The caller's number.
    pub id: u64,
    kind: Kind,
    /// Parts not yet ended.
    left: usize,
    error: Option<IoError>,
}

#[derive(Debug)]
enum Kind {
    Read {
        offset: u64,
        len: u32,
        /// Filled as answers come; empty before the first.
        buffer: Vec<u8>,
        /// What was uncommitted when the read began, for these places in the buffer.
        over: Vec<(usize, Payload)>,
    },
    Write {
        offset: u64,
        data: Payload,
    },
}

impl Active {
    pub fn read(id: u64, offset: u64, len: u32) -> Self {
        let kind = Kind::Read {
            offset,
            len,
            buffer: Vec::new(),
            over: Vec::new(),
        };
        Self {
            id,
            kind,
            left: 0,
            error: None,
        }
    }

    pub fn write(id: u64, offset: u64, data: Payload) -> Self {
        Self {
            id,
            kind: Kind::Write { offset, data },
            left: 0,
            error: None,
        }
    }
}

impl Disk {
    pub(super) fn add(&mut self, active: Active, cx: &mut Context<'_>) {
        let op = self.next_op;
        self.next_op += 1;
        self.ops.insert(op, active);
        if !self.start(op, cx) {
            self.held.push_back(op);
        }
    }

    pub(super) fn retry_held(&mut self, cx: &mut Context<'_>) {
        for _ in 0..self.held.len() {
            let Some(op) = self.held.pop_front() else {
                break;
            };
            if !self.start(op, cx) {
                self.held.push_back(op);
            }
        }
    }

    /// Whether the operation could be started.
    fn start(&mut self, op: u64, cx: &mut Context<'_>) -> bool {
        match &self.ops[&op].kind {
            Kind::Read { offset, len, .. } => self.start_read(op, *offset, *len, cx),
            Kind::Write { offset, data } => {
                let (offset, data) = (*offset, data.clone());
                self.start_write(op, offset, &data, cx)
            }
        }
    }

    fn start_read(&mut self, op: u64, offset: u64, len: u32, cx: &mut Context<'_>) -> bool {
        let resolved = resolve(&self.layers, offset, u64::from(len));
        if !resolved.missing.is_empty() {
            for missing in resolved.missing {
                self.load_bitmap(missing, None, cx);
            }
            return false;
        }
        let mut parts = Vec::new();
        let mut over = Vec::new();
        for run in resolved.runs {
            let Source::File {
                layer,
                offset: place,
            } = run.source
            else {
                continue;
            };
            let at = (run.offset - offset) as usize;
            let (mut from, mut to) = (place, place + run.len);
            if layer == 0 {
                for (start, data) in self.uncommitted.within(place, run.len) {
                    // What is kept at the run's ends need not be read.
                    let end = start + data.len() as u64;
                    if start <= from {
                        from = from.max(end);
                    }
                    if end == place + run.len {
                        to = start;
                    }
                    over.push((at + (start - place) as usize, data));
                }
            }
            while from < to {
                let len = (to - from).min(u64::from(self.limits.read)) as u32;
                parts.push((layer, at + (from - place) as usize, from, len));
                from += u64::from(len);
            }
        }
        let active = self.ops.get_mut(&op).expect("the caller started it");
        active.left = parts.len();
        if let Kind::Read { over: kept, .. } = &mut active.kind {
            *kept = over;
        }
        if parts.is_empty() {
            self.end(op, cx);
        }
        for part in parts {
            self.read_part(op, part, cx);
        }
        true
    }

    fn read_part(
        &self,
        op: u64,
        (layer, at, offset, len): (usize, usize, u64, u32),
        cx: &mut Context<'_>,
    ) {
        let call = Call::Read {
            file: self.layers[layer].file,
            offset,
            count: len,
        };
        self.call(
            DiskJob::Read {
                op,
                layer,
                at,
                offset,
                len,
            },
            call,
            cx,
        );
    }

    pub(super) fn on_read(
        &mut self,
        op: u64,
        (layer, at, offset, len): (usize, usize, u64, u32),
        answer: Result<Reply, CallError>,
        cx: &mut Context<'_>,
    ) {
        let (bytes, eof) = match answer {
            Ok(Reply::Data { bytes, eof }) => (bytes, eof),
            Ok(_) => unreachable!("the reply to READ"),
            Err(why) => return self.end_part(op, Err(server_error("a read", &why)), cx),
        };
        let done = bytes.len();
        let active = self
            .ops
            .get_mut(&op)
            .expect("it has parts that have not ended");
        if let Kind::Read {
            len: whole, buffer, ..
        } = &mut active.kind
        {
            let whole = *whole as usize;
            if done == whole {
                *buffer = bytes.as_slice().to_vec();
            } else {
                buffer.resize(whole, 0);
                buffer[at..at + done].copy_from_slice(bytes.as_slice());
            }
        }
        // Beyond the end of the file is a part of a new block that was not written yet: zeros.
        if done < len as usize && !eof {
            let rest = (layer, at + done, offset + done as u64, len - done as u32);
            return self.read_part(op, rest, cx);
        }
        self.end_part(op, Ok(()), cx);
    }

    fn start_write(&mut self, op: u64, offset: u64, data: &Payload, cx: &mut Context<'_>) -> bool {
        let kept = self.uncommitted.bytes() + self.writing_bytes;
        if kept > 0 && kept + data.len() > HARD_LIMIT {
            self.commit.want();
            return false;
        }
        let leaf = &self.layers[0];
        let segments: Vec<Segment> = leaf
            .disk
            .locate(offset, data.len() as u64)
            .expect("checked when it was submitted")
            .collect();
        let busy = segments.iter().any(|segment| match segment.place {
            Place::Present { at } | Place::Masked { at, .. } => self.is_writing(at, segment.length),
            Place::Absent => false,
        });
        if busy {
            return false;
        }
        // One part of its own, so that the operation cannot end while it is being started.
        let mut parts = 1;
        let mut bitmaps = BTreeSet::new();
        for segment in segments {
            let from = (segment.offset - offset) as usize;
            let part = data.slice(from..from + segment.length as usize);
            let at = match segment.place {
                Place::Present { at } | Place::Masked { at, .. } => {
                    if !self.bitmap_is_known(segment.block) {
                        bitmaps.insert(segment.block);
                    }
                    at
                }
                // An absent block reads as zeros already.
                Place::Absent if !self.is_differencing() && is_zero(part.as_slice()) => continue,
                Place::Absent => self.allocate(segment.block) + segment.within,
            };
            parts += self.write(WritePurpose::Guest { op }, at, part, cx);
        }
        for block in bitmaps {
            parts += 1;
            self.load_bitmap(Missing { layer: 0, block }, Some(op), cx);
        }
        self.ops.get_mut(&op).expect("the caller started it").left = parts;
        self.end_part(op, Ok(()), cx);
        true
    }

    /// Places a new block; returns where its data goes. Further writes to the block follow at once, before its place
    /// is in the file's table: who reads the table then finds no block, which is what it held before.
    fn allocate(&mut self, block: u32) -> u64 {
        let differencing = self.is_differencing();
        let leaf = &mut self.layers[0];
        let allocation = leaf.disk.allocate(block);
        self.allocated
            .push((block, (allocation.bitmap_at / SECTOR) as u32));
        if differencing {
            leaf.bitmaps
                .insert(block, Bitmap::empty(allocation.bitmap_size));
        } else {
            self.tables.on_full(block);
        }
        let data_at = allocation.data_at;
        self.tables.on_allocated(allocation);
        data_at
    }

    /// In a fixed disk there are none; in a dynamic one it suffices to know that all bits are set.
    fn bitmap_is_known(&self, block: u32) -> bool {
        let leaf = &self.layers[0];
        leaf.disk.header().is_none()
            || leaf.bitmaps.contains_key(&block)
            || self.tables.is_full(block)
    }

    /// Reads a bitmap, unless that is under way; `waiter` is an operation with a part that ends with it.
    fn load_bitmap(&mut self, missing: Missing, waiter: Option<u64>, cx: &mut Context<'_>) {
        let Missing { layer, block } = missing;
        if !self.tables.start_loading(missing, waiter) {
            return;
        }
        let from = &self.layers[layer];
        let offset = from
            .bitmap_at(block)
            .expect("only blocks that exist have bitmaps to load");
        let call = Call::Read {
            file: from.file,
            offset,
            count: from.bitmap_size(),
        };
        self.call(DiskJob::LoadBitmap { layer, block }, call, cx);
    }

    pub(super) fn on_bitmap(
        &mut self,
        layer: usize,
        block: u32,
        answer: Result<Reply, CallError>,
        cx: &mut Context<'_>,
    ) {
        let waiters = self.tables.end_loading(Missing { layer, block });
        let size = self.layers[layer].bitmap_size() as usize;
        let loaded = match answer {
            Ok(Reply::Data { bytes, .. }) => {
                let mut bytes = bytes.as_slice().to_vec();
                // A block at the end of a file that was cut off: what is not there is not present.
                bytes.resize(size, 0);
                let at = self.layers[layer].bitmap_at(block);
                if layer == 0
                    && let Some(at) = at
                {
                    for (start, data) in self.uncommitted.within(at, size as u64) {
                        let from = (start - at) as usize;
                        bytes[from..from + data.len()].copy_from_slice(data.as_slice());
                    }
                }
                Ok(Bitmap::from_bytes(bytes))
            }
            Ok(_) => unreachable!("the reply to READ"),
            Err(why) => Err(server_error("a read of a block's bitmap", &why)),
        };
        match loaded {
            Ok(bitmap) => {
                if layer == 0 && !self.is_differencing() {
                    self.tables
                        .on_loaded(block, bitmap == Bitmap::full(size as u32));
                } else {
                    self.keep_bitmap(layer, block, bitmap);
                }
                for op in waiters {
                    self.end_part(op, Ok(()), cx);
                }
            }
            Err(why) => {
                self.fail_held_reads(&why, cx);
                for op in waiters {
                    self.end_part(op, Err(why.clone()), cx);
                }
            }
        }
    }

    fn keep_bitmap(&mut self, layer: usize, block: u32, bitmap: Bitmap) {
        let bitmaps = &mut self.layers[layer].bitmaps;
        // Those of the disk itself change, and are all kept: 1/4096 of what the guest uses.
        if layer > 0 && bitmaps.len() >= MAX_BITMAPS {
            bitmaps.clear();
        }
        bitmaps.insert(block, bitmap);
    }

    /// Which of the held reads wanted the bitmap is not known; that a bitmap cannot be read is rare enough
    /// to fail them all.
    fn fail_held_reads(&mut self, why: &IoError, cx: &mut Context<'_>) {
        let held = core::mem::take(&mut self.held);
        for op in held {
            let active = self.ops.get_mut(&op).expect("a held operation is active");
            if let Kind::Read { .. } = active.kind {
                active.error = Some(why.clone());
                self.end(op, cx);
            } else {
                self.held.push_back(op);
            }
        }
    }

    /// A part of an operation has ended.
    pub(super) fn end_part(&mut self, op: u64, result: Result<(), IoError>, cx: &mut Context<'_>) {
        let active = self
            .ops
            .get_mut(&op)
            .expect("it has parts that have not ended");
        if let Err(why) = result {
            active.error.get_or_insert(why);
        }
        active.left -= 1;
        if active.left == 0 {
            self.end(op, cx);
        }
    }

    fn end(&mut self, op: u64, cx: &mut Context<'_>) {
        let active = self.ops.remove(&op).expect("it ends once");
        let result = match (active.error, active.kind) {
            (Some(why), _) => Err(why),
            (
                None,
                Kind::Read {
                    len,
                    mut buffer,
                    over,
                    ..
                },
            ) => {
                buffer.resize(len as usize, 0);
                for (at, data) in over {
                    buffer[at..at + data.len()].copy_from_slice(data.as_slice());
                }
                Ok(buffer)
            }
            (None, Kind::Write { offset, data }) => {
                self.seq += 1;
                self.mark_present(offset, data.len() as u64);
                Ok(Vec::new())
            }
        };
        cx.done.push_back(Completion::Io {
            disk: self.id,
            id: active.id,
            result,
        });
    }

    /// In a differencing disk, reads of the range come from the disk itself from now on.
    fn mark_present(&mut self, offset: u64, len: u64) {
        if !self.is_differencing() {
            return;
        }
        let leaf = &mut self.layers[0];
        let segments: Vec<Segment> = leaf
            .disk
            .locate(offset, len)
            .expect("checked when it was submitted")
            .collect();
        for segment in segments {
            let bitmap = leaf
                .bitmaps
                .get_mut(&segment.block)
                .expect("loaded when the write began");
            let first = (segment.within / SECTOR) as u32;
            if bitmap.set(first, (segment.length / SECTOR) as u32) {
                self.tables.on_dirty(segment.block);
            }
        }
    }
}

fn is_zero(bytes: &[u8]) -> bool {
    let (words, rest) = bytes.as_chunks::<16>();
    words.iter().all(|word| *word == [0; 16]) && rest.iter().all(|byte| *byte == 0)
}
