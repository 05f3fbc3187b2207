//! OpenAPI 3.0 and 3.1 documents, JSON or YAML, read into the API model.
//!
//! Operations keep the order of the document. A document is refused with the place of the first thing
//! that is wrong with it (`definition.paths./pets.get`). What the model has no word for is left out:
//! schemas, parameters, responses, callbacks, webhooks, `trace` operations, basic and bearer schemes.
//! The document itself is kept, byte for byte, beside the API.

mod document;
mod guard;
mod mapping;
mod security;

use proto::project::Api;
use service_kit::{Error, Result};

use super::apis::Definition;

/// The largest document, in bytes.
pub const MAX_BYTES: usize = 10 * 1024 * 1024;

/// What the caller says over what the document says; the document's counts where empty.
#[derive(Debug, Clone, Default)]
pub struct Names {
    /// The API's name.
    pub name: String,
    /// The API's context.
    pub context: String,
    /// The API's version.
    pub version: String,
}

/// Reads a document, away from the async runtime. Answers the API and the definition to keep (with its
/// media type found out).
pub async fn import(definition: Definition, names: Names) -> Result<(Api, Definition)> {
    let read = move || {
        let (api, media_type) = read(&definition.document, &names)?;
        Ok((api, Definition { media_type: media_type.to_owned(), document: definition.document }))
    };
    tokio::task::spawn_blocking(read).await.map_err(Error::internal)?
}

/// Reads a document into an API, and says of which media type it is. INVALID_ARGUMENT names the place.
pub fn read(document: &[u8], names: &Names) -> Result<(Api, &'static str)> {
    let refuse = |rule: &str| Err(Error::field("definition", rule));
    if document.len() > MAX_BYTES {
        return refuse("must have at most 10 MiB");
    }
    let Ok(text) = std::str::from_utf8(document) else {
        return refuse("must be UTF-8 text: JSON or YAML");
    };
    let text = text.trim_start_matches('\u{feff}');
    let start = text.trim_start();
    if start.is_empty() {
        return refuse("is required: an OpenAPI 3.0 or 3.1 document, JSON or YAML");
    }
    let _turn = guard::turn();
    let (root, media_type) = if start.starts_with('{') {
        (document::read_json(text)?, "application/json")
    } else {
        (document::read_yaml(text)?, "application/yaml")
    };
    Ok((mapping::api(&root, names)?, media_type))
}

#[cfg(test)]
mod tests;
