//! Keeps the tools away from disks that a host has open.

use std::{io, path::Path};

use super::image::SrError;
use crate::{
    lease,
    node::{self, PRIVATE},
};

/// Who holds the lease of a disk, as far as the server has written it down. Renewals and the passing of time are not
/// written down, so the lease of a host that died is here until it is broken.
pub fn holder(repository: &Path, name: &str) -> Result<Option<String>, SrError> {
    let private = match repository
        .canonicalize()
        .ok()
        .as_deref()
        .and_then(Path::parent)
    {
        Some(export) => export.join(PRIVATE),
        None => return Ok(None),
    };
    let failed = |error: io::Error| SrError::Io {
        name: name.to_owned(),
        error,
    };
    let id = match node::identify(&repository.join(name)) {
        Ok(id) => id,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    let holders = lease::holders(&private).map_err(|error| failed(io::Error::other(error)))?;
    let owner = holders
        .into_iter()
        .find(|(held, _)| *held == id)
        .map(|(_, owner)| owner);
    Ok(owner.map(|owner| String::from_utf8_lossy(&owner).into_owned()))
}

/// Refuses if somebody holds the lease.
pub fn free(repository: &Path, name: &str) -> Result<(), SrError> {
    match holder(repository, name)? {
        None => Ok(()),
        Some(owner) => Err(SrError::Refused(format!(
            "{name} is open at {owner}; stop the VM first, or if that host is gone for good, use 'nfs-sr lease break'"
        ))),
    }
}
