//! The OpenAPI document that the story imports.

use std::path::Path;

use anyhow::Context as _;
use bytes::Bytes;
use serde_norway::Value;

/// The methods that are operations on the platform.
const METHODS: [&str; 7] = ["get", "put", "post", "delete", "patch", "head", "options"];

/// An OpenAPI document.
#[derive(Debug, Clone)]
pub(crate) struct Document {
    /// The document as it is.
    pub(crate) text: Bytes,
    /// `application/json` or `application/yaml`.
    pub(crate) media_type: &'static str,
    /// How many operations it describes.
    pub(crate) operations: usize,
    /// Where it comes from, for people.
    pub(crate) source: String,
}

impl Document {
    /// The pet store that comes with the binary.
    pub(crate) fn built_in() -> anyhow::Result<Self> {
        let text = include_str!("../../demo/petstore.yaml");
        Self::new(text.into(), "application/yaml", "the built-in pet store".to_owned())
    }

    /// A file; JSON by its name, else YAML.
    pub(crate) fn read(file: &Path) -> anyhow::Result<Self> {
        let text = std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
        let json = file.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("json"));
        let media_type = if json { "application/json" } else { "application/yaml" };
        Self::new(text.into(), media_type, file.display().to_string())
    }

    fn new(text: Bytes, media_type: &'static str, source: String) -> anyhow::Result<Self> {
        // JSON is YAML as well.
        let document: Value =
            serde_norway::from_slice(&text).with_context(|| format!("{source} is neither JSON nor YAML"))?;
        let operations = count(&document);
        anyhow::ensure!(operations > 0, "{source} describes no operation");
        Ok(Self { text, media_type, operations, source })
    }
}

fn count(document: &Value) -> usize {
    let Some(paths) = document.get("paths").and_then(Value::as_mapping) else { return 0 };
    paths
        .values()
        .filter_map(Value::as_mapping)
        .flat_map(|path| path.keys())
        .filter(|key| key.as_str().is_some_and(|key| METHODS.contains(&key)))
        .count()
}

#[cfg(test)]
mod tests {
    use super::Document;

    #[test]
    fn the_pet_store_describes_its_operations() {
        let document = Document::built_in().unwrap();
        let written = String::from_utf8(document.text.to_vec()).unwrap().matches("operationId:").count();
        assert_eq!(document.operations, written);
        assert!(written >= 10);
    }

    #[test]
    fn parameters_and_extensions_of_a_path_are_no_operations() {
        let text = r#"{"paths": {"/a": {"get": {}, "parameters": [], "x-y": {}}, "/b": {"post": {}}}}"#;
        let document = Document::new(text.into(), "application/json", String::new()).unwrap();
        assert_eq!(document.operations, 2);
        assert!(Document::new("paths: {}".into(), "application/yaml", String::new()).is_err());
    }
}
