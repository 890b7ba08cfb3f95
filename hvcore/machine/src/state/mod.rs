//! What of a machine travels to another host: sections with kind and version.

use alloc::{string::String, vec::Vec};

use serde::{Deserialize, Serialize};

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
    /// The state belongs to a machine of another configuration.
    #[error("saved state does not fit this machine: {0}")]
    Mismatch(String),
}
