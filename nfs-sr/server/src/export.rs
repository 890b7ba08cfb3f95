//! What is exported, to whom, and as whom a client's user acts.

use std::{io, net::IpAddr, path::PathBuf, str::FromStr};

use nfs3::rpc::Credentials;
use rustix::{
    fs::{Gid, Uid},
    process::geteuid,
    thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid},
};

/// User and group that have no rights of their own.
const NOBODY: u32 = 65534;

/// The number that no user or group has: Linux takes it for "leave as it is" (setresuid(2), chown(2)).
pub const NO_ID: u32 = u32::MAX;

/// Which users are mapped to nobody.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Squash {
    /// Nobody's: the superuser of a client is the superuser here. Hypervisor hosts need it.
    #[default]
    None,
    /// The superuser's.
    Root,
    /// Everybody's.
    All,
}

/// A network that may mount: `198.18.1.0/24`, or one address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    address: IpAddr,
    prefix: u8,
}

impl FromStr for Network {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("'{text}' is not a network such as 198.18.1.0/24 or 192.0.2.7");
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| bad())?;
        let longest = if address.is_ipv4() { 32 } else { 128 };
        let prefix = match prefix {
            Some(prefix) => prefix
                .parse()
                .ok()
                .filter(|p| *p <= longest)
                .ok_or_else(bad)?,
            None => longest,
        };
        Ok(Self { address, prefix })
    }
}

impl std::fmt::Display for Network {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

impl Network {
    /// The address belongs to this network.
    pub fn contains(&self, address: IpAddr) -> bool {
        let (a, b, bits) = match (self.address, address) {
            (IpAddr::V4(a), IpAddr::V4(b)) => (a.to_bits().into(), b.to_bits().into(), 32),
            (IpAddr::V6(a), IpAddr::V6(b)) => (a.to_bits(), b.to_bits(), 128),
            _ => return false,
        };
        let differing: u128 = a ^ b;
        differing
            .checked_shr(bits - u32::from(self.prefix))
            .unwrap_or(0)
            == 0
    }
}

/// An export.
#[derive(Clone, Debug)]
pub struct Export {
    /// The name that clients mount.
    pub name: String,
    /// The directory.
    pub directory: PathBuf,
    /// Who may use it; empty is everybody who can reach the server.
    pub clients: Vec<Network>,
    /// Nothing may be changed.
    pub read_only: bool,
    /// Whose rights are taken away.
    pub squash: Squash,
}

impl Export {
    /// A client at this address may use it.
    pub fn admits(&self, address: IpAddr) -> bool {
        self.clients.is_empty() || self.clients.iter().any(|network| network.contains(address))
    }

    /// As whom a call acts.
    pub fn user(&self, credentials: &Credentials<'_>) -> User {
        let nobody = || User {
            uid: NOBODY,
            gid: NOBODY,
            groups: Vec::new(),
        };
        match (credentials, self.squash) {
            (Credentials::Unix(user), Squash::None) => User::from(user),
            (Credentials::Unix(user), Squash::Root) if user.uid != 0 => {
                let mut user = User::from(user);
                let squashed = |gid: &mut u32| {
                    if *gid == 0 {
                        *gid = NOBODY;
                    }
                };
                squashed(&mut user.gid);
                user.groups.iter_mut().for_each(squashed);
                user
            }
            _ => nobody(),
        }
    }
}

/// Who a call acts as.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Further groups.
    pub groups: Vec<u32>,
}

impl From<&nfs3::rpc::UnixUser<'_>> for User {
    fn from(user: &nfs3::rpc::UnixUser<'_>) -> Self {
        let known = |id: &u32| if *id == NO_ID { NOBODY } else { *id };
        Self {
            uid: known(&user.uid),
            gid: known(&user.gid),
            groups: user.groups.iter().map(known).collect(),
        }
    }
}

/// Permission bits of one class, as in the last octal digit of a mode.
pub mod may {
    /// Read.
    pub const READ: u32 = 4;
    /// Write.
    pub const WRITE: u32 = 2;
    /// Execute, or search a directory.
    pub const EXECUTE: u32 = 1;
}

impl User {
    /// Everything is allowed to this user.
    pub fn is_superuser(&self) -> bool {
        self.uid == 0
    }

    /// The bits of [`may`] that a file's mode grants.
    pub fn permissions(&self, mode: u32, uid: u32, gid: u32) -> u32 {
        if self.is_superuser() {
            let executable = mode & 0o111 != 0;
            return may::READ | may::WRITE | if executable { may::EXECUTE } else { 0 };
        }
        let shift = match () {
            () if self.uid == uid => 6,
            () if self.gid == gid || self.groups.contains(&gid) => 3,
            () => 0,
        };
        mode >> shift & 7
    }

    /// Has the calling thread act as this user on files until the guard is dropped. Without privilege the server
    /// can only act as who it is, and does. In a container there may be no such user.
    pub fn act(&self) -> io::Result<Acting> {
        let privileged = geteuid().is_root();
        if !privileged || (self.is_superuser() && self.gid == 0) {
            return Ok(Acting { switched: false });
        }
        // From here on, to be undone also if it succeeds in part only.
        let acting = Acting { switched: true };
        let groups: Vec<Gid> = self.groups.iter().map(|gid| Gid::from_raw(*gid)).collect();
        let switched = set_thread_groups(&groups)
            .and_then(|()| set_thread_res_gid(None, Gid::from_raw(self.gid), None))
            .and_then(|()| set_thread_res_uid(None, Uid::from_raw(self.uid), None));
        match switched {
            Ok(()) => Ok(acting),
            Err(_) => Err(io::ErrorKind::PermissionDenied.into()),
        }
    }
}

/// The calling thread acts as another user.
#[must_use]
pub struct Acting {
    switched: bool,
}

impl Drop for Acting {
    fn drop(&mut self) {
        if self.switched {
            let back = set_thread_res_uid(None, Uid::ROOT, None)
                .and_then(|()| set_thread_res_gid(None, Gid::ROOT, None))
                .and_then(|()| set_thread_groups(&[]));
            back.expect("the saved user is the superuser");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks() {
        let network: Network = "198.18.1.0/24".parse().expect("valid");
        assert!(network.contains("198.18.1.77".parse().expect("valid")));
        assert!(!network.contains("198.18.2.77".parse().expect("valid")));
        let all: Network = "0.0.0.0/0".parse().expect("valid");
        assert!(all.contains("1.2.3.4".parse().expect("valid")));
        assert!("198.18.1.0/33".parse::<Network>().is_err());
        assert!("here".parse::<Network>().is_err());
    }

    #[test]
    fn permissions_follow_the_class() {
        let user = User {
            uid: 5,
            gid: 6,
            groups: vec![7],
        };
        assert_eq!(user.permissions(0o640, 5, 0), 6);
        assert_eq!(user.permissions(0o640, 1, 7), 4);
        assert_eq!(user.permissions(0o640, 1, 1), 0);
        // The owner's class counts even if another grants more.
        assert_eq!(user.permissions(0o077, 5, 6), 0);
    }
}
