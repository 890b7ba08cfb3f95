//! New disks, as bytes to be written to an empty file.

use alloc::{string::String, vec, vec::Vec};

use crate::{
    BLOCK, Bat, Batmap, Disk, DiskKind, Error, Footer, Header, Locator, LocatorCode, MAX_SIZE,
    MIN_SIZE, SECTOR, Tables, Uuid, header,
};

/// Space for each path of the parent.
const LOCATOR_SPACE: u32 = 512;

/// The disk from which a differencing disk reads what it does not hold itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parent {
    /// Its identity.
    pub uuid: Uuid,
    /// Its timestamp.
    pub timestamp: u32,
    /// Its file name, in the same directory as the child.
    pub name: String,
}

/// Bytes at an offset of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Where.
    pub at: u64,
    /// What.
    pub bytes: Vec<u8>,
}

/// A disk to be created.
#[derive(Clone, Debug)]
pub struct NewDisk {
    /// Bytes of the virtual disk.
    pub size: u64,
    /// Identity.
    pub uuid: Uuid,
    /// Seconds since 2000.
    pub timestamp: u32,
}

impl NewDisk {
    fn check(&self) -> Result<(), Error> {
        let valid = (MIN_SIZE..=MAX_SIZE).contains(&self.size) && self.size.is_multiple_of(SECTOR);
        valid.then_some(()).ok_or(Error::Size(self.size))
    }

    /// A fixed disk: what to write, and the length that the file gets by it. Data goes to offset 0.
    pub fn fixed(&self) -> Result<(Disk, Vec<Extent>), Error> {
        self.check()?;
        let footer = Footer::new(DiskKind::Fixed, self.size, self.uuid, self.timestamp);
        let extents = vec![Extent {
            at: self.size,
            bytes: footer.encode().into(),
        }];
        Ok((Disk::fixed(footer), extents))
    }

    /// A dynamic disk without data.
    pub fn dynamic(&self) -> Result<(Disk, Vec<Extent>), Error> {
        self.sparse(None)
    }

    /// A differencing disk that holds nothing itself.
    pub fn differencing(&self, parent: &Parent) -> Result<(Disk, Vec<Extent>), Error> {
        self.sparse(Some(parent))
    }

    fn sparse(&self, parent: Option<&Parent>) -> Result<(Disk, Vec<Extent>), Error> {
        self.check()?;
        let kind = if parent.is_some() {
            DiskKind::Differencing
        } else {
            DiskKind::Dynamic
        };
        let footer = Footer::new(kind, self.size, self.uuid, self.timestamp);
        let bat_entries = self.size.div_ceil(BLOCK.into()) as u32;
        let bat_offset = SECTOR + header::LENGTH as u64;
        let batmap_at = bat_offset + Bat::file_size(bat_entries);
        let paths_at = batmap_at + Batmap::file_size(bat_entries);
        let paths = parent.map(|parent| locators(parent, paths_at));
        let (locators, paths) = paths.unwrap_or_default();
        let header = Header {
            bat_offset,
            bat_entries,
            block_size: BLOCK,
            parent: parent.map_or(Uuid::default(), |parent| parent.uuid),
            parent_timestamp: parent.map_or(0, |parent| parent.timestamp),
            parent_name: parent.map_or_else(String::new, |parent| parent.name.clone()),
            locators,
        };
        let bat = Bat::empty(bat_entries);
        let batmap = Batmap::empty(bat_entries);
        let front = Extent {
            at: 0,
            bytes: [
                &footer.encode()[..],
                &header.encode(),
                &bat.encode(),
                &batmap.encode(batmap_at),
                &paths,
            ]
            .concat(),
        };
        let disk = Disk::sparse(
            footer,
            header,
            Tables {
                bat,
                batmap: Some(batmap),
            },
        )?;
        let tail = Extent {
            at: disk.footer_at(),
            bytes: disk.footer().encode().into(),
        };
        Ok((disk, vec![front, tail]))
    }
}

/// The parent's path in the three forms that XenServer writes, and their bytes from `at` on.
fn locators(parent: &Parent, at: u64) -> (Vec<Locator>, Vec<u8>) {
    let forms = [
        LocatorCode::FileUrl,
        LocatorCode::WindowsAbsolute,
        LocatorCode::WindowsRelative,
    ];
    let mut bytes = Vec::new();
    let mut locators = Vec::new();
    for code in forms {
        let mut path = code.path(&parent.name).unwrap_or_default();
        path.truncate(LOCATOR_SPACE as usize);
        locators.push(Locator {
            code,
            space: LOCATOR_SPACE,
            length: path.len() as u32,
            offset: at + bytes.len() as u64,
        });
        path.resize(LOCATOR_SPACE as usize, 0);
        bytes.extend(path);
    }
    (locators, bytes)
}
