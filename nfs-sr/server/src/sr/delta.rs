//! What a disk holds that an older state of it did not: so a copy of that state, made while the disk was in use, becomes a copy of the
//! disk in a short time.

use std::collections::BTreeSet;

use vhd::Uuid;

use super::{
    chain::copy_data,
    image::{Image, SrError, at},
    store::Store,
    vdi::file_name,
};

/// Gives `copy`, which holds what the snapshot `since` does, what `disk` has now. `disk` is in use by nobody, and neither is `copy`,
/// which may be in another repository. Gives how many bytes were written.
///
/// # Errors
/// When `since` is no snapshot of `disk`, or the files cannot be read or written. The copy is worth nothing then.
pub fn send<S: Store, T: Store>(
    store: &S,
    (disk, since): (Uuid, Uuid),
    target: &T,
    copy: Uuid,
) -> Result<u64, SrError> {
    let (disk, since, copy) = (file_name(disk), file_name(since), file_name(copy));
    let mut now = Image::open(store, &disk)?;
    let then = Image::open(store, &since)?;
    let known: BTreeSet<&str> = then
        .layers
        .iter()
        .map(|layer| layer.name.as_str())
        .collect();
    let newer = now
        .layers
        .iter()
        .take_while(|layer| !known.contains(layer.name.as_str()));
    let newer = newer.count();
    // Its own file holds nothing: what it shows is all in the files that the disk has too.
    let unwritten = then.layers[0].disk.bat();
    let unwritten = unwritten.is_some_and(|bat| bat.allocated().next().is_none());
    let common = now.layers.get(newer).map(|layer| &layer.name);
    if !unwritten || common.is_none() || common != then.layers.get(1).map(|layer| &layer.name) {
        return Err(SrError::Refused(format!(
            "{since} is no snapshot of {disk}, or was written to; copy all of the disk"
        )));
    }
    let mut image = Image::open(target, &copy)?;
    if image.size() != now.size() {
        return Err(SrError::Refused(format!(
            "{copy} has another size than {disk}"
        )));
    }
    let mut bytes = 0;
    for layer in now.layers[..newer].iter_mut().rev() {
        bytes += copy_data((store, layer), (target, &mut image.layers[0]))?;
    }
    at(&copy, target.sync(&copy))?;
    Ok(bytes)
}
