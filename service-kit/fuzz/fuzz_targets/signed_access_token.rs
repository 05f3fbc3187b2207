//! The verifier of access tokens on any header and claims with a good signature.
#![no_main]

use libfuzzer_sys::fuzz_target;
use service_kit::testing::properties::Tokens;

fuzz_target!(|parts: (&str, &str)| {
    let (header, claims) = parts;
    Tokens::shared().signed(header, claims);
    Tokens::shared().signed(&service_kit::testing::Signer::header().to_string(), claims);
});
