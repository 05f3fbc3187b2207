//! The parser of opaque tokens on any text.
#![no_main]

use libfuzzer_sys::fuzz_target;
use service_kit::testing::properties;

fuzz_target!(|text: &str| properties::opaque_token(text));
