//! Reads an OpenAPI document into the parts that an import looks at, in the order of the document.
//!
//! Everything else is walked over and dropped, so that a document of 10 MiB costs little memory. The
//! walk is bounded in depth, in values and in text, because YAML aliases can make a small document
//! large. It never judges what the document says: that is `mapping`'s.

use std::{
    cell::{Cell, RefCell},
    collections::HashSet,
    fmt,
};

use serde::de::{Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use service_kit::{Error, Result};

use super::guard;

/// What an import keeps of a value.
#[derive(Debug)]
enum Shape {
    Ignored,
    Text,
    List(&'static Shape),
    /// An object of which only these members count.
    Fields(&'static [(&'static str, &'static Shape)]),
    /// An object of which all members count.
    Entries(&'static Shape),
}

/// A value as it was kept. Values of another type than expected were refused while reading.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Node {
    /// Absent on purpose.
    Null,
    /// A string; in YAML any scalar, as it is written.
    Text(String),
    /// A list.
    List(Vec<Node>),
    /// An object, in order.
    Map(Vec<(String, Node)>),
}

impl Node {
    /// A member of an object; null counts as absent.
    pub(super) fn get(&self, key: &str) -> Option<&Node> {
        self.entries()
            .iter()
            .find(|(name, _)| name == key)
            .map(|(_, node)| node)
            .filter(|n| **n != Node::Null)
    }

    /// A text member that is not blank.
    pub(super) fn text(&self, key: &str) -> Option<&str> {
        self.get(key).and_then(Node::as_text).filter(|text| !text.trim().is_empty())
    }

    /// The text, if it is one.
    pub(super) fn as_text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            _ => None,
        }
    }

    /// The members of an object; none of anything else.
    pub(super) fn entries(&self) -> &[(String, Node)] {
        match self {
            Self::Map(entries) => entries,
            _ => &[],
        }
    }

    /// The items of a list; none of anything else.
    pub(super) fn items(&self) -> &[Node] {
        match self {
            Self::List(items) => items,
            _ => &[],
        }
    }
}

const TEXT: &Shape = &Shape::Text;
const SECURITY: &Shape = &Shape::List(&Shape::Entries(&Shape::List(TEXT)));
const OPERATION: &Shape = &Shape::Fields(&[
    ("operationId", TEXT),
    ("summary", TEXT),
    ("description", TEXT),
    ("security", SECURITY),
]);
const PATH_ITEM: &Shape = &Shape::Fields(&[
    ("$ref", TEXT),
    ("get", OPERATION),
    ("put", OPERATION),
    ("post", OPERATION),
    ("delete", OPERATION),
    ("options", OPERATION),
    ("head", OPERATION),
    ("patch", OPERATION),
]);
const FLOW: &Shape = &Shape::Fields(&[("scopes", &Shape::Entries(&Shape::Ignored))]);
const SCHEME: &Shape = &Shape::Fields(&[
    ("$ref", TEXT),
    ("type", TEXT),
    ("in", TEXT),
    ("name", TEXT),
    (
        "flows",
        &Shape::Fields(&[
            ("authorizationCode", FLOW),
            ("implicit", FLOW),
            ("password", FLOW),
            ("clientCredentials", FLOW),
        ]),
    ),
]);
const SERVER: &Shape = &Shape::Fields(&[
    ("url", TEXT),
    ("description", TEXT),
    ("variables", &Shape::Entries(&Shape::Fields(&[("default", TEXT)]))),
]);
const DOCUMENT: &Shape = &Shape::Fields(&[
    ("openapi", TEXT),
    ("swagger", TEXT),
    ("info", &Shape::Fields(&[("title", TEXT), ("version", TEXT), ("summary", TEXT), ("description", TEXT)])),
    ("servers", &Shape::List(SERVER)),
    ("security", SECURITY),
    ("paths", &Shape::Entries(PATH_ITEM)),
    (
        "components",
        &Shape::Fields(&[
            ("securitySchemes", &Shape::Entries(SCHEME)),
            ("pathItems", &Shape::Entries(PATH_ITEM)),
        ]),
    ),
]);

/// Reads a JSON document. INVALID_ARGUMENT names the place: `definition.paths./pets.get`.
pub(super) fn read_json(text: &str) -> Result<Node> {
    let walk = Walk::new(text.len(), text.len());
    let mut json = serde_json::Deserializer::from_str(text);
    let read = Seed { walk: &walk, shape: DOCUMENT }.read(&mut json);
    let root = read.map_err(|error| walk.refuse(&error.to_string(), "JSON"))?;
    json.end().map_err(|error| walk.refuse(&error.to_string(), "JSON"))?;
    Ok(root)
}

/// Reads a YAML document. INVALID_ARGUMENT names the place, as with JSON.
pub(super) fn read_yaml(text: &str) -> Result<Node> {
    let values = guard::check(text).map_err(|rule| Error::field("definition", rule))?;
    let walk = Walk::new(values, text.len());
    Seed { walk: &walk, shape: DOCUMENT }
        .read(serde_norway::Deserializer::from_str(text))
        .map_err(|error| walk.refuse(&error.to_string(), "YAML"))
}

/// One walk over a document: where it is, and what it may still visit.
#[derive(Debug)]
struct Walk {
    path: RefCell<Vec<String>>,
    values: Cell<usize>,
    text: Cell<usize>,
}

impl Walk {
    /// A walk over a document that itself holds at most `values` values and `text` bytes. Aliases may
    /// make that a few times as much, and no more.
    fn new(values: usize, text: usize) -> Self {
        Self {
            path: RefCell::new(Vec::new()),
            values: Cell::new(values.saturating_mul(4).saturating_add(10_000)),
            text: Cell::new(text.saturating_mul(4).saturating_add(100_000)),
        }
    }

    fn visit<E: serde::de::Error>(&self, text: usize) -> Result<(), E> {
        let left = self.values.get().checked_sub(1).zip(self.text.get().checked_sub(text));
        let (values, text) =
            left.ok_or_else(|| E::custom("must not grow so much by aliases: write it out instead"))?;
        self.values.set(values);
        self.text.set(text);
        Ok(())
    }

    /// Goes one step down while `body` runs. After an error the path stays, and tells where it was.
    fn at<T, E>(&self, step: String, body: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
        self.path.borrow_mut().push(step);
        let value = body()?;
        self.path.borrow_mut().pop();
        Ok(value)
    }

    fn refuse(&self, message: &str, format: &str) -> Error {
        let place = self.path.borrow().iter().fold("definition".to_owned(), |place, step| {
            if step.starts_with('[') { place + step } else { place + "." + step }
        });
        let rule = match message.find("must ") {
            // Our own rule; the YAML reader puts its idea of the path before it.
            Some(at) => message[at..].to_owned(),
            None => match typed(message) {
                Some((found, wanted)) => format!("must be {wanted}, not {found}"),
                None => format!("must be {format} without errors: {message}"),
            },
        };
        Error::field(shortened(&place, 300), shortened(&rule, 300))
    }
}

/// What was found and what was wanted, in serde's words for a value of the wrong type.
fn typed(message: &str) -> Option<(&str, &str)> {
    let (found, wanted) = message.split_once("invalid type: ")?.1.split_once(", expected ")?;
    Some((found, wanted.split(" at line ").next().unwrap_or(wanted)))
}

/// At most `most` characters of a text.
pub(super) fn shortened(text: &str, most: usize) -> String {
    match text.char_indices().nth(most) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

/// Reads one value in the shape that is wanted of it.
#[derive(Debug, Clone, Copy)]
struct Seed<'w> {
    walk: &'w Walk,
    shape: &'static Shape,
}

impl Seed<'_> {
    fn read<'de, D: Deserializer<'de>>(self, deserializer: D) -> Result<Node, D::Error> {
        match self.shape {
            // A YAML scalar is read as it is written: `version: 1.10` is not 1.1.
            Shape::Text => deserializer.deserialize_option(self),
            _ => deserializer.deserialize_any(self),
        }
    }

    fn wrong<E: serde::de::Error>(&self, found: &str) -> Result<Node, E> {
        if matches!(self.shape, Shape::Ignored) {
            return Ok(Node::Null);
        }
        Err(E::custom(format_args!("must be {}, not {found}", self.wanted())))
    }

    fn wanted(&self) -> &'static str {
        match self.shape {
            Shape::Ignored => "anything",
            Shape::Text => "a string",
            Shape::List(_) => "a list",
            Shape::Fields(_) | Shape::Entries(_) => "an object",
        }
    }

    /// What is kept of a member, or `None` for what is not.
    fn member(&self, name: &str) -> Option<&'static Shape> {
        match self.shape {
            Shape::Fields(fields) => fields.iter().find(|(field, _)| *field == name).map(|(_, shape)| *shape),
            Shape::Entries(shape) => Some(shape),
            Shape::Ignored | Shape::Text | Shape::List(_) => None,
        }
    }
}

impl<'de> serde::de::DeserializeSeed<'de> for Seed<'_> {
    type Value = Node;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Node, D::Error> {
        self.read(deserializer)
    }
}

impl<'de> Visitor<'de> for Seed<'_> {
    type Value = Node;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.wanted())
    }

    fn visit_none<E: serde::de::Error>(self) -> Result<Node, E> {
        self.visit_unit()
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Node, D::Error> {
        deserializer.deserialize_str(self)
    }

    fn visit_unit<E: serde::de::Error>(self) -> Result<Node, E> {
        self.walk.visit(0)?;
        Ok(Node::Null)
    }

    fn visit_bool<E: serde::de::Error>(self, _: bool) -> Result<Node, E> {
        self.walk.visit(0)?;
        self.wrong("a boolean")
    }

    fn visit_i64<E: serde::de::Error>(self, _: i64) -> Result<Node, E> {
        self.walk.visit(0)?;
        self.wrong("a number")
    }

    fn visit_u64<E: serde::de::Error>(self, _: u64) -> Result<Node, E> {
        self.visit_i64(0)
    }

    fn visit_i128<E: serde::de::Error>(self, _: i128) -> Result<Node, E> {
        self.visit_i64(0)
    }

    fn visit_u128<E: serde::de::Error>(self, _: u128) -> Result<Node, E> {
        self.visit_i64(0)
    }

    fn visit_f64<E: serde::de::Error>(self, _: f64) -> Result<Node, E> {
        self.visit_i64(0)
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Node, E> {
        self.walk.visit(text.len())?;
        match self.shape {
            Shape::Text => Ok(Node::Text(text.to_owned())),
            _ => self.wrong("a string"),
        }
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Node, A::Error> {
        self.walk.visit(0)?;
        let shape = match self.shape {
            Shape::List(shape) => shape,
            Shape::Ignored => self.shape,
            _ => return self.wrong("a list"),
        };
        let mut items = Vec::new();
        let mut count = 0_usize;
        loop {
            let seed = Seed { walk: self.walk, shape };
            let next = self.walk.at(format!("[{count}]"), || list.next_element_seed(seed))?;
            let Some(item) = next else { break };
            if !matches!(shape, Shape::Ignored) {
                items.push(item);
            }
            count += 1;
        }
        Ok(Node::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Node, A::Error> {
        self.walk.visit(0)?;
        if matches!(self.shape, Shape::Text | Shape::List(_)) {
            return self.wrong("an object");
        }
        let (mut entries, mut seen, mut merged) = (Vec::new(), HashSet::new(), None);
        while let Some(name) = map.next_key_seed(Key(self.walk))? {
            let merge = name == "<<" && !matches!(self.shape, Shape::Ignored);
            let shape = if merge { Some(self.shape) } else { self.member(&name) };
            if shape.is_some() && !seen.insert(name.clone()) {
                return self.walk.at(name, || Err(A::Error::custom("must be given once")));
            }
            let seed = Seed { walk: self.walk, shape: shape.unwrap_or(&Shape::Ignored) };
            let node = self.walk.at(name.clone(), || map.next_value_seed(seed))?;
            match shape {
                Some(_) if merge => merged = Some(node),
                Some(_) => entries.push((name, node)),
                None => {}
            }
        }
        // YAML's merge key: what the object does not say itself.
        if let Some(Node::Map(more)) = merged {
            entries.extend(more.into_iter().filter(|(name, _)| !seen.contains(name)));
        }
        Ok(Node::Map(entries))
    }
}

/// Reads the name of a member. YAML's `200:` is the name `200`.
#[derive(Debug, Clone, Copy)]
struct Key<'w>(&'w Walk);

impl<'de> serde::de::DeserializeSeed<'de> for Key<'_> {
    type Value = String;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<String, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for Key<'_> {
    type Value = String;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the name of a member")
    }

    fn visit_str<E: serde::de::Error>(self, name: &str) -> Result<String, E> {
        self.0.visit(name.len())?;
        Ok(name.to_owned())
    }
}
