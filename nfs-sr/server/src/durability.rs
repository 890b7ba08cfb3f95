//! Making writes durable: group commit per file, the write verifier, and what happens when a sync fails.
//!
//! All who wait for a file while syncs of it are running share the next one, so that 32 stable writes at once cost
//! two syncs and not 32. Two, since one writes while the other waits for the disk to flush; each write in a sync of its own
//! (`RWF_DSYNC`) costs more than twice the processor time. Each of the two has its own open file description: the kernel tells an
//! error of writing back once to each, and on a shared one the first to sync would take it from the other.
//!
//! A failed sync is never forgotten: the kernel reports it once and then drops the
//! pages, so a second sync that succeeds proves nothing. From then on the verifier is another one (clients
//! send their unstable writes again), and the export takes no more writes, also after a restart: a mark in the server's private
//! directory says so until an operator takes it away.

use std::{
    io,
    path::{Path, PathBuf},
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use nfs3::WriteVerifier;

use crate::{
    file_io::{Cover, Disk},
    handles::FileId,
    pool::Pool,
    times::Times,
};

/// Syncs of one file at a time.
pub const SYNCS: usize = 2;
/// File in the private directory that says which sync failed.
const MARK: &str = "storage-failed";

/// What the mark in this directory says, if there is one.
pub fn mark(private: &Path) -> io::Result<Option<String>> {
    match std::fs::read_to_string(private.join(MARK)) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Takes the mark away.
pub fn clear_mark(private: &Path) -> io::Result<()> {
    match std::fs::remove_file(private.join(MARK)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Durability of one instance of the server.
pub struct Durability {
    /// Where the mark goes.
    private: PathBuf,
    times: Times,
    verifier: AtomicU64,
    failed: AtomicBool,
    /// Off only as a negative control of tests.
    enabled: bool,
    syncs: AtomicU64,
    waited: AtomicU64,
}

impl Durability {
    /// A new instance, with a verifier that no other has. With `enabled` false nothing is ever synced.
    pub fn new(enabled: bool, private: &Path, disk: &dyn Disk) -> io::Result<Self> {
        let failed = mark(private)?.is_some();
        Ok(Self {
            private: private.to_owned(),
            times: Times::open(private, disk)?,
            verifier: AtomicU64::new(random()),
            failed: AtomicBool::new(failed),
            enabled,
            syncs: AtomicU64::new(0),
            waited: AtomicU64::new(0),
        })
    }

    /// The write verifier.
    pub fn verifier(&self) -> WriteVerifier {
        self.verifier.load(Ordering::SeqCst).to_be_bytes()
    }

    /// A sync has failed: nothing may be written any more.
    pub fn failed(&self) -> bool {
        self.failed.load(Ordering::SeqCst)
    }

    /// The disk was replaced: writes are taken again.
    pub fn clear_failure(&self) -> io::Result<()> {
        clear_mark(&self.private)?;
        self.failed.store(false, Ordering::SeqCst);
        Ok(())
    }

    /// Files whose times may be newer than the disk knows.
    pub fn times(&self) -> &Times {
        &self.times
    }

    /// Syncs a file so that what `cover` says is true.
    fn cover(&self, file: &impl Syncable, place: usize, cover: Cover) -> io::Result<()> {
        match cover {
            Cover::Data => file.sync(place, Cover::Data),
            Cover::Times if self.times.mark(file.id())? => file.sync(place, Cover::Data),
            Cover::Times => file.sync(place, Cover::All),
            Cover::All => {
                file.sync(place, Cover::All)?;
                self.times.unmark(file.id())
            }
        }
    }

    /// Syncs done, and requests answered by them.
    pub fn counts(&self) -> (u64, u64) {
        (
            self.syncs.load(Ordering::Relaxed),
            self.waited.load(Ordering::Relaxed),
        )
    }

    fn sync(
        &self,
        waiters: usize,
        sync: impl FnOnce() -> io::Result<()>,
    ) -> Result<(), SyncFailed> {
        self.syncs.fetch_add(1, Ordering::Relaxed);
        self.waited.fetch_add(waiters as u64, Ordering::Relaxed);
        if self.failed() {
            return Err(SyncFailed);
        }
        if !self.enabled {
            return Ok(());
        }
        sync().map_err(|error| {
            self.failed.store(true, Ordering::SeqCst);
            self.verifier.store(random(), Ordering::SeqCst);
            // The disk may not take this either; then only this instance knows.
            let text = format!("a sync failed: {error}");
            let _ = crate::sr::write_durably(&self.private.join(MARK), text.as_bytes());
            SyncFailed
        })?;
        // Another may have failed meanwhile.
        if self.failed() {
            return Err(SyncFailed);
        }
        Ok(())
    }
}

fn random() -> u64 {
    let mut bytes = [0; 8];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())
        .expect("the system has random numbers");
    u64::from_ne_bytes(bytes)
}

/// What was written may not be on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the disk failed to sync; unsynced data may be lost")]
pub struct SyncFailed;

type Waiter = Box<dyn FnOnce(Result<(), SyncFailed>) + Send>;

/// Something that can be synced, with its group commit.
pub trait Syncable: Send + Sync + 'static {
    /// Which file.
    fn id(&self) -> FileId;
    /// Syncs it, without grouping. `place` is below [`SYNCS`], and each has an open file description of its own, which is older than
    /// any write that it covers.
    fn sync(&self, place: usize, cover: Cover) -> io::Result<()>;
    /// Its group commit.
    fn group(&self) -> &GroupCommit;
}

/// Who waits for the next sync of a file.
#[derive(Default)]
pub struct GroupCommit {
    state: Mutex<State>,
    /// Writes so far; and how many of them are known to be on disk.
    written: AtomicU64,
    synced: AtomicU64,
}

#[derive(Default)]
struct State {
    /// How many waiters each running sync will answer; zero in the place of one that does not run.
    running: [usize; SYNCS],
    /// The sync that runs covers times.
    alone: bool,
    /// A thread is on its way to [`lead`].
    called: bool,
    waiters: Vec<(Cover, Waiter)>,
}

impl State {
    /// The place of the sync that is to begin now, if one is. Beside another one begins only if it answers as many: a small one would
    /// keep the place from those who are just arriving. One that covers times runs alone: it takes away the mark that the
    /// other relies on.
    fn next(&self) -> Option<usize> {
        let running = self.running.iter().filter(|answers| **answers > 0).count();
        let answers: usize = self.running.iter().sum();
        let alone = self.waiters.iter().any(|(cover, _)| *cover == Cover::All);
        let few = self.waiters.len() * running < answers;
        if self.waiters.is_empty() || self.alone || running > 0 && (alone || few) {
            return None;
        }
        self.running.iter().position(|answers| *answers == 0)
    }
}

impl GroupCommit {
    /// To be called after a write and before its reply.
    pub fn wrote(&self) {
        self.written.fetch_add(1, Ordering::SeqCst);
    }

    /// There are writes that no sync has covered.
    pub fn is_dirty(&self) -> bool {
        self.written.load(Ordering::SeqCst) > self.synced.load(Ordering::SeqCst)
    }
}

/// Calls `waiter` when everything written to `file` so far is on disk.
pub fn when_synced<F: Syncable>(
    file: &Arc<F>,
    cover: Cover,
    durability: &Arc<Durability>,
    pool: &Pool,
    waiter: impl FnOnce(Result<(), SyncFailed>) + Send + 'static,
) {
    let mut state = file
        .group()
        .state
        .lock()
        .expect("no waiter runs under the lock");
    state.waiters.push((cover, Box::new(waiter)));
    if !state.called && state.next().is_some() {
        state.called = true;
        let (file, durability) = (file.clone(), durability.clone());
        pool.spawn(move || lead(&*file, &durability));
    }
}

/// Returns when everything written to `file` so far is on disk. For threads of the pool only.
pub fn sync_now<F: Syncable>(
    file: &F,
    cover: Cover,
    durability: &Durability,
) -> Result<(), SyncFailed> {
    let slot = Arc::new((Mutex::new(None), Condvar::new()));
    let waiter = {
        let slot = slot.clone();
        move |result| {
            *slot.0.lock().expect("nothing panics under the lock") = Some(result);
            slot.1.notify_one();
        }
    };
    let mut state = file
        .group()
        .state
        .lock()
        .expect("no waiter runs under the lock");
    state.waiters.push((cover, Box::new(waiter)));
    drop(state);
    lead(file, durability);
    let mut result = slot.0.lock().expect("nothing panics under the lock");
    loop {
        if let Some(result) = *result {
            return result;
        }
        result = slot.1.wait(result).expect("nothing panics under the lock");
    }
}

/// Syncs as long as a sync is to begin. Those who are left wait for one that is running, whose leader looks again after it.
fn lead<F: Syncable>(file: &F, durability: &Durability) {
    let group = file.group();
    let mut state = group.state.lock().expect("no waiter runs under the lock");
    state.called = false;
    while let Some(place) = state.next() {
        let waiters = std::mem::take(&mut state.waiters);
        let cover = waiters
            .iter()
            .map(|(cover, _)| *cover)
            .max()
            .unwrap_or(Cover::Data);
        state.running[place] = waiters.len();
        state.alone = cover == Cover::All;
        drop(state);
        let written = group.written.load(Ordering::SeqCst);
        let result = durability.sync(waiters.len(), || durability.cover(file, place, cover));
        if result.is_ok() {
            group.synced.fetch_max(written, Ordering::SeqCst);
        }
        for (_, waiter) in waiters {
            waiter(result);
        }
        state = group.state.lock().expect("no waiter runs under the lock");
        state.running[place] = 0;
        if cover == Cover::All {
            state.alone = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sync_begins_beside_another_if_it_answers_as_many_and_covers_no_times() {
        let state = |running, alone, waiting: &[Cover]| State {
            running,
            alone,
            called: false,
            waiters: waiting
                .iter()
                .map(|cover| (*cover, Box::new(|_| {}) as Waiter))
                .collect(),
        };
        let (stable, all) = (Cover::Times, Cover::All);
        assert_eq!(state([0, 0], false, &[]).next(), None);
        assert_eq!(state([0, 0], false, &[stable]).next(), Some(0));
        assert_eq!(state([2, 0], false, &[stable]).next(), None);
        assert_eq!(state([2, 0], false, &[stable; 2]).next(), Some(1));
        assert_eq!(state([2, 2], false, &[stable; 9]).next(), None);
        assert_eq!(state([0, 0], false, &[stable, all]).next(), Some(0));
        assert_eq!(state([1, 0], false, &[stable, all]).next(), None);
        assert_eq!(state([1, 0], true, &[stable; 9]).next(), None);
    }
}
