#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| conserver::fuzzing::env_file(data));
