#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| ksnap_fuzz::targets::bucket(data));
