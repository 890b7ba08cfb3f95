//! Reading a whole file: a kernel, an initial RAM disk.

use alloc::vec::Vec;

use nfs_client::{Call, CallError, Reply};

use crate::{
    error::StorageError,
    gather::{Gather, Gathered, Part},
    tag::FileJob,
    walk::{Found, Next, Walk, refused},
};

/// A file being read.
#[derive(Debug)]
pub(crate) struct FileRead {
    walk: Walk,
    max: u64,
    stage: Stage,
}

#[derive(Debug)]
enum Stage {
    Walk,
    Size(Found),
    Read(Found, Gather),
}

/// What follows an answer.
pub(crate) enum Step {
    /// Make these calls.
    Calls(Vec<(FileJob, Call)>),
    /// Done.
    Content(Vec<u8>),
}

impl FileRead {
    pub fn start(export: &str, path: &str, max: u64) -> Result<(Self, Call), StorageError> {
        let (walk, call) = Walk::start(export, path)?;
        Ok((
            Self {
                walk,
                max,
                stage: Stage::Walk,
            },
            call,
        ))
    }

    /// Takes an answer, to the call that `job` was for.
    pub fn advance(
        &mut self,
        job: FileJob,
        answer: Result<Reply, CallError>,
    ) -> Result<Step, StorageError> {
        if let Stage::Walk = self.stage {
            return Ok(match self.walk.advance(answer)? {
                Next::Call(call) => Step::Calls([(FileJob::Step, call)].into()),
                Next::Found(found) => {
                    self.stage = Stage::Size(found);
                    Step::Calls([(FileJob::Step, Call::GetSize { file: found.file })].into())
                }
            });
        }
        let reply = answer.map_err(|why| refused(self.walk.path(), "a read", &why))?;
        match (&mut self.stage, reply, job) {
            (Stage::Size(found), Reply::Size(bytes), _) => {
                let found = *found;
                self.read_all(found, bytes)
            }
            (Stage::Read(found, gather), Reply::Data { bytes, eof }, FileJob::Read(part)) => {
                match gather.take(part, bytes.as_slice(), eof) {
                    Gathered::More(part) => Ok(Step::Calls([read(found, part)].into())),
                    Gathered::Wait => Ok(Step::Calls(Vec::new())),
                    Gathered::All(content) => Ok(Step::Content(content)),
                    Gathered::EndOfFile => Err(StorageError::Unusable {
                        path: self.walk.path().into(),
                        reason: "it became shorter while it was read",
                    }),
                }
            }
            _ => unreachable!("a reply is decoded as that of its call"),
        }
    }

    fn read_all(&mut self, found: Found, bytes: u64) -> Result<Step, StorageError> {
        if bytes > self.max {
            let path = self.walk.path().into();
            return Err(StorageError::TooLong {
                path,
                bytes,
                max: self.max,
            });
        }
        if bytes == 0 {
            return Ok(Step::Content(Vec::new()));
        }
        let (gather, parts) = Gather::start(0, bytes as usize, found.limits.read);
        self.stage = Stage::Read(found, gather);
        Ok(Step::Calls(
            parts.into_iter().map(|part| read(&found, part)).collect(),
        ))
    }
}

fn read(found: &Found, part: Part) -> (FileJob, Call) {
    let (offset, count) = part;
    (
        FileJob::Read(part),
        Call::Read {
            file: found.file,
            offset,
            count,
        },
    )
}
