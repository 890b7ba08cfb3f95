//! A disk that loses at a power cut any part of what was not synced, sector by sector, and the times of files.

use std::{
    collections::HashMap,
    fs::File,
    io,
    os::{fd::OwnedFd, unix::fs::FileExt},
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::SystemTime,
};

use nfs_sr::file_io::{Cover, Disk, FileIo, Wait};

const SECTOR: u64 = 512;

/// What each file held in the sectors written since its last sync.
#[derive(Clone, Default)]
pub struct PowerCutDisk {
    files: Arc<Mutex<HashMap<PathBuf, Arc<Mutex<Unsynced>>>>>,
}

#[derive(Default)]
struct Unsynced {
    file: Option<Arc<File>>,
    before: HashMap<u64, [u8; SECTOR as usize]>,
    /// Time of modification that the disk knows.
    modified: Option<SystemTime>,
}

impl PowerCutDisk {
    /// Cuts the power: of what was not synced, some sectors are as they were before. To be called when no server runs.
    pub fn cut(&self, random: &mut fastrand::Rng) {
        let files = std::mem::take(&mut *self.files.lock().expect("no panic"));
        // In the order of names, so that a seed gives the same cut again.
        let mut files: Vec<_> = files.into_iter().collect();
        files.sort_by(|a, b| a.0.cmp(&b.0));
        for (_, unsynced) in files {
            let unsynced = unsynced.lock().expect("no panic");
            let mut sectors: Vec<_> = unsynced.before.iter().collect();
            sectors.sort_by_key(|(sector, _)| **sector);
            let keep = random.u8(0..4);
            for (sector, bytes) in sectors {
                // All of it, some of it, or nothing of it is lost.
                if keep == 0 || (keep != 3 && random.bool()) {
                    let file = unsynced.file.as_ref().expect("it was written to");
                    file.write_all_at(bytes, sector * SECTOR).expect("write");
                }
            }
            if let (Some(file), Some(modified)) = (&unsynced.file, unsynced.modified)
                && random.bool()
            {
                file.set_modified(modified).expect("its owner may");
            }
        }
    }
}

impl Disk for PowerCutDisk {
    fn file(&self, fd: OwnedFd, path: &Path) -> Box<dyn FileIo> {
        let file = Arc::new(File::from(fd));
        let unsynced = self
            .files
            .lock()
            .expect("no panic")
            .entry(path.to_owned())
            .or_default()
            .clone();
        {
            let mut unsynced = unsynced.lock().expect("no panic");
            unsynced.file = Some(file.clone());
            unsynced.modified.get_or_insert_with(|| modified(&file));
        }
        Box::new(PowerCutFile { file, unsynced })
    }
}

struct PowerCutFile {
    file: Arc<File>,
    unsynced: Arc<Mutex<Unsynced>>,
}

impl FileIo for PowerCutFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64, wait: Wait) -> io::Result<usize> {
        FileIo::read_at(&*self.file, buffer, offset, wait)
    }

    fn write_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        let mut unsynced = self.unsynced.lock().expect("no panic");
        let last = (offset + data.len() as u64).div_ceil(SECTOR);
        for sector in offset / SECTOR..last {
            let file = &self.file;
            unsynced.before.entry(sector).or_insert_with(|| {
                let mut bytes = [0; SECTOR as usize];
                // What lies behind the end is zeros.
                let _ =
                    FileIo::read_at(&**file, &mut bytes, sector * SECTOR, Wait::Yes).expect("read");
                bytes
            });
        }
        self.file.write_all_at(data, offset)
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        self.file.set_len(length)
    }

    fn sync(&self, cover: Cover) -> io::Result<()> {
        // No need to bother the real disk: it does not lose power.
        let mut unsynced = self.unsynced.lock().expect("no panic");
        unsynced.before.clear();
        if cover == Cover::All {
            unsynced.modified = Some(modified(&self.file));
        }
        Ok(())
    }
}

fn modified(file: &File) -> SystemTime {
    let metadata = file.metadata().expect("an open file");
    metadata.modified().expect("Linux has such times")
}

/// Memory, so that thousands of restarts do not wait for a real disk.
pub fn fast_directory() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() {
        tempfile::tempdir_in(memory)
    } else {
        tempfile::tempdir()
    }
    .expect("temporary directory")
}
