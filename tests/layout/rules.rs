//! The table: one row a module, with the reason for what it says.

/// One module at the top of `src/` and everything below it.
pub(crate) struct Rule {
    pub(crate) module: &'static str,
    /// Modules or paths below them, `*` for all; a module may always use itself.
    pub(crate) may_use: &'static [&'static str],
    /// Paths or keywords that must not appear.
    pub(crate) never: &'static [&'static str],
    pub(crate) because: &'static str,
}

const NO_WAITING: &[&str] = &["async", "await", "tokio", "futures_util", "reqwest", "axum"];
const NO_CLOCK: &[&str] = &[
    "async",
    "await",
    "tokio",
    "reqwest",
    "Instant::now",
    "SystemTime::now",
    "Timestamp::now",
    "Zoned::now",
    "rand::rng",
    "rand::random",
    "thread_rng",
    "OsRng",
];

pub(crate) const RULES: &[Rule] = &[
    Rule {
        module: "feed",
        may_use: &[],
        never: &["async", "await", "std::fs", "std::net", "std::thread", "std::process", "Instant::now"],
        because: "the words everyone shares depend on nobody and do no I/O",
    },
    Rule {
        module: "json",
        may_use: &[],
        never: NO_WAITING,
        because: "one reader for all who look into strangers' JSON, which knows the grammar and nothing of feeds",
    },
    Rule {
        module: "terminal",
        may_use: &[],
        never: NO_WAITING,
        because: "whoever shows a stranger's text to people may use it, so it knows nobody",
    },
    Rule {
        module: "source",
        may_use: &["feed"],
        never: &[],
        because: "a transport hands over bytes: it neither reads nor keeps them",
    },
    Rule {
        module: "decode",
        may_use: &["feed", "json"],
        never: NO_WAITING,
        because: "bytes to items is a pure function, tested without a socket or a file",
    },
    Rule {
        module: "store",
        may_use: &["feed", "json"],
        never: &["reqwest", "axum"],
        because: "the store decides by what is stored, never by where it came from",
    },
    Rule {
        module: "schedule",
        may_use: &["feed"],
        never: NO_CLOCK,
        because: "time and randomness are passed in, so that every wait can be tested",
    },
    Rule {
        module: "mode",
        may_use: &["feed", "schedule"],
        never: NO_CLOCK,
        because: "the state machine is a pure function of its inputs, time among them",
    },
    Rule {
        module: "worker",
        may_use: &["feed", "source", "decode", "store", "schedule", "mode"],
        never: &[],
        because: "the only place where transport, decoder and store meet",
    },
    Rule {
        module: "supervisor",
        may_use: &["feed", "source", "store", "schedule", "mode", "worker"],
        never: &[],
        because: "it starts, stops and restarts workers, and reads no page itself",
    },
    Rule {
        module: "output",
        may_use: &["feed", "json", "terminal", "store::commits", "store::read"],
        never: &["reqwest"],
        because: "what is shown is what is stored: it works beside a daemon and without one",
    },
    Rule {
        module: "server",
        may_use: &["feed", "output", "source::secret", "source::webhook", "store::read", "supervisor"],
        never: &[],
        because: "the listeners route: what they show they read page by page, and they decide and store nothing",
    },
    Rule {
        module: "config",
        may_use: &["feed", "source", "decode", "store", "schedule", "mode", "worker", "supervisor", "output"],
        never: &[],
        because: "settings live beside what they set; configuration only composes them",
    },
    Rule {
        module: "daemon",
        may_use: &[
            "feed",
            "source",
            "decode",
            "store",
            "schedule",
            "mode",
            "worker",
            "supervisor",
            "output",
            "server",
            "config",
        ],
        never: &["std::process::exit"],
        because: "the composition root, which a test can start and stop as a function",
    },
    Rule {
        module: "simulate",
        may_use: &[],
        never: &[],
        because: "a publisher that shared code with the mirror would share its mistakes",
    },
    Rule {
        module: "discover",
        may_use: &["feed", "terminal"],
        never: &["async", "await", "tokio", "reqwest", "std::fs", "std::net", "Instant::now", "SystemTime::now"],
        because: "pages to configuration is a pure function: strangers' pages are tried on it without a socket or a file",
    },
    Rule {
        module: "cli",
        may_use: &["*"],
        never: &[],
        because: "the verbs may reach everything; nothing reaches them",
    },
    Rule { module: "main", may_use: &["cli"], never: &[], because: "main only maps a result to an exit code" },
    Rule {
        module: "lib",
        may_use: &[],
        never: &[],
        because: "the crate's root declares the modules and tells the journey",
    },
];

/// A dependency with few homes.
pub(crate) struct DependencyRule {
    pub(crate) dependency: &'static str,
    pub(crate) only_in: &'static [&'static str],
    pub(crate) because: &'static str,
}

pub(crate) const DEPENDENCY_RULES: &[DependencyRule] = &[
    DependencyRule {
        dependency: "rusqlite",
        only_in: &["store"],
        because: "SQL that is written in one place is migrated in one place",
    },
    DependencyRule {
        dependency: "lapin",
        only_in: &["source", "simulate"],
        because: "a broker is a transport like any other: no loop knows one library's words",
    },
    DependencyRule {
        dependency: "async-rs",
        only_in: &["source"],
        because: "it is there to limit what the broker's library is fed with",
    },
    DependencyRule {
        dependency: "anyhow",
        only_in: &["cli", "main"],
        because: "each stage has its own error enum, which policy can match",
    },
];

/// What the shared words may be made of, out of all dependencies in `Cargo.toml`.
pub(crate) const CRATES_OF_FEED: &[&str] = &["serde"];
