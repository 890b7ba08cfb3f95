//! An archive into a repository.

use std::{
    fs::File,
    io::{BufReader, Read},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use formats::{
    any,
    disk::{Nowhere, Sink},
    vm::{Disk, Vm},
};
use nfs_sr::sr::vdi;
use vhd::Uuid;

use crate::{
    Error, at,
    progress::{Estimate, Watch},
    record::record,
    repository::NewVdi,
};

/// Whether the machine is a new one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Identity {
    /// New UUIDs and MAC addresses, so that it can live beside the one it was made of.
    #[default]
    New,
    /// Those of the archive, as of a backup.
    Same,
}

/// What the machine becomes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct As {
    /// Whether it is a new one.
    pub identity: Identity,
    /// Its name; that of the archive if none is given.
    pub name: Option<String>,
}

/// What an import would create.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Planned {
    /// The machine.
    pub vm: Vm,
    /// Bytes of its disks.
    pub size: u64,
    /// Bytes that are not zeros.
    pub data: u64,
}

/// What an import created.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Imported {
    /// The machine, as it is recorded.
    pub vm: Vm,
    /// Bytes that were written.
    pub data: u64,
}

/// Counts what is read of the archive, however it is compressed.
struct Counted<R> {
    input: R,
    count: Arc<AtomicU64>,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let n = self.input.read(buffer)?;
        self.count.fetch_add(n as u64, Ordering::Relaxed);
        Ok(n)
    }
}

/// Reads all of an archive into what `prepare` makes for its disks.
fn read_all<S: Sink>(
    archive: &Path,
    watch: &mut Watch<'_>,
    prepare: impl FnOnce(&Vm) -> Result<Vec<S>, Error>,
) -> Result<(Vec<S>, u64), Error> {
    let file = at(archive, File::open(archive))?;
    let length = at(archive, file.metadata())?.len();
    let count = Arc::new(AtomicU64::new(0));
    let input = Counted {
        input: file,
        count: count.clone(),
    };
    let mut reader = any::archive(BufReader::with_capacity(formats::UNIT, input))?;
    let mut sinks = prepare(reader.vm())?;
    let begun = Instant::now();
    let mut estimate = Estimate::new(length, 0);
    let mut data = 0;
    while let Some(piece) = reader.next_piece()? {
        sinks[piece.disk].write(piece.offset, piece.data)?;
        data += piece.data.len() as u64;
        watch(estimate.advance(count.load(Ordering::Relaxed), begun.elapsed()));
    }
    watch(estimate.advance(length, begun.elapsed()));
    Ok((sinks, data))
}

/// Says what an import would create, and verifies all of the archive; writes nothing.
///
/// # Errors
/// When the archive cannot be read or is damaged, or the repository has what it would create.
pub fn check(
    archive: &Path,
    repository: &Path,
    becomes: &As,
    watch: &mut Watch<'_>,
) -> Result<Planned, Error> {
    let mut vm = Vm::default();
    let (_, data) = read_all(archive, watch, |described| {
        vm = identified(described, becomes)?;
        free(repository, &vm)?;
        Ok(described.disks.iter().map(|_| Nowhere).collect())
    })?;
    Ok(Planned {
        size: vm.disks.iter().map(|disk| disk.size).sum(),
        vm,
        data,
    })
}

/// Creates the machine of an archive. Either all of it appears in the repository, or nothing.
///
/// # Errors
/// When the archive cannot be read or is damaged, or the repository has what is to be created, or has no room.
pub fn import(
    archive: &Path,
    repository: &Path,
    becomes: &As,
    watch: &mut Watch<'_>,
) -> Result<Imported, Error> {
    let mut vm = Vm::default();
    let (disks, data) = read_all(archive, watch, |described| {
        vm = identified(described, becomes)?;
        free(repository, &vm)?;
        let new = |disk: &Disk| {
            let uuid = uuid(&disk.uuid)?;
            NewVdi::create(repository, uuid, disk.size)
        };
        vm.disks.iter().map(new).collect()
    })?;
    for disk in disks {
        disk.publish()?;
    }
    // Last: a machine that is recorded has all of its disks.
    record(repository, &vm)?;
    Ok(Imported { vm, data })
}

fn uuid(text: &str) -> Result<Uuid, Error> {
    text.parse()
        .map_err(|error| Error::Refused(format!("\"{text}\" in the archive is {error}")))
}

/// The machine as it will be.
fn identified(described: &Vm, becomes: &As) -> Result<Vm, Error> {
    let mut vm = described.clone();
    if let Some(name) = &becomes.name {
        vm.name.clone_from(name);
    }
    match becomes.identity {
        Identity::New => {
            vm.uuid = vdi::new_uuid().to_string();
            for disk in &mut vm.disks {
                disk.uuid = vdi::new_uuid().to_string();
            }
            for nic in &mut vm.nics {
                nic.mac = new_mac();
            }
        }
        Identity::Same => {
            // They become names of files, so they must be what they should.
            vm.uuid = uuid(&vm.uuid)?.to_string();
            for disk in &mut vm.disks {
                disk.uuid = uuid(&disk.uuid)?.to_string();
            }
            for nic in &mut vm.nics {
                if nic.mac.is_empty() {
                    nic.mac = new_mac();
                }
            }
        }
    }
    Ok(vm)
}

/// A random MAC address, locally administered and of one card (IEEE 802-2014 section 8.2).
pub fn new_mac() -> String {
    let mut bytes = [0; 6];
    bytes.copy_from_slice(&vdi::new_uuid().0[..6]);
    bytes[0] = bytes[0] & 0xfc | 0x02;
    bytes.map(|byte| format!("{byte:02x}")).join(":")
}

/// Nothing of the machine is in the repository yet.
fn free(repository: &Path, vm: &Vm) -> Result<(), Error> {
    if !repository.is_dir() {
        return Err(Error::Refused(format!(
            "{} is not the directory of a repository",
            repository.display()
        )));
    }
    let files = vm.disks.iter().map(|disk| format!("{}.vhd", disk.uuid));
    let record = std::iter::once(format!("{}.vm", vm.uuid));
    for name in files.chain(record) {
        if repository.join(&name).exists() {
            return Err(Error::Refused(format!(
                "{name} is in the repository already; delete that machine first, or import with a new identity"
            )));
        }
    }
    Ok(())
}
