//! Serves a collection, its catalogues and their dataset sites, as publishers do; a test can change what they list.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use crate::support::{Reply, ScriptedPublisher};

/// A dataset site's feeds: name and URL.
pub(crate) type Feeds = Vec<(&'static str, String)>;

#[derive(Default)]
struct Pages(Mutex<BTreeMap<String, Reply>>);

/// Pages by path; any other path is 404. `{here}` in a body is replaced by the server's URL.
pub(crate) struct Web {
    pub(crate) publisher: ScriptedPublisher,
    pages: Arc<Pages>,
}

impl Web {
    pub(crate) fn new() -> Self {
        let pages = Arc::<Pages>::default();
        let served = Arc::clone(&pages);
        let publisher = ScriptedPublisher::start(move |request| {
            served.0.lock().unwrap().get(request.path()).cloned().unwrap_or_else(|| Reply::status(404))
        });
        Self { publisher, pages }
    }

    pub(crate) fn url(&self, path: &str) -> String {
        self.publisher.url(path)
    }

    pub(crate) fn reply(&self, path: &str, reply: Reply) {
        self.pages.0.lock().unwrap().insert(path.to_owned(), reply);
    }

    pub(crate) fn drop_page(&self, path: &str) {
        self.pages.0.lock().unwrap().remove(path);
    }

    fn page(&self, path: &str, kind: &str, body: &str) {
        let body = body.replace("{here}", &self.url(""));
        self.reply(path, Reply::page(body).header("Content-Type", kind));
    }

    pub(crate) fn json(&self, path: &str, body: &str) {
        self.page(path, "application/ld+json", body);
    }

    pub(crate) fn html(&self, path: &str, body: &str) {
        self.page(path, "text/html; charset=utf-8", body);
    }

    /// A catalogue that lists these paths.
    pub(crate) fn catalogue(&self, path: &str, parts: &[&str], sites: &[&str]) {
        let urls = |paths: &[&str]| serde_json::json!(paths.iter().map(|path| self.url(path)).collect::<Vec<_>>());
        let body = serde_json::json!({"@type": "DataCatalog", "hasPart": urls(parts), "dataset": urls(sites)});
        self.json(path, &body.to_string());
    }

    /// A dataset site in HTML, with about 30 items in each feed.
    pub(crate) fn site(&self, path: &str, publisher: &str, feeds: &Feeds) {
        let download = |(name, url): &(&str, String)| {
            serde_json::json!({
                "@type": "DataDownload", "name": name, "contentUrl": url, "totalItems": 30,
                "additionalType": format!("https://openactive.io/{name}"),
                "encodingFormat": "application/vnd.openactive.rpde+json; version=1",
            })
        };
        let downloads: Vec<_> = feeds.iter().map(download).collect();
        let dataset = serde_json::json!({
            "@context": ["https://schema.org/", "https://openactive.io/"], "@type": "Dataset",
            "name": format!("{publisher} Sessions"), "url": self.url(path), "distribution": downloads,
            "license": "https://creativecommons.org/licenses/by/4.0/",
            "publisher": {"@type": "Organization", "name": publisher},
        });
        let page = format!(
            "<!DOCTYPE html><html><head><style>a{{}}</style><script type=\"application/ld+json\">{dataset}</script></head>\
             <body><h1>{publisher}</h1></body></html>"
        );
        self.html(path, &page);
    }
}
