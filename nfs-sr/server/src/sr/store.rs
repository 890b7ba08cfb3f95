//! The directory of a repository, as its tools see it. A trait, so that tests can run every operation on a simulated disk
//! that loses at a power cut what was not synced.

use std::{
    collections::HashMap,
    fs::File,
    io,
    os::unix::fs::{FileExt, MetadataExt},
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

/// Files in one directory. Nothing is durable before [`Store::sync`] (contents and length of a file) or
/// [`Store::sync_names`] (creations, renames, links and removals).
pub trait Store {
    /// Reads all of `buffer`; what lies behind the end of the file is zeros.
    fn read(&self, name: &str, at: u64, buffer: &mut [u8]) -> io::Result<()>;
    /// Writes, lengthening the file if needed.
    fn write(&self, name: &str, at: u64, data: &[u8]) -> io::Result<()>;
    /// Bytes of a file.
    fn length(&self, name: &str) -> io::Result<u64>;
    /// Cuts a file, or lengthens it by zeros.
    fn set_length(&self, name: &str, length: u64) -> io::Result<()>;
    /// Makes contents and length durable.
    fn sync(&self, name: &str) -> io::Result<()>;
    /// Creates an empty file; fails if the name exists.
    fn create(&self, name: &str) -> io::Result<()>;
    /// Gives a file a further name; fails if that exists.
    fn link(&self, from: &str, to: &str) -> io::Result<()>;
    /// Renames, atomically replacing what has the new name.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    /// Removes a name.
    fn remove(&self, name: &str) -> io::Result<()>;
    /// Makes changes of names durable.
    fn sync_names(&self) -> io::Result<()>;
    /// All names.
    fn list(&self) -> io::Result<Vec<String>>;
    /// Two names are the same file.
    fn same(&self, a: &str, b: &str) -> io::Result<bool>;
}

/// A directory of the operating system.
pub struct Directory {
    path: PathBuf,
    open: Mutex<HashMap<String, Arc<File>>>,
}

impl Directory {
    /// The directory at `path`.
    pub fn new(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            open: Mutex::default(),
        }
    }

    fn file(&self, name: &str) -> io::Result<Arc<File>> {
        let mut open = self.open.lock().expect("nothing panics under the lock");
        if let Some(file) = open.get(name) {
            return Ok(file.clone());
        }
        let path = self.path.join(name);
        let file = File::options()
            .read(true)
            .write(true)
            .open(&path)
            .or_else(|error| {
                let read_only = error.kind() == io::ErrorKind::PermissionDenied;
                if read_only {
                    File::open(&path)
                } else {
                    Err(error)
                }
            })?;
        let file = Arc::new(file);
        // Those of a machine's chains stay open, whatever becomes of their names; a repository may have any number.
        if open.len() >= 512 {
            open.clear();
        }
        open.insert(name.to_owned(), file.clone());
        Ok(file)
    }

    fn forget(&self, names: &[&str]) {
        let mut open = self.open.lock().expect("nothing panics under the lock");
        names.iter().for_each(|name| drop(open.remove(*name)));
    }
}

impl Store for Directory {
    fn read(&self, name: &str, at: u64, buffer: &mut [u8]) -> io::Result<()> {
        let file = self.file(name)?;
        let mut done = 0;
        while done < buffer.len() {
            match file.read_at(&mut buffer[done..], at + done as u64) {
                Ok(0) => {
                    buffer[done..].fill(0);
                    break;
                }
                Ok(n) => done += n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn write(&self, name: &str, at: u64, data: &[u8]) -> io::Result<()> {
        self.file(name)?.write_all_at(data, at)
    }

    fn length(&self, name: &str) -> io::Result<u64> {
        Ok(self.file(name)?.metadata()?.len())
    }

    fn set_length(&self, name: &str, length: u64) -> io::Result<()> {
        self.file(name)?.set_len(length)
    }

    fn sync(&self, name: &str) -> io::Result<()> {
        self.file(name)?.sync_all()
    }

    fn create(&self, name: &str) -> io::Result<()> {
        File::create_new(self.path.join(name)).map(drop)
    }

    fn link(&self, from: &str, to: &str) -> io::Result<()> {
        std::fs::hard_link(self.path.join(from), self.path.join(to))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.forget(&[from, to]);
        std::fs::rename(self.path.join(from), self.path.join(to))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.forget(&[name]);
        std::fs::remove_file(self.path.join(name))
    }

    fn sync_names(&self) -> io::Result<()> {
        File::open(&self.path)?.sync_all()
    }

    fn list(&self) -> io::Result<Vec<String>> {
        let entries = std::fs::read_dir(&self.path)?;
        let names = entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
        names.collect()
    }

    fn same(&self, a: &str, b: &str) -> io::Result<bool> {
        let identity = |name: &str| {
            let metadata = std::fs::metadata(self.path.join(name))?;
            io::Result::Ok((metadata.dev(), metadata.ino()))
        };
        Ok(identity(a)? == identity(b)?)
    }
}
