//! One file of a disk: the disk itself or one of its ancestors, and where in them a range is.

use alloc::{collections::BTreeMap, vec::Vec};

use nfs3::FileHandle;
use vhd::{Bitmap, Place, SECTOR};

/// A file of a disk.
#[derive(Debug)]
pub(crate) struct Layer {
    pub file: FileHandle,
    pub disk: vhd::Disk,
    /// Bitmaps of blocks, as far as they were needed.
    pub bitmaps: BTreeMap<u32, Bitmap>,
}

/// Where a run of bytes is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// Nowhere: zeros.
    Zero,
    /// In a layer's file.
    File { layer: usize, offset: u64 },
}

/// Bytes that come from one source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    /// First byte on the virtual disk.
    pub offset: u64,
    pub len: u64,
    pub source: Source,
}

/// A bitmap that must be read before a range can be resolved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Missing {
    pub layer: usize,
    pub block: u32,
}

/// Where a range is, as far as it is known.
#[derive(Debug, Default)]
pub(crate) struct Resolved {
    pub runs: Vec<Run>,
    /// If not empty, the runs are not all.
    pub missing: Vec<Missing>,
}

impl Layer {
    pub fn new(file: FileHandle, disk: vhd::Disk) -> Self {
        Self {
            file,
            disk,
            bitmaps: BTreeMap::new(),
        }
    }

    /// Where the block's bitmap is in the file; none if the block is absent.
    pub fn bitmap_at(&self, block: u32) -> Option<u64> {
        let sector = self.disk.bat()?.get(block)?;
        Some(u64::from(sector) * SECTOR)
    }

    /// Bytes of a bitmap.
    pub fn bitmap_size(&self) -> u32 {
        self.disk.header().map_or(0, vhd::Header::bitmap_size)
    }
}

/// Looks a range up in the layers from `layer` on. The range must be inside the first layer's disk.
pub(crate) fn resolve(layers: &[Layer], offset: u64, len: u64) -> Resolved {
    let mut resolved = Resolved::default();
    resolve_in(layers, 0, offset, len, &mut resolved);
    resolved
}

fn resolve_in(layers: &[Layer], at: usize, offset: u64, len: u64, out: &mut Resolved) {
    let Some(layer) = layers.get(at) else {
        return push(out, offset, len, Source::Zero);
    };
    // A parent may be smaller than its child, which then reads zeros.
    let inside = len.min(layer.disk.size().saturating_sub(offset));
    let segments = match inside {
        0 => None,
        _ => Some(
            layer
                .disk
                .locate(offset, inside)
                .expect("the range was cut to the disk"),
        ),
    };
    for segment in segments.into_iter().flatten() {
        match segment.place {
            Place::Present { at: place } => {
                let source = Source::File {
                    layer: at,
                    offset: place,
                };
                push(out, segment.offset, segment.length, source);
            }
            Place::Absent => resolve_in(layers, at + 1, segment.offset, segment.length, out),
            Place::Masked { at: place, .. } => {
                let Some(bitmap) = layer.bitmaps.get(&segment.block) else {
                    out.missing.push(Missing {
                        layer: at,
                        block: segment.block,
                    });
                    continue;
                };
                let first = (segment.within / SECTOR) as u32;
                for run in bitmap.runs(first, (segment.length / SECTOR) as u32) {
                    let within = u64::from(run.first - first) * SECTOR;
                    let (offset, len) = (segment.offset + within, u64::from(run.count) * SECTOR);
                    if run.present {
                        let source = Source::File {
                            layer: at,
                            offset: place + within,
                        };
                        push(out, offset, len, source);
                    } else {
                        resolve_in(layers, at + 1, offset, len, out);
                    }
                }
            }
        }
    }
    if inside < len {
        push(out, offset + inside, len - inside, Source::Zero);
    }
}

/// Adds a run, joined with the one before it if it continues it.
fn push(out: &mut Resolved, offset: u64, len: u64, source: Source) {
    if len == 0 {
        return;
    }
    if let Some(last) = out.runs.last_mut()
        && last.offset + last.len == offset
    {
        let joins = match (last.source, source) {
            (Source::Zero, Source::Zero) => true,
            (
                Source::File {
                    layer: a,
                    offset: from,
                },
                Source::File {
                    layer: b,
                    offset: to,
                },
            ) => a == b && from + last.len == to,
            _ => false,
        };
        if joins {
            last.len += len;
            return;
        }
    }
    out.runs.push(Run {
        offset,
        len,
        source,
    });
}
