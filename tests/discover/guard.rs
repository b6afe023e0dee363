//! Addresses that may not be connected to are not connected to: neither at first, nor by a redirect, nor by a name.

use std::net::{IpAddr, Ipv4Addr};

use feedmirror::source::address_policy::AddressPolicy;
use feedmirror::source::http::{HttpFailure, HttpSettings};
use feedmirror::source::web_page_fetcher::WebPageFetcher;
use url::Url;

use crate::support::Reply;
use crate::web::Web;
use crate::workspace::Workspace;

fn get(policy: AddressPolicy, url: &str) -> Result<Vec<u8>, HttpFailure> {
    let fetcher = WebPageFetcher::new(HttpSettings::default(), policy).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(fetcher.get(&Url::parse(url).unwrap())).map(|page| page.bytes)
}

#[test]
fn this_machine_is_not_asked_unless_allowed() {
    let web = Web::new();
    web.site("/acme", "Acme", &vec![("Slot", "https://feeds.example/slot".to_owned())]);
    let by_name = web.url("/acme").replace("127.0.0.1", "localhost");

    for url in [&web.url("/acme"), &by_name] {
        let ran = Workspace::new().run(&["discover", url]);
        assert_eq!((ran.code, ran.out.as_str()), (Some(1), ""), "{ran:?}");
        assert!(ran.err.contains("private-address: ") && ran.err.contains("--allow-private"), "{}", ran.err);
    }
    assert_eq!(web.publisher.requests().len(), 0, "no request is sent");
    assert_eq!(Workspace::new().run(&["discover", &by_name, "--allow-private"]).code, Some(0));
}

#[test]
fn a_redirect_to_where_no_connection_may_go_is_not_followed() {
    // given one address of this machine that is permitted, as if it were public
    let web = Web::new();
    let port = web.publisher.address().port();
    web.reply("/well", Reply::page("well"));
    web.reply("/round", Reply::redirect(307, "/well"));
    let policy = || AddressPolicy::public_only().besides(IpAddr::V4(Ipv4Addr::LOCALHOST));
    assert_eq!(get(policy(), &web.url("/round")).unwrap(), b"well");

    // when it redirects to others, by address or by name, then they get no request
    let metadata = "http://169.254.169.254/latest/meta-data/".to_owned();
    for target in [format!("http://127.0.0.2:{port}/well"), format!("http://[::1]:{port}/well"), metadata] {
        web.reply("/away", Reply::redirect(302, &target));
        let result = get(policy(), &web.url("/away"));
        assert!(matches!(result, Err(HttpFailure::PrivateAddress(_))), "{target}: {result:?}");
    }
    let by_name = web.url("/well").replace("127.0.0.1", "localhost");
    assert!(matches!(get(AddressPolicy::public_only(), &by_name), Err(HttpFailure::PrivateAddress(_))));
    assert_eq!(web.publisher.count("/well"), 1);
}
