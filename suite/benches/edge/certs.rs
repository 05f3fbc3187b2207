//! The files that Envoy and nginx need to be at the place of the edge: its name towards services, and a public one.

use std::{fs, path::Path};

use rcgen::{CertificateParams, Issuer, KeyPair, SanType};

/// Writes `client.pem`, `client.key`, `public.pem` and `public.key` into `folder`, signed by the CA in `ca`.
pub(crate) fn write(ca: &Path, folder: &Path) {
    let bundle = fs::read_to_string(ca.join("ca-with-key.pem")).unwrap();
    let key = KeyPair::from_pem(&bundle[bundle.find("-----BEGIN PRIVATE").unwrap()..]).unwrap();
    let authority = fs::read_to_string(ca.join("ca.pem")).unwrap();
    let issuer = Issuer::from_ca_cert_pem(&authority, key).unwrap();
    let edge = SanType::URI("spiffe://tollgate/svc/edge-proxy".try_into().unwrap());
    let localhost = SanType::DnsName("localhost".try_into().unwrap());
    for (file, name) in [("client", edge), ("public", localhost)] {
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![name];
        let key = KeyPair::generate().unwrap();
        let cert = params.signed_by(&key, &issuer).unwrap();
        fs::write(folder.join(format!("{file}.pem")), cert.pem()).unwrap();
        fs::write(folder.join(format!("{file}.key")), key.serialize_pem()).unwrap();
    }
}
