//! The host's networks: TCP/IP for itself on two of them, a bridge for its guests on the third.

pub(crate) mod announce;
pub(crate) mod bridge;
pub(crate) mod stack;
