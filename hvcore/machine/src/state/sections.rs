//! Sections: kind, version, body.

use alloc::{format, string::String, vec::Vec};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// Longest body: a serial port with all its input, a table of CPUID leaves, a few hundred requests.
const BODY_MAX: usize = 64 * 1024;

/// A piece of saved state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Section {
    /// What it describes.
    pub kind: u16,
    /// Which layout of that kind.
    pub version: u16,
    /// The layout's bytes.
    pub bytes: Vec<u8>,
}

/// Why a saved state was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StateError {
    /// The state is from a newer or a foreign hypervisor.
    #[error(
        "saved state has a section of kind {kind}, version {version}, which this host does not know; update this host"
    )]
    Unknown {
        /// Kind of the section.
        kind: u16,
        /// Version of the section.
        version: u16,
    },
    /// A section cannot be what it claims to be.
    #[error("saved state of the {what} is damaged: {why}")]
    Damaged {
        /// Which part of the machine.
        what: &'static str,
        /// What is wrong.
        why: String,
    },
    /// The state belongs to a machine of another configuration, or needs another processor.
    #[error("saved state does not fit this machine: {0}")]
    Mismatch(String),
}

/// The kinds of section that there are. Numbers are for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Platform = 1,
    Cpuid = 2,
    Processor = 3,
    IoApic = 4,
    Serial = 5,
    Function = 6,
}

impl Kind {
    const ALL: [Self; 6] = [
        Self::Platform,
        Self::Cpuid,
        Self::Processor,
        Self::IoApic,
        Self::Serial,
        Self::Function,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Platform => "platform",
            Self::Cpuid => "CPUID table",
            Self::Processor => "processor",
            Self::IoApic => "I/O APIC",
            Self::Serial => "serial port",
            Self::Function => "PCI function",
        }
    }

    /// The version that is written. There are no older ones yet.
    const fn version(self) -> u16 {
        1
    }
}

/// Encodes a section.
pub(crate) fn section(kind: Kind, body: &impl Serialize) -> Section {
    Section {
        kind: kind as u16,
        version: kind.version(),
        bytes: postcard::to_allocvec(body).expect("saved types have lengths and no maps"),
    }
}

/// Reads sections in the order in which they were written, which is fixed.
pub(crate) struct Reader<'a> {
    sections: core::slice::Iter<'a, Section>,
}

impl<'a> Reader<'a> {
    /// Reads from the start.
    pub(crate) fn new(sections: &'a [Section]) -> Result<Self, StateError> {
        // What this host cannot read is said first: it explains all the rest.
        for section in sections {
            let known = Kind::ALL
                .iter()
                .any(|k| *k as u16 == section.kind && k.version() == section.version);
            if !known {
                return Err(StateError::Unknown {
                    kind: section.kind,
                    version: section.version,
                });
            }
        }
        Ok(Self {
            sections: sections.iter(),
        })
    }

    /// The next section, which must be of this kind.
    pub(crate) fn next<T: DeserializeOwned>(&mut self, kind: Kind) -> Result<T, StateError> {
        let damaged = |why: String| StateError::Damaged {
            what: kind.name(),
            why,
        };
        let section = self
            .sections
            .next()
            .filter(|section| section.kind == kind as u16)
            .ok_or_else(|| StateError::mismatch(format!("a {} is missing", kind.name())))?;
        if section.bytes.len() > BODY_MAX {
            return Err(damaged(format!(
                "{} bytes, and {BODY_MAX} at most are possible",
                section.bytes.len()
            )));
        }
        let (body, rest) =
            postcard::take_from_bytes(&section.bytes).map_err(|e| damaged(format!("{e}")))?;
        if !rest.is_empty() {
            return Err(damaged(format!("{} bytes are left over", rest.len())));
        }
        Ok(body)
    }

    /// All must have been read.
    pub(crate) fn finish(mut self) -> Result<(), StateError> {
        match self.sections.next() {
            None => Ok(()),
            Some(section) => Err(StateError::mismatch(format!(
                "a section of kind {} is left over",
                section.kind
            ))),
        }
    }
}
