//! The verifier of access tokens on any text.
#![no_main]

use libfuzzer_sys::fuzz_target;
use service_kit::testing::properties::Tokens;

fuzz_target!(|text: &str| Tokens::shared().presented(text));
