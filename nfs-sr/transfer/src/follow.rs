//! Reading a file behind its writer, so that what was written is verified while the next part is read.

use std::{
    fs::File,
    io::{self, Read, Write},
    os::unix::fs::FileExt,
    sync::{Arc, Condvar, Mutex},
};

#[derive(Default)]
struct State {
    written: u64,
    ended: bool,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

/// Writes at the end of a file, and tells its follower.
pub(crate) struct Leader {
    file: File,
    shared: Arc<Shared>,
}

/// Reads the file from its start, as far as it is written, until the leader is dropped.
pub(crate) struct Follower {
    file: File,
    shared: Arc<Shared>,
    position: u64,
}

/// Of a file with `length` bytes that are there already.
pub(crate) fn pair(file: File, length: u64) -> io::Result<(Leader, Follower)> {
    let shared = Arc::new(Shared::default());
    shared
        .state
        .lock()
        .expect("nothing panics under the lock")
        .written = length;
    let follower = Follower {
        file: file.try_clone()?,
        shared: shared.clone(),
        position: 0,
    };
    Ok((Leader { file, shared }, follower))
}

impl Leader {
    /// Bytes in the file.
    pub fn length(&self) -> u64 {
        self.shared
            .state
            .lock()
            .expect("nothing panics under the lock")
            .written
    }

    /// Waits until everything is on disk.
    pub fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }
}

impl Write for Leader {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let n = self.file.write_at(data, self.length())?;
        self.shared
            .state
            .lock()
            .expect("nothing panics under the lock")
            .written += n as u64;
        self.shared.changed.notify_one();
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Leader {
    fn drop(&mut self) {
        self.shared
            .state
            .lock()
            .expect("nothing panics under the lock")
            .ended = true;
        self.shared.changed.notify_one();
    }
}

impl Read for Follower {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let state = self
            .shared
            .state
            .lock()
            .expect("nothing panics under the lock");
        let behind = |state: &mut State| state.written == self.position && !state.ended;
        let state = self
            .shared
            .changed
            .wait_while(state, behind)
            .expect("nothing panics under the lock");
        let there = (state.written - self.position).min(buffer.len() as u64) as usize;
        drop(state);
        let n = self.file.read_at(&mut buffer[..there], self.position)?;
        self.position += n as u64;
        Ok(n)
    }
}
