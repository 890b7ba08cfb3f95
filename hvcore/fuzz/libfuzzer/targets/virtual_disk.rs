//! libFuzzer with [`fuzz::virtual_disk`].

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::virtual_disk(data));
