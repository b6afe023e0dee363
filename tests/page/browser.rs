//! Headless Chromium, controlled through its DevTools protocol over a pipe: messages of JSON that end in a zero byte
//! (`--remote-debugging-pipe`), so that neither a port nor another program is needed.

use std::cell::{Cell, RefCell};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

/// How long a condition may take on a busy machine.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

/// One browser with one tab.
pub(crate) struct Browser {
    child: Child,
    input: RefCell<ChildStdin>,
    messages: Receiver<Value>,
    session: String,
    last: Cell<u64>,
    /// The page's errors: on its console, exceptions, violations of its policy.
    complaints: RefCell<Vec<String>>,
    _profile: TempDir,
}

impl Browser {
    pub(crate) fn start() -> Self {
        let profile = tempfile::tempdir().unwrap();
        // The browser reads commands from descriptor 3 and writes answers to 4.
        let script = "exec chromium \"$@\" 3<&0 4>&1 </dev/null >/dev/null 2>/dev/null";
        let mut command = Command::new("sh");
        command.args(["-c", script, "chromium", "--headless", "--remote-debugging-pipe", "--no-first-run"]);
        command.args(["--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars", "--no-proxy-server"]);
        command.arg(format!("--user-data-dir={}", profile.path().display()));
        if nix::unistd::geteuid().is_root() {
            command.arg("--no-sandbox");
        }
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (input, output) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        let (sender, messages) = sync_channel(10_000);
        std::thread::spawn(move || {
            for message in BufReader::new(output).split(0) {
                let Ok(message) = message else { return };
                if sender.send(serde_json::from_slice(&message).unwrap()).is_err() {
                    return;
                }
            }
        });
        let mut browser = Self {
            child,
            input: RefCell::new(input),
            messages,
            session: String::new(),
            last: Cell::new(0),
            complaints: RefCell::default(),
            _profile: profile,
        };
        let tab = browser.call("Target.createTarget", json!({ "url": "about:blank" }));
        let attach = json!({ "targetId": tab["targetId"], "flatten": true });
        let attached = browser.call("Target.attachToTarget", attach);
        browser.session = attached["sessionId"].as_str().unwrap().to_owned();
        for domain in ["Page", "Runtime", "Log"] {
            browser.call(&format!("{domain}.enable"), json!({}));
        }
        browser.size(1280, 900);
        browser
    }

    /// Calls a method and waits for its answer.
    pub(crate) fn call(&self, method: &str, parameters: Value) -> Value {
        let number = self.last.get() + 1;
        self.last.set(number);
        let mut message = json!({ "id": number, "method": method, "params": parameters });
        if !self.session.is_empty() {
            message["sessionId"] = json!(self.session);
        }
        let mut bytes = serde_json::to_vec(&message).unwrap();
        bytes.push(0);
        self.input.borrow_mut().write_all(&bytes).expect("needs chromium");
        loop {
            let message = self.next(method);
            if message["id"] == number {
                assert!(message["error"].is_null(), "{method}: {message}");
                return message["result"].clone();
            }
        }
    }

    fn next(&self, waiting_for: &str) -> Value {
        let message = self.messages.recv_timeout(DEADLINE);
        let message = message.unwrap_or_else(|_| panic!("chromium did not answer: {waiting_for}; is it installed?"));
        let parameters = &message["params"];
        match message["method"].as_str() {
            Some("Runtime.exceptionThrown") => self.complain(&parameters["exceptionDetails"]),
            Some("Runtime.consoleAPICalled") if parameters["type"] == "error" => self.complain(parameters),
            Some("Log.entryAdded") if parameters["entry"]["level"] == "error" => self.complain(&parameters["entry"]),
            _ => {}
        }
        message
    }

    fn complain(&self, of: &Value) {
        self.complaints.borrow_mut().push(of.to_string());
    }

    /// The page's errors so far.
    pub(crate) fn complaints(&self) -> Vec<String> {
        self.complaints.borrow().clone()
    }

    /// Loads a page, and waits until its load event.
    pub(crate) fn open(&self, url: &str) {
        self.call("Page.navigate", json!({ "url": url }));
        self.loaded();
    }

    fn loaded(&self) {
        while self.next("Page.loadEventFired")["method"] != "Page.loadEventFired" {}
    }

    /// Clicks the element of a selector, which loads another page.
    pub(crate) fn follow(&self, selector: &str) {
        self.evaluate(&format!("setTimeout(() => document.querySelector({selector:?}).click())"));
        self.loaded();
    }

    /// The value of an expression, as JSON.
    pub(crate) fn evaluate(&self, expression: &str) -> Value {
        let parameters = json!({ "expression": expression, "returnByValue": true, "awaitPromise": true });
        let answer = self.call("Runtime.evaluate", parameters);
        assert!(answer["exceptionDetails"].is_null(), "{expression}: {answer}");
        answer["result"]["value"].clone()
    }

    pub(crate) fn text(&self, expression: &str) -> String {
        self.evaluate(expression).as_str().unwrap_or_default().to_owned()
    }

    /// Waits until an expression is true.
    pub(crate) fn until(&self, expression: &str) {
        let end = Instant::now() + DEADLINE;
        while self.evaluate(expression) != json!(true) {
            let body = || self.text("document.body.innerText");
            assert!(Instant::now() < end, "not seen: {expression}\n{}\n{:?}", body(), self.complaints());
            // The page's own clock waits, so that its scripts run meanwhile.
            self.evaluate("new Promise((done) => setTimeout(done, 20))");
        }
    }

    /// How wide and high the window is, in CSS pixels.
    pub(crate) fn size(&self, width: u32, height: u32) {
        let size = json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600 });
        self.call("Emulation.setDeviceMetricsOverride", size);
    }

    pub(crate) fn prefer(&self, scheme: &str) {
        let features = json!({ "features": [{ "name": "prefers-color-scheme", "value": scheme }] });
        self.call("Emulation.setEmulatedMedia", features);
    }

    pub(crate) fn scripts(&self, on: bool) {
        self.call("Emulation.setScriptExecutionDisabled", json!({ "value": !on }));
    }

    /// Presses a key whose `key` and `code` are the same.
    pub(crate) fn press(&self, key: &str, code: u32) {
        for kind in ["keyDown", "keyUp"] {
            let event = json!({ "type": kind, "key": key, "code": key, "windowsVirtualKeyCode": code });
            self.call("Input.dispatchKeyEvent", event);
        }
    }

    pub(crate) fn write(&self, text: &str) {
        self.call("Input.insertText", json!({ "text": text }));
    }

    /// Saves a picture of the window, for people, beside the build's other files.
    pub(crate) fn picture(&self, name: &str) -> PathBuf {
        let shot = self.call("Page.captureScreenshot", json!({ "format": "png" }));
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("page");
        std::fs::create_dir_all(&folder).unwrap();
        let path = folder.join(format!("{name}.png"));
        std::fs::write(&path, unbase64(shot["data"].as_str().unwrap())).unwrap();
        path
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// RFC 4648 §4.
fn unbase64(text: &str) -> Vec<u8> {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let (mut bytes, mut accumulator, mut bits) = (Vec::with_capacity(text.len() / 4 * 3), 0u32, 0);
    for digit in text.bytes().filter(|digit| *digit != b'=') {
        let value = ALPHABET.iter().position(|known| *known == digit).unwrap();
        (accumulator, bits) = (accumulator << 6 | u32::try_from(value).unwrap(), bits + 6);
        if bits >= 8 {
            bits -= 8;
            bytes.push((accumulator >> bits & 0xff) as u8);
        }
    }
    bytes
}

#[test]
fn pictures_are_read_as_they_are_sent() {
    assert_eq!(unbase64("Zm9vYmE="), b"fooba");
}
