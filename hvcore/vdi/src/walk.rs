//! From a path below the export to a file handle: MOUNT, FSINFO, then a LOOKUP for each part.
//!
//! Nothing is remembered between walks: opening files is rare, and a stale root handle would be a state
//! to recover from.

use alloc::{
    borrow::ToOwned,
    collections::VecDeque,
    string::{String, ToString},
};

use nfs_client::{Call, CallError, Reply};
use nfs3::FileHandle;

use crate::error::StorageError;

/// Longest path below the export.
const MAX_PATH: usize = 1024;
/// Sizes of READ and WRITE are kept between these, whatever the server says. Longer ones save little, overlap
/// less, and on a slow link look like silence.
const MIN_IO: u32 = 4096;
const MAX_IO: u32 = 256 << 10;

/// Most bytes of a READ and of a WRITE.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Limits {
    pub read: u32,
    pub write: u32,
}

/// Where a walk ends.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Found {
    pub dir: FileHandle,
    pub file: FileHandle,
    pub limits: Limits,
}

pub(crate) enum Next {
    Call(Call),
    Found(Found),
}

/// A walk under way.
#[derive(Debug)]
pub(crate) struct Walk {
    path: String,
    left: VecDeque<String>,
    dir: Option<FileHandle>,
    limits: Option<Limits>,
}

impl Walk {
    /// Checks the path and says how to begin.
    pub fn start(export: &str, path: &str) -> Result<(Self, Call), StorageError> {
        let left: VecDeque<String> = path.split('/').map(ToOwned::to_owned).collect();
        let bad = |part: &String| part.is_empty() || part == "." || part == "..";
        if path.len() > MAX_PATH || left.iter().any(bad) {
            return Err(StorageError::Unusable {
                path: path.to_owned(),
                reason: "not a plain path below the export",
            });
        }
        let walk = Self {
            path: path.to_owned(),
            left,
            dir: None,
            limits: None,
        };
        Ok((
            walk,
            Call::Mount {
                path: export.to_owned(),
            },
        ))
    }

    pub fn path(&self) -> &str {
        &self.path
    }

    /// Name of the file in its directory.
    pub fn name(&self) -> &str {
        self.path.rsplit('/').next().unwrap_or_default()
    }

    /// Takes the answer to the last call.
    pub fn advance(&mut self, answer: Result<Reply, CallError>) -> Result<Next, StorageError> {
        let what = match (self.dir, self.limits) {
            (None, _) => "a mount",
            (Some(_), None) => "a query of its limits",
            (Some(_), Some(_)) => "a look-up",
        };
        let reply = answer.map_err(|why| refused(&self.path, what, &why))?;
        let handle = match (reply, self.dir, self.limits) {
            (Reply::Handle(root), None, _) => {
                self.dir = Some(root);
                return Ok(Next::Call(Call::FsInfo { root }));
            }
            (Reply::Limits { read, write }, Some(dir), None) => {
                self.limits = Some(Limits {
                    read: read.clamp(MIN_IO, MAX_IO),
                    write: write.clamp(MIN_IO, MAX_IO),
                });
                dir
            }
            (Reply::Handle(file), Some(dir), Some(limits)) => {
                if self.left.is_empty() {
                    return Ok(Next::Found(Found { dir, file, limits }));
                }
                self.dir = Some(file);
                file
            }
            _ => unreachable!("a reply is decoded as that of its call"),
        };
        let name = self.left.pop_front().expect("a path has at least one part");
        Ok(Next::Call(Call::Lookup { dir: handle, name }))
    }
}

/// Words a failed call for people.
pub(crate) fn refused(path: &str, operation: &'static str, why: &CallError) -> StorageError {
    let path = path.to_owned();
    match why {
        CallError::TimedOut => StorageError::TimedOut { path, operation },
        why => StorageError::Refused {
            path,
            operation,
            reason: why.to_string(),
        },
    }
}
