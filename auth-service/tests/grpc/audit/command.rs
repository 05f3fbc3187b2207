//! The program as an operator runs it, on what a test's instance runs on.

use secrecy::ExposeSecret as _;
use tokio::process::Command;

use crate::harness::Setup;

/// How a run of the program ended.
#[derive(Debug)]
pub(super) struct Ended {
    pub(super) code: i32,
    /// Both streams.
    pub(super) text: String,
}

/// Runs `auth-service` with these arguments and the settings of an instance.
pub(super) async fn run(auth: &Setup, arguments: &[&str]) -> Ended {
    run_with(auth, arguments, &[]).await
}

/// The same with other settings over them.
pub(super) async fn run_with(auth: &Setup, arguments: &[&str], over: &[&str]) -> Ended {
    let config = &auth.config;
    let settings = [
        ("database.url", config.database.url.expose_secret().to_owned()),
        ("database.schema", config.database.schema.clone()),
        ("tls.dev_ca_dir", config.tls.dev_ca_dir.display().to_string()),
        ("keys.sealing_key_file", config.keys.sealing_key_file.display().to_string()),
        ("audit.heads_folder", config.audit.heads_folder.display().to_string()),
    ];
    let settings = settings.map(|(key, value)| format!("{key}=\"{value}\""));
    let mut command = Command::new(env!("CARGO_BIN_EXE_auth-service"));
    command.args(arguments);
    for setting in settings.iter().map(String::as_str).chain(over.iter().copied()) {
        command.args(["--set", setting]);
    }
    let output = command.output().await.unwrap();
    let text = [output.stdout, output.stderr].concat();
    Ended { code: output.status.code().unwrap(), text: String::from_utf8(text).unwrap() }
}

/// Verifies, and expects that all is well; what the program said.
pub(super) async fn intact(auth: &Setup, arguments: &[&str]) -> String {
    let ended = run(auth, &[["audit", "verify"].as_slice(), arguments].concat()).await;
    assert_eq!(ended.code, 0, "{}", ended.text);
    assert!(ended.text.starts_with("the audit log is intact: "), "{}", ended.text);
    ended.text
}

/// Verifies, and expects one line with all these words.
pub(super) async fn found(auth: &Setup, arguments: &[&str], words: &[&str]) {
    let ended = run(auth, &[["audit", "verify"].as_slice(), arguments].concat()).await;
    assert_eq!((ended.code, ended.text.lines().count()), (1, 1), "{}", ended.text);
    for word in words {
        assert!(ended.text.contains(word), "{word} is not in: {}", ended.text);
    }
}
