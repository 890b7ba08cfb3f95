//! Single disks, and machines as OVA.
//!
//! All are written in one pass over the disks, to `FILE.part`. Beside it a checkpoint says, every two seconds, what the format
//! keeps in memory, so that an export that was interrupted goes on from there, as an XVA does.

use std::{
    fs::File,
    io::{self, BufReader, BufWriter, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    time::Instant,
};

use formats::{
    Error as FormatError, any,
    disk::{self, Raw, Sink, Source},
    ova, qcow2,
    vm::Vm,
    vmdk,
};
use nfs_sr::sr::{guard::Guard, store::Directory, vdi};
use serde::{Deserialize, Serialize};
use vhd::Uuid;

use crate::{
    Error, Exported, at,
    checkpoint::{self, Checkpoint, Fingerprint, with_suffix},
    export::{BETWEEN_CHECKPOINTS, described, fingerprint},
    progress::{Estimate, Watch},
    record::Found,
    repository::{NewVdi, Vdi, VhdFile},
};

/// What to write besides XVA.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// The machine with all of its disks.
    Ova,
    /// The one disk, byte for byte.
    Raw,
    /// The one disk as a dynamic VHD.
    Vhd,
    /// The one disk as a streamOptimized VMDK.
    Vmdk,
    /// The one disk as qcow2.
    Qcow2,
}

/// What it takes to go on after an interruption.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum State {
    Ova(ova::State),
    Disk { image: ImageState, offset: u64 },
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum ImageState {
    /// What is there can be written over.
    Plain,
    Vmdk(vmdk::State),
    Qcow2(qcow2::State),
}

/// An export that goes on from its checkpoints.
struct Run<'a, 'w> {
    part: PathBuf,
    of: Fingerprint,
    estimate: Estimate,
    begun: Instant,
    saved: Instant,
    watch: &'a mut Watch<'w>,
}

impl Run<'_, '_> {
    /// So much is done. If it is time for a checkpoint, `state` says how to go on from here, and how long the file is.
    fn advance(
        &mut self,
        done: u64,
        state: impl FnOnce() -> Result<(State, u64), FormatError>,
    ) -> Result<(), FormatError> {
        (self.watch)(self.estimate.advance(done, self.begun.elapsed()));
        if self.saved.elapsed() < BETWEEN_CHECKPOINTS {
            return Ok(());
        }
        let (state, length) = state()?;
        let checkpoint = Checkpoint {
            of: self.of.clone(),
            length,
            done,
            state,
        };
        let saved = checkpoint.save(&self.part);
        self.saved = Instant::now();
        saved.map_err(|error| FormatError::Io {
            place: self.part.display().to_string(),
            error: io::Error::other(error),
        })
    }
}

/// Writes a machine or its disk.
///
/// # Errors
/// When a disk is in use or cannot be read, the file is there already or cannot be written, or the machine has not one
/// disk and the format holds one. `FILE.part` and its checkpoint are then left, and the same export goes on from there.
pub fn export_as(
    repository: &Path,
    what: &Found,
    target: &Path,
    format: Format,
    watch: &mut Watch<'_>,
) -> Result<Exported, Error> {
    let guard = Guard::new(repository)?;
    what.files.iter().try_for_each(|name| guard.hold(name))?;
    let store = Directory::new(repository);
    if target.exists() {
        return Err(Error::Refused(format!(
            "{} exists already",
            target.display()
        )));
    }
    if format != Format::Ova && what.files.len() != 1 {
        return Err(Error::Refused(format!(
            "\"{}\" has {} disks, and this format holds one; name one by its UUID, or export an archive",
            what.vm.name,
            what.files.len()
        )));
    }
    let disks = what.files.iter().map(|name| Vdi::open(&store, name));
    let mut disks = disks.collect::<Result<Vec<_>, _>>()?;
    let vm = match format {
        Format::Ova => described(what, &disks)?,
        // It says nothing of the machine.
        _ => Vm::default(),
    };
    let part = with_suffix(target, ".part");
    let file = checkpoint::open(&part)?;
    let of = fingerprint(repository, vm.clone(), format!("{format:?}"), &disks)?;
    let before = Checkpoint::load(&part, &of);
    let resumed = before.as_ref().map_or(0, |checkpoint| checkpoint.done);
    at(
        &part,
        file.set_len(before.as_ref().map_or(0, |checkpoint| checkpoint.length)),
    )?;
    let data = disks.iter().map(Source::size).sum();
    let now = Instant::now();
    let mut run = Run {
        part,
        of,
        estimate: Estimate::new(data, resumed),
        begun: now,
        saved: now,
        watch,
    };
    let state = before.map(|checkpoint| checkpoint.state);
    match (&mut disks[..], format) {
        (disks, Format::Ova) => write_ova(file, &vm, disks, state, &mut run)?,
        ([disk], _) => write_disk(file, target, disk, format, state, &mut run)?,
        _ => unreachable!("it was looked at above"),
    }
    checkpoint::publish(&run.part, target)?;
    Ok(Exported {
        length: at(target, target.metadata())?.len(),
        data,
        resumed,
    })
}

fn write_ova(
    file: File,
    vm: &Vm,
    disks: &mut [Vdi<'_>],
    state: Option<State>,
    run: &mut Run<'_, '_>,
) -> Result<(), Error> {
    let state = match state {
        Some(State::Ova(state)) => Some(state),
        _ => None,
    };
    let done = state.as_ref().map_or(0, ova::State::done);
    let mut writer = match state {
        Some(state) => ova::Writer::resume(file, vm, state)?,
        None => ova::Writer::new(file, vm)?,
    };
    let mut before: u64 = disks[..done].iter().map(Source::size).sum();
    for disk in &mut disks[done..] {
        writer.disk(disk, &mut |offset, state| {
            run.advance(before + offset, || {
                let state = state()?;
                let length = state.length();
                Ok((State::Ova(state), length))
            })
        })?;
        before += disk.size();
    }
    Ok(writer.finish()?)
}

/// The image of a disk that is being written.
enum Image {
    Raw(Raw, File),
    Vhd(Box<VhdFile>),
    Vmdk(Box<vmdk::Writer<BufWriter<File>>>),
    Qcow2(Box<qcow2::Writer>),
}

impl Image {
    /// Has everything on disk, and says how to go on, and how long the file is.
    fn state(&mut self, part: &Path) -> Result<(ImageState, u64), FormatError> {
        let failed = |error| FormatError::Io {
            place: part.display().to_string(),
            error,
        };
        let plain = |file: &File| {
            file.sync_data()?;
            Ok((ImageState::Plain, file.metadata()?.len()))
        };
        match self {
            Self::Raw(_, file) => plain(file).map_err(failed),
            Self::Vhd(image) => plain(image.file()).map_err(failed),
            Self::Vmdk(writer) => {
                let (state, out) = writer.state();
                out.flush().map_err(failed)?;
                out.get_ref().sync_data().map_err(failed)?;
                let length = state.length();
                Ok((ImageState::Vmdk(state), length))
            }
            Self::Qcow2(writer) => {
                let state = writer.state()?;
                let length = state.length();
                Ok((ImageState::Qcow2(state), length))
            }
        }
    }
}

impl Sink for Image {
    fn write(&mut self, offset: u64, data: &[u8]) -> Result<(), FormatError> {
        match self {
            Self::Raw(image, _) => image.write(offset, data),
            Self::Vhd(image) => image.write(offset, data),
            Self::Vmdk(writer) => writer.write(offset, data),
            Self::Qcow2(writer) => writer.write(offset, data),
        }
    }
}

fn write_disk(
    file: File,
    target: &Path,
    source: &mut Vdi<'_>,
    format: Format,
    state: Option<State>,
    run: &mut Run<'_, '_>,
) -> Result<(), Error> {
    let part = run.part.clone();
    let name = target
        .file_name()
        .map_or_else(String::new, |name| name.to_string_lossy().into_owned());
    let size = source.size();
    let (state, from) = match state {
        Some(State::Disk { image, offset }) => (Some(image), offset),
        _ => (None, 0),
    };
    let buffered = |file| BufWriter::with_capacity(formats::UNIT, file);
    let mut image = match (format, state) {
        (Format::Vhd, state) => {
            let good = at(&part, file.metadata())?.len();
            let image = VhdFile::open(file, size, state.map(|_| good))?;
            Image::Vhd(Box::new(image))
        }
        (Format::Qcow2, Some(ImageState::Qcow2(state))) => {
            Image::Qcow2(Box::new(qcow2::Writer::resume(file, &name, size, state)))
        }
        (Format::Qcow2, _) => Image::Qcow2(Box::new(qcow2::Writer::new(file, &name, size))),
        (Format::Vmdk, Some(ImageState::Vmdk(state))) => {
            let mut file = file;
            at(&part, file.seek(SeekFrom::Start(state.length())))?;
            let writer = vmdk::Writer::resume(buffered(file), &name, size, state);
            Image::Vmdk(Box::new(writer))
        }
        (Format::Vmdk, _) => Image::Vmdk(Box::new(vmdk::Writer::new(buffered(file), &name, size)?)),
        (Format::Raw | Format::Ova, _) => {
            let also = at(&part, file.try_clone())?;
            Image::Raw(Raw::create(file, &name, size)?, also)
        }
    };
    disk::pieces(source, from..size, formats::UNIT, &mut |offset, data| {
        image.write(offset, data)?;
        let next = offset + data.len() as u64;
        run.advance(next, || {
            let (image, length) = image.state(&part)?;
            let offset = next;
            Ok((State::Disk { image, offset }, length))
        })
    })?;
    match image {
        Image::Raw(..) => {}
        Image::Vhd(image) => image.finish()?,
        Image::Qcow2(writer) => writer.finish()?,
        Image::Vmdk(writer) => {
            let out = writer.finish()?.into_inner();
            at(&part, out.map_err(std::io::IntoInnerError::into_error))?;
        }
    }
    Ok(())
}

/// Whether a file is an image of a disk and not an archive of a machine.
///
/// # Errors
/// When it cannot be read.
pub fn is_image(path: &Path) -> Result<bool, Error> {
    Ok(!any::is_archive(&first(path)?))
}

fn first(path: &Path) -> Result<Vec<u8>, Error> {
    let mut bytes = Vec::new();
    let file = at(path, File::open(path))?;
    at(path, file.take(512).read_to_end(&mut bytes))?;
    Ok(bytes)
}

/// Creates a disk from an image: VMDK, qcow2, VHD, or raw. Gives its identity and its size.
///
/// # Errors
/// When the image is damaged or not supported; nothing is then left.
pub fn import_image(
    image: &Path,
    repository: &Path,
    watch: &mut Watch<'_>,
) -> Result<(Uuid, u64), Error> {
    let name = image.display().to_string();
    let file = at(image, File::open(image))?;
    let length = at(image, file.metadata())?.len();
    let uuid = vdi::new_uuid();
    let begun = Instant::now();
    let mut source: Box<dyn Source> = match any::image(&first(image)?) {
        Some(any::Image::Vmdk) => {
            let mut reader =
                vmdk::Reader::new(BufReader::with_capacity(formats::UNIT, file), &name)?;
            let size = reader.size();
            let mut disk = NewVdi::create(repository, uuid, size)?;
            let mut estimate = Estimate::new(size, 0);
            while reader.advance()? {
                let (offset, data) = reader.current();
                disk.write(offset, data)?;
                watch(estimate.advance(offset, begun.elapsed()));
            }
            disk.publish()?;
            return Ok((uuid, size));
        }
        // Its chain of parents is the repository's business.
        Some(any::Image::Vhd) => {
            vdi::import(&Directory::new(repository), uuid, image, None)?;
            let size = crate::record::size(repository, &uuid.to_string())?;
            return Ok((uuid, size));
        }
        Some(any::Image::Qcow2) => Box::new(qcow2::Reader::open(file, &name)?),
        None if length == 0 => return Err(Error::Refused(format!("{name} is empty"))),
        None => Box::new(Raw::open(file, &name)?),
    };
    let size = source.size();
    let mut disk = NewVdi::create(repository, uuid, size)?;
    let mut estimate = Estimate::new(size, 0);
    disk::pieces(&mut *source, 0..size, formats::UNIT, &mut |offset, data| {
        watch(estimate.advance(offset, begun.elapsed()));
        disk.write(offset, data)
    })?;
    disk.publish()?;
    Ok((uuid, size))
}
