//! Recipes of the images a lab runs: the session guest and the bootable hypervisor image.
//!
//! What is built is kept below a cache folder, so that a second build costs a check of hashes. This crate does not
//! know the lab: it turns packages and sources into files.

#![forbid(unsafe_code)]

pub mod bundle;
pub mod guest;
pub mod hypervisor;
pub mod iso;
pub mod nested;
mod retention;
pub mod standalone;
pub mod tree;
