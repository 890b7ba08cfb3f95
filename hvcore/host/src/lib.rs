//! A hypervisor host without its hardware.

#![no_std]
#![forbid(unsafe_code)]

pub mod platform;
