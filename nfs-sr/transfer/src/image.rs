//! Single disks, and machines as OVA: formats that are not written in one pass, so these exports are not gone on with after
//! an interruption.

use std::{
    fs::File,
    io::{BufReader, BufWriter, Read},
    path::{Path, PathBuf},
    time::Instant,
};

use formats::{
    any,
    disk::{self, Raw, Sink, Source},
    ova, qcow2, vmdk,
};
use nfs_sr::sr::{guard::Guard, store::Directory, vdi};
use vhd::Uuid;

use crate::{
    Error, at,
    checkpoint::with_suffix,
    progress::{Estimate, Watch},
    record::Found,
    repository::{NewVdi, Vdi},
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

/// A file that is removed again unless it was given its name.
struct Partial {
    path: PathBuf,
}

impl Partial {
    fn publish(self, target: &Path) -> Result<(), Error> {
        at(
            &self.path,
            File::open(&self.path).and_then(|file| file.sync_all()),
        )?;
        at(target, std::fs::rename(&self.path, target))
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        // After a rename it is not there.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Writes a machine or its disk. Gives the length of the file.
///
/// # Errors
/// When a disk is in use or cannot be read, the file is there already or cannot be written, or the machine has not one
/// disk and the format holds one.
pub fn export_as(
    repository: &Path,
    what: &Found,
    target: &Path,
    format: Format,
    watch: &mut Watch<'_>,
) -> Result<u64, Error> {
    let guard = Guard::new(repository)?;
    what.files.iter().try_for_each(|name| guard.hold(name))?;
    let store = Directory::new(repository);
    if target.exists() {
        return Err(Error::Refused(format!(
            "{} exists already",
            target.display()
        )));
    }
    let partial = Partial {
        path: with_suffix(target, ".part"),
    };
    let part = &partial.path;
    let name = target
        .file_name()
        .map_or_else(String::new, |name| name.to_string_lossy().into_owned());
    let begun = Instant::now();
    if format == Format::Ova {
        let mut vm = what.vm.clone();
        let disks = what.files.iter().map(|name| Vdi::open(&store, name));
        let mut disks = disks.collect::<Result<Vec<_>, _>>()?;
        for (described, disk) in vm.disks.iter_mut().zip(&disks) {
            described.size = disk.size();
        }
        let mut estimate = Estimate::new(vm.disks.iter().map(|disk| disk.size).sum(), 0);
        let mut writer = ova::Writer::new(create(part)?, &vm)?;
        let mut before = 0;
        for disk in &mut disks {
            writer.disk(disk, &mut |done| {
                watch(estimate.advance(before + done, begun.elapsed()))
            })?;
            before += disk.size();
        }
        writer.finish()?;
    } else {
        let [file] = &what.files[..] else {
            return Err(Error::Refused(format!(
                "\"{}\" has {} disks, and this format holds one; name one by its UUID, or export an archive",
                what.vm.name,
                what.files.len()
            )));
        };
        let mut source = Vdi::open(&store, file)?;
        let size = source.size();
        let mut estimate = Estimate::new(size, 0);
        let mut copy = |source: &mut Vdi<'_>, sink: &mut dyn Sink| {
            disk::pieces(source, 0..size, formats::UNIT, &mut |offset, data| {
                watch(estimate.advance(offset, begun.elapsed()));
                sink.write(offset, data)
            })
        };
        match format {
            Format::Vhd => {
                // It is not resumed, and appears under its name when it is whole.
                let uuid = vdi::new_uuid();
                let directory = target
                    .parent()
                    .filter(|parent| !parent.as_os_str().is_empty());
                let mut new = NewVdi::create(directory.unwrap_or(Path::new(".")), uuid, size)?;
                copy(&mut source, &mut new)?;
                new.publish_as(&name)?;
                return Ok(at(target, target.metadata())?.len());
            }
            Format::Raw => copy(&mut source, &mut Raw::create(create(part)?, &name, size)?)?,
            Format::Qcow2 => {
                let mut writer = qcow2::Writer::new(create(part)?, &name, size);
                copy(&mut source, &mut writer)?;
                writer.finish()?;
            }
            Format::Vmdk | Format::Ova => {
                let out = BufWriter::with_capacity(formats::UNIT, create(part)?);
                let mut writer = vmdk::Writer::new(out, &name, size)?;
                copy(&mut source, &mut writer)?;
                let out = writer.finish()?;
                at(
                    part,
                    out.into_inner()
                        .map_err(std::io::IntoInnerError::into_error),
                )?;
            }
        }
    }
    let length = at(part, part.metadata())?.len();
    partial.publish(target)?;
    Ok(length)
}

fn create(path: &Path) -> Result<File, Error> {
    at(
        path,
        File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(path),
    )
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
