//! libFuzzer with [`fuzz::boot_information`].

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::boot_information(data));
