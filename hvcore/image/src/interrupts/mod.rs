//! Interrupts: the IDT, and what each vector means.
//!
//! Interrupts are off except in [`wait`], in [`take_pending`] and while a guest runs, so a handler never
//! interrupts anything that holds a lock or is half done. A handler only notes what happened; the main
//! loop acts on it.

mod idt;

pub use idt::init;
