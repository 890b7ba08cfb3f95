//! The guest's machine.

#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod vcpu;
