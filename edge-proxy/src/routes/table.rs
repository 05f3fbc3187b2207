//! Finds a route by method and path: a tree over segments. A literal segment beats a variable one.

use std::collections::HashMap;

use http::Method;

/// Routes by path template: `/api/v1/apis/{api_id}/revisions`, with an optional `:verb` at the end.
#[derive(Debug)]
pub(crate) struct Table<T> {
    root: Node<T>,
}

#[derive(Debug)]
struct Node<T> {
    literals: HashMap<String, Node<T>>,
    variable: Option<Box<Node<T>>>,
    ends: Vec<End<T>>,
}

/// What a path can end with: no verb (empty), or one.
#[derive(Debug)]
struct End<T> {
    verb: String,
    routes: Vec<(Method, T)>,
}

/// What a path leads to.
#[derive(Debug, PartialEq)]
pub(crate) enum Found<'t, 'p, T> {
    /// A route, and the values of its variables as they stand in the path (not decoded).
    Route(&'t T, Vec<&'p str>),
    /// A path that has other methods.
    OtherMethods(Vec<Method>),
    /// Nothing.
    Nothing,
}

impl<T> Default for Node<T> {
    fn default() -> Self {
        Self { literals: HashMap::new(), variable: None, ends: Vec::new() }
    }
}

impl<T> Default for Table<T> {
    fn default() -> Self {
        Self { root: Node::default() }
    }
}

impl<T> Table<T> {
    /// Adds a route; fails when the template cannot be read, or is there already with this method.
    pub(crate) fn insert(&mut self, method: Method, template: &str, route: T) -> anyhow::Result<()> {
        let (segments, verb) = parse(template)?;
        let mut node = &mut self.root;
        for segment in segments {
            node = match segment {
                Segment::Literal(text) => node.literals.entry(text.to_owned()).or_default(),
                Segment::Variable(_) => node.variable.get_or_insert_default(),
            };
        }
        let end = match node.ends.iter().position(|end| end.verb == verb) {
            Some(at) => &mut node.ends[at],
            None => {
                node.ends.push(End { verb: verb.to_owned(), routes: Vec::new() });
                node.ends.last_mut().expect("just pushed")
            }
        };
        anyhow::ensure!(
            end.routes.iter().all(|(known, _)| *known != method),
            "{method} {template} leads to two methods"
        );
        end.routes.push((method, route));
        Ok(())
    }

    /// What a path leads to.
    pub(crate) fn find<'p>(&self, method: &Method, path: &'p str) -> Found<'_, 'p, T> {
        let mut values = Vec::new();
        let Some(end) = self.end(path, &mut values) else { return Found::Nothing };
        match end.routes.iter().find(|(known, _)| known == method) {
            Some((_, route)) => Found::Route(route, values),
            None => Found::OtherMethods(end.routes.iter().map(|(method, _)| method.clone()).collect()),
        }
    }

    fn end<'p>(&self, path: &'p str, values: &mut Vec<&'p str>) -> Option<&End<T>> {
        let path = path.strip_prefix('/')?;
        // `…/x:cancel` is the verb `cancel` of `x` where there is one, and otherwise a name with a colon.
        if let Some((path, verb)) = path.rsplit_once(':')
            && !verb.is_empty()
            && !verb.contains('/')
            && let Some(end) = self.root.find(path, verb, values)
        {
            return Some(end);
        }
        values.clear();
        self.root.find(path, "", values)
    }
}

impl<T> Node<T> {
    fn find<'p>(&self, path: &'p str, verb: &str, values: &mut Vec<&'p str>) -> Option<&End<T>> {
        let (segment, rest) = match path.split_once('/') {
            Some((segment, rest)) => (segment, Some(rest)),
            None => (path, None),
        };
        let known = values.len();
        let literal = self.literals.get(segment).map(|node| (node, None));
        let variable =
            self.variable.as_deref().filter(|_| !segment.is_empty()).map(|node| (node, Some(segment)));
        for (node, value) in literal.into_iter().chain(variable) {
            values.truncate(known);
            values.extend(value);
            let end = match rest {
                Some(rest) => node.find(rest, verb, values),
                None => node.ends.iter().find(|end| end.verb == verb),
            };
            if end.is_some() {
                return end;
            }
        }
        None
    }
}

enum Segment<'a> {
    Literal(&'a str),
    Variable(&'a str),
}

/// The variables of a template, in order: field paths such as `api_id`.
pub(crate) fn variables(template: &str) -> anyhow::Result<Vec<&str>> {
    let (segments, _) = parse(template)?;
    let variable = |segment| match segment {
        Segment::Variable(name) => Some(name),
        Segment::Literal(_) => None,
    };
    Ok(segments.into_iter().filter_map(variable).collect())
}

/// Segments and verb of a template (AIP-127; a variable is one segment here).
fn parse(template: &str) -> anyhow::Result<(Vec<Segment<'_>>, &str)> {
    let bad = || anyhow::anyhow!("{template} is not a path template that the edge can read");
    let path = template.strip_prefix('/').ok_or_else(bad)?;
    let (path, verb) = match path.rsplit_once(':') {
        Some((path, verb)) if !verb.contains(['/', '}']) => (path, verb),
        _ => (path, ""),
    };
    let segment = |text: &'_ str| -> anyhow::Result<()> {
        anyhow::ensure!(!text.is_empty() && !text.contains(['{', '}', '*', ':', '=']), bad());
        Ok(())
    };
    let mut segments = Vec::new();
    for text in path.split('/') {
        let variable = text.strip_prefix('{').and_then(|text| text.strip_suffix('}'));
        let variable = variable.map(|name| name.strip_suffix("=*").unwrap_or(name));
        segment(variable.unwrap_or(text))?;
        segments.push(variable.map_or(Segment::Literal(text), Segment::Variable));
    }
    Ok((segments, verb))
}

#[cfg(test)]
mod tests;
