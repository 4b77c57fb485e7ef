#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| vogeler::fuzzing::result(data));
