//! The files of the export that are in use, and how a handle finds its file again.
//!
//! A handle names an inode. While a file is in use here, a descriptor (`O_PATH`) keeps it whatever it is called.
//! After eviction or a restart it is found by the path it had, or else by a walk through the export; both are
//! checked against inode and generation. A repository has few files, so this beats `open_by_handle_at`, which
//! needs a capability, and a journal of paths, which would be one more thing that can be wrong.

use std::{
    collections::{HashMap, HashSet},
    ffi::{OsStr, OsString},
    io,
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::ffi::{OsStrExt, OsStringExt},
    },
    path::{Path, PathBuf},
    sync::{Arc, Mutex, OnceLock, RwLock},
    time::{Duration, Instant},
};

use nfs3::{Attributes, Device, FileType, Time};
use rustix::{
    fs::{
        AtFlags, CWD, Mode, OFlags, RawDir, ResolveFlags, Statx, StatxFlags, Timespec, Timestamps,
        UTIME_OMIT,
    },
    io::Errno,
};

use crate::{
    durability::{GroupCommit, SYNCS, Syncable},
    file_io::{Cover, Disk, FileIo},
    handles::FileId,
};

/// Name of the directory in the export that the server keeps for itself. Clients do not see it.
pub const PRIVATE: &str = ".nfs-sr";
/// Files kept open.
const MAX_OPEN: usize = 2048;
/// Paths remembered of files that are not open.
const MAX_HINTS: usize = 100_000;
/// Deepest directory that the walk enters.
const MAX_DEPTH: usize = 64;
/// A handle whose file was not found is not searched for again so soon.
const SEARCH_AGAIN: Duration = Duration::from_secs(1);

/// A file in use.
pub struct Node {
    /// Which.
    pub id: FileId,
    /// Type.
    pub kind: FileType,
    anchor: OwnedFd,
    path: Mutex<PathBuf>,
    /// The first for reading, writing and syncing, the others for syncing beside it. Opened together: none may be younger than a
    /// write that it syncs, or it could miss an error that another was told before.
    io: OnceLock<[Box<dyn FileIo>; SYNCS]>,
    group: GroupCommit,
    /// Shared by every read and write from the check of its lease to its end; exclusive while the lease changes. So no
    /// write of an old epoch is under way when a new epoch is granted.
    pub fence: RwLock<()>,
}

impl Node {
    /// Its attributes.
    pub fn stat(&self) -> io::Result<Statx> {
        Ok(statx(&self.anchor)?)
    }

    /// A descriptor that names it, good for `*at` calls only.
    pub fn anchor(&self) -> &OwnedFd {
        &self.anchor
    }

    /// Path below the export that it was last found at.
    pub fn path(&self) -> PathBuf {
        self.path
            .lock()
            .expect("nothing panics under the lock")
            .clone()
    }

    /// Remembers that it is now found there.
    pub fn set_path(&self, path: PathBuf) {
        *self.path.lock().expect("nothing panics under the lock") = path;
    }

    /// Sets its time of modification to now, unless that is later.
    pub fn touch(&self) -> io::Result<()> {
        let omit = Timespec {
            tv_sec: 0,
            tv_nsec: UTIME_OMIT,
        };
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
        let modified = self.stat()?.stx_mtime;
        let later = (modified.tv_sec, i64::from(modified.tv_nsec)) > (now.tv_sec, now.tv_nsec);
        let times = Timestamps {
            last_access: omit,
            last_modification: if later { omit } else { now },
        };
        // The descriptor itself (O_PATH) cannot be used; /proc leads to the file whatever it is called by now.
        let path = format!("/proc/self/fd/{}", self.anchor.as_raw_fd());
        Ok(rustix::fs::utimensat(CWD, path, &times, AtFlags::empty())?)
    }

    /// Opens it anew, by the descriptor that is held.
    pub fn reopen(&self, flags: OFlags) -> io::Result<OwnedFd> {
        let path = format!("/proc/self/fd/{}", self.anchor.as_raw_fd());
        Ok(rustix::fs::openat(
            CWD,
            path,
            flags | OFlags::CLOEXEC,
            Mode::empty(),
        )?)
    }

    fn open_io(&self, disk: &dyn Disk) -> io::Result<Box<dyn FileIo>> {
        // By the path, not `dup`: an open file description of its own.
        let fd = match self.kind {
            FileType::Directory => self.reopen(OFlags::RDONLY | OFlags::DIRECTORY),
            FileType::Regular => {
                self.reopen(OFlags::RDWR)
                    .or_else(|error| match Errno::from_io_error(&error) {
                        Some(Errno::ACCESS | Errno::PERM | Errno::ROFS | Errno::TXTBSY) => {
                            self.reopen(OFlags::RDONLY)
                        }
                        _ => Err(error),
                    })
            }
            _ => Err(Errno::INVAL.into()),
        }?;
        Ok(disk.file(fd, &self.path()))
    }

    /// Opens a regular file or a directory for reading, writing and syncing, unless it is open.
    pub fn io(&self, disk: &dyn Disk) -> io::Result<&dyn FileIo> {
        if self.io.get().is_none() {
            let io = [self.open_io(disk)?, self.open_io(disk)?];
            // Another thread may have been first; its descriptors are as good.
            let _ = self.io.set(io);
        }
        Ok(&*self.io.get().expect("set above")[0])
    }
}

impl Syncable for Node {
    fn id(&self) -> FileId {
        self.id
    }

    fn sync(&self, place: usize, cover: Cover) -> io::Result<()> {
        match self.io.get() {
            Some(io) => io[place].sync(cover),
            None => Ok(()),
        }
    }

    fn group(&self) -> &GroupCommit {
        &self.group
    }
}

/// The files of an export.
pub struct Nodes {
    root: Arc<Node>,
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    open: HashMap<FileId, Entry>,
    hints: HashMap<FileId, PathBuf>,
    missing: HashMap<FileId, Instant>,
    clock: u64,
}

struct Entry {
    node: Arc<Node>,
    used: u64,
}

impl Nodes {
    /// The files below `root`.
    pub fn open(root: &Path) -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let anchor = rustix::fs::openat(CWD, root, flags, Mode::empty())?;
        let stat = statx(&anchor)?;
        Ok(Self {
            root: Arc::new(new_node(anchor, &stat, PathBuf::new())),
            table: Mutex::default(),
        })
    }

    /// The export's root directory.
    pub fn root(&self) -> &Arc<Node> {
        &self.root
    }

    /// The file of this identity; an error (`ESTALE`) if it is gone.
    pub fn get(&self, id: FileId) -> io::Result<Arc<Node>> {
        if id == self.root.id {
            return Ok(self.root.clone());
        }
        let hint = {
            let mut table = self.lock();
            if let Some(node) = table.touch(id) {
                return Ok(node);
            }
            if table
                .missing
                .get(&id)
                .is_some_and(|since| since.elapsed() < SEARCH_AGAIN)
            {
                return Err(Errno::STALE.into());
            }
            table.hints.get(&id).cloned()
        };
        let found = hint
            .and_then(|path| self.at(&path).ok())
            .filter(|(fd_id, ..)| *fd_id == id);
        let found = match found {
            Some((_, fd, stat, path)) => Some((fd, stat, path)),
            None => self.search(id)?,
        };
        let Some((fd, stat, path)) = found else {
            let mut table = self.lock();
            table
                .missing
                .retain(|_, since| since.elapsed() < SEARCH_AGAIN);
            table.missing.insert(id, Instant::now());
            return Err(Errno::STALE.into());
        };
        Ok(self.insert(fd, &stat, path))
    }

    /// Looks a name up in a directory.
    pub fn lookup(&self, dir: &Node, name: &OsStr) -> io::Result<Arc<Node>> {
        if name == "." {
            return self.get(dir.id);
        }
        if name == ".." {
            return match dir.path().parent() {
                Some(parent) if !parent.as_os_str().is_empty() => {
                    let (_, fd, stat, path) = self.at(parent)?;
                    Ok(self.insert(fd, &stat, path))
                }
                _ => Ok(self.root.clone()),
            };
        }
        if dir.id == self.root.id && name == PRIVATE {
            return Err(Errno::NOENT.into());
        }
        let fd = open_beneath(&dir.anchor, Path::new(name))?;
        let stat = statx(&fd)?;
        Ok(self.insert(fd, &stat, dir.path().join(name)))
    }

    /// Looks a path below the export up, as MOUNT and LEASE name files.
    pub fn resolve(&self, path: &Path) -> io::Result<Arc<Node>> {
        let mut node = self.root.clone();
        for part in path.components() {
            match part {
                std::path::Component::Normal(name) => node = self.lookup(&node, name)?,
                std::path::Component::CurDir => {}
                _ => return Err(Errno::ACCESS.into()),
            }
        }
        Ok(node)
    }

    /// Forgets a file whose last name was removed.
    pub fn forget(&self, id: FileId) {
        let mut table = self.lock();
        table.open.remove(&id);
        table.hints.remove(&id);
        table.missing.insert(id, Instant::now());
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Table> {
        self.table.lock().expect("nothing panics under the lock")
    }

    fn at(&self, path: &Path) -> io::Result<(FileId, OwnedFd, Statx, PathBuf)> {
        let fd = open_beneath(&self.root.anchor, path)?;
        let stat = statx(&fd)?;
        Ok((identity(&stat), fd, stat, path.to_owned()))
    }

    fn insert(&self, fd: OwnedFd, stat: &Statx, path: PathBuf) -> Arc<Node> {
        let id = identity(stat);
        if id == self.root.id {
            return self.root.clone();
        }
        let mut table = self.lock();
        table.missing.remove(&id);
        if let Some(node) = table.touch(id) {
            node.set_path(path);
            return node;
        }
        if table.open.len() >= MAX_OPEN {
            table.evict();
        }
        let node = Arc::new(new_node(fd, stat, path));
        let used = table.clock;
        table.open.insert(
            id,
            Entry {
                node: node.clone(),
                used,
            },
        );
        node
    }

    /// Walks through the export, directory by directory.
    fn search(&self, id: FileId) -> io::Result<Option<(OwnedFd, Statx, PathBuf)>> {
        let mut seen = HashSet::new();
        let mut dirs = vec![PathBuf::new()];
        while let Some(dir) = dirs.pop() {
            let Ok(entries) = self.list(&dir) else {
                continue;
            };
            for (name, inode, is_dir) in entries {
                let path = dir.join(&name);
                if path == Path::new(PRIVATE) {
                    continue;
                }
                if inode == id.inode
                    && let Ok((found, fd, stat, path)) = self.at(&path)
                    && found == id
                {
                    return Ok(Some((fd, stat, path)));
                }
                if is_dir && path.components().count() < MAX_DEPTH && seen.insert(inode) {
                    dirs.push(path);
                }
            }
        }
        Ok(None)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<(OsString, u64, bool)>> {
        let path = if dir.as_os_str().is_empty() {
            Path::new(".")
        } else {
            dir
        };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::openat2(&self.root.anchor, path, flags, Mode::empty(), RESOLVE)?;
        let mut buffer = Vec::with_capacity(32 * 1024);
        let mut entries = RawDir::new(fd, buffer.spare_capacity_mut());
        let mut names = Vec::new();
        while let Some(entry) = entries.next() {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if name != b"." && name != b".." {
                let is_dir = entry.file_type() == rustix::fs::FileType::Directory;
                names.push((OsString::from_vec(name.to_vec()), entry.ino(), is_dir));
            }
        }
        Ok(names)
    }
}

impl Table {
    fn touch(&mut self, id: FileId) -> Option<Arc<Node>> {
        self.clock += 1;
        let entry = self.open.get_mut(&id)?;
        entry.used = self.clock;
        Some(entry.node.clone())
    }

    /// Closes the quarter that was not used for longest, but nothing that is in use or not synced.
    fn evict(&mut self) {
        let mut idle: Vec<(u64, FileId)> = self
            .open
            .iter()
            .filter(|(_, entry)| {
                Arc::strong_count(&entry.node) == 1 && !entry.node.group.is_dirty()
            })
            .map(|(id, entry)| (entry.used, *id))
            .collect();
        idle.sort_unstable();
        if self.hints.len() > MAX_HINTS {
            self.hints.clear();
        }
        for (_, id) in idle.into_iter().take(MAX_OPEN / 4) {
            if let Some(entry) = self.open.remove(&id) {
                self.hints.insert(id, entry.node.path());
            }
        }
    }
}

/// Never out of the export, never through a link, never onto another file system, whose inodes would be mistaken
/// for ours.
const RESOLVE: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_MAGICLINKS)
    .union(ResolveFlags::NO_XDEV);

fn open_beneath(dir: &OwnedFd, path: &Path) -> io::Result<OwnedFd> {
    // NO_SYMLINKS would refuse a link as the last part too, which NOFOLLOW opens as itself.
    let (parent, name) = match (path.parent(), path.file_name()) {
        (Some(parent), Some(name)) if !parent.as_os_str().is_empty() => (Some(parent), name),
        _ => (None, path.as_os_str()),
    };
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let last = RESOLVE.difference(ResolveFlags::NO_SYMLINKS);
    let fd = match parent {
        Some(parent) => {
            let parent = rustix::fs::openat2(
                dir,
                parent,
                flags | OFlags::DIRECTORY,
                Mode::empty(),
                RESOLVE,
            )?;
            rustix::fs::openat2(&parent, name, flags, Mode::empty(), last)
        }
        None => rustix::fs::openat2(dir, name, flags, Mode::empty(), last),
    };
    fd.map_err(|error| match error {
        Errno::XDEV => Errno::ACCESS.into(),
        error => error.into(),
    })
}

fn statx(fd: impl AsFd) -> rustix::io::Result<Statx> {
    let mask = StatxFlags::BASIC_STATS | StatxFlags::BTIME;
    rustix::fs::statx(
        fd,
        c"",
        AtFlags::EMPTY_PATH | AtFlags::SYMLINK_NOFOLLOW,
        mask,
    )
}

fn new_node(anchor: OwnedFd, stat: &Statx, path: PathBuf) -> Node {
    Node {
        id: identity(stat),
        kind: kind(stat),
        anchor,
        path: Mutex::new(path),
        io: OnceLock::new(),
        group: GroupCommit::default(),
        fence: RwLock::default(),
    }
}

/// The identity of the file at a path.
pub fn identify(path: &Path) -> io::Result<FileId> {
    let fd = rustix::fs::openat(
        CWD,
        path,
        OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    Ok(identity(&statx(&fd)?))
}

fn identity(stat: &Statx) -> FileId {
    // Seconds and nanoseconds of birth, mixed into 32 bits (the multiplier is that of Fibonacci hashing).
    let birth = (stat.stx_btime.tv_sec as u64) << 30 ^ u64::from(stat.stx_btime.tv_nsec);
    let generation = (birth.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as u32;
    FileId {
        inode: stat.stx_ino,
        generation,
    }
}

fn kind(stat: &Statx) -> FileType {
    match rustix::fs::FileType::from_raw_mode(stat.stx_mode.into()) {
        rustix::fs::FileType::Directory => FileType::Directory,
        rustix::fs::FileType::Symlink => FileType::Symlink,
        rustix::fs::FileType::BlockDevice => FileType::Block,
        rustix::fs::FileType::CharacterDevice => FileType::Character,
        rustix::fs::FileType::Socket => FileType::Socket,
        rustix::fs::FileType::Fifo => FileType::Fifo,
        _ => FileType::Regular,
    }
}

/// Attributes as NFS has them.
pub fn attributes(stat: &Statx, file_system: u64) -> Attributes {
    let time = |t: rustix::fs::StatxTimestamp| Time {
        seconds: t.tv_sec as u32,
        nanoseconds: t.tv_nsec,
    };
    Attributes {
        kind: kind(stat),
        mode: u32::from(stat.stx_mode) & 0o7777,
        nlink: stat.stx_nlink,
        uid: stat.stx_uid,
        gid: stat.stx_gid,
        size: stat.stx_size,
        used: stat.stx_blocks * 512,
        device: Device {
            major: stat.stx_rdev_major,
            minor: stat.stx_rdev_minor,
        },
        fsid: file_system,
        fileid: stat.stx_ino,
        atime: time(stat.stx_atime),
        mtime: time(stat.stx_mtime),
        ctime: time(stat.stx_ctime),
    }
}

/// A name as the operating system takes it, or why it takes none such.
pub fn os_name(name: &[u8]) -> Result<&OsStr, Errno> {
    match name {
        [] => Err(Errno::INVAL),
        _ if name.len() > 255 => Err(Errno::NAMETOOLONG),
        _ if name.iter().any(|byte| matches!(byte, b'/' | 0)) => Err(Errno::INVAL),
        _ => Ok(OsStr::from_bytes(name)),
    }
}
