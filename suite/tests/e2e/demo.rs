//! `tollgate demo` tells its story, and says so with its exit code when it cannot.

use std::process::Output;

use tokio::process::Command;

use crate::support::TestSuite;

async fn demo(url: &str, ca: &std::path::Path, more: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tollgate"));
    command.args(["demo", "--url", url, "--ca"]).arg(ca).args(more);
    command.output().await.unwrap()
}

async fn tells_the_story(suite: TestSuite) {
    let told = demo(suite.suite.edge_url(), suite.suite.ca_file(), &[]).await;
    let (out, problem) = (String::from_utf8_lossy(&told.stdout), String::from_utf8_lossy(&told.stderr));
    assert!(told.status.success(), "{out}{problem}");
    for part in
        ["sign up", "connection.ack", "api.deployed", "DEPLOYED", "gRPC-Web", "native gRPC", "UNDEPLOYED"]
    {
        assert!(out.contains(part), "{part} is missing in:\n{out}");
    }
    suite.suite.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_demo_tells_its_story_on_sqlite_and_again() {
    let suite = TestSuite::start().await;
    // With a document of its own first: JSON, OpenAPI 3.0.
    let document = suite.folder.path().join("own.json");
    std::fs::write(
        &document,
        r#"{"openapi": "3.0.3", "info": {"title": "Own", "version": "2"},
            "paths": {"/a": {"get": {"responses": {}}, "post": {"responses": {}}}}}"#,
    )
    .unwrap();
    let file = ["--openapi", document.to_str().unwrap()];
    let told = demo(suite.suite.edge_url(), suite.suite.ca_file(), &file).await;
    let (out, problem) = (String::from_utf8_lossy(&told.stdout), String::from_utf8_lossy(&told.stderr));
    assert!(told.status.success() && out.contains("2 operations of 2"), "{out}{problem}");
    tells_the_story(suite).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_demo_tells_its_story_on_postgresql() {
    tells_the_story(TestSuite::on_postgres().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_story_that_goes_wrong_ends_with_the_problem() {
    let suite = TestSuite::start().await;
    let account = suite.account().await;
    // The e-mail address is taken: the second step fails.
    let more = ["--email", account.email.as_str()];
    let told = demo(suite.suite.edge_url(), suite.suite.ca_file(), &more).await;
    let problem = String::from_utf8_lossy(&told.stderr);
    assert_eq!(told.status.code(), Some(1), "{problem}");
    assert!(problem.contains("/api/v1/auth/signup: expected 201, got 409"), "{problem}");
    suite.suite.shutdown().await;

    let folder = tempfile::tempdir().unwrap();
    let told = demo("https://localhost:1", &folder.path().join("none.pem"), &[]).await;
    assert_eq!(told.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&told.stderr).contains("none.pem"));
}
