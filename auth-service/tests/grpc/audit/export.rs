//! Signed heads: when they leave, what they look like, and that verifiers elsewhere can use them.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED, UnparsedPublicKey};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use super::{
    chain,
    command::{found, intact, run},
    execute, hex, on_both_stopped,
};
use crate::harness::{Auth, PASSWORD, Setup, login, on_both};

/// The files of heads, oldest first.
fn files(setup: &Setup) -> Vec<PathBuf> {
    let Ok(folder) = fs::read_dir(&setup.config.audit.heads_folder) else { return Vec::new() };
    let mut files: Vec<_> = folder.map(|entry| entry.unwrap().path()).collect();
    files.retain(|file| file.extension().is_some_and(|extension| extension == "jsonl"));
    files.sort();
    files
}

fn lines(setup: &Setup) -> Vec<String> {
    let texts = files(setup).into_iter().map(|file| fs::read_to_string(file).unwrap());
    texts.flat_map(|text| text.lines().map(str::to_owned).collect::<Vec<_>>()).collect()
}

/// Waits until a head of this chain and sequence is in the folder.
async fn exported(setup: &Setup, chain: &str, sequence: i64) {
    let part = format!("{{\"chain\":\"{chain}\",\"sequence\":{sequence},");
    let there = async {
        while !lines(setup).iter().any(|line| line.starts_with(&part)) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), there).await.expect("the head is exported");
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

/// As a verifier does it that knows the promise and not our code.
fn verify_elsewhere(setup: &Setup) {
    let folder = &setup.config.audit.heads_folder;
    let jwk: Value = serde_json::from_slice(&fs::read(folder.join("audit-key.json")).unwrap()).unwrap();
    assert_eq!((&jwk["kty"], &jwk["crv"], &jwk["alg"]), (&"EC".into(), &"P-256".into(), &"ES256".into()));
    let part = |name: &str| URL_SAFE_NO_PAD.decode(jwk[name].as_str().unwrap()).unwrap();
    let point = [vec![4], part("x"), part("y")].concat();
    let key = UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point);
    let mut previous = "0".repeat(64);
    for line in lines(setup) {
        let value: Value = serde_json::from_str(&line).unwrap();
        assert_eq!((&value["kid"], value["previous"].as_str().unwrap()), (&jwk["kid"], previous.as_str()));
        let signed = format!("{}}}", line.split_once(",\"signature\"").unwrap().0);
        let signature = URL_SAFE_NO_PAD.decode(value["signature"].as_str().unwrap()).unwrap();
        key.verify(signed.as_bytes(), &signature).unwrap();
        previous = hex(&Sha256::digest(&line));
    }
}

#[tokio::test]
async fn heads_leave_from_time_to_time_and_at_the_end() {
    on_both(async |auth: Auth| {
        let auth = auth.restart(|config| config.audit.export_every = 1).await;
        let (user, _) = auth.user("jane@example.com").await;
        let name = format!("user:{}", user.id);
        // How many events a sign-up and a login are is not ours to say.
        let written = intact(&auth, &["--chain", &name]).await;
        let written: i64 = written.split(' ').nth(5).unwrap().parse().unwrap();
        exported(&auth, &name, written).await;
        login(&auth.client(), "jane@example.com", PASSWORD).await.unwrap();
        exported(&auth, &name, written + 1).await;

        let folder = auth.config.audit.heads_folder.clone();
        assert_eq!(mode(&folder), 0o700);
        for file in files(&auth) {
            assert_eq!(mode(&file), 0o600);
        }
        let key = auth.config.keys.sealing_key_file.with_file_name("audit-signing.key");
        assert_eq!(mode(&key), 0o600);

        let auth = auth.restart(|config| config.audit.export_every = 3_600).await;
        login(&auth.client(), "jane@example.com", PASSWORD).await.unwrap();
        let auth = auth.restart(|_| {}).await;
        let drained = format!("{{\"chain\":\"{name}\",\"sequence\":{},", written + 2);
        assert!(lines(&auth).iter().any(|line| line.starts_with(&drained)), "{:?}", lines(&auth));
        verify_elsewhere(&auth);
        intact(&auth, &[]).await;
        // Nothing is exported twice that did not change.
        let before = lines(&auth).len();
        let auth = auth.restart(|_| {}).await;
        assert_eq!(lines(&auth).len(), before);
    })
    .await;
}

#[tokio::test]
async fn a_thousand_new_events_do_not_wait() {
    on_both_stopped(async |auth: Setup| {
        // The export of the start.
        execute(&auth, &chain(&auth, "organization:first", &["a"])).await;
        let running = auth.launch().await;
        exported(&auth, "organization:first", 1).await;
        let actions = vec!["a"; 1_000];
        execute(&auth, &chain(&auth, "organization:busy", &actions[1..])).await;
        execute(&auth, &chain(&auth, "organization:calm", &["a"])).await;
        execute(&auth, &chain(&auth, "organization:busy", &actions)[999..]).await;
        exported(&auth, "organization:busy", 1_000).await;
        // Once it is at it, it takes all.
        exported(&auth, "organization:calm", 1).await;
        assert!(intact(&auth, &["--chain", "organization:busy"]).await.contains("1000 events in 1 chains"));
        running.shutdown().await;
    })
    .await;
}

#[tokio::test]
async fn exporters_side_by_side_write_one_series() {
    on_both_stopped(async |auth: Setup| {
        for round in 1..=3 {
            for name in ["organization:a", "organization:b", "organization:c"] {
                let all = chain(&auth, name, &vec!["a"; round]);
                execute(&auth, &all[round - 1..]).await;
            }
            let (one, two, three) = tokio::join!(
                run(&auth, &["audit", "export"]),
                run(&auth, &["audit", "export"]),
                run(&auth, &["audit", "export"]),
            );
            assert_eq!((one.code, two.code, three.code), (0, 0, 0), "{one:?} {two:?} {three:?}");
        }
        // At least one line for each, perhaps the same head more than once; none was lost.
        assert!((9..=27).contains(&lines(&auth).len()));
        for name in ["organization:a", "organization:b", "organization:c"] {
            for sequence in 1..=3 {
                exported(&auth, name, sequence).await;
            }
        }
        verify_elsewhere(&auth);
        intact(&auth, &[]).await;
    })
    .await;
}

/// The instance lives in the year of its clock, the command in ours.
#[tokio::test]
async fn the_series_goes_on_over_days_and_after_a_crash() {
    on_both_stopped(async |auth: Setup| {
        execute(&auth, &chain(&auth, "organization:a", &["a"])).await;
        auth.launch().await.shutdown().await;
        assert!(files(&auth)[0].ends_with("heads-2025-12-17.jsonl"), "{:?}", files(&auth));
        execute(&auth, &chain(&auth, "organization:b", &["a"])).await;
        assert_eq!(run(&auth, &["audit", "export"]).await.code, 0);
        let two = files(&auth);
        assert_eq!((two.len(), lines(&auth).len()), (2, 2), "{two:?}");
        // A clock that is behind adds to the latest file.
        execute(&auth, &chain(&auth, "organization:c", &["a"])).await;
        auth.launch().await.shutdown().await;
        assert_eq!((files(&auth), lines(&auth).len()), (two.clone(), 3));

        // A line that was cut off by a crash, or is being written, is no line.
        let mut text = fs::read_to_string(&two[1]).unwrap();
        text.push_str(&lines(&auth)[2][..50]);
        fs::write(&two[1], text).unwrap();
        intact(&auth, &[]).await;
        execute(&auth, &chain(&auth, "organization:d", &["a"])).await;
        auth.launch().await.shutdown().await;
        assert_eq!(lines(&auth).len(), 4);
        verify_elsewhere(&auth);
        intact(&auth, &[]).await;
        // In the middle of the series it is one that was changed.
        let first = fs::read_to_string(&two[0]).unwrap();
        fs::write(&two[0], &first[..first.len() - 1]).unwrap();
        intact(&auth, &[]).await;
        fs::write(&two[0], &first[..first.len() - 2]).unwrap();
        found(&auth, &[], &["heads-2025-12-17.jsonl:1: it is no signed head"]).await;
    })
    .await;
}

#[tokio::test]
async fn an_older_copy_of_heads_and_a_kept_key_are_enough_elsewhere() {
    on_both_stopped(async |auth: Setup| {
        execute(&auth, &chain(&auth, "organization:a", &["a", "b"])).await;
        assert_eq!(run(&auth, &["audit", "export"]).await.code, 0);
        let folder = auth.config.audit.heads_folder.clone();
        let copy = folder.with_file_name("copy");
        fs::create_dir(&copy).unwrap();
        for file in fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()) {
            fs::copy(&file, copy.join(file.file_name().unwrap())).unwrap();
        }
        let all = chain(&auth, "organization:a", &["a", "b", "c"]);
        execute(&auth, &all[2..]).await;
        assert_eq!(run(&auth, &["audit", "export"]).await.code, 0);

        let (copy, key) = (copy.display().to_string(), copy.join("audit-key.json").display().to_string());
        let elsewhere = ["--heads", &copy, "--key", &key];
        assert!(intact(&auth, &elsewhere).await.contains("3 events in 1 chains, 1 exported heads"));
        let both = [&elsewhere, ["--heads", folder.to_str().unwrap()].as_slice()].concat();
        assert!(intact(&auth, &both).await.contains("3 exported heads"));

        // What cannot be verified is not called intact, and not called changed.
        let missing = format!("{copy}/nothing");
        let not_a_key = format!("{copy}/{}", files(&auth)[0].file_name().unwrap().display());
        for bad in [["--heads", &missing], ["--key", &missing], ["--key", &not_a_key], ["--unknown", "x"]] {
            let ended = run(&auth, &[["audit", "verify"], bad].concat()).await;
            assert_eq!(ended.code, 2, "{bad:?}: {}", ended.text);
        }
        // Rewritten with new heads and all, only the copy knows.
        let mut forged = chain(&auth, "organization:a", &["a", "B"]);
        forged.insert(0, "DELETE FROM audit_events".to_owned());
        forged.push("UPDATE audit_heads SET exported = 0".to_owned());
        execute(&auth, &forged).await;
        for file in files(&auth) {
            fs::remove_file(file).unwrap();
        }
        assert_eq!(run(&auth, &["audit", "export"]).await.code, 0);
        intact(&auth, &[]).await;
        found(&auth, &elsewhere, &["chain organization:a, sequence 2: rewritten"]).await;
    })
    .await;
}
