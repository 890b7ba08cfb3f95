//! What can go wrong with an archive or an image, for people.

use std::io;

/// Something is wrong with an archive or an image, or with the files below.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Reading or writing failed.
    #[error("{place}: {error}")]
    Io {
        /// What was read or written.
        place: String,
        /// What failed.
        error: io::Error,
    },
    /// The input ends too early.
    #[error("{place}: the input ends here, in the middle; it is cut off: get it again")]
    CutOff {
        /// What was being read.
        place: String,
    },
    /// The input contradicts its format.
    #[error("{place}: {why}")]
    Damaged {
        /// Where: a member, a chunk, a table.
        place: String,
        /// What is wrong there.
        why: String,
    },
    /// The data is not what its checksum says.
    #[error(
        "{place}: the data has {found}, its checksum says {expected}; it is damaged: get the archive again"
    )]
    Checksum {
        /// Which chunk or member.
        place: String,
        /// What was written beside the data.
        expected: String,
        /// What the data has.
        found: String,
    },
    /// Legal, but not known here.
    #[error("{place}: {why}, which is not supported")]
    Unsupported {
        /// Where.
        place: String,
        /// What it is.
        why: String,
    },
}

/// Gives an error its place. The end of the input is an error of its own: it is what a broken transfer leaves.
pub(crate) fn at<T>(place: &str, result: io::Result<T>) -> Result<T, Error> {
    result.map_err(|error| {
        let place = place.to_owned();
        match error.kind() {
            io::ErrorKind::UnexpectedEof => Error::CutOff { place },
            _ => Error::Io { place, error },
        }
    })
}

pub(crate) fn damaged<T>(place: impl Into<String>, why: impl Into<String>) -> Result<T, Error> {
    Err(Error::Damaged {
        place: place.into(),
        why: why.into(),
    })
}

pub(crate) fn unsupported<T>(place: impl Into<String>, why: impl Into<String>) -> Result<T, Error> {
    Err(Error::Unsupported {
        place: place.into(),
        why: why.into(),
    })
}
