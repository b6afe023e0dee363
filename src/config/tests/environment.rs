#![allow(clippy::unwrap_used)]
use super::*;

/// Variables as Kubernetes sets them in every container beside services called `feedmirror` and `feedmirror-ops`.
#[test]
fn what_kubernetes_tells_of_a_service_is_no_setting() {
    let config_dir = ConfigDir::new(&[("feedmirror.toml", FEED)]);
    let injected = [
        ("FEEDMIRROR_SERVICE_HOST", "10.0.171.239"),
        ("FEEDMIRROR_SERVICE_PORT", "8470"),
        ("FEEDMIRROR_SERVICE_PORT_OPS", "8470"),
        ("FEEDMIRROR_SERVICE_PORT_WEB_HOOKS", "8471"),
        ("FEEDMIRROR_PORT", "tcp://10.0.171.239:8470"),
        ("FEEDMIRROR_PORT_8470_TCP", "tcp://10.0.171.239:8470"),
        ("FEEDMIRROR_PORT_8470_TCP_ADDR", "10.0.171.239"),
        ("FEEDMIRROR_PORT_8470_TCP_PORT", "8470"),
        ("FEEDMIRROR_PORT_8470_TCP_PROTO", "tcp"),
        ("FEEDMIRROR_PORT_53_UDP", "udp://10.0.171.239:53"),
        ("FEEDMIRROR_OPS_SERVICE_HOST", "10.0.0.1"),
        ("FEEDMIRROR_OPS_SERVICE_PORT_HTTP", "80"),
        ("FEEDMIRROR_OPS_PORT", "tcp://10.0.0.1:80"),
        ("FEEDMIRROR_OPS_PORT_80_TCP_ADDR", "10.0.0.1"),
    ];
    let config = config_dir.load_with(&injected, &Overrides::default()).unwrap();
    assert_eq!((config.problems.len(), config.warnings.len()), (0, 0));

    for mistaken in [
        "POL__MIN",
        "PORT",
        "OPS_PORT",
        "SERVICE",
        "SERVICE_HOSTS",
        "PORT_X_TCP",
        "PORT_8470_TCP_NAME",
        "SERVICE_PORTS",
    ] {
        let environment = [(&*format!("FEEDMIRROR_{mistaken}"), "8470")];
        let loaded = config_dir.load_with(&environment, &Overrides::default());
        assert_eq!(problems(&loaded).len(), 1, "{mistaken}");
    }
}
