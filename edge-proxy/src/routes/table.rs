//! Finds a route by method and path: a tree over segments. A literal segment beats a variable one, and that
//! beats the rest of a path.

use foldhash::{HashMap, HashMapExt as _};
use http::Method;

/// Routes by path template (AIP-127): `/api/v1/{name=projects/*}/files/{path=**}:verb`.
#[derive(Debug)]
pub(crate) struct Table<T> {
    root: Node<T>,
}

#[derive(Debug)]
struct Node<T> {
    literals: HashMap<String, Node<T>>,
    /// One segment, whatever it is.
    any: Option<Box<Node<T>>>,
    ends: Vec<End<T>>,
    /// The rest of the path, perhaps nothing.
    rest: Vec<End<T>>,
}

/// What a path can end with: no verb (empty), or one.
#[derive(Debug)]
struct End<T> {
    verb: String,
    routes: Vec<Entry<T>>,
}

/// A route, and which segments its variables are: templates of one shape may differ in that.
#[derive(Debug)]
struct Entry<T> {
    method: Method,
    spans: Vec<Span>,
    route: T,
}

/// Segments of a path: from the first up to, and without, the last; to the end where there is no last.
#[derive(Debug, Clone, Copy)]
struct Span {
    from: usize,
    to: Option<usize>,
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
        Self { literals: HashMap::new(), any: None, ends: Vec::new(), rest: Vec::new() }
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
        let Template { segments, variables, verb } = Template::parse(template)?;
        let mut node = &mut self.root;
        let mut to_the_end = false;
        for segment in segments {
            node = match segment {
                Segment::Literal(text) => node.literals.entry(text.to_owned()).or_default(),
                Segment::One => node.any.get_or_insert_default(),
                Segment::Rest => {
                    to_the_end = true;
                    break;
                }
            };
        }
        let ends = if to_the_end { &mut node.rest } else { &mut node.ends };
        let end = match ends.iter().position(|end| end.verb == verb) {
            Some(at) => &mut ends[at],
            None => {
                ends.push(End { verb: verb.to_owned(), routes: Vec::new() });
                ends.last_mut().expect("just pushed")
            }
        };
        anyhow::ensure!(
            end.routes.iter().all(|known| known.method != method),
            "{method} {template} leads to two methods"
        );
        let spans = variables.into_iter().map(|(_, span)| span).collect();
        end.routes.push(Entry { method, spans, route });
        Ok(())
    }

    /// What a path leads to.
    pub(crate) fn find<'p>(&self, method: &Method, path: &'p str) -> Found<'_, 'p, T> {
        let Some((end, path)) = self.end(path) else { return Found::Nothing };
        match end.routes.iter().find(|known| known.method == *method) {
            Some(entry) => Found::Route(&entry.route, entry.values(path)),
            None => Found::OtherMethods(end.routes.iter().map(|entry| entry.method.clone()).collect()),
        }
    }

    /// The end of a path, and the path without slash and verb.
    fn end<'p>(&self, path: &'p str) -> Option<(&End<T>, &'p str)> {
        let path = path.strip_prefix('/')?;
        // `…/x:cancel` is the verb `cancel` of `x` where there is one, and otherwise a name with a colon.
        if let Some((path, verb)) = path.rsplit_once(':')
            && !verb.is_empty()
            && !verb.contains('/')
            && let Some(end) = self.root.find(Some(path), verb)
        {
            return Some((end, path));
        }
        self.root.find(Some(path), "").map(|end| (end, path))
    }
}

impl<T> Node<T> {
    /// The end of what is left of a path; `None` is nothing left, which an empty segment is not.
    fn find(&self, path: Option<&str>, verb: &str) -> Option<&End<T>> {
        let of = |ends: &'_ [End<T>]| ends.iter().position(|end| end.verb == verb);
        let Some(path) = path else {
            let here = of(&self.ends).map(|at| &self.ends[at]);
            return here.or_else(|| of(&self.rest).map(|at| &self.rest[at]));
        };
        let (segment, rest) = match path.split_once('/') {
            Some((segment, rest)) => (segment, Some(rest)),
            None => (path, None),
        };
        let literal = self.literals.get(segment);
        let any = self.any.as_deref().filter(|_| !segment.is_empty());
        let deeper = literal.into_iter().chain(any).find_map(|node| node.find(rest, verb));
        deeper.or_else(|| of(&self.rest).map(|at| &self.rest[at]))
    }
}

impl<T> Entry<T> {
    fn values<'p>(&self, path: &'p str) -> Vec<&'p str> {
        self.spans.iter().map(|span| span.of(path)).collect()
    }
}

impl Span {
    fn of(self, path: &str) -> &str {
        // Where a segment begins; behind the last one there is none.
        let begin = |at: usize| match at {
            0 => Some(0),
            _ => path.match_indices('/').nth(at - 1).map(|(slash, _)| slash + 1),
        };
        let Some(from) = begin(self.from) else { return "" };
        match self.to.and_then(begin) {
            Some(to) => &path[from..to - 1],
            None => &path[from..],
        }
    }
}

/// A variable of a template.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Variable<'a> {
    /// A field path such as `api_id`.
    pub(crate) name: &'a str,
    /// It may be several segments: an encoded slash in it is not one between them.
    pub(crate) multi: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Segment<'a> {
    Literal(&'a str),
    One,
    Rest,
}

struct Template<'a> {
    segments: Vec<Segment<'a>>,
    variables: Vec<(Variable<'a>, Span)>,
    verb: &'a str,
}

/// The variables of a template, in order.
pub(crate) fn variables(template: &str) -> anyhow::Result<Vec<Variable<'_>>> {
    Ok(Template::parse(template)?.variables.into_iter().map(|(variable, _)| variable).collect())
}

impl<'a> Template<'a> {
    /// Reads a template; `**` may only be its last segment.
    fn parse(template: &'a str) -> anyhow::Result<Self> {
        let bad = || anyhow::anyhow!("{template} is not a path template that the edge can read");
        let path = template.strip_prefix('/').ok_or_else(bad)?;
        let (mut rest, verb) = match path.rsplit_once(':') {
            Some((path, verb)) if !verb.contains(['/', '}']) => (path, verb),
            _ => (path, ""),
        };
        anyhow::ensure!(path.len() == rest.len() || !verb.is_empty(), bad());
        let mut read = Self { segments: Vec::new(), variables: Vec::new(), verb };
        loop {
            let Some(inner) = rest.strip_prefix('{') else {
                let (segment, after) = rest.split_once('/').map_or((rest, None), |(a, b)| (a, Some(b)));
                read.segment(segment).ok_or_else(bad)?;
                match after {
                    Some(after) => rest = after,
                    None => break,
                }
                continue;
            };
            let (variable, after) = inner.split_once('}').ok_or_else(bad)?;
            read.variable(variable).ok_or_else(bad)?;
            match after.strip_prefix('/') {
                Some(after) => rest = after,
                None if after.is_empty() => break,
                None => return Err(bad()),
            }
        }
        let last = read.segments.len() - 1;
        let early = read.segments[..last].contains(&Segment::Rest);
        anyhow::ensure!(!early, "{template}: `**` must be the last segment");
        Ok(read)
    }

    fn segment(&mut self, text: &'a str) -> Option<()> {
        self.segments.push(match text {
            "*" => Segment::One,
            "**" => Segment::Rest,
            _ if text.is_empty() || text.contains(['{', '}', '*', ':', '=']) => return None,
            _ => Segment::Literal(text),
        });
        Some(())
    }

    /// `name`, or `name=segments`.
    fn variable(&mut self, text: &'a str) -> Option<()> {
        let (name, pattern) = text.split_once('=').unwrap_or((text, "*"));
        if name.is_empty() || name.contains(['{', '*', '/', ':']) {
            return None;
        }
        let from = self.segments.len();
        for segment in pattern.split('/') {
            self.segment(segment)?;
        }
        let open = self.segments.last() == Some(&Segment::Rest);
        let to = (!open).then_some(self.segments.len());
        let multi = pattern != "*";
        self.variables.push((Variable { name, multi }, Span { from, to }));
        Some(())
    }
}

#[cfg(test)]
mod tests;
