//! The host's own memory.

mod heap;
