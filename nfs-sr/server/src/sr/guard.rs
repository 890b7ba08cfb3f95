//! Keeps the tools and the hosts out of each other's way: a tool holds the lease of every disk that it changes.
//!
//! If a server runs, the tool asks it for the lease as a host would. A lease that has expired is then no obstacle: its
//! holder's handles become stale with the tool's epoch, so a host that was only slow cannot write into what
//! the tool has moved. If none runs, the tool holds the server's lock instead, so that none is started, and goes by the journal of leases.
//! What is not in the journal (renewals and the passing of time) counts for the holder there.

use std::{
    cell::RefCell,
    fmt::Display,
    fs::{File, TryLockError},
    io,
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
};

use nfs3::{
    DirEntry, FileHandle, Name,
    lease::{Acquire, AcquireArgs, LeaseStatus, ListAll, MAX_OWNER, Mode, Owner, Release},
};

use super::{chain::Hold, image::SrError};
use crate::{
    client::{Client, ClientError},
    lease,
    node::{self, PRIVATE},
    server,
};

/// The tool gives leases back when it ends. If it dies, this is how long a disk cannot be opened, unless an operator breaks
/// the lease.
const TTL_MS: u32 = 60 * 60 * 1000;

/// The right to change disks of a repository. Gives back what it holds when dropped.
pub struct Guard {
    repository: PathBuf,
    private: PathBuf,
    way: Way,
    gone: Vec<String>,
    held: RefCell<Vec<(String, Option<FileHandle>)>>,
}

enum Way {
    /// The repository is in no export, or the export was never served.
    NeverServed,
    /// No server runs, and none is started for as long as we hold its lock.
    Stopped(#[expect(dead_code, reason = "held, not used")] File),
    /// A server answers.
    Served {
        client: Box<RefCell<Client<TcpStream>>>,
        dir: FileHandle,
    },
    /// A server runs but does not listen where this program could reach it.
    OutOfReach,
}

fn failed(name: &str, error: io::Error) -> SrError {
    SrError::Io {
        name: name.to_owned(),
        error,
    }
}

impl Guard {
    /// For the repository in this directory.
    pub fn new(repository: &Path) -> Result<Self, SrError> {
        let name = repository.display().to_string();
        let repository = repository
            .canonicalize()
            .map_err(|error| failed(&name, error))?;
        let private = repository.parent().unwrap_or(Path::new("/")).join(PRIVATE);
        let way = find_server(&repository, &private).map_err(|error| failed(&name, error))?;
        Ok(Self {
            repository,
            private,
            way,
            gone: Vec::new(),
            held: RefCell::default(),
        })
    }

    /// These owners are known to have no power: what the journal says of their leases is over. A lease's time passes without a
    /// word in the journal.
    #[must_use]
    pub fn without(mut self, gone: Vec<String>) -> Self {
        self.gone = gone;
        self
    }

    /// Holds the lease of a disk; refuses if somebody else does.
    pub fn hold(&self, name: &str) -> Result<(), SrError> {
        if self.held.borrow().iter().any(|(held, _)| held == name) {
            return Ok(());
        }
        let handle = match &self.way {
            Way::NeverServed => None,
            Way::Stopped(_) | Way::OutOfReach => match self.journaled_holder(name)? {
                None => None,
                Some(owner) => {
                    return Err(SrError::Refused(format!(
                        "{name} is open at {owner}, or was when the server last heard of it; stop the VM first. If that host is gone for \
                         good, start the server on TCP and let the lease expire, or use 'nfs-sr lease break'"
                    )));
                }
            },
            Way::Served { client, dir } => acquire(&mut client.borrow_mut(), *dir, name)?,
        };
        self.held.borrow_mut().push((name.to_owned(), handle));
        Ok(())
    }

    /// Who holds the lease by the journal.
    fn journaled_holder(&self, name: &str) -> Result<Option<String>, SrError> {
        let id = match node::identify(&self.repository.join(name)) {
            Ok(id) => id,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed(name, error)),
        };
        let holders =
            lease::holders(&self.private).map_err(|error| failed(name, io::Error::other(error)))?;
        let owners = holders.into_iter().filter(|(held, _)| *held == id);
        let mut owners = owners.map(|(_, owner)| String::from_utf8_lossy(&owner).into_owned());
        Ok(owners.find(|owner| !self.gone.contains(owner)))
    }

    fn let_go(&self) {
        for (_, handle) in self.held.borrow_mut().drain(..) {
            if let (Way::Served { client, .. }, Some(handle)) = (&self.way, handle) {
                // An error leaves the lease to its time, which is no reason to fail what was done.
                let _ = client.borrow_mut().call::<Release>(&handle);
            }
        }
    }
}

impl Hold for Guard {
    fn hold(&self, name: &str) -> bool {
        Self::hold(self, name).is_ok()
    }

    fn release(&self) {
        self.let_go();
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.let_go();
    }
}

fn find_server(repository: &Path, private: &Path) -> io::Result<Way> {
    if !private.is_dir() {
        return Ok(Way::NeverServed);
    }
    let lock = server::open_lock(&private.join(server::LOCK))?;
    match lock.try_lock() {
        Ok(()) => {
            lock.set_len(0)?;
            return Ok(Way::Stopped(lock));
        }
        Err(TryLockError::WouldBlock) => {}
        Err(TryLockError::Error(error)) => return Err(error),
    }
    let address = std::fs::read_to_string(private.join(server::LOCK))?;
    if address.is_empty() {
        return Err(io::Error::other(
            "another nfs-sr tool is at work in this export, or its server is just starting; try again later",
        ));
    }
    let Ok(address) = address.parse() else {
        return Ok(Way::OutOfReach);
    };
    Ok(connect(repository, address).unwrap_or(Way::OutOfReach))
}

fn connect(repository: &Path, address: SocketAddr) -> Result<Way, ClientError> {
    let mut client = Client::new(TcpStream::connect(address)?);
    let root = client.mount("/")?;
    let name = repository.file_name().and_then(|name| name.to_str());
    let dir = client.look_up(root, name.unwrap_or_default())?;
    // It may not take us for a host: better known now than half-way.
    client.call::<ListAll>(&())?.results::<ListAll>()?;
    Ok(Way::Served {
        client: Box::new(RefCell::new(client)),
        dir,
    })
}

fn acquire(
    client: &mut Client<TcpStream>,
    dir: FileHandle,
    name: &str,
) -> Result<Option<FileHandle>, SrError> {
    let mut owner = format!("nfs-sr (process {})", std::process::id());
    owner.truncate(MAX_OWNER);
    let args = AcquireArgs {
        file: DirEntry {
            dir,
            name: Name(name.as_bytes()),
        },
        owner: Owner(owner.as_bytes()),
        mode: Mode::Exclusive,
        expected_epoch: 0,
        ttl_ms: TTL_MS,
    };
    let lost =
        |error: &dyn Display| SrError::Refused(format!("cannot get the lease of {name}: {error}"));
    let record = client
        .call::<Acquire>(&args)
        .map_err(|error| lost(&error))?;
    let result = record.results::<Acquire>().map_err(|error| lost(&error))?;
    match result.0 {
        Ok(grant) => Ok(Some(grant.object)),
        Err(refused) if refused.status == LeaseStatus::NoEnt => Ok(None),
        Err(refused) if refused.status == LeaseStatus::Held => Err(SrError::Refused(format!(
            "{name} is open at {}; stop the VM first. If that host is gone, the lease expires in {} s, or use 'nfs-sr lease break'",
            String::from_utf8_lossy(refused.holding.owner.0),
            refused.holding.remaining_ms.div_ceil(1000),
        ))),
        Err(refused) => Err(SrError::Refused(format!(
            "the server does not give the lease of {name}: {:?}",
            refused.status
        ))),
    }
}
