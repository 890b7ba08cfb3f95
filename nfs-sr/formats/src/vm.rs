//! A machine as archives describe it: what every format can say in some way.

use serde::{Deserialize, Serialize};

/// What starts the machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Firmware {
    /// A BIOS.
    #[default]
    Bios,
    /// UEFI.
    Uefi,
}

/// A kernel that is started without firmware.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DirectBoot {
    /// Its file.
    pub kernel: String,
    /// File of its initial RAM disk.
    pub initrd: String,
    /// Its command line.
    pub command_line: String,
}

/// A disk.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disk {
    /// Its identity; empty if the format has none.
    pub uuid: String,
    /// Name for people.
    pub name: String,
    /// Bytes.
    pub size: u64,
}

/// A network card.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Nic {
    /// MAC address; empty if a new one is to be made.
    pub mac: String,
    /// Name of the network it is on.
    pub network: String,
    /// What kind of card it is, in the format's words; empty if not said.
    pub model: String,
}

/// A machine.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vm {
    /// Its identity; empty if the format has none.
    pub uuid: String,
    /// Name for people.
    pub name: String,
    /// More for people.
    pub description: String,
    /// It is not run but copied.
    pub template: bool,
    /// It is started when its host is.
    #[serde(default)]
    pub start_on_boot: bool,
    /// Bytes of RAM.
    pub memory: u64,
    /// Number of vCPUs.
    pub vcpus: u32,
    /// Share of CPU time; 256 is usual.
    pub weight: u32,
    /// What starts it.
    pub firmware: Firmware,
    /// Which kernel starts without firmware, if one does.
    pub direct_boot: Option<DirectBoot>,
    /// What its disks hang on, in the format's words; empty if not said.
    pub controller: String,
    /// Its disks, in the order in which it finds them.
    pub disks: Vec<Disk>,
    /// Its network cards.
    pub nics: Vec<Nic>,
}

/// Limits of what is believed of a machine from outside.
const MAX_DISKS: usize = 255;
const MAX_NICS: usize = 64;
const MAX_TEXT: usize = 64 << 10;
/// Largest disk, as the VHDs of a repository have it.
pub const MAX_DISK: u64 = 2040 << 30;

impl Vm {
    /// Whether the description can be one of a machine.
    ///
    /// # Errors
    /// A sentence that names what cannot be.
    pub fn check(&self) -> Result<(), String> {
        if self.name.is_empty() {
            return Err("the machine has no name".into());
        }
        if self.disks.len() > MAX_DISKS || self.nics.len() > MAX_NICS {
            return Err(format!(
                "the machine has {} disks and {} network cards; {MAX_DISKS} and {MAX_NICS} are the most",
                self.disks.len(),
                self.nics.len()
            ));
        }
        if [&self.name, &self.description]
            .into_iter()
            .any(|text| text.len() > MAX_TEXT)
        {
            return Err(format!(
                "name or description have more than {MAX_TEXT} bytes"
            ));
        }
        for disk in &self.disks {
            if disk.size == 0 || disk.size > MAX_DISK {
                return Err(format!(
                    "disk \"{}\" has {} bytes; 1 to {MAX_DISK} are possible",
                    disk.name, disk.size
                ));
            }
        }
        Ok(())
    }
}

/// A piece of a disk, on its way out of an archive. Pieces of a disk come in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece<'a> {
    /// Index of the disk in [`Vm::disks`].
    pub disk: usize,
    /// First byte on the disk.
    pub offset: u64,
    /// What is there.
    pub data: &'a [u8],
}

/// An archive that is read, from its start to its end.
pub trait Archive {
    /// The machine.
    fn vm(&self) -> &Vm;

    /// The next piece of a disk, verified; none after the last one, when everything in the archive has been verified.
    ///
    /// # Errors
    /// When the archive cannot be read or is damaged. What was given before is then worth nothing either.
    fn next_piece(&mut self) -> Result<Option<Piece<'_>>, crate::Error>;
}
