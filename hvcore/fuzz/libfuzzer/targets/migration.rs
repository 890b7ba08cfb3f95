//! libFuzzer with [`fuzz::migration`].

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::migration(data));
