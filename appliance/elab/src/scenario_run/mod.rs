//! Scenarios on real labs: one run in a process of its own, several runs beside or after one another, and where their
//! results lie.

mod adapter;
pub mod arms;
pub mod bisect;
mod disks;
pub mod many;
pub mod merge;
pub mod one;
pub mod origin;
pub mod results;
pub mod shard;

pub use adapter::ScenarioLab;
