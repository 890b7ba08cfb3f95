//! libFuzzer with [`fuzz::instruction`].

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::instruction(data));
