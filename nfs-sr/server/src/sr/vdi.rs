//! Virtual disks of a repository: create, import, export, describe.

use std::{
    fs::File,
    io,
    os::unix::fs::FileExt,
    path::Path,
    time::{SystemTime, UNIX_EPOCH},
};

use serde::Serialize;
use vhd::{BLOCK, DiskKind, EPOCH_UNIX, Extent, Footer, NewDisk, SECTOR, Uuid};

use super::{
    image::{Image, Layer, SrError, at},
    store::{Directory, Store},
};

/// Read and written at a time.
const CHUNK: usize = BLOCK as usize;

/// Name of a disk's file.
pub fn file_name(uuid: Uuid) -> String {
    format!("{uuid}.vhd")
}

/// The disk that a file's name stands for.
pub fn uuid_of(name: &str) -> Option<Uuid> {
    name.strip_suffix(".vhd")?.parse().ok()
}

/// A random UUID.
pub fn new_uuid() -> Uuid {
    let mut bytes = [0; 16];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())
        .expect("the system has random numbers");
    Uuid::from_random(bytes)
}

/// VHD's clock.
pub fn timestamp() -> u32 {
    let unix = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |time| time.as_secs());
    unix.saturating_sub(EPOCH_UNIX) as u32
}

/// Writes a new file under a temporary name and, when it is whole and durable, gives it its own. Fails if that is taken.
pub fn publish(
    store: &impl Store,
    name: &str,
    fill: impl FnOnce(&str) -> Result<(), SrError>,
) -> Result<(), SrError> {
    let new = format!("{name}.new");
    at(&new, store.create(&new))?;
    let filled = fill(&new).and_then(|()| at(&new, store.sync(&new)));
    if let Err(error) = filled {
        // What is left is found by `sr check`; the error that matters is the first one.
        let _ = store.remove(&new);
        return Err(error);
    }
    let linked = at(name, store.link(&new, name));
    at(&new, store.remove(&new))?;
    linked?;
    at(name, store.sync_names())
}

/// Writes the extents of a new disk.
pub fn write_extents(store: &impl Store, name: &str, extents: &[Extent]) -> Result<(), SrError> {
    extents
        .iter()
        .try_for_each(|extent| at(name, store.write(name, extent.at, &extent.bytes)))
}

fn extents(size: u64, uuid: Uuid, kind: DiskKind, name: &str) -> Result<Vec<Extent>, SrError> {
    let new = NewDisk {
        size,
        uuid,
        timestamp: timestamp(),
    };
    let made = if kind == DiskKind::Fixed {
        new.fixed()
    } else {
        new.dynamic()
    };
    made.map(|(_, extents)| extents)
        .map_err(|error| SrError::Vhd {
            name: name.to_owned(),
            error,
        })
}

/// Creates an empty disk.
pub fn create(store: &impl Store, uuid: Uuid, size: u64, kind: DiskKind) -> Result<(), SrError> {
    let name = file_name(uuid);
    let extents = extents(size, uuid, kind, &name)?;
    publish(store, &name, |new| write_extents(store, new, &extents))
}

/// Makes a disk from an image; zeros take no space. The disk is at least as large as `size`. The image is a VHD if it ends like
/// one; its parents, if it has any, are looked for beside it. Else it is raw.
pub fn import(
    store: &impl Store,
    uuid: Uuid,
    source: &Path,
    size: Option<u64>,
) -> Result<(), SrError> {
    let name = source.display().to_string();
    let file = at(&name, File::open(source))?;
    let length = at(&name, file.metadata())?.len();
    let mut end = [0; SECTOR as usize];
    let is_vhd = length > SECTOR
        && at(&name, file.read_exact_at(&mut end, length - SECTOR))
            .map(|()| Footer::parse(&end).is_ok())?;
    if is_vhd {
        let (directory, file_name) = beside(source)?;
        let mut image = Image::open(&directory, &file_name)?;
        let length = image.size();
        return fill(
            store,
            uuid,
            length.max(size.unwrap_or(0)),
            length,
            |offset, chunk| read(&mut image, offset, chunk),
        );
    }
    let disk_size = size.unwrap_or(0).max(length);
    fill(store, uuid, disk_size, length, |offset, chunk| {
        at(&name, file.read_exact_at(chunk, offset)).map(|()| true)
    })
}

/// Makes a disk with the contents that another has, its parents included, and that shares nothing with it. `target` may be another
/// repository.
pub fn copy(
    store: &impl Store,
    name: &str,
    target: &impl Store,
    uuid: Uuid,
) -> Result<(), SrError> {
    let mut image = Image::open(store, name)?;
    let size = image.size();
    fill(target, uuid, size, size, |offset, chunk| {
        read(&mut image, offset, chunk)
    })
}

/// Reads a piece of a disk; false if it is all zeros because there is none of it, and nothing was read.
fn read(image: &mut Image<'_, impl Store>, offset: u64, chunk: &mut [u8]) -> Result<bool, SrError> {
    if !image.is_allocated(offset..offset + chunk.len() as u64) {
        return Ok(false);
    }
    image.read(offset, chunk).map(|()| true)
}

/// Writes a disk, its parents included, to a raw image with holes for zeros.
pub fn export(store: &impl Store, name: &str, raw: &Path) -> Result<(), SrError> {
    let mut image = Image::open(store, name)?;
    let raw_name = raw.display().to_string();
    let file = at(&raw_name, File::create(raw))?;
    at(&raw_name, file.set_len(image.size()))?;
    let mut chunk = vec![0; CHUNK];
    let mut offset = 0;
    while offset < image.size() {
        let n = (image.size() - offset).min(CHUNK as u64) as usize;
        if read(&mut image, offset, &mut chunk[..n])? && chunk[..n].iter().any(|byte| *byte != 0) {
            at(&raw_name, file.write_all_at(&chunk[..n], offset))?;
        }
        offset += n as u64;
    }
    at(&raw_name, file.sync_all())
}

/// Writes a disk, its parents included, to a dynamic VHD that needs no parent. Other programs ignore parents, or look for them in
/// vain.
pub fn export_vhd(store: &impl Store, name: &str, target: &Path) -> Result<(), SrError> {
    let mut image = Image::open(store, name)?;
    let size = image.size();
    let (directory, file_name) = beside(target)?;
    let extents = extents(size, new_uuid(), DiskKind::Dynamic, &file_name)?;
    publish(&directory, &file_name, |new| {
        copy_to(&directory, new, &extents, size, |offset, chunk| {
            read(&mut image, offset, chunk)
        })
    })
}

/// The directory of a file outside of the repository, and the file's name in it.
fn beside(path: &Path) -> Result<(Directory, String), SrError> {
    let name = path
        .file_name()
        .and_then(|name| name.to_str())
        .ok_or_else(|| {
            SrError::Refused(format!("'{}' is not the name of a file", path.display()))
        })?;
    let directory = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty());
    let directory = Directory::new(directory.unwrap_or(Path::new(".")));
    Ok((directory, name.to_owned()))
}

/// Creates a disk of `size` bytes or somewhat more that begins with `length` bytes of `read`, which gives false for zeros that it has
/// not read.
fn fill(
    store: &impl Store,
    uuid: Uuid,
    size: u64,
    length: u64,
    read: impl FnMut(u64, &mut [u8]) -> Result<bool, SrError>,
) -> Result<(), SrError> {
    let size = size.next_multiple_of(SECTOR).max(vhd::MIN_SIZE);
    let name = file_name(uuid);
    let extents = extents(size, uuid, DiskKind::Dynamic, &name)?;
    publish(store, &name, |new| {
        copy_to(store, new, &extents, length, read)
    })
}

/// Writes a new disk with these contents to a file that nobody can see yet.
fn copy_to(
    store: &impl Store,
    new: &str,
    extents: &[Extent],
    length: u64,
    mut read: impl FnMut(u64, &mut [u8]) -> Result<bool, SrError>,
) -> Result<(), SrError> {
    write_extents(store, new, extents)?;
    // So the order within it is free.
    let unordered = Unordered(store);
    let mut layer = Layer::open(&unordered, new)?;
    let mut chunk = vec![0; CHUNK];
    let mut offset = 0;
    while offset < length {
        let n = (length - offset).min(CHUNK as u64) as usize;
        let padded = n.next_multiple_of(SECTOR as usize);
        chunk[n..padded].fill(0);
        if read(offset, &mut chunk[..n])? && chunk[..padded].iter().any(|byte| *byte != 0) {
            layer.write(&unordered, offset, &chunk[..padded])?;
        }
        offset += n as u64;
    }
    match layer.mark_full_blocks(&unordered)? {
        Some((offset, bytes)) => at(new, store.write(new, offset, &bytes)),
        None => Ok(()),
    }
}

/// What there is to know of a disk.
#[derive(Clone, Debug, Serialize)]
pub struct Info {
    /// Its file.
    pub name: String,
    /// `fixed`, `dynamic` or `differencing`.
    pub kind: &'static str,
    /// Bytes of the virtual disk.
    pub virtual_size: u64,
    /// Bytes of allocated blocks in this file.
    pub allocated: u64,
    /// It is a base copy, kept for its children.
    pub hidden: bool,
    /// Files of its parents, the nearest first.
    pub parents: Vec<String>,
}

/// Describes a disk.
pub fn info(store: &impl Store, name: &str) -> Result<Info, SrError> {
    let image = Image::open(store, name)?;
    let leaf = &image.layers[0].disk;
    let blocks = leaf.bat().map_or(0, |bat| bat.allocated().count() as u64);
    let block = leaf
        .header()
        .map_or(0, |header| u64::from(header.block_size));
    Ok(Info {
        name: name.to_owned(),
        kind: match leaf.footer().kind {
            DiskKind::Fixed => "fixed",
            DiskKind::Dynamic => "dynamic",
            DiskKind::Differencing => "differencing",
        },
        virtual_size: leaf.size(),
        allocated: if leaf.footer().kind == DiskKind::Fixed {
            leaf.size()
        } else {
            blocks * block
        },
        hidden: leaf.footer().hidden,
        parents: image.layers[1..]
            .iter()
            .map(|layer| layer.name.clone())
            .collect(),
    })
}

/// A store that syncs nothing, for files that nobody can see yet.
struct Unordered<'a, S>(&'a S);

impl<S: Store> Store for Unordered<'_, S> {
    fn read(&self, name: &str, at: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.0.read(name, at, buffer)
    }
    fn write(&self, name: &str, at: u64, data: &[u8]) -> io::Result<()> {
        self.0.write(name, at, data)
    }
    fn length(&self, name: &str) -> io::Result<u64> {
        self.0.length(name)
    }
    fn set_length(&self, name: &str, length: u64) -> io::Result<()> {
        self.0.set_length(name, length)
    }
    fn sync(&self, _: &str) -> io::Result<()> {
        Ok(())
    }
    fn create(&self, name: &str) -> io::Result<()> {
        self.0.create(name)
    }
    fn link(&self, from: &str, to: &str) -> io::Result<()> {
        self.0.link(from, to)
    }
    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.0.rename(from, to)
    }
    fn remove(&self, name: &str) -> io::Result<()> {
        self.0.remove(name)
    }
    fn sync_names(&self) -> io::Result<()> {
        Ok(())
    }
    fn list(&self) -> io::Result<Vec<String>> {
        self.0.list()
    }
    fn same(&self, a: &str, b: &str) -> io::Result<bool> {
        self.0.same(a, b)
    }
}
