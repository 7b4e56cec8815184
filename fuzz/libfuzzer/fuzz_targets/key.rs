#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| platctrl_fuzz::run("key", input));
