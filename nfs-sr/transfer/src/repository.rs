//! Disks of a repository as formats see them, and new ones that nobody sees before they are whole.

use std::{
    fs::File,
    io,
    ops::Range,
    os::{fd::AsRawFd, unix::fs::FileExt},
    path::{Path, PathBuf},
};

use formats::{
    Error as FormatError,
    disk::{Sink, Source},
};
use nfs_sr::sr::{
    image::{Image, Layer, SrError},
    store::{Directory, Store},
    vdi,
};
use nix::{
    errno::Errno,
    fcntl::{AT_FDCWD, AtFlags, OFlag},
    sys::stat::Mode,
    unistd::linkat,
};
use vhd::{NewDisk, Uuid};

use crate::{Error, at};

fn format_error(error: SrError) -> FormatError {
    FormatError::Io {
        place: "the repository".into(),
        error: io::Error::other(error),
    }
}

/// A disk with its parents, read.
pub(crate) struct Vdi<'a>(Image<'a, Directory>);

impl<'a> Vdi<'a> {
    pub fn open(store: &'a Directory, name: &str) -> Result<Self, Error> {
        Ok(Self(Image::open(store, name)?))
    }

    /// Files of the disk and its parents.
    pub fn files(&self) -> impl Iterator<Item = &str> {
        self.0.layers.iter().map(|layer| layer.name.as_str())
    }

    /// Bytes that are allocated, in this disk or a parent.
    pub fn allocated(&mut self) -> Result<u64, Error> {
        let (mut bytes, mut from) = (0, 0);
        while let Some(range) = self.next_data(from)? {
            bytes += range.end - range.start;
            from = range.end;
        }
        Ok(bytes)
    }
}

/// The first range of a file's blocks, from `from` on.
fn next_block(layer: &Layer, from: u64) -> Option<Range<u64>> {
    let size = layer.disk.size();
    if from >= size {
        return None;
    }
    let (Some(header), Some(bat)) = (layer.disk.header(), layer.disk.bat()) else {
        return Some(from..size);
    };
    let step = u64::from(header.block_size);
    let mut blocks = (from / step) as u32..bat.len();
    let block = u64::from(blocks.find(|block| bat.get(*block).is_some())?);
    Some((block * step).max(from)..((block + 1) * step).min(size))
}

impl Source for Vdi<'_> {
    fn size(&self) -> u64 {
        self.0.size()
    }

    fn next_data(&mut self, from: u64) -> Result<Option<Range<u64>>, FormatError> {
        let blocks = self
            .0
            .layers
            .iter()
            .filter_map(|layer| next_block(layer, from));
        let size = self.0.size();
        let first = blocks.min_by_key(|range| range.start);
        Ok(first
            .filter(|range| range.start < size)
            .map(|range| range.start..range.end.min(size)))
    }

    fn read(&mut self, offset: u64, buffer: &mut [u8]) -> Result<(), FormatError> {
        let sectors = buffer.len().next_multiple_of(vhd::SECTOR as usize);
        if sectors == buffer.len() {
            return self.0.read(offset, buffer).map_err(format_error);
        }
        let mut whole = vec![0; sectors];
        self.0.read(offset, &mut whole).map_err(format_error)?;
        buffer.copy_from_slice(&whole[..buffer.len()]);
        Ok(())
    }
}

/// A file in a repository that has no name yet; if the process ends, the file is gone. Where the file system has no such files
/// (NFS), it has a name that `sr check` knows as a leftover.
pub(crate) struct Unnamed {
    directory: PathBuf,
    file: File,
    temporary: Option<PathBuf>,
}

impl Unnamed {
    pub fn new(directory: &Path) -> Result<Self, Error> {
        let flags = OFlag::O_TMPFILE | OFlag::O_RDWR | OFlag::O_CLOEXEC;
        let (file, temporary) =
            match nix::fcntl::open(directory, flags, Mode::from_bits_truncate(0o644)) {
                Ok(file) => (File::from(file), None),
                Err(Errno::EOPNOTSUPP | Errno::EISDIR) => {
                    let path = directory.join(format!("{}.vhd.new", vdi::new_uuid()));
                    let file = File::options()
                        .read(true)
                        .write(true)
                        .create_new(true)
                        .open(&path);
                    (at(&path, file)?, Some(path))
                }
                Err(errno) => {
                    return Err(Error::Io {
                        place: directory.display().to_string(),
                        error: errno.into(),
                    });
                }
            };
        Ok(Self {
            directory: directory.to_owned(),
            file,
            temporary,
        })
    }

    /// Writes all that it is to hold.
    pub fn write(&self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all_at(bytes, 0)
    }

    /// Makes the file durable and gives it its name, which must be free.
    pub fn publish(mut self, name: &str) -> Result<(), Error> {
        let path = self.directory.join(name);
        at(&path, self.file.sync_all())?;
        match self.temporary.take() {
            Some(temporary) => {
                let linked = std::fs::hard_link(&temporary, &path);
                at(&temporary, std::fs::remove_file(&temporary))?;
                at(&path, linked)?;
            }
            None => {
                let open = format!("/proc/self/fd/{}", self.file.as_raw_fd());
                let linked = linkat(
                    AT_FDCWD,
                    &*open,
                    AT_FDCWD,
                    &path,
                    AtFlags::AT_SYMLINK_FOLLOW,
                );
                at(&path, linked.map_err(io::Error::from))?;
            }
        }
        at(
            &self.directory,
            File::open(&self.directory).and_then(|directory| directory.sync_all()),
        )
    }
}

impl Drop for Unnamed {
    fn drop(&mut self) {
        if let Some(temporary) = &self.temporary {
            // What is left is found by `sr check`.
            let _ = std::fs::remove_file(temporary);
        }
    }
}

/// A file by itself.
struct Lone<'a>(&'a File);

/// A store of one file, whatever it is called. Nothing is synced before all of it is.
impl Store for Lone<'_> {
    fn read(&self, _: &str, at: u64, buffer: &mut [u8]) -> io::Result<()> {
        let mut done = 0;
        while done < buffer.len() {
            match self.0.read_at(&mut buffer[done..], at + done as u64)? {
                0 => {
                    buffer[done..].fill(0);
                    break;
                }
                n => done += n,
            }
        }
        Ok(())
    }
    fn write(&self, _: &str, at: u64, data: &[u8]) -> io::Result<()> {
        self.0.write_all_at(data, at)
    }
    fn length(&self, _: &str) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }
    fn set_length(&self, _: &str, length: u64) -> io::Result<()> {
        self.0.set_len(length)
    }
    fn sync(&self, _: &str) -> io::Result<()> {
        Ok(())
    }
    fn create(&self, _: &str) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
    fn link(&self, _: &str, _: &str) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
    fn rename(&self, _: &str, _: &str) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
    fn remove(&self, _: &str) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
    fn sync_names(&self) -> io::Result<()> {
        Ok(())
    }
    fn list(&self) -> io::Result<Vec<String>> {
        Err(io::ErrorKind::Unsupported.into())
    }
    fn same(&self, _: &str, _: &str) -> io::Result<bool> {
        Ok(true)
    }
}

/// A new disk, to be written and then published.
pub(crate) struct NewVdi {
    file: Unnamed,
    layer: Layer,
    uuid: Uuid,
}

impl NewVdi {
    pub fn create(repository: &Path, uuid: Uuid, size: u64) -> Result<Self, Error> {
        let name = vdi::file_name(uuid);
        let size = size.next_multiple_of(vhd::SECTOR).max(vhd::MIN_SIZE);
        let new = NewDisk {
            size,
            uuid,
            timestamp: vdi::timestamp(),
        };
        let (_, extents) = new.dynamic().map_err(|error| SrError::Vhd {
            name: name.clone(),
            error,
        })?;
        let file = Unnamed::new(repository)?;
        vdi::write_extents(&Lone(&file.file), &name, &extents)?;
        let layer = Layer::open(&Lone(&file.file), &name)?;
        Ok(Self { file, layer, uuid })
    }

    /// Gives the disk its name in the repository.
    pub fn publish(mut self) -> Result<(), Error> {
        mark(&mut self.layer, &Lone(&self.file.file))?;
        self.file.publish(&vdi::file_name(self.uuid))
    }
}

/// Has the batmap say which blocks are full.
fn mark(layer: &mut Layer, store: &Lone<'_>) -> Result<(), Error> {
    match layer.mark_full_blocks(store)? {
        Some((offset, bytes)) => at(Path::new(&layer.name), store.write("", offset, &bytes)),
        None => Ok(()),
    }
}

fn write(layer: &mut Layer, store: &Lone<'_>, offset: u64, data: &[u8]) -> Result<(), FormatError> {
    let sectors = data.len().next_multiple_of(vhd::SECTOR as usize);
    if sectors == data.len() {
        return layer.write(store, offset, data).map_err(format_error);
    }
    let mut whole = data.to_vec();
    whole.resize(sectors, 0);
    layer.write(store, offset, &whole).map_err(format_error)
}

impl Sink for NewVdi {
    fn write(&mut self, offset: u64, data: &[u8]) -> Result<(), FormatError> {
        write(&mut self.layer, &Lone(&self.file.file), offset, data)
    }
}

/// A VHD outside of a repository, in a file that may have been begun earlier.
pub(crate) struct VhdFile {
    file: File,
    layer: Layer,
}

impl VhdFile {
    /// A new disk of `size` bytes, or the one of which `good` bytes are there.
    pub fn open(file: File, size: u64, good: Option<u64>) -> Result<Self, Error> {
        let name = "the VHD";
        if good.is_none() {
            let made = NewDisk {
                size: size.next_multiple_of(vhd::SECTOR).max(vhd::MIN_SIZE),
                uuid: vdi::new_uuid(),
                timestamp: vdi::timestamp(),
            };
            let (_, extents) = made.dynamic().map_err(|error| SrError::Vhd {
                name: name.into(),
                error,
            })?;
            vdi::write_extents(&Lone(&file), name, &extents)?;
        }
        let mut layer = Layer::open(&Lone(&file), name)?;
        if let (Some(good), Some(header), Some(bat)) = (good, layer.disk.header(), layer.disk.bat())
        {
            // The table may be younger than the last checkpoint, and name blocks that are not there.
            let bytes = u64::from(header.bitmap_size()) + u64::from(header.block_size);
            let lost = |(_, sector): &(u32, u32)| u64::from(*sector) * vhd::SECTOR + bytes > good;
            let mut kept = bat.clone();
            let blocks: Vec<_> = bat.allocated().filter(lost).collect();
            blocks.iter().for_each(|(block, _)| kept.set(*block, None));
            let store = Lone(&file);
            at(
                Path::new(name),
                store.write("", header.bat_offset, &kept.encode()),
            )?;
            layer = Layer::open(&store, name)?;
        }
        Ok(Self { file, layer })
    }

    pub fn file(&self) -> &File {
        &self.file
    }

    /// Ends the file with its footer, which an interruption may have cost.
    pub fn finish(mut self) -> Result<(), Error> {
        let store = Lone(&self.file);
        mark(&mut self.layer, &store)?;
        let footer = self.layer.disk.footer().clone();
        Ok(self.layer.write_footer(&store, footer)?)
    }
}

impl Sink for VhdFile {
    fn write(&mut self, offset: u64, data: &[u8]) -> Result<(), FormatError> {
        write(&mut self.layer, &Lone(&self.file), offset, data)
    }
}
