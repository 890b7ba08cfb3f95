//! A machine out of a repository into an archive.

use std::{
    io::BufReader,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use formats::{
    compress::Compression,
    disk::Source,
    vm::{Archive, Vm},
    xva::{CHUNK, Checksum, Reader, Start, Writer},
};
use nfs_sr::sr::{guard::Guard, store::Directory};
use serde::{Deserialize, Serialize};

use crate::{
    Error, at,
    checkpoint::{self, Checkpoint, Fingerprint, file_state, with_suffix},
    follow::{self, Follower, Leader},
    progress::{Estimate, Watch},
    record::Found,
    repository::Vdi,
};

/// Chunks between two looks at the clock.
const SLICE: u64 = 16;
/// Time between two checkpoints: what an interruption costs at most.
pub(crate) const BETWEEN_CHECKPOINTS: Duration = Duration::from_secs(2);

/// What is written next.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Position {
    disk: usize,
    chunk: u64,
}

/// How to export.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// What follows each chunk.
    pub checksum: Checksum,
    /// Compression of the archive.
    pub compression: Compression,
}

/// What was exported.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exported {
    /// Bytes of the archive.
    pub length: u64,
    /// Bytes of the disks that are allocated.
    pub data: u64,
    /// Bytes that an earlier try had done.
    pub resumed: u64,
}

/// An export.
pub struct Export<'a> {
    /// Directory of the repository.
    pub repository: &'a Path,
    /// What is exported.
    pub what: &'a Found,
    /// The archive.
    pub target: &'a Path,
    /// How.
    pub options: Options,
}

impl Export<'_> {
    /// Writes the archive. The leases of the disks are held meanwhile, so no host can start the machine.
    ///
    /// # Errors
    /// When a disk is in use or cannot be read, or the archive cannot be written. `FILE.part` and its checkpoint are then left, and
    /// the same export goes on from there.
    pub fn run(&self, watch: &mut Watch<'_>) -> Result<Exported, Error> {
        let guard = Guard::new(self.repository)?;
        self.what
            .files
            .iter()
            .try_for_each(|name| guard.hold(name))?;
        let store = Directory::new(self.repository);
        let disks = self.what.files.iter().map(|name| Vdi::open(&store, name));
        let mut disks = disks.collect::<Result<Vec<_>, _>>()?;
        let vm = described(self.what, &disks)?;
        let form = format!("{:?}", self.options);
        let of = fingerprint(self.repository, vm.clone(), form, &disks)?;
        let mut data = 0;
        for disk in &mut disks {
            data += disk.allocated()?;
        }

        if self.target.exists() {
            return Err(Error::Refused(format!(
                "{} exists already",
                self.target.display()
            )));
        }
        let part = with_suffix(self.target, ".part");
        let file = checkpoint::open(&part)?;
        let before = Checkpoint::load(&part, &of);
        let (start, from) = match &before {
            Some(checkpoint) => (Start::Middle, checkpoint.clone()),
            None => (
                Start::Beginning,
                Checkpoint {
                    of,
                    length: 0,
                    done: 0,
                    state: Position::default(),
                },
            ),
        };
        at(&part, file.set_len(from.length))?;
        let (leader, follower) = at(&part, follow::pair(file, from.length))?;
        let resumed = from.done;
        let length = thread::scope(|scope| {
            let verified = scope.spawn(|| verify(follower));
            let length = self.write(&vm, leader, start, &part, (&mut disks, from), (data, watch));
            match (length, verified.join().expect("verifying does not panic")) {
                (Ok(length), Ok(())) => Ok(length),
                (Err(error), _) => Err(error),
                (Ok(_), Err(error)) => {
                    // What is there is worth nothing.
                    checkpoint::remove(&part);
                    Err(error)
                }
            }
        })?;
        checkpoint::publish(&part, self.target)?;
        Ok(Exported {
            length,
            data,
            resumed,
        })
    }

    fn write(
        &self,
        vm: &Vm,
        leader: Leader,
        start: Start,
        part: &Path,
        (disks, mut at_point): (&mut [Vdi<'_>], Checkpoint<Position>),
        (data, watch): (u64, &mut Watch<'_>),
    ) -> Result<u64, Error> {
        let Options {
            checksum,
            compression,
        } = self.options;
        let begun = Instant::now();
        let mut estimate = Estimate::new(data, at_point.done);
        let mut saved = begun;
        let mut writer = Writer::new(leader, vm, checksum, compression, start)?;
        while let Some(disk) = disks.get_mut(at_point.state.disk) {
            let chunks = Writer::<Leader>::chunks(disk.size());
            if at_point.state.chunk >= chunks {
                (at_point.state.disk, at_point.state.chunk) = (at_point.state.disk + 1, 0);
                continue;
            }
            // From where data is: what has none takes no time.
            let next = disk.next_data(at_point.state.chunk * CHUNK)?;
            let next = next.map_or(chunks, |range| range.start / CHUNK);
            let end = (next.max(at_point.state.chunk) + SLICE).min(chunks);
            writer.write(at_point.state.disk, disk, at_point.state.chunk..end)?;
            at_point.done += allocated(disk, at_point.state.chunk * CHUNK, end * CHUNK)?;
            at_point.state.chunk = end;
            watch(estimate.advance(at_point.done, begun.elapsed()));
            if saved.elapsed() >= BETWEEN_CHECKPOINTS {
                let leader = writer.checkpoint()?;
                at(part, leader.sync())?;
                at_point.length = leader.length();
                at_point.save(part)?;
                saved = Instant::now();
            }
        }
        let leader = writer.finish()?;
        at(part, leader.sync())?;
        Ok(leader.length())
    }
}

/// The machine with the sizes that its disks have.
pub(crate) fn described(what: &Found, disks: &[Vdi<'_>]) -> Result<Vm, Error> {
    let mut vm = what.vm.clone();
    for (described, disk) in vm.disks.iter_mut().zip(disks) {
        described.size = disk.size();
    }
    vm.check().map_err(Error::Refused)?;
    Ok(vm)
}

pub(crate) fn fingerprint(
    repository: &Path,
    vm: Vm,
    form: String,
    disks: &[Vdi<'_>],
) -> Result<Fingerprint, Error> {
    let files = disks.iter().flat_map(|disk| disk.files());
    Ok(Fingerprint {
        vm,
        form,
        files: files
            .map(|name| file_state(repository, name))
            .collect::<Result<_, _>>()?,
    })
}

fn allocated(disk: &mut Vdi<'_>, mut from: u64, to: u64) -> Result<u64, Error> {
    let mut bytes = 0;
    while let Some(range) = disk.next_data(from)?.filter(|range| range.start < to) {
        bytes += range.end.min(to) - range.start;
        from = range.end;
    }
    Ok(bytes)
}

/// Reads the archive back as an importer would.
fn verify(follower: Follower) -> Result<(), Error> {
    let mut reader = Reader::new(BufReader::with_capacity(formats::UNIT, follower))?;
    while reader.next_piece()?.is_some() {}
    Ok(())
}
