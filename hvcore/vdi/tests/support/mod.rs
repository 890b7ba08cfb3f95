//! What the tests of this crate share: a guest that knows what it must read, and the two worlds that it can live in.

pub mod guest;
