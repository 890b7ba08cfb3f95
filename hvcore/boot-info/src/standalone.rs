//! The command line of a host that stands alone: no pool, no network, guests from boot modules.
//!
//! ```text
//! guest [memory=MiB] [vcpus=N] [audit=both|hardware|software] [moves=MS] [-- words of the guest's own command line] [guest ...]
//! ```
//!
//! All guests boot the same kernel. An empty command line is one guest with the default values.

use alloc::{
    string::{String, ToString},
    vec::Vec,
};
use core::ops::RangeInclusive;

use thiserror::Error;

/// A guest's memory in MiB unless told.
const MEMORY_DEFAULT: u64 = 256;
const MEMORY_RANGE: RangeInclusive<u64> = 4..=64 * 1024;
const VCPU_RANGE: RangeInclusive<usize> = 1..=16;

/// Which dirty maps an audited guest's harvests take (see `hvcore/image/src/standalone/audit.rs`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Audit {
    /// All there are: nothing may be missed.
    Both,
    /// Only the nested page tables: what devices write must be missed.
    HardwareOnly,
    /// Only the hypervisor's own marks: what the guest writes must be missed.
    SoftwareOnly,
}

/// One guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Guest {
    /// Bytes of RAM.
    pub memory: u64,
    /// Virtual CPUs.
    pub vcpus: usize,
    /// Whether and how its dirty log is audited.
    pub audit: Option<Audit>,
    /// How long it stays in one VM before it is moved to another on the same host.
    pub move_every_ns: Option<u64>,
    /// Its kernel's command line.
    pub command_line: String,
}

/// Why the command line was refused.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum GuestError {
    /// A word that means nothing here.
    #[error(
        "`{0}` does not describe a guest; expected `guest`, `memory=MiB`, `vcpus=N`, `audit=both|hardware|software`, `moves=MS`, or `--` before the guest's own words"
    )]
    UnknownWord(String),
    /// A number that does not parse or is out of range.
    #[error("`{word}`: expected a number from {least} to {most}")]
    BadNumber {
        /// The word.
        word: String,
        /// Smallest value.
        least: u64,
        /// Largest value.
        most: u64,
    },
}

/// Parses the command line.
///
/// # Errors
/// At the first word that is wrong.
pub fn parse(text: &str) -> Result<Vec<Guest>, GuestError> {
    let fresh = || Guest {
        memory: MEMORY_DEFAULT << 20,
        vcpus: 1,
        audit: None,
        move_every_ns: None,
        command_line: String::new(),
    };
    let mut guests: Vec<Guest> = Vec::new();
    let mut own_words = false;
    for word in text.split_whitespace() {
        if word == "guest" {
            guests.push(fresh());
            own_words = false;
            continue;
        }
        let unknown = || GuestError::UnknownWord(word.to_string());
        let guest = guests.last_mut().ok_or_else(unknown)?;
        if own_words {
            if !guest.command_line.is_empty() {
                guest.command_line.push(' ');
            }
            guest.command_line.push_str(word);
        } else if word == "--" {
            own_words = true;
        } else if let Some(value) = word.strip_prefix("memory=") {
            guest.memory = number(word, value, *MEMORY_RANGE.start(), *MEMORY_RANGE.end())? << 20;
        } else if let Some(value) = word.strip_prefix("vcpus=") {
            let (least, most) = (*VCPU_RANGE.start() as u64, *VCPU_RANGE.end() as u64);
            guest.vcpus = number(word, value, least, most)? as usize;
        } else if let Some(value) = word.strip_prefix("moves=") {
            guest.move_every_ns = Some(number(word, value, 1, 60_000)? * 1_000_000);
        } else {
            guest.audit = Some(match word {
                "audit=both" => Audit::Both,
                "audit=hardware" => Audit::HardwareOnly,
                "audit=software" => Audit::SoftwareOnly,
                _ => return Err(unknown()),
            });
        }
    }
    if guests.is_empty() {
        guests.push(fresh());
    }
    Ok(guests)
}

fn number(word: &str, value: &str, least: u64, most: u64) -> Result<u64, GuestError> {
    value
        .parse()
        .ok()
        .filter(|number| (least..=most).contains(number))
        .ok_or_else(|| GuestError::BadNumber {
            word: word.to_string(),
            least,
            most,
        })
}

/// Splits a module that holds a kernel, or a kernel with an initial RAM disk right behind it: QEMU passes
/// only one file to a PVH kernel. A bzImage says how long it is (Linux, x86/boot.rst: `setup_sects` at
/// 0x1f1, `syssize` at 0x1f4 in units of 16 bytes).
#[must_use]
pub fn split_kernel(module: &[u8]) -> (&[u8], Option<&[u8]>) {
    let length = kernel_length(module).unwrap_or(module.len());
    match module.split_at_checked(length) {
        Some((kernel, initrd)) if !initrd.is_empty() => (kernel, Some(initrd)),
        _ => (module, None),
    }
}

/// Bytes of the bzImage at the beginning of `image`, as its header tells; a signature behind it does not
/// count. None when there is no such header.
#[must_use]
pub fn kernel_length(image: &[u8]) -> Option<usize> {
    if image.get(0x202..0x206)? != b"HdrS" {
        return None;
    }
    // 0 stands for 4, as in the oldest kernels.
    let setup_sectors = match *image.get(0x1f1)? {
        0 => 4,
        sectors => usize::from(sectors),
    };
    let paragraphs = u32::from_le_bytes(image.get(0x1f4..0x1f8)?.try_into().ok()?);
    Some((setup_sectors + 1) * 512 + paragraphs as usize * 16)
}

#[cfg(test)]
mod tests {
    use alloc::vec;

    use super::*;

    #[test]
    fn words_after_the_dashes_are_the_guests_own() {
        let guests = parse(
            "guest memory=64 vcpus=2 moves=20 -- console=ttyS0 quiet guest audit=hardware -- a=b",
        )
        .unwrap();
        assert_eq!(
            guests,
            [
                Guest {
                    memory: 64 << 20,
                    vcpus: 2,
                    audit: None,
                    move_every_ns: Some(20_000_000),
                    command_line: "console=ttyS0 quiet".into()
                },
                Guest {
                    memory: 256 << 20,
                    vcpus: 1,
                    audit: Some(Audit::HardwareOnly),
                    move_every_ns: None,
                    command_line: "a=b".into()
                }
            ]
        );
        assert_eq!(parse("").unwrap().len(), 1);
    }

    #[test]
    fn a_wrong_word_is_named() {
        assert_eq!(
            parse("quiet").unwrap_err(),
            GuestError::UnknownWord("quiet".into())
        );
        for word in ["vcpus=0", "moves=0", "vcpus=17", "memory=3", "memory=x"] {
            let GuestError::BadNumber { word: named, .. } =
                parse(&alloc::format!("guest {word}")).unwrap_err()
            else {
                panic!("{word} is a bad number")
            };
            assert_eq!(named, word);
        }
    }

    #[test]
    fn a_module_is_split_where_the_kernel_ends() {
        let mut module = vec![0; 2 * 512 + 3 * 16];
        module[0x1f1] = 1;
        module[0x1f4] = 3;
        module[0x202..0x206].copy_from_slice(b"HdrS");
        assert_eq!(split_kernel(&module), (&module[..], None));
        let kernel = module.clone();
        module.extend(b"initrd");
        assert_eq!(split_kernel(&module), (&kernel[..], Some(&b"initrd"[..])));
        // A header that promises more than there is must not reach past the end.
        module[0x1f4] = 0xff;
        assert_eq!(split_kernel(&module), (&module[..], None));
        assert_eq!(split_kernel(b"short"), (&b"short"[..], None));
    }
}
