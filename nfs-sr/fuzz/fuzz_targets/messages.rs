//! Fuzzes the target `messages` of `server/tests/fuzz`.

#![no_main]

#[allow(dead_code, reason = "one target of several")]
#[path = "../../server/tests/fuzz/targets.rs"]
mod targets;

libfuzzer_sys::fuzz_target!(|input: &[u8]| targets::messages(input));
