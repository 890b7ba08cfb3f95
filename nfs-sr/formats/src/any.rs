//! Telling formats apart by their first bytes.

use std::io::{BufRead, BufReader};

use crate::{
    compress,
    error::{Error, at, damaged},
    ova,
    vm::Archive,
    xva,
};

/// Format of an image of a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Image {
    /// Sparse VMDK.
    Vmdk,
    /// qcow2.
    Qcow2,
    /// Dynamic or differencing VHD; fixed ones begin like raw images.
    Vhd,
}

/// What an image begins with, if it is not raw.
#[must_use]
pub fn image(first: &[u8]) -> Option<Image> {
    match first {
        [b'K', b'D', b'M', b'V', ..] => Some(Image::Vmdk),
        [b'Q', b'F', b'I', 0xfb, ..] => Some(Image::Qcow2),
        _ if first.starts_with(b"conectix") => Some(Image::Vhd),
        _ => None,
    }
}

/// Whether something begins like an archive, compressed or not.
#[must_use]
pub fn is_archive(first: &[u8]) -> bool {
    matches!(first, [0x1f, 0x8b, ..] | [0x28, 0xb5, 0x2f, 0xfd, ..])
        || first.starts_with(b"ova.xml\0")
        || first_name(first).is_some_and(|name| name.ends_with(".ovf"))
}

/// The name in a tar archive's first header.
fn first_name(block: &[u8]) -> Option<&str> {
    let name = block.get(..100)?;
    let end = name.iter().position(|byte| *byte == 0)?;
    std::str::from_utf8(&name[..end]).ok()
}

/// Opens an archive of a machine, XVA or OVA, compressed or not.
///
/// # Errors
/// When it is neither, or its description is damaged.
pub fn archive<'a>(input: impl BufRead + 'a) -> Result<Box<dyn Archive + 'a>, Error> {
    let place = "the archive";
    let mut input = BufReader::with_capacity(crate::UNIT, at(place, compress::reader(input))?);
    let first = at(place, input.fill_buf())?;
    let name = first_name(first).unwrap_or_default().to_owned();
    match name.as_str() {
        "ova.xml" => Ok(Box::new(xva::Reader::new(input)?)),
        name if name.ends_with(".ovf") => Ok(Box::new(ova::Reader::new(input)?)),
        "" => damaged(place, "it is neither XVA nor OVA"),
        name => damaged(
            place,
            format!("it begins with {name:?}; an XVA begins with ova.xml, an OVA with an .ovf"),
        ),
    }
}
