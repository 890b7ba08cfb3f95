//! libFuzzer with [`fuzz::guest`].

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::guest(data));
