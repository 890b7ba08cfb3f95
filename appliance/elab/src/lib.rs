//! The lab: hosts in QEMU, a switch with endpoints, a storage server, and the commands that drive them.

pub mod accelerator;
pub mod assembly;
mod bench;
pub mod cli;
pub mod client;
pub mod console;
pub mod control;
pub mod demo;
pub mod doctor;
pub mod downtime;
pub mod endpoint;
pub mod entropy;
pub mod interrupt;
pub mod join;
pub mod journal;
pub mod lab;
pub mod network;
mod priority;
pub mod process;
pub mod qemu;
pub mod run_folder;
pub mod scenario_run;
