//! The house's invariants that no compiler checks.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

/// Every crate and what it may depend on among ours.
const ARROWS: &[(&str, &[&str])] = &[
    ("proto", &[]),
    ("service-kit", &["proto"]),
    ("auth-service", &["proto", "service-kit"]),
    ("project-service", &["proto", "service-kit"]),
    ("gateway-service", &["proto", "service-kit"]),
    ("edge-proxy", &["proto", "service-kit"]),
    ("suite", &["proto", "service-kit", "auth-service", "project-service", "gateway-service", "edge-proxy"]),
];

/// The crates that are a service of their own.
const SERVICES: &[&str] = &["auth-service", "project-service", "gateway-service", "edge-proxy"];

/// The longest file.
const MAX_LINES: usize = 500;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn manifest(name: &str) -> toml::Table {
    read(&root().join(name).join("Cargo.toml")).parse().unwrap()
}

/// Files below `folder` with this extension, without what builds leave behind.
fn files(folder: &Path, extensions: &[&str]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![folder.to_owned()];
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display())) {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            if path.is_dir() {
                if !matches!(name.as_str(), "target" | ".git" | "data" | "node_modules" | "corpus") {
                    open.push(path);
                }
            } else if extensions.iter().any(|extension| name.ends_with(extension)) {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

fn relative(path: &Path) -> String {
    path.strip_prefix(root()).unwrap().display().to_string()
}

/// The code of a file without comments and without its tests.
fn code(text: &str) -> String {
    let code = text.split("#[cfg(test)]").next().unwrap_or_default();
    code.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
}

fn assert_none(what: &str, found: &[String]) {
    assert!(found.is_empty(), "{what}:\n  {}", found.join("\n  "));
}

#[test]
fn the_arrows_between_crates_are_the_ones_in_the_design() {
    let workspace: toml::Table = read(&root().join("Cargo.toml")).parse().unwrap();
    let members: BTreeSet<&str> = workspace["workspace"]["members"]
        .as_array()
        .unwrap()
        .iter()
        .map(|name| name.as_str().unwrap())
        .collect();
    assert_eq!(members, ARROWS.iter().map(|(name, _)| *name).collect(), "a crate is not in this test");
    for (name, allowed) in ARROWS {
        let manifest = manifest(name);
        for section in ["dependencies", "dev-dependencies", "build-dependencies"] {
            let Some(dependencies) = manifest.get(section).and_then(|section| section.as_table()) else {
                continue;
            };
            let ours = dependencies.keys().filter(|key| members.contains(key.as_str()) && key != name);
            for dependency in ours {
                assert!(allowed.contains(&dependency.as_str()), "{name} must not depend on {dependency}");
            }
        }
    }
}

#[test]
fn every_crate_has_the_lints_and_no_version_of_its_own() {
    for (name, _) in ARROWS {
        let manifest = manifest(name);
        assert_eq!(manifest["lints"]["workspace"].as_bool(), Some(true), "{name}");
        for section in ["dependencies", "dev-dependencies", "build-dependencies"] {
            let Some(dependencies) = manifest.get(section).and_then(|section| section.as_table()) else {
                continue;
            };
            for (dependency, value) in dependencies {
                let shared = value.get("workspace").and_then(toml::Value::as_bool) == Some(true);
                assert!(shared, "{name}: {dependency} must come from [workspace.dependencies]");
            }
        }
    }
}

#[test]
fn every_dependency_says_what_it_is_for() {
    let text = read(&root().join("Cargo.toml"));
    let section = text.split("[workspace.dependencies]").nth(1).unwrap().split("\n[").next().unwrap();
    let silent: Vec<String> = section
        .lines()
        .filter(|line| line.contains(" = ") && !line.trim_start().starts_with('#'))
        .filter(|line| !line.contains("path = ") && !line.contains(" # "))
        .map(str::to_owned)
        .collect();
    assert_none("dependencies without a comment", &silent);
}

#[test]
fn sql_stays_in_stores_and_tonic_in_the_grpc_layer() {
    let mut found = Vec::new();
    for service in SERVICES {
        let src = root().join(service).join("src");
        for file in files(&src, &[".rs"]) {
            let inside = file.strip_prefix(&src).unwrap().display().to_string();
            let code = code(&read(&file));
            let in_store = inside.starts_with("store");
            // The one call that hands the migrations over.
            let code_of_sql = code.replace("sqlx::migrate!", "");
            if code_of_sql.contains("sqlx::") && !in_store {
                found.push(format!("{}: sqlx outside store/", relative(&file)));
            }
            let in_domain = inside.starts_with("domain");
            if code.contains("tonic::") && (in_domain || in_store) {
                found.push(format!(
                    "{}: tonic in {}",
                    relative(&file),
                    if in_store { "store/" } else { "domain/" }
                ));
            }
        }
    }
    let edge = manifest("edge-proxy");
    assert!(!edge["dependencies"].as_table().unwrap().contains_key("sqlx"), "the edge has no database");
    let suite = manifest("suite");
    assert!(!suite["dependencies"].as_table().unwrap().contains_key("sqlx"), "the suite has no database");
    assert_none("layers that know too much", &found);
}

#[test]
fn tonic_appears_where_grpc_is_spoken() {
    // Besides grpc/: where a service is put together, and what calls or serves other services.
    let allowed: BTreeMap<&str, &[&str]> = BTreeMap::from([
        ("auth-service", ["grpc", "lib.rs"].as_slice()),
        ("project-service", ["grpc", "lib.rs"].as_slice()),
        ("gateway-service", ["grpc", "lib.rs"].as_slice()),
    ]);
    let mut found = Vec::new();
    for (service, allowed) in allowed {
        let src = root().join(service).join("src");
        for file in files(&src, &[".rs"]) {
            let inside = file.strip_prefix(&src).unwrap().display().to_string();
            let speaks = code(&read(&file)).contains("tonic::");
            if speaks && !allowed.iter().any(|place| inside.starts_with(place)) {
                found.push(relative(&file));
            }
        }
    }
    assert_none("tonic outside grpc/", &found);
}

#[test]
fn files_are_short() {
    let long: Vec<String> = ARROWS
        .iter()
        .flat_map(|(name, _)| files(&root().join(name), &[".rs", ".proto", ".sql"]))
        .filter_map(|file| {
            let lines = read(&file).lines().count();
            (lines > MAX_LINES).then(|| format!("{}: {lines} lines", relative(&file)))
        })
        .collect();
    assert_none("files over 500 lines", &long);
}

#[test]
fn mains_are_tiny_and_services_have_the_same_files() {
    for name in SERVICES.iter().chain(["suite"].iter()) {
        let main = read(&root().join(name).join("src/main.rs"));
        assert!(main.lines().count() <= 25, "{name}/src/main.rs is longer than 25 lines");
    }
    for name in SERVICES {
        assert!(root().join(name).join("config.default.toml").exists(), "{name} has no config.default.toml");
        assert!(root().join(name).join("src/lib.rs").exists());
    }
    for name in ["auth-service", "project-service", "gateway-service"] {
        let first = files(&root().join(name).join("migrations"), &[".sql"]);
        assert!(first.iter().any(|file| relative(file).contains("/0001_")), "{name} has no first migration");
    }
}

#[test]
fn every_module_says_what_it_owns() {
    let mut silent = Vec::new();
    for (name, _) in ARROWS {
        for file in files(&root().join(name).join("src"), &[".rs"]) {
            let head = read(&file);
            let is_tests = file.file_name().is_some_and(|name| name == "tests.rs");
            if !is_tests && !head.starts_with("//!") {
                silent.push(relative(&file));
            }
        }
    }
    assert_none("modules without a head", &silent);
}

#[test]
fn no_path_of_one_machine_is_in_the_tree() {
    // Put together here, so that this file does not name them.
    let words = [["/ro", "ot/"], ["/ho", "me/"], ["/Us", "ers/"], ["/work/", "main"], ["/work/", "shared"]];
    let words: Vec<String> = words.iter().map(|parts| parts.concat()).collect();
    let kinds =
        [".rs", ".toml", ".md", ".yaml", ".yml", ".proto", ".sql", ".sh", "Makefile", "Dockerfile", ".json"];
    let found: Vec<String> = files(&root(), &kinds)
        .into_iter()
        .filter_map(|file| {
            let text = fs::read_to_string(&file).ok()?;
            let word = words.iter().find(|word| text.contains(word.as_str()))?;
            Some(format!("{}: {word}", relative(&file)))
        })
        .collect();
    assert_none("paths of a developer's machine", &found);
}

#[test]
fn every_reason_is_explained() {
    let explained = read(&root().join("docs/errors.md"));
    let mut unknown = BTreeSet::new();
    let mut known = 0;
    for name in SERVICES.iter().chain(["service-kit"].iter()) {
        for file in files(&root().join(name).join("src"), &[".rs"]) {
            let code = code(&read(&file));
            let calls = code.split("Error::new(").skip(1).chain(code.split("Refusal::http(").skip(1));
            // `Kind::NotFound, "REASON", …`: what stands between the first quotes of the call.
            for call in calls.filter_map(|call| call.split_once('"')) {
                let reason = call.1.split('"').next().unwrap_or_default();
                if call.0.contains(';') || reason.bytes().any(|b| b.is_ascii_lowercase() || b == b' ') {
                    continue;
                }
                known += 1;
                if !explained.contains(&format!("`{reason}`")) {
                    unknown.insert(format!("{}: {reason}", relative(&file)));
                }
            }
        }
    }
    assert!(known > 30, "reasons are no longer found");
    assert_none("reasons that docs/errors.md does not explain", &unknown.into_iter().collect::<Vec<_>>());
}

#[test]
fn the_layers_of_the_edge_are_listed_in_their_order() {
    let stack = read(&root().join("edge-proxy/src/stack.rs"));
    let (_, stack) = stack.split_once("async fn answer").expect("the stack is a function");
    // In the order in which a request meets them; a layer that it does not meet is none.
    let layers = std::fs::read_dir(root().join("edge-proxy/src/layers")).unwrap();
    let mut built: Vec<(usize, String)> = layers
        .filter_map(|file| Some(file.unwrap().file_name().to_str()?.strip_suffix(".rs")?.to_owned()))
        .map(|layer| (stack.find(&format!("{layer}::")).expect("a layer that nobody passes"), layer))
        .collect();
    built.sort();
    let built: Vec<&str> = built.iter().map(|(_, layer)| layer.as_str()).collect();
    let document = read(&root().join("docs/edge-layers.md"));
    let told: Vec<&str> = document
        .lines()
        .filter(|line| {
            line.strip_prefix("| ").is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
        })
        .filter_map(|line| line.split('`').nth(1))
        .collect();
    assert!(built.len() > 5, "the layers are no longer found");
    assert_eq!(told, built, "docs/edge-layers.md and edge-proxy/src/stack.rs");
}

#[test]
fn services_have_the_tables_that_the_kit_expects() {
    let holds = |folder: &Path, wanted: &str| {
        files(folder, &[".sql"]).iter().any(|file| read(file).contains(wanted.trim()))
    };
    for name in ["auth-service", "project-service", "gateway-service"] {
        let migrations = root().join(name).join("migrations");
        assert!(
            holds(&migrations, service_kit::outbox::SCHEMA),
            "{name}: other than service_kit::outbox::SCHEMA"
        );
        assert!(
            holds(&migrations, service_kit::idempotency::SCHEMA),
            "{name}: other than service_kit::idempotency::SCHEMA"
        );
    }
    // The kit's own tests run on the same tables.
    let own = root().join("service-kit/tests/migrations");
    assert!(holds(&own, service_kit::outbox::SCHEMA) && holds(&own, service_kit::idempotency::SCHEMA));
}

/// The names of the tests in a file: functions with a test's attribute, and those of proptest.
fn tests_in(text: &str) -> BTreeSet<&str> {
    let mut found = BTreeSet::new();
    let (mut is_test, mut is_proptest) = (false, false);
    for line in text.lines() {
        let line = line.trim();
        is_proptest |= line.starts_with("proptest!");
        is_test |= line.starts_with("#[test]") || line.starts_with("#[tokio::test");
        let declared = line.strip_prefix("async ").unwrap_or(line).strip_prefix("fn ");
        if let Some(name) = declared.and_then(|rest| rest.split('(').next())
            && (std::mem::take(&mut is_test) || is_proptest)
        {
            found.insert(name);
        }
    }
    found
}

#[test]
fn the_tests_that_the_standards_name_are_there() {
    let mut known: BTreeSet<String> = BTreeSet::new();
    for file in ARROWS.iter().flat_map(|(name, _)| files(&root().join(name), &[".rs"])) {
        let text = read(&file);
        // `fields/tests.rs` holds those of `fields`.
        let named = if file.ends_with("tests.rs") { file.parent().unwrap() } else { &file };
        let stem = named.file_stem().unwrap().to_string_lossy();
        known.extend(tests_in(&text).into_iter().map(|test| format!("{stem}::{test}")));
    }
    let document = read(&root().join("docs/conformance.md"));
    let quoted: Vec<&str> = document.split('`').skip(1).step_by(2).collect();
    let is_word =
        |text: &str| text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
    let named = quoted.iter().filter(|text| {
        text.split_once("::")
            .is_some_and(|(file, test)| is_word(file) && is_word(test) && **text != "module::test")
    });
    let named: BTreeSet<&str> = named.copied().collect();
    assert!(named.len() > 150, "tests are no longer found in the document: {}", named.len());
    let gone: Vec<String> =
        named.iter().filter(|name| !known.contains(**name)).map(|name| (*name).to_owned()).collect();
    assert_none("tests that docs/conformance.md names and nobody has", &gone);
    let scripts = quoted.iter().filter(|text| text.starts_with("conformance/"));
    let gone: Vec<String> =
        scripts.filter(|path| !root().join(path).exists()).map(|path| (*path).to_owned()).collect();
    assert_none("scripts that docs/conformance.md names and nobody has", &gone);
}
