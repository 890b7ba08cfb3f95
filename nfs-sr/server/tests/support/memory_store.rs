//! A repository in memory that loses at a power cut what was not synced: of each file any sectors, of the names the last
//! changes (file systems with a journal keep their order).

use std::{cell::RefCell, collections::BTreeMap, io};

use fastrand::Rng;
use nfs_sr::sr::store::Store;

const SECTOR: u64 = 512;
type Sector = [u8; SECTOR as usize];
type Names = BTreeMap<String, u64>;

#[derive(Clone, Default)]
struct File {
    length: u64,
    sectors: BTreeMap<u64, Sector>,
    /// What sectors held, and how long the file was, at the last sync.
    before: BTreeMap<u64, Sector>,
    synced_length: u64,
}

impl File {
    fn sector(&self, sector: u64) -> Sector {
        self.sectors
            .get(&sector)
            .copied()
            .unwrap_or([0; SECTOR as usize])
    }

    fn put(&mut self, sector: u64, bytes: Sector) {
        let before = self.sector(sector);
        self.before.entry(sector).or_insert(before);
        if bytes == [0; SECTOR as usize] {
            self.sectors.remove(&sector);
        } else {
            self.sectors.insert(sector, bytes);
        }
    }
}

#[derive(Clone, Default)]
struct State {
    files: BTreeMap<u64, File>,
    names: Names,
    /// The names as they were after each change since the last sync, the synced state first.
    history: Vec<Names>,
    next: u64,
    /// Changes until the power goes; none is never.
    power: Option<u64>,
    changes: u64,
    /// Negative control: syncs do nothing.
    lazy: bool,
}

/// The store.
#[derive(Clone, Default)]
pub struct MemoryStore(RefCell<State>);

fn gone() -> io::Error {
    io::Error::other("the power is gone")
}

impl MemoryStore {
    /// A store on which a sync does nothing.
    pub fn lazy(&self) -> Self {
        let mut state = self.0.borrow().clone();
        state.lazy = true;
        Self(RefCell::new(state))
    }

    /// Has the power go after so many further changes.
    pub fn cut_after(&self, changes: u64) {
        let mut state = self.0.borrow_mut();
        state.power = Some(changes);
        state.changes = 0;
    }

    /// Changes since [`Self::cut_after`].
    pub fn changes(&self) -> u64 {
        self.0.borrow().changes
    }

    /// What is there when the power comes back.
    pub fn after_cut(&self, random: &mut Rng) -> Self {
        let mut state = self.0.borrow().clone();
        state.power = None;
        for file in state.files.values_mut() {
            let keep = random.u8(0..4);
            let before = std::mem::take(&mut file.before);
            for (sector, bytes) in before {
                if keep == 0 || (keep != 3 && random.bool()) {
                    file.sectors.insert(sector, bytes);
                }
            }
            if keep == 0 {
                file.length = file.synced_length;
            }
            let end = file.length.div_ceil(SECTOR);
            file.sectors.retain(|sector, _| *sector < end);
            file.synced_length = file.length;
        }
        if !state.history.is_empty() {
            let last = random.usize(0..=state.history.len());
            if let Some(names) = state.history.get(last) {
                state.names = names.clone();
            }
            state.history.clear();
        }
        Self(RefCell::new(state))
    }

    fn change<T>(&self, change: impl FnOnce(&mut State) -> io::Result<T>) -> io::Result<T> {
        let mut state = self.0.borrow_mut();
        if state.power.is_some_and(|power| state.changes >= power) {
            return Err(gone());
        }
        state.changes += 1;
        change(&mut state)
    }

    fn rename_with(&self, change: impl FnOnce(&mut Names) -> io::Result<()>) -> io::Result<()> {
        self.change(|state| {
            let before = state.names.clone();
            change(&mut state.names)?;
            state.history.push(before);
            Ok(())
        })
    }
}

impl State {
    fn file(&mut self, name: &str) -> io::Result<&mut File> {
        let id = *self.names.get(name).ok_or(io::ErrorKind::NotFound)?;
        Ok(self.files.get_mut(&id).expect("names are of files"))
    }
}

impl Store for MemoryStore {
    fn read(&self, name: &str, at: u64, buffer: &mut [u8]) -> io::Result<()> {
        let mut state = self.0.borrow_mut();
        let file = state.file(name)?;
        let mut done = 0;
        while done < buffer.len() {
            let offset = at + done as u64;
            let (sector, within) = (offset / SECTOR, (offset % SECTOR) as usize);
            let n = (buffer.len() - done).min(SECTOR as usize - within);
            buffer[done..done + n].copy_from_slice(&file.sector(sector)[within..within + n]);
            done += n;
        }
        Ok(())
    }

    fn write(&self, name: &str, at: u64, data: &[u8]) -> io::Result<()> {
        self.change(|state| {
            let file = state.file(name)?;
            let mut done = 0;
            while done < data.len() {
                let offset = at + done as u64;
                let (sector, within) = (offset / SECTOR, (offset % SECTOR) as usize);
                let n = (data.len() - done).min(SECTOR as usize - within);
                let mut bytes = file.sector(sector);
                bytes[within..within + n].copy_from_slice(&data[done..done + n]);
                file.put(sector, bytes);
                done += n;
            }
            file.length = file.length.max(at + data.len() as u64);
            Ok(())
        })
    }

    fn length(&self, name: &str) -> io::Result<u64> {
        Ok(self.0.borrow_mut().file(name)?.length)
    }

    fn set_length(&self, name: &str, length: u64) -> io::Result<()> {
        self.change(|state| {
            let file = state.file(name)?;
            let cut: Vec<u64> = file
                .sectors
                .range(length.div_ceil(SECTOR)..)
                .map(|(sector, _)| *sector)
                .collect();
            cut.into_iter()
                .for_each(|sector| file.put(sector, [0; SECTOR as usize]));
            file.length = length;
            Ok(())
        })
    }

    fn sync(&self, name: &str) -> io::Result<()> {
        self.change(|state| {
            let lazy = state.lazy;
            let file = state.file(name)?;
            if !lazy {
                file.before.clear();
                file.synced_length = file.length;
            }
            Ok(())
        })
    }

    fn create(&self, name: &str) -> io::Result<()> {
        let id = {
            let mut state = self.0.borrow_mut();
            state.next += 1;
            let id = state.next;
            state.files.insert(id, File::default());
            id
        };
        self.rename_with(|names| match names.contains_key(name) {
            true => Err(io::ErrorKind::AlreadyExists.into()),
            false => {
                names.insert(name.into(), id);
                Ok(())
            }
        })
    }

    fn link(&self, from: &str, to: &str) -> io::Result<()> {
        self.rename_with(|names| {
            let id = *names.get(from).ok_or(io::ErrorKind::NotFound)?;
            match names.contains_key(to) {
                true => Err(io::ErrorKind::AlreadyExists.into()),
                false => {
                    names.insert(to.into(), id);
                    Ok(())
                }
            }
        })
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.rename_with(|names| {
            let id = names.remove(from).ok_or(io::ErrorKind::NotFound)?;
            names.insert(to.into(), id);
            Ok(())
        })
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.rename_with(|names| {
            names
                .remove(name)
                .map(drop)
                .ok_or(io::ErrorKind::NotFound.into())
        })
    }

    fn sync_names(&self) -> io::Result<()> {
        self.change(|state| {
            if !state.lazy {
                state.history.clear();
            }
            Ok(())
        })
    }

    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.0.borrow().names.keys().cloned().collect())
    }

    fn same(&self, a: &str, b: &str) -> io::Result<bool> {
        let state = self.0.borrow();
        Ok(state.names.contains_key(a) && state.names.get(a) == state.names.get(b))
    }
}
