//! `--live`: the source asked again.

use crate::support::{Mirror, Shelf};
use crate::{at_rest, explain};

fn verdict(mirror: &Mirror, id: &str, more: &[&str]) -> (String, serde_json::Value) {
    let mut arguments = vec!["f", id, "--live", "--json"];
    arguments.extend(more);
    let said = explain(mirror, &arguments).json();
    let answer = said["live"][0].clone();
    (answer["verdict"].as_str().unwrap_or_else(|| panic!("{said}")).to_owned(), answer)
}

#[test]
fn a_publisher_that_went_on_is_told_apart_from_one_that_did_not() {
    // given a mirror at rest, and a publisher that changes one item, deletes one, forgets one and goes back on one
    let shelf = Shelf::of(9, 3);
    let (publisher, mirror) = at_rest(&shelf);
    let before = mirror.rows("SELECT seq, id, modified, state FROM items ORDER BY seq");
    let newest = shelf.put("id-1");
    shelf.delete("id-2");
    shelf.forget("id-3");
    shelf.put_at("id-8", 7);
    shelf.put("new");

    // when each is asked for
    let asked = publisher.count("/f");
    let (same, answer) = verdict(&mirror, "id-4", &[]);
    let pages = publisher.count("/f") - asked;

    // then only the page is read that the item came on
    assert_eq!((same.as_str(), pages), ("same", 1));
    assert_eq!(answer["from"], publisher.url("/f?from=3&after=id-2"));
    let (newer, answer) = verdict(&mirror, "id-1", &[]);
    assert_eq!((newer.as_str(), answer["modified"].as_str()), ("newer", Some(newest.to_string().as_str())));
    assert_eq!(verdict(&mirror, "id-2", &[]).0, "deleted");
    assert_eq!(verdict(&mirror, "id-3", &[]).0, "not-there");
    assert_eq!(verdict(&mirror, "id-8", &[]).0, "older");
    let (new, answer) = verdict(&mirror, "new", &[]);
    assert_eq!(
        (new.as_str(), answer["detail"].as_str()),
        ("newer", Some("the source has it, and the mirror does not"))
    );
    assert_eq!(verdict(&mirror, "id-1", &["--pages", "1"]).0, "not-found-yet");
    // and nothing was written
    assert_eq!(mirror.rows("SELECT seq, id, modified, state FROM items ORDER BY seq"), before);
    let words = explain(&mirror, &["f", "id-1", "--live"]);
    words.says("f id-1: asked its source again: newer\n");
    words.says(&format!("  source    modified {newest}, updated\n"));
}

#[test]
fn with_only_the_file_no_secret_is_sent_and_that_is_said() {
    let (_publisher, mirror) = at_rest(&Shelf::of(2, 10));
    let database = mirror.path("mirror.db");
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_feedmirror"));
    command.args(["explain", "f", "id-0", "--live", "--db"]).arg(database).env_remove("FEEDMIRROR_CONFIG");

    let output = command.output().unwrap();

    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("f id-0: asked its source again: same\n"), "{text}");
    assert!(text.contains("no secrets or settings of the feed were used"), "{text}");
}

#[test]
fn a_source_that_does_not_answer_is_told_and_the_rest_stands() {
    let (publisher, mirror) = at_rest(&Shelf::of(2, 10));
    drop(publisher);

    let (failed, answer) = verdict(&mirror, "id-0", &[]);

    assert_eq!(failed, "failed");
    assert!(answer["detail"].as_str().unwrap().contains("refused-connection"), "{answer}");
}
