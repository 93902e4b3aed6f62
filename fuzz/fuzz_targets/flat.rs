#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| ksnap_fuzz::small_targets::flat(data));
