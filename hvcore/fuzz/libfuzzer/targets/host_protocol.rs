//! libFuzzer with [`fuzz::host_protocol`].

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::host_protocol(data));
