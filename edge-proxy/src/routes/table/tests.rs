use http::Method;
use proptest::prelude::*;

use super::{Found, Table};

fn table(routes: &[(&'static str, &'static str)]) -> Table<&'static str> {
    let mut table = Table::default();
    for (method, template) in routes {
        table.insert(method.parse().unwrap(), template, *template).unwrap();
    }
    table
}

const ROUTES: &[(&str, &str)] = &[
    ("GET", "/v1/apis"),
    ("POST", "/v1/apis"),
    ("POST", "/v1/apis/import"),
    ("GET", "/v1/apis/{id}"),
    ("PUT", "/v1/apis/{id}"),
    ("POST", "/v1/apis/{id}:cancel"),
    ("GET", "/v1/apis/import/log"),
    ("GET", "/v1/apis/{id}/revisions/{revision}"),
];

fn find<'t, 'p>(table: &'t Table<&'static str>, method: &str, path: &'p str) -> Found<'t, 'p, &'static str> {
    table.find(&method.parse().unwrap(), path)
}

#[test]
fn literals_beat_variables_and_verbs_beat_names() {
    let table = table(ROUTES);
    assert_eq!(find(&table, "POST", "/v1/apis/import"), Found::Route(&"/v1/apis/import", vec![]));
    assert_eq!(find(&table, "GET", "/v1/apis/x"), Found::Route(&"/v1/apis/{id}", vec!["x"]));
    assert_eq!(find(&table, "POST", "/v1/apis/x:cancel"), Found::Route(&"/v1/apis/{id}:cancel", vec!["x"]));
    assert_eq!(find(&table, "GET", "/v1/apis/x:y"), Found::Route(&"/v1/apis/{id}", vec!["x:y"]));
    assert_eq!(find(&table, "GET", "/v1/apis/import"), Found::OtherMethods(vec![Method::POST]));
    // Back out of a literal that leads nowhere.
    let expected = Found::Route(&"/v1/apis/{id}/revisions/{revision}", vec!["import", "r"]);
    assert_eq!(find(&table, "GET", "/v1/apis/import/revisions/r"), expected);
}

#[test]
fn what_is_not_there_is_nothing() {
    let table = table(ROUTES);
    for path in ["", "/", "/v1", "/v1/apis/", "/v1/apis//revisions/r", "/v1/apis/x/revisions", "v1/apis", "*"]
    {
        assert_eq!(find(&table, "GET", path), Found::Nothing, "{path}");
    }
    assert_eq!(find(&table, "DELETE", "/v1/apis"), Found::OtherMethods(vec![Method::GET, Method::POST]));
}

#[test]
fn templates_that_cannot_be_read_are_refused() {
    let mut table = Table::default();
    for bad in [
        "v1",
        "/v1/{id",
        "/v1/**/x",
        "/v1/{id=**}/x",
        "/v1//x",
        "/v1/a{id}",
        "/v1/{}",
        "/v1/{a=}",
        "/v1/{a=b{c}}",
        "/v1/{a}b",
        "/v1/***",
        "/v1/",
        "/v1/x:",
        "/v1/{a=b//c}",
    ] {
        assert!(table.insert(Method::GET, bad, "").is_err(), "{bad}");
    }
    table.insert(Method::GET, "/v1/{a}", "").unwrap();
    assert!(table.insert(Method::GET, "/v1/{b}", "").is_err(), "the same path under another name");
    let names = |template| {
        let variables = super::variables(template).unwrap();
        variables.into_iter().map(|variable| (variable.name, variable.multi)).collect::<Vec<_>>()
    };
    assert_eq!(names("/v1/{a=*}/x/{b.c}:do"), [("a", false), ("b.c", false)]);
    assert_eq!(names("/v1/{a=b/*/c}/{d=**}"), [("a", true), ("d", true)]);
}

#[test]
fn variables_may_be_several_segments() {
    const ROUTES: &[(&str, &str)] = &[
        ("GET", "/v1/{name=projects/*}"),
        ("DELETE", "/v1/projects/{id}"),
        ("GET", "/v1/{parent=projects/*}/apis/{api}"),
        ("GET", "/v1/*/x"),
        ("GET", "/v1/files/{path=**}"),
        ("POST", "/v1/files/{path=**}:copy"),
        ("GET", "/v1/files/{name=index/*}"),
        ("GET", "/v2/{name=a/**}"),
        ("GET", "/v3/**"),
    ];
    let table = table(ROUTES);
    for (method, path, template, values) in [
        ("GET", "/v1/projects/p", "/v1/{name=projects/*}", &["projects/p"][..]),
        ("DELETE", "/v1/projects/p", "/v1/projects/{id}", &["p"]),
        ("GET", "/v1/projects/p/apis/a%2Fb", "/v1/{parent=projects/*}/apis/{api}", &["projects/p", "a%2Fb"]),
        ("GET", "/v1/anything/x", "/v1/*/x", &[]),
        ("GET", "/v1/files/a/b/c", "/v1/files/{path=**}", &["a/b/c"]),
        ("GET", "/v1/files/a/b:c", "/v1/files/{path=**}", &["a/b:c"]),
        ("POST", "/v1/files/a/b:copy", "/v1/files/{path=**}:copy", &["a/b"]),
        ("GET", "/v1/files", "/v1/files/{path=**}", &[""]),
        ("GET", "/v1/files/", "/v1/files/{path=**}", &[""]),
        ("GET", "/v1/files/index/x", "/v1/files/{name=index/*}", &["index/x"]),
        ("GET", "/v1/files/index/x/y", "/v1/files/{path=**}", &["index/x/y"]),
        ("GET", "/v2/a", "/v2/{name=a/**}", &["a"]),
        ("GET", "/v2/a/b/c", "/v2/{name=a/**}", &["a/b/c"]),
        ("GET", "/v3/a/b", "/v3/**", &[]),
    ] {
        assert_eq!(find(&table, method, path), Found::Route(&template, values.to_vec()), "{method} {path}");
    }
    assert_eq!(find(&table, "GET", "/v2/b"), Found::Nothing);
    assert_eq!(find(&table, "PUT", "/v1/files/a"), Found::OtherMethods(vec![Method::GET]));
}

#[test]
fn the_contract_fits_into_a_table() {
    let routes = crate::routes::of_contract().unwrap();
    for policy in proto::Contract::get().methods() {
        let outside = !matches!(policy.access, proto::Access::Service | proto::Access::Unspecified);
        for binding in &policy.http {
            let path = binding.template.replace(['{', '}'], "");
            let found = routes.find(&binding.verb.parse().unwrap(), &path);
            assert_eq!(matches!(found, Found::Route(..)), outside, "{} {path}: {found:?}", binding.verb);
        }
    }
}

proptest! {
    /// A path made from a template leads back to it, or to one with more literals; its values come back.
    #[test]
    fn made_paths_are_found(at in 0..ROUTES.len(), values in prop::collection::vec("[a-z0-9%._~-]{1,12}", 2)) {
        let table = table(ROUTES);
        let (method, template) = ROUTES[at];
        let mut path = template.to_owned();
        let mut used = Vec::new();
        for value in &values {
            if let (Some(from), Some(to)) = (path.find('{'), path.find('}')) {
                path.replace_range(from..=to, value);
                used.push(value.as_str());
            }
        }
        prop_assume!(!used.contains(&"import"));
        prop_assert_eq!(find(&table, method, &path), Found::Route(&template, used));
    }

    #[test]
    fn no_path_makes_it_panic(path in ".{0,60}") {
        table(ROUTES).find(&Method::GET, &path);
    }
}
