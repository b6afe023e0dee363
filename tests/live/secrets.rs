//! A publisher that pushes a feed's secrets back: they are neither stored nor shown, whatever the transport.

use crate::post;
use crate::stream::StreamServer;
use crate::support::secrets::{self, KEYS, POSTED, all_encodings, percent, quoted};
use crate::support::{Reply, ScriptedPublisher, item, page, page_without_next};
use crate::{endpoint, mirror};

/// A record that can't be decoded and contains every secret.
fn bad(id: &str) -> String {
    format!("{{\"id\":{},\"kind\":\"thing\",\"modified\":1,\"state\":{}}}", quoted(id), quoted(&all_encodings()))
}

#[test]
fn secrets_that_a_publisher_pushes_back_are_neither_stored_nor_logged() {
    // Given: a feed with as many kinds as there may be.
    let publisher = ScriptedPublisher::start(|request| match request.query().contains("from=1") {
        true => Reply::page(page(&[], &request.target)),
        false => {
            let kind = |n: usize| item(&format!("i{n}"), 1).replace("\"thing\"", &format!("\"kind-{n}\""));
            let kinds: Vec<String> = (0..999).map(kind).chain([item("first", 1)]).collect();
            Reply::page(page(&kinds, "?from=1"))
        }
    });
    let stream = StreamServer::start();
    let mirror = mirror(&publisher.url("/feed"), &format!("sse.url = {:?}\n{KEYS}", stream.url()));
    secrets::write(&mirror);
    let mirror = mirror.start();
    mirror.until_level("f");
    mirror.until("the stream", |mirror| endpoint(mirror, "sse", "health") == "ok");
    let further = |id: &str| {
        let item = item(id, 2).replace("\"thing\"", &quoted(&format!("kind of {POSTED}")));
        item.replace(&format!("{id}@2"), &percent(POSTED, true))
    };

    // When: by stream
    let id = percent(POSTED, false);
    stream.send(&format!(": {}\nid: {id}\nevent: {POSTED}\ndata: {{}}\n\n", all_encodings()));
    stream.send(&format!("id: {id}\nevent: itemupdate\ndata: {}\n\n", bad("by-stream")));
    stream.send(&format!("id: {id}\nevent: itemupdate\ndata: no JSON: {}\n\n", all_encodings()));
    stream.send(&format!("id: {id}\nevent: itemupdate\ndata: {}\n\n", further("stream-kind")));
    stream.send(&format!("id: {id}\nevent: itemupdate\ndata: {}\n\n", item("by-stream", 3)));
    mirror.until("the stream's item", |mirror| mirror.ids("f").contains(&"by-stream".to_owned()));
    stream.refuse("403 Forbidden", &format!("X-Echo: {POSTED}\r\nContent-Type: text/{POSTED}\r\n"), &all_encodings());
    mirror.until("the stream refused", |mirror| endpoint(mirror, "sse", "reason").contains("403"));

    // and by post
    let license = format!("{{\"license\":{},\"items\":[{}]}}", quoted(&all_encodings()), item("by-post", 4));
    assert_eq!(post::body(&mirror, "f", POSTED, &license).status, 204);
    assert_eq!(
        post::body(&mirror, "f", POSTED, &page_without_next(&[bad("by-post"), further("post-kind")])).status,
        204
    );
    for status in [400, 400, 400, 400, 204] {
        assert_eq!(post::body(&mirror, "f", POSTED, &format!("no page: {}", all_encodings())).status, status);
    }
    assert_eq!(post::body(&mirror, POSTED, POSTED, &license).status, 404);

    // Then
    let reasons = mirror.column("SELECT DISTINCT reason FROM quarantine ORDER BY reason");
    assert_eq!(reasons, ["not-json", "refused-body", "too-many-kinds", "unknown-state"]);
    let kinds = mirror.rows("SELECT detail, raw FROM quarantine WHERE reason = 'too-many-kinds'");
    assert_eq!(kinds.len(), 2);
    for row in kinds {
        assert!(row.iter().all(|text| text.contains("{webhook")), "nothing was hidden, so nothing was shown: {row:?}");
    }
    secrets::are_hidden(mirror, "f");
}
