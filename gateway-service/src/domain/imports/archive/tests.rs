use std::io::{Cursor, Write as _};

use serde_json::{Value, json};
use zip::{ZipWriter, write::SimpleFileOptions};

use super::{Entry, MAX_JSON, read};

fn zipped(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    for (name, data) in files {
        zip.start_file(*name, SimpleFileOptions::default()).unwrap();
        zip.write_all(data).unwrap();
    }
    zip.finish().unwrap().into_inner()
}

fn json_zip(json: &Value) -> Vec<u8> {
    zipped(&[("artifacts.json", json.to_string().as_bytes())])
}

fn entry(dpid: &str) -> Value {
    json!({
        "dpid": dpid,
        "configuration": {"kind": "RestApi"},
        "status": "deployed",
        "createdAt": "2026-08-22T10:00:00Z",
        "updatedAt": "2026-08-22T11:00:00Z",
        "deployedAt": "2026-08-22T12:00:00.123456789Z",
        "properties": {"deploymentRevision": 1}
    })
}

fn one(entry: Value) -> Result<super::Handed, String> {
    read(&json_zip(&json!([entry])), Some(1)).unwrap().remove(0).handed
}

#[test]
fn entries_are_read_as_gateways_write_them() {
    let mut second = entry("b");
    second["status"] = json!("UNDEPLOYED");
    second["deployedAt"] = Value::Null;
    let entries = read(&json_zip(&json!([entry("a"), second])), None).unwrap();
    let [Entry { dpid, handed: Ok(first) }, Entry { handed: Ok(second), .. }] = entries.as_slice() else {
        panic!("{entries:?}");
    };
    assert_eq!((dpid.as_str(), first.dpid.as_str()), ("a", "a"));
    assert_eq!((first.configuration.as_str(), first.deployed), (r#"{"kind":"RestApi"}"#, true));
    assert_eq!((first.deployed_at, second.deployed_at), (1_787_400_000_123, 1_787_396_400_000));
    assert!(!second.deployed);
    let mut unknown = entry("a");
    unknown["deployedAt"] = json!("0001-01-01T00:00:00Z");
    assert_eq!(one(unknown).unwrap().deployed_at, 1_787_396_400_000);
    assert_eq!(read(&json_zip(&json!([])), Some(0)).unwrap(), []);
}

#[test]
fn a_bad_entry_says_why_and_is_alone() {
    let cases = [
        ("configuration", Value::Null, "configuration is required"),
        ("configuration", json!("x".repeat(1024 * 1024)), "configuration must have at most 1 MiB"),
        ("status", json!("odd"), "status must be deployed"),
        ("status", Value::Null, "status must be deployed"),
        ("deployedAt", json!("yesterday"), "deployedAt must be a time"),
    ];
    for (name, value, expected) in cases {
        let mut bad = entry("a");
        bad[name] = value;
        let entries = read(&json_zip(&json!([bad, entry("b")])), Some(2)).unwrap();
        assert!(entries[0].handed.as_ref().unwrap_err().starts_with(expected), "{:?}", entries[0]);
        assert!(entries[1].handed.is_ok());
    }
    let mut timeless = entry("a");
    for name in ["createdAt", "updatedAt", "deployedAt"] {
        timeless[name] = json!("0001-01-01T00:00:00Z");
    }
    assert_eq!(one(timeless).unwrap_err(), "deployedAt is required");
}

#[test]
fn what_stands_in_the_way_of_all_is_named() {
    let rule = |zip: &[u8], total| {
        let error = read(zip, total).unwrap_err();
        let violation = &error.violations()[0];
        format!("{} {}", violation.field, violation.message)
    };
    let good = json_zip(&json!([entry("a")]));
    assert!(rule(b"", None).starts_with("artifacts must be a zip"));
    assert!(rule(&good[..good.len() / 2], None).starts_with("artifacts must be a zip"));
    assert_eq!(rule(&zipped(&[("other.json", b"[]")]), None), "artifacts must hold artifacts.json");
    let files: Vec<(String, &[u8])> = (0..1_001).map(|n| (format!("{n}"), &b""[..])).collect();
    let files: Vec<(&str, &[u8])> = files.iter().map(|(name, data)| (name.as_str(), *data)).collect();
    assert!(rule(&zipped(&files), None).ends_with("not a thousand files"));
    for bad in [json!({}), json!(7), json!("x"), json!([[1], 2])] {
        assert!(rule(&json_zip(&bad), None).starts_with("artifacts"), "{bad}");
    }
    assert!(rule(&zipped(&[("artifacts.json", b"[] x")]), None).contains("artifacts.json that can be read"));
    let many = vec![json!(0); 10_001];
    assert!(rule(&json_zip(&json!(many)), None).contains("more than 10000 artifacts"));
    assert_eq!(rule(&good, Some(2)), "total must be the number of artifacts: it is 2, and they are 1");
    assert_eq!(rule(&json_zip(&json!([{"status": "deployed"}])), None), "artifacts[0].dpid is required");
    let twice = json!([entry("a"), entry("b"), entry("a")]);
    assert_eq!(rule(&json_zip(&twice), None), "artifacts[2].dpid must not be there twice");
    assert_eq!(
        rule(&json_zip(&json!([entry("a\n")])), None),
        "artifacts[0].dpid must not contain control characters"
    );
}

#[test]
fn a_bomb_does_not_go_off() {
    // 100 MiB of spaces are 100 KiB packed.
    let mut bomb = zipped(&[("artifacts.json", &vec![b' '; MAX_JSON + 36 * 1024 * 1024])]);
    let refused = |zip: &[u8]| read(zip, None).unwrap_err().violations()[0].message.clone();
    assert_eq!(refused(&bomb), "must hold an artifacts.json of at most 64 MiB");
    // The directory lies about the size: what comes out is counted.
    let at = bomb.windows(4).position(|bytes| bytes == super::DIRECTORY_ENTRY).unwrap();
    bomb[at + 24..at + 28].copy_from_slice(&2_u32.to_le_bytes());
    let lie = refused(&bomb);
    assert!(
        lie == "must hold an artifacts.json of at most 64 MiB" || lie.starts_with("must be a zip"),
        "{lie}"
    );
}
