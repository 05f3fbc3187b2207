//! Whoever changes the log, or what was exported of it, is noticed.

use std::fs;

use super::{
    chain,
    command::{found, intact, run, run_with},
    execute, on_both_stopped,
};
use crate::harness::Setup;

const X: &str = "organization:x";

/// Three chains that were exported: `organization:x` with six events, and two with two.
async fn exported(auth: &Setup) {
    let mut statements = chain(auth, X, &["a", "b", "c", "d", "e", "f"]);
    statements.extend(chain(auth, "organization:w", &["a", "b"]));
    statements.extend(chain(auth, "system", &["a", "b"]));
    execute(auth, &statements).await;
    let ended = run(auth, &["audit", "export"]).await;
    assert_eq!(ended.code, 0, "{}", ended.text);
    assert!(ended.text.starts_with("3 heads exported"), "{}", ended.text);
}

/// The one file of heads.
fn file(auth: &Setup) -> std::path::PathBuf {
    let folder = fs::read_dir(&auth.config.audit.heads_folder).unwrap();
    let mut files: Vec<_> = folder.map(|entry| entry.unwrap().path()).collect();
    files.retain(|file| file.extension().is_some_and(|extension| extension == "jsonl"));
    assert_eq!(files.len(), 1, "{files:?}");
    files.remove(0)
}

/// Does something to the exported chains of a new database and expects that it is found, and named.
async fn after(tampering: impl AsyncFn(&Setup), words: &[&str]) {
    on_both_stopped(async |auth: Setup| {
        exported(&auth).await;
        assert!(intact(&auth, &[]).await.contains("10 events in 3 chains, 3 exported heads"));
        tampering(&auth).await;
        found(&auth, &[], words).await;
    })
    .await;
}

/// The same with SQL about `organization:x`.
async fn after_sql(statements: &[&str], words: &[&str]) {
    let statements: Vec<String> =
        statements.iter().map(|sql| sql.replace("$x", "chain = 'organization:x'")).collect();
    after(async |auth: &Setup| execute(auth, &statements).await, words).await;
}

#[tokio::test]
async fn an_edited_event_is_found() {
    let sql = "UPDATE audit_events SET body = replace(body, 'u1', 'u2') WHERE $x AND sequence = 3";
    after_sql(&[sql], &["chain organization:x, sequence 3:", "hash mismatch"]).await;
    let sql = "UPDATE audit_events SET at = at + 1 WHERE $x AND sequence = 5";
    after_sql(&[sql], &["chain organization:x, sequence 5:", "time"]).await;
    let sql = "UPDATE audit_events SET body = 'null' WHERE $x AND sequence = 2";
    after_sql(&[sql], &["chain organization:x, sequence 2:", "cannot be read"]).await;
}

#[tokio::test]
async fn a_deleted_event_is_found() {
    let words = ["chain organization:x, sequence 4: missing"];
    after_sql(&["DELETE FROM audit_events WHERE $x AND sequence = 4"], &words).await;
    let words = ["chain organization:x, sequence 1: missing"];
    after_sql(&["DELETE FROM audit_events WHERE $x AND sequence = 1"], &words).await;
    // A gap that was closed again.
    let closed = [
        "DELETE FROM audit_events WHERE $x AND sequence = 4",
        "UPDATE audit_events SET sequence = 4 WHERE $x AND sequence = 5",
        "UPDATE audit_events SET sequence = 5 WHERE $x AND sequence = 6",
        "UPDATE audit_heads SET sequence = 5 WHERE $x",
    ];
    after_sql(&closed, &["chain organization:x, sequence 4:", "another place"]).await;
}

#[tokio::test]
async fn exchanged_events_are_found() {
    let numbers = [
        "UPDATE audit_events SET sequence = 0 WHERE $x AND sequence = 2",
        "UPDATE audit_events SET sequence = 2 WHERE $x AND sequence = 5",
        "UPDATE audit_events SET sequence = 5 WHERE $x AND sequence = 0",
    ];
    after_sql(&numbers, &["chain organization:x, sequence 2:", "another place"]).await;
    // With a body that says the right place and time, only the hash knows.
    let body = "UPDATE audit_events SET
        body = (SELECT replace(body, 'x\",5,', 'x\",2,') FROM audit_events WHERE $x AND sequence = 5),
        at = (SELECT at FROM audit_events WHERE $x AND sequence = 5) WHERE $x AND sequence = 2";
    after_sql(&[body], &["chain organization:x, sequence 2:", "hash mismatch"]).await;
    // An event of another chain.
    let moved = "UPDATE audit_events SET body = (SELECT body FROM audit_events WHERE chain = 'system' AND sequence = 2),
        hash = (SELECT hash FROM audit_events WHERE chain = 'system' AND sequence = 2) WHERE $x AND sequence = 2";
    after_sql(&[moved], &["chain organization:x, sequence 2:", "another place"]).await;
}

#[tokio::test]
async fn an_inserted_event_is_found() {
    let before = "INSERT INTO audit_events (chain, sequence, at, body, hash)
        SELECT chain, 0, at, body, hash FROM audit_events WHERE $x AND sequence = 1";
    after_sql(&[before], &["chain organization:x, sequence 0:", "begin at 1"]).await;
    let behind = "INSERT INTO audit_events (chain, sequence, at, body, hash)
        SELECT chain, 7, at, body, hash FROM audit_events WHERE $x AND sequence = 6";
    after_sql(&[behind], &["chain organization:x, sequence 7:", "the head says 6"]).await;
}

#[tokio::test]
async fn a_truncated_chain_is_found() {
    let last = "DELETE FROM audit_events WHERE $x AND sequence > 4";
    after_sql(&[last], &["chain organization:x, sequence 5: truncated, the head says 6", "last event is 4"])
        .await;
    // With the head put back only the exported one knows.
    let head = "UPDATE audit_heads SET sequence = 4, exported = 0,
        hash = (SELECT hash FROM audit_events WHERE $x AND sequence = 4) WHERE $x";
    after_sql(&[last, head], &["chain organization:x, sequence 5: truncated", ".jsonl:2 says 6"]).await;
    let hash =
        "UPDATE audit_heads SET hash = (SELECT hash FROM audit_events WHERE $x AND sequence = 4) WHERE $x";
    after_sql(&[hash], &["chain organization:x, sequence 6:", "head"]).await;
}

#[tokio::test]
async fn a_deleted_chain_is_found() {
    let (events, heads) = ("DELETE FROM audit_events WHERE $x", "DELETE FROM audit_heads WHERE $x");
    after_sql(&[events, heads], &["chain organization:x: it is gone", ".jsonl:2", "sequence 6"]).await;
    after_sql(&[heads], &["chain organization:x: it has no head", "sequence 6"]).await;
    after_sql(&[events], &["chain organization:x, sequence 1: truncated"]).await;
}

#[tokio::test]
async fn a_rewritten_chain_is_found() {
    let rewrite = async |auth: &Setup| {
        let mut statements = vec![format!("DELETE FROM audit_events WHERE chain = '{X}'")];
        statements.extend(chain(auth, X, &["a", "b", "c", "D", "e", "f"]));
        execute(auth, &statements).await;
    };
    after(rewrite, &["chain organization:x, sequence 6: rewritten", ".jsonl:2"]).await;
    // Longer than before, so that no head hangs in the air.
    let longer = async |auth: &Setup| {
        let mut statements = vec![format!("DELETE FROM audit_events WHERE chain = '{X}'")];
        statements.extend(chain(auth, X, &["a", "b", "c", "d", "e", "F", "g", "h"]));
        execute(auth, &statements).await;
        assert_eq!(run(auth, &["audit", "export"]).await.code, 0);
    };
    after(longer, &["chain organization:x, sequence 6: rewritten"]).await;
}

#[tokio::test]
async fn exported_heads_cannot_be_changed_either() {
    let edit = |change: fn(Vec<String>) -> Vec<String>| {
        async move |auth: &Setup| {
            let lines = fs::read_to_string(file(auth)).unwrap().lines().map(str::to_owned).collect();
            fs::write(file(auth), change(lines).join("\n") + "\n").unwrap();
        }
    };
    let say_less = edit(|mut lines| {
        lines[1] = lines[1].replace("\"sequence\":6", "\"sequence\":5");
        lines
    });
    after(say_less, &[".jsonl:2:", "signature is wrong"]).await;
    let exchange = edit(|mut lines| {
        lines.swap(0, 1);
        lines
    });
    after(exchange, &[".jsonl:1:", "does not follow"]).await;
    let remove = edit(|mut lines| {
        lines.remove(1);
        lines
    });
    after(remove, &[".jsonl:2:", "does not follow"]).await;
    let remove_the_last = edit(|mut lines| {
        lines.pop();
        lines
    });
    after(remove_the_last, &["chain system, sequence 2:", "not in the folder"]).await;
    let garble = edit(|mut lines| {
        lines[2] = "{}".to_owned();
        lines
    });
    after(garble, &[".jsonl:3:", "no signed head"]).await;
    let stuff = edit(|mut lines| {
        lines[0] = "x".repeat(100_000);
        lines
    });
    after(stuff, &[".jsonl:1:", "no signed head"]).await;
    let empty = async |auth: &Setup| fs::remove_dir_all(&auth.config.audit.heads_folder).unwrap();
    after(empty, &["chain organization:w, sequence 2:", "not in the folder"]).await;
}

/// Somebody who owns database and folder makes everything new, with a key of his own.
#[tokio::test]
async fn heads_of_a_foreign_key_are_found() {
    let forge = async |auth: &Setup| {
        let (config, forged) = (&auth.config, auth.config.audit.heads_folder.with_file_name("forged"));
        let mut statements = vec![format!("DELETE FROM audit_events WHERE chain = '{X}'")];
        statements.extend(chain(auth, X, &["harmless"]));
        statements.push("UPDATE audit_heads SET exported = 0".to_owned());
        execute(auth, &statements).await;
        let folder = format!("audit.heads_folder=\"{}\"", forged.display());
        let key = format!("audit.signing_key_file=\"{}\"", forged.with_extension("key").display());
        let ended = run_with(auth, &["audit", "export"], &[&folder, &key]).await;
        assert_eq!(ended.code, 0, "{}", ended.text);
        fs::remove_dir_all(&config.audit.heads_folder).unwrap();
        fs::rename(&forged, &config.audit.heads_folder).unwrap();
    };
    after(forge, &[".jsonl:1:", "foreign key"]).await;
}

#[tokio::test]
async fn one_chain_can_be_verified_alone() {
    on_both_stopped(async |auth: Setup| {
        exported(&auth).await;
        let edit = "UPDATE audit_events SET at = 1 WHERE chain = 'organization:w'";
        execute(&auth, &[edit.to_owned()]).await;
        let said = intact(&auth, &["--chain", X]).await;
        assert!(said.contains("6 events in 1 chains, 1 exported heads"), "{said}");
        found(&auth, &["--chain", "organization:w"], &["organization:w, sequence 1"]).await;
        let unknown = run(&auth, &["audit", "verify", "--chain", "user:nobody"]).await;
        assert_eq!(unknown.code, 2, "{}", unknown.text);
    })
    .await;
}
