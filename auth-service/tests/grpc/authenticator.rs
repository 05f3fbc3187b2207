//! An authenticator made of software, with a key of its own, that can also cheat.

use aws_lc_rs::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair as _},
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use proto::{Struct, auth::PasskeyCeremony};
use serde_json::{Value, json};
use service_kit::opaque::random;
use sha2::{Digest as _, Sha256};

/// An authenticator made of software, with one key. Its fields decide how it cheats.
pub(crate) struct Authenticator {
    pair: EcdsaKeyPair,
    pub(crate) credential_id: Vec<u8>,
    pub(crate) origin: String,
    pub(crate) rp_id: String,
    /// What it counts; it stays at zero when it starts there.
    pub(crate) counter: u32,
    /// Whether it verifies its user.
    pub(crate) verifies: bool,
    /// Whether the page is in a frame of another one.
    pub(crate) framed: bool,
    /// What it says of the key: that it is kept with the account.
    pub(crate) discoverable: bool,
    /// Whose key it is.
    pub(crate) handle: Option<Vec<u8>>,
}

impl Authenticator {
    pub(crate) fn new() -> Self {
        Self {
            pair: EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING).unwrap(),
            credential_id: random::<32>().to_vec(),
            origin: "https://localhost:8443".to_owned(),
            rp_id: "localhost".to_owned(),
            counter: 1,
            verifies: true,
            framed: false,
            discoverable: true,
            handle: None,
        }
    }

    /// Makes a key: `navigator.credentials.create`.
    pub(crate) fn create(&mut self, started: &PasskeyCeremony) -> Struct {
        let options = options(started);
        self.handle = Some(bytes(&options["user"]["id"]));
        let id = &self.credential_id;
        let mut data = self.authenticator_data(0x40);
        data.extend([0; 16]);
        data.extend((id.len() as u16).to_be_bytes());
        data.extend(id);
        data.extend(self.cose_key());
        let mut object = b"\xa3\x63fmt\x64none\x67attStmt\xa0\x68authData\x59".to_vec();
        object.extend((data.len() as u16).to_be_bytes());
        object.extend(data);
        let client = self.client_data("webauthn.create", &options);
        credential(json!({
            "id": text(id), "rawId": text(id), "type": "public-key",
            "response": {
                "attestationObject": text(&object), "clientDataJSON": text(&client), "transports": ["internal"],
            },
            "clientExtensionResults": {"credProps": {"rk": self.discoverable}},
        }))
    }

    /// Answers: `navigator.credentials.get`.
    pub(crate) fn get(&mut self, started: &PasskeyCeremony) -> Struct {
        if self.counter > 0 {
            self.counter += 1;
        }
        let client = self.client_data("webauthn.get", &options(started));
        let data = self.authenticator_data(0);
        let signed = [data.as_slice(), &Sha256::digest(&client)].concat();
        let signature = self.pair.sign(&SystemRandom::new(), &signed).unwrap();
        credential(json!({
            "id": text(&self.credential_id), "rawId": text(&self.credential_id), "type": "public-key",
            "authenticatorAttachment": "platform",
            "response": {
                "authenticatorData": text(&data), "clientDataJSON": text(&client),
                "signature": text(signature.as_ref()), "userHandle": self.handle.as_deref().map(text),
            },
            "clientExtensionResults": {},
        }))
    }

    fn client_data(&self, kind: &str, options: &Value) -> Vec<u8> {
        let client = json!({
            "type": kind, "challenge": options["challenge"], "origin": self.origin, "crossOrigin": self.framed,
        });
        client.to_string().into_bytes()
    }

    fn authenticator_data(&self, flags: u8) -> Vec<u8> {
        let flags = flags | 0x01 | if self.verifies { 0x04 } else { 0 };
        let mut data = Sha256::digest(&self.rp_id).to_vec();
        data.push(flags);
        data.extend(self.counter.to_be_bytes());
        data
    }

    /// The public key as COSE: EC2, ES256, P-256, x, y.
    fn cose_key(&self) -> Vec<u8> {
        let point = self.pair.public_key().as_ref();
        [b"\xa5\x01\x02\x03\x26\x20\x01\x21\x58\x20", &point[1..33], b"\x22\x58\x20", &point[33..65]].concat()
    }
}

/// The options that a browser gets, as JSON.
pub(crate) fn options(started: &PasskeyCeremony) -> Value {
    serde_json::to_value(started.options.as_ref().unwrap()).unwrap()["publicKey"].clone()
}

/// What a browser sends, from JSON.
pub(crate) fn credential(json: Value) -> Struct {
    serde_json::from_value(json).unwrap()
}

pub(crate) fn text(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

fn bytes(text: &Value) -> Vec<u8> {
    URL_SAFE_NO_PAD.decode(text.as_str().unwrap()).unwrap()
}
