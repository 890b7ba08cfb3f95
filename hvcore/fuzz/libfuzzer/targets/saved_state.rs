//! libFuzzer with [`fuzz::saved_state`].

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::saved_state(data));
