//! What the dashboard asks of the admin side: moves and rollbacks by the rules of the command line, and the live feed.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::time::Duration;

use serde_json::{Value as Json, json};

use crate::common::{Proxy, Settings, Stores, eventually, run};

fn post(proxy: &Proxy, path: &str, body: &Json) -> (u16, Json) {
    let agent: ureq::Agent = ureq::Agent::config_builder().http_status_as_error(false).build().into();
    let mut answer = agent
        .post(format!("http://127.0.0.1:{}{path}", proxy.admin_port))
        .send_json(body)
        .expect("the admin side answers");
    let text = answer.body_mut().read_to_string().expect("read the body");
    (answer.status().as_u16(), serde_json::from_str(&text).unwrap_or(Json::String(text)))
}

fn file(proxy: &Proxy) -> String {
    std::fs::read_to_string(proxy.config_path()).expect("read")
}

fn phase(proxy: &Proxy, id: &str) -> String {
    let table = proxy.table();
    let found = table["routes"].as_array().expect("routes").iter().find(|route| route["id"] == id);
    found.and_then(|route| route["phase"].as_str()).expect("a phase").to_string()
}

/// A listener of `GET /api/events`.
struct Events(BufReader<TcpStream>);

impl Events {
    fn open(proxy: &Proxy) -> Self {
        let mut stream = TcpStream::connect(("127.0.0.1", proxy.admin_port)).expect("connect");
        stream.set_read_timeout(Some(Duration::from_secs(20))).expect("set a time-out");
        stream.write_all(b"GET /api/events HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n").expect("ask");
        Self(BufReader::new(stream))
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        assert!(self.0.read_line(&mut line).expect("read") > 0, "the stream ended");
        line.trim_end().to_string()
    }

    fn status(&mut self) -> String {
        self.line()
    }

    /// The next event: its name and what it says.
    fn next(&mut self) -> (String, Json) {
        let mut name = String::new();
        loop {
            let line = self.line();
            if let Some(event) = line.strip_prefix("event: ") {
                name = event.to_string();
            } else if let Some(data) = line.strip_prefix("data: ") {
                return (name, serde_json::from_str(data).expect("JSON"));
            }
        }
    }

    /// The first tick that `says` something.
    fn tick(&mut self, says: impl Fn(&Json) -> bool) -> Json {
        loop {
            let (name, tick) = self.next();
            assert_eq!(name, "tick");
            if says(&tick) {
                return tick;
            }
        }
    }
}

#[test]
fn a_move_by_http_edits_one_word_and_is_refused_as_the_command_line_is() {
    let proxy = Settings::of(Stores::shared()).phase("70", "standalone").phase("71", "standalone").start().ready();
    let before = file(&proxy);
    let (status, moved) = post(&proxy, "/api/move", &json!({ "routes": ["70", "71"], "to": "dual-standalone" }));
    assert_eq!((status, &moved["routes"]), (200, &json!(["70", "71"])), "{moved}");
    assert!(moved["adopted_ms"].as_f64().is_some_and(|ms| ms > 0.0), "{moved}");
    let after = file(&proxy);
    let word = |id: &str, phase: &str| format!("\"{id}\" = \"{phase}\"");
    let edited = ["70", "71"]
        .iter()
        .fold(before, |text, id| text.replace(&word(id, "standalone"), &word(id, "dual-standalone")));
    assert_eq!(after, edited);
    assert_eq!(phase(&proxy, "70"), "dual-standalone");
    let again = post(&proxy, "/api/move", &json!({ "routes": ["70"], "to": "dual-standalone" }));
    assert_eq!((again.0, &again.1["adopted_ms"]), (200, &Json::Null), "it says so already");

    let (status, refused) = post(&proxy, "/api/move", &json!({ "routes": ["70", "71"], "to": "cluster" }));
    let reason = refused["error"].as_str().expect("a reason");
    assert!(status == 409 && reason.contains("route 70 cannot go from dual-standalone to cluster"), "{refused}");
    assert_eq!(file(&proxy), after, "the file is as it was before");
    let cli = proxy.cli("move 70 71 --to cluster");
    assert!(String::from_utf8_lossy(&cli.stderr).contains(reason), "both say the same: {cli:?}");

    let (status, refused) = post(&proxy, "/api/move", &json!({ "routes": ["9..3"], "to": "cluster" }));
    assert!(status == 422 && refused["error"].as_str().is_some_and(|why| why.contains("lower id")), "{refused}");
    assert_eq!(post(&proxy, "/api/move", &json!({ "routes": [], "to": "cluster" })).0, 400);
    assert_eq!(post(&proxy, "/api/move", &json!({ "routes": ["70"], "to": "moon" })).0, 422);
    let unusable = post(&proxy, "/api/move", &json!({ "routes": ["pubsub"], "to": "dual-cluster" }));
    assert!(
        unusable.0 == 422 && unusable.1["error"].as_str().is_some_and(|why| why.contains("pubsub")),
        "{unusable:?}"
    );
    assert_eq!(file(&proxy), after);

    let (status, back) = post(&proxy, "/api/rollback", &json!({ "routes": ["70"] }));
    assert_eq!((status, &back["routes"]), (200, &json!([{ "route": "70", "to": "standalone" }])), "{back}");
    assert_eq!(phase(&proxy, "70"), "standalone");
    let (status, back) = post(&proxy, "/api/rollback", &json!({ "routes": ["70"] }));
    assert!(status == 409 && back["error"].as_str().is_some_and(|why| why.contains("none before it")), "{back}");

    let history: Json = serde_json::from_str(&proxy.http("/api/flips").1).expect("JSON");
    let entries = history["history"].as_array().expect("entries");
    let flips: Vec<Json> =
        entries.iter().filter(|entry| entry["event"] == "flipped").map(|entry| entry["to"].clone()).collect();
    assert_eq!(flips, ["dual-standalone", "standalone"], "{history}");
    assert_eq!(entries[0]["routes"], json!(["70", "71"]));
    let [took, paused] = ["took_ms", "paused_ms"].map(|name| entries[0][name].as_f64().expect("milliseconds"));
    assert!(took > paused && paused > 0.0 && entries[0]["table_version"] == 2, "{history}");
    assert!(entries.iter().any(|entry| entry["event"] == "refused" && entry["reason"] == reason), "{history}");
}

#[test]
fn a_rollback_by_http_takes_those_back_that_may_go_and_says_why_the_others_stay() {
    let stores = Stores::shared();
    let settings = Settings::of(stores).phase("72", "dual-standalone").phase("73", "cluster");
    let proxy = Settings { routing: "flip_timeout = \"300ms\"".into(), ..settings }.start().ready();
    run(&mut proxy.connect(), "SET provider:72:k 1");
    // A walk back over the whole standalone begins here; until it ends, 73 may not go further.
    assert_eq!(post(&proxy, "/api/rollback", &json!({ "routes": ["73"] })).0, 200);
    proxy.cli_ok("backfill 72 --rate 0");
    proxy.cli_ok("move 72 --to dual-cluster");
    let (status, back) = post(&proxy, "/api/rollback", &json!({ "routes": ["72", "73"] }));
    assert_eq!(status, 200, "{back}");
    assert_eq!(phase(&proxy, "72"), "dual-standalone", "{back}");
    let stayed = back["refused"].as_array().expect("reasons");
    match phase(&proxy, "73").as_str() {
        // The walk was over already.
        "dual-standalone" => assert!(stayed.is_empty(), "{back}"),
        "dual-cluster" => assert!(stayed[0].as_str().is_some_and(|why| why.contains("route 73")), "{back}"),
        other => panic!("73 is in {other}: {back}"),
    }
}

#[test]
fn two_changes_at_once_are_both_made() {
    let ids: Vec<String> = (0..6).map(|n| format!("8{n}")).collect();
    let settings = ids.iter().fold(Settings::of(Stores::shared()), |settings, id| settings.phase(id, "standalone"));
    let proxy = settings.start().ready();
    std::thread::scope(|scope| {
        for (index, id) in ids.iter().enumerate() {
            let proxy = &proxy;
            scope.spawn(move || match index % 2 {
                0 => drop(proxy.cli_ok(&format!("move {id} --to dual-standalone"))),
                _ => {
                    let moved = post(proxy, "/api/move", &json!({ "routes": [id], "to": "dual-standalone" }));
                    assert_eq!(moved.0, 200, "{moved:?}");
                }
            });
        }
    });
    for id in &ids {
        assert_eq!(phase(&proxy, id), "dual-standalone", "no change took another one back");
    }
}

#[test]
fn the_feed_begins_with_everything_and_then_tells_what_changed() {
    let proxy = Settings::of(Stores::shared()).phase("74", "standalone").phase("75", "cluster").start().ready();
    let mut events = Events::open(&proxy);
    assert_eq!(events.status(), "HTTP/1.1 200 OK");
    let (name, full) = events.next();
    assert_eq!(name, "full");
    let row = |message: &Json, id: &str| {
        message["rows"].as_array().and_then(|rows| rows.iter().find(|row| row["id"] == id)).cloned()
    };
    assert_eq!(row(&full, "74").expect("a row")["phase"], "standalone");
    assert_eq!(row(&full, "75").expect("a row")["phase"], "cluster");
    assert_eq!(row(&full, "pubsub").expect("a row")["kind"], "channels");
    assert_eq!(full["head"]["stores"]["cluster"]["up"], true);

    post(&proxy, "/api/move", &json!({ "routes": ["74"], "to": "dual-standalone" }));
    let tick = events.tick(|tick| tick["history"].as_array().is_some_and(|entries| !entries.is_empty()));
    assert_eq!(tick["history"][0]["routes"], json!(["74"]));
    assert_eq!(row(&tick, "74").expect("it changed")["phase"], "dual-standalone");
    assert!(row(&tick, "75").is_none(), "it did not change: {tick}");

    let mut client = proxy.connect();
    run(&mut client, "SET provider:elsewhere:k 1");
    let tick = events.tick(|tick| row(tick, "elsewhere").is_some());
    assert_eq!(row(&tick, "elsewhere").expect("a row")["covered_by"], "new_providers");
    proxy.cli_ok("backfill 74 --rate 0");
    events.tick(|tick| tick["jobs"].as_array().is_some_and(|jobs| jobs.iter().any(|job| job["state"] == "done")));
    post(&proxy, "/api/move", &json!({ "routes": ["74"], "to": "cluster" }));
    events.tick(|tick| tick["history"][0]["event"] == "refused");
}

#[test]
fn listeners_of_the_feed_are_bounded_and_a_place_is_free_again_when_one_goes() {
    let proxy = Settings::of(Stores::shared()).start().ready();
    let mut listeners: Vec<Events> = (0..32).map(|_| Events::open(&proxy)).collect();
    for listener in &mut listeners {
        assert_eq!(listener.status(), "HTTP/1.1 200 OK");
    }
    assert_eq!(Events::open(&proxy).status(), "HTTP/1.1 503 Service Unavailable");
    assert!(proxy.http("/metrics").1.contains("cutover_event_listeners 32"));
    drop(listeners);
    eventually("the places are free", || proxy.http("/metrics").1.contains("cutover_event_listeners 0"));
    assert_eq!(Events::open(&proxy).status(), "HTTP/1.1 200 OK");
}

#[test]
fn the_page_loads_nothing_from_elsewhere() {
    let proxy = Settings::of(Stores::shared()).start().ready();
    let agent = ureq::Agent::new_with_defaults();
    let get = |path: &str| agent.get(format!("http://127.0.0.1:{}{path}", proxy.admin_port)).call().expect("an answer");
    let mut page = get("/");
    let header = |page: &ureq::http::Response<ureq::Body>, name: &str| {
        page.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or("").to_string()
    };
    assert!(header(&page, "content-security-policy").contains("default-src 'none'; script-src 'self'"));
    let text = page.body_mut().read_to_string().expect("read");
    assert!(!text.contains("http://") && !text.contains("https://") && !text.contains(" onclick"), "{text}");
    let named: Vec<&str> = text.split('"').filter(|word| word.starts_with("/dashboard/")).collect();
    assert!(named.len() >= 2, "{text}");
    for path in named {
        let kind = header(&get(path), "content-type");
        assert!(kind.contains("css") || kind.contains("javascript") || kind.contains("svg"), "{path}: {kind}");
    }
    assert_eq!(proxy.http("/dashboard/../Cargo.toml").0, 404);
}
