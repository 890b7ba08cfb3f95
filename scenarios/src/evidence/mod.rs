//! What a run leaves behind, and what is made of it: recordings of sessions, captures, the machine's fingerprint.

pub mod cast;
pub mod fingerprint;
