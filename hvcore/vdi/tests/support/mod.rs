//! What the tests of this crate share: a model of the server, of a host with a network, and of a guest.

pub mod guest;
pub mod host;
pub mod image;
pub mod server;
