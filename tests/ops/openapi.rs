//! The OpenAPI document matches the listener: it has every route and no other, and the listener's responses are as it
//! describes them.

use std::collections::BTreeSet;

use feedmirror::store::now;
use serde_json::{Value, json};

use crate::harness::{OpsHarness, lines, status_and_text};
use crate::schema;

/// The routes of the router's source, as `GET /api/feeds`.
fn routes() -> BTreeSet<String> {
    let source = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/src/server.rs")).unwrap();
    let folded = source.split_whitespace().collect::<Vec<_>>().join(" ");
    let route = |text: &str| {
        let (path, rest) = text.trim_start().strip_prefix('"')?.split_once("\", ")?;
        let method = rest.split('(').next()?.rsplit("::").next()?.to_uppercase();
        Some(format!("{method} {path}"))
    };
    folded.split(".route(").skip(1).map(|text| route(text).unwrap_or_else(|| panic!("no route: {text}"))).collect()
}

fn operations(document: &Value) -> BTreeSet<String> {
    let paths = document["paths"].as_object().unwrap();
    let of = |(path, methods): (&String, &Value)| {
        let methods: Vec<String> = methods.as_object().unwrap().keys().cloned().collect();
        methods.into_iter().map(|method| format!("{} {path}", method.to_uppercase())).collect::<Vec<_>>()
    };
    paths.iter().flat_map(of).collect()
}

async fn document(harness: &OpsHarness) -> Value {
    let (status, text) = harness.get_text("/api/openapi.json").await;
    assert_eq!(status, 200);
    serde_json::from_str(&text).unwrap()
}

#[tokio::test]
async fn the_document_has_every_route_and_no_other() {
    let harness = OpsHarness::with(&["acme"]).await;
    let document = document(&harness).await;
    assert_eq!(document["openapi"], "3.1.0");
    assert_eq!(document["info"]["version"], env!("CARGO_PKG_VERSION"));

    let (routes, operations) = (routes(), operations(&document));

    assert!(routes.len() >= 15, "{routes:?}");
    let missing: Vec<_> = routes.difference(&operations).collect();
    let invented: Vec<_> = operations.difference(&routes).collect();
    assert!(missing.is_empty() && invented.is_empty(), "openapi.json lacks {missing:?}; the router lacks {invented:?}");
}

#[tokio::test]
async fn every_operation_has_a_name_of_its_own_and_says_what_its_path_takes() {
    let document = document(&OpsHarness::with(&["acme"]).await).await;
    let mut names = BTreeSet::new();
    for (path, methods) in document["paths"].as_object().unwrap() {
        for operation in methods.as_object().unwrap().values() {
            assert!(names.insert(operation["operationId"].as_str().unwrap()), "{path}");
            let path_parameters: BTreeSet<&str> =
                path.split('{').skip(1).map(|rest| rest.split('}').next().unwrap()).collect();
            let documented = operation["parameters"].as_array().into_iter().flatten();
            let documented =
                documented.filter(|parameter| parameter["in"] == "path").map(|parameter| &parameter["name"]);
            assert_eq!(
                documented.map(|name| name.as_str().unwrap()).collect::<BTreeSet<_>>(),
                path_parameters,
                "{path}"
            );
        }
    }
    for reference in schema::references(&document) {
        assert!(document.pointer(reference.strip_prefix('#').unwrap()).is_some(), "{reference} leads nowhere");
    }
}

/// A mirror with data of every kind.
async fn busy() -> OpsHarness {
    let harness = OpsHarness::with(&["acme", "well"]).await;
    harness.file.store().record_start(now(), Some(harness.address.to_string()), None).await.unwrap();
    harness.file.write("acme", &[("1", 5, Some("{\"n\": 1.50}")), ("2", 1, None), ("a/ä", 1, Some("[1]"))]).await;
    harness.file.write("acme", &[("1", 4, Some("{}"))]).await;
    harness.file.set_retrying("acme", "timeout: no answer").await;
    harness.file.quarantine("acme", &[("no-id", "{\"state\":\"updated\"}"), ("not-json", "{")]).await;
    harness.file.record_finding("acme", "bom", "it begins with one").await;
    harness
}

/// Requests, each with its path in the document and its status. One for each status that a reader can cause.
const REQUESTS: &[(&str, &str, u16)] = &[
    ("/", "/", 200),
    ("/feeds/acme", "/feeds/{name}", 200),
    ("/feeds/nope", "/feeds/{name}", 404),
    ("/login", "/login", 401),
    ("/healthz", "/healthz", 200),
    ("/readyz", "/readyz", 200),
    ("/metrics", "/metrics", 200),
    ("/api/feeds", "/api/feeds", 200),
    ("/api/feeds/acme", "/api/feeds/{name}", 200),
    ("/api/feeds/nope", "/api/feeds/{name}", 404),
    ("/api/items?deleted=true", "/api/items", 200),
    ("/api/items?state=odd", "/api/items", 400),
    ("/api/items?feed=nope", "/api/items", 404),
    ("/api/items?since=9999999999", "/api/items", 410),
    ("/api/items/acme/Session/a%2F%C3%A4", "/api/items/{feed}/{kind}/{id}", 200),
    ("/api/items/acme/Session/2", "/api/items/{feed}/{kind}/{id}", 200),
    ("/api/items/acme/Slot/1", "/api/items/{feed}/{kind}/{id}", 404),
    ("/api/changes", "/api/changes", 200),
    ("/api/changes?data=true", "/api/changes", 200),
    ("/api/changes?since=x", "/api/changes", 400),
    ("/api/changes?since=9999999999", "/api/changes", 410),
    ("/api/events", "/api/events", 200),
    ("/api/events?limit=0", "/api/events", 400),
    ("/api/refusals", "/api/refusals", 200),
    ("/api/refusals?feed=nope", "/api/refusals", 404),
    ("/api/findings", "/api/findings", 200),
    ("/api/findings?rule=bom", "/api/findings", 400),
    ("/api/report", "/api/report", 200),
    ("/api/report?provider=nope", "/api/report", 404),
    ("/api/quarantine", "/api/quarantine", 200),
    ("/api/quarantine?after=x", "/api/quarantine", 400),
    ("/api/quarantine/1", "/api/quarantine/{id}", 200),
    ("/api/quarantine/99", "/api/quarantine/{id}", 404),
    ("/api/openapi.json", "/api/openapi.json", 200),
];

#[tokio::test]
async fn what_is_answered_is_what_the_document_says() {
    let harness = busy().await;
    let document = document(&harness).await;
    let mut requested_paths = BTreeSet::new();
    for (url, path, status) in REQUESTS {
        let response = harness.get(url).send().await.unwrap();
        assert_eq!(response.status().as_u16(), *status, "{url}");
        let media_type = response.headers()["content-type"].to_str().unwrap().to_owned();
        let text = response.text().await.unwrap();
        checked(&document, &document["paths"][path]["get"], *status, &media_type, &text)
            .unwrap_or_else(|why| panic!("{url}: {why}\n{text}"));
        if *status == 200 {
            assert!(!text.is_empty(), "{url} has something to say");
            requested_paths.insert(format!("GET {path}"));
        }
    }
    // The endless stream has a test of its own; the form comes with a 401.
    let is_whole = |operation: &String| {
        operation.starts_with("GET ") && !["GET /live", "GET /login"].contains(&operation.as_str())
    };
    let readable = operations(&document).into_iter().filter(is_whole).collect();
    assert_eq!(requested_paths, readable, "each is asked here");
}

#[tokio::test]
async fn each_order_that_the_document_names_is_one_and_no_other() {
    let harness = busy().await;
    let document = document(&harness).await;
    for (path, of) in
        [("/api/feeds/{name}/{verb}", "/api/feeds/acme"), ("/api/quarantine/{id}/{verb}", "/api/quarantine/1")]
    {
        let post = &document["paths"][path]["post"];
        let verb = post["parameters"].as_array().unwrap().iter().find(|parameter| parameter["name"] == "verb").unwrap();
        let verbs: Vec<&str> =
            verb["schema"]["enum"].as_array().unwrap().iter().map(|verb| verb.as_str().unwrap()).collect();
        for verb in &verbs {
            let body = match *verb {
                "seek" => json!({ "url": "https://acme.example/" }),
                "forget" => json!({ "id": "1" }),
                _ => json!({}),
            };
            let request = harness.post(&format!("{of}/{verb}")).bearer_auth(&harness.token).json(&body);
            let response = request.send().await.unwrap();
            assert_eq!(response.status().as_u16(), 200, "{verb}");
            let text = response.text().await.unwrap();
            checked(&document, post, 200, "application/json", &text).unwrap();
        }
        // The router's own text for an unknown verb names all verbs.
        let (status, text) = harness.post_order(&format!("{of}/explode"), "").await;
        assert_eq!(status, 404);
        assert!(verbs.iter().all(|verb| text.contains(verb)), "{verbs:?}: {text}");
        checked(&document, post, 404, "application/problem+json", &text).unwrap();
        let (status, text) = status_and_text(harness.post(&format!("{of}/{}", verbs[0]))).await;
        assert_eq!(status, 401);
        checked(&document, post, 401, "application/problem+json", &text).unwrap();
    }
}

#[tokio::test]
async fn the_check_can_fail() {
    let document = document(&OpsHarness::with(&["acme"]).await).await;
    let done = &document["paths"]["/healthz"]["get"];
    let check = |media_type: &str, text: &str| checked(&document, done, 200, media_type, text);
    assert_eq!(check("application/json", "{\"done\":\"x\"}"), Ok(()));
    for (media_type, text) in [
        ("text/plain", "{\"done\":\"x\"}"),
        ("application/json", "{\"done\":1}"),
        ("application/json", "{}"),
        ("application/json", "{\"done\":\"x\",\"more\":1}"),
        ("application/json", "[]"),
    ] {
        assert!(check(media_type, text).is_err(), "{media_type} {text}");
    }
    assert!(checked(&document, done, 404, "application/json", "{}").is_err(), "a status that isn't named");
}

/// Whether a response is one that the operation describes.
pub(crate) fn checked(
    document: &Value,
    operation: &Value,
    status: u16,
    media_type: &str,
    text: &str,
) -> Result<(), String> {
    let mut response = &operation["responses"][status.to_string()];
    if let Some(reference) = response["$ref"].as_str() {
        response = document.pointer(reference.trim_start_matches('#')).unwrap();
    }
    if response.is_null() {
        return Err(format!("status {status} is not named"));
    }
    let media_type = media_type.split(';').next().unwrap();
    let Some(content) = response["content"].get(media_type) else {
        return Err(format!("{media_type} is not named for {status}"));
    };
    let schema = &content["schema"];
    match media_type {
        "application/x-ndjson" => lines(text).iter().try_for_each(|line| schema::check(document, schema, line)),
        _ if media_type.ends_with("json") => {
            schema::check(document, schema, &serde_json::from_str(text).map_err(|error| error.to_string())?)
        }
        _ => schema::check(document, schema, &json!(text)),
    }
}
