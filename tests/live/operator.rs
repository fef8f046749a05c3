//! The operator's commands do the whole of what they say, stop safely where something falls short, and tell what is going on.

use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use redis::Value;
use serde_json::Value as Json;

use crate::common::{Proxy, Redis, Settings, Stores, command, connect, eventually, run, try_run};

fn json(text: &str) -> Json {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

fn route(proxy: &Proxy, id: &str) -> Json {
    let table = proxy.table();
    let found = table["routes"].as_array().expect("routes").iter().find(|route| route["id"] == id);
    found.unwrap_or_else(|| panic!("no route {id}: {table}")).clone()
}

fn phase(proxy: &Proxy, id: &str) -> String {
    route(proxy, id)["phase"].as_str().expect("a phase").to_string()
}

fn file(proxy: &Proxy) -> String {
    std::fs::read_to_string(proxy.config_path()).expect("read")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn cutover(config: &Path, words: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cutover"));
    command.arg("--config").arg(config).args(words.split(' '));
    command
}

/// The command line in the background.
fn background(proxy: &Proxy, words: &str) -> Child {
    let mut command = cutover(&proxy.config_path(), words);
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("start cutover")
}

fn interrupt(child: &Child) {
    let sent = Command::new("kill").args(["-INT", &child.id().to_string()]).status().expect("run kill");
    assert!(sent.success());
}

#[track_caller]
fn refused(out: &Output) -> String {
    let (out_text, error) = (text(&out.stdout), text(&out.stderr));
    assert_eq!(out.status.code(), Some(1), "{out_text}{error}");
    error
}

/// Clients of a provider that increment and check every answer, until told to stop.
struct Traffic {
    over: Arc<AtomicBool>,
    clients: Vec<std::thread::JoinHandle<(String, i64)>>,
}

impl Traffic {
    fn start(port: u16, providers: &[&str]) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let client = |provider: &&str| {
            let (over, key) = (over.clone(), format!("provider:{provider}:count"));
            std::thread::spawn(move || {
                let (mut client, mut count) = (connect(port), 0);
                while !over.load(Ordering::Relaxed) {
                    count += 1;
                    let reply: i64 = command(&["INCR", &key])
                        .query(&mut client)
                        .unwrap_or_else(|error| panic!("INCR {key}: {error}"));
                    assert_eq!(reply, count, "{key}");
                    std::thread::sleep(Duration::from_millis(1));
                }
                (key, count)
            })
        };
        let clients = providers.iter().map(client).collect();
        Self { over, clients }
    }

    /// Each key and its last value.
    fn stop(self) -> Vec<(String, i64)> {
        self.over.store(true, Ordering::Relaxed);
        self.clients.into_iter().map(|client| client.join().expect("no wrong reply")).collect()
    }
}

#[test]
fn migrate_goes_the_whole_way_and_rollback_all_the_way_back_under_traffic() {
    let stores = Stores::shared();
    let proxy = Settings::of(stores).phase("201", "standalone").start().ready();
    let mut client = proxy.connect();
    for n in 0..300 {
        run(&mut client, &format!("SET provider:201:k{n} {n}"));
    }
    let traffic = Traffic::start(proxy.port, &["201"]);
    let told = proxy.cli_ok("migrate 201 --bake 2s --rate 0");
    let steps = [
        "dual-standalone: adopted",
        "backfill: ",
        "verify: equal",
        "dual-cluster: adopted",
        "bake: no open divergence",
        "verify: equal",
    ];
    let mut rest = &told[..];
    for step in steps {
        let at = rest.find(&format!("201: {step}")).unwrap_or_else(|| panic!("no `{step}` in its turn: {told}"));
        rest = &rest[at + step.len()..];
    }
    assert!(told.contains("cutover rollback"), "{told}");
    assert_eq!(phase(&proxy, "201"), "dual-cluster", "it stops before the phase cluster");
    let told = proxy.cli_ok("migrate 201 --bake 0s --rate 0 --finish");
    assert!(
        told.contains("201: in phase dual-cluster already")
            && !told.contains("backfill")
            && !told.contains("dual-standalone"),
        "{told}"
    );
    assert_eq!(phase(&proxy, "201"), "cluster");

    let told = proxy.cli_ok("rollback 201");
    assert!(told.contains("201 → dual-cluster, adopted in"), "{told}");
    let early = proxy.cli("rollback 201");
    // The walk back may be over already: what counts is that nothing is lost either way.
    if early.status.code() == Some(1) {
        assert!(refused(&early).contains("not known to hold every key again"), "{early:?}");
        eventually("the standalone has every key again", || route(&proxy, "201")["synced"] == true);
        proxy.cli_ok("rollback 201");
    }
    assert_eq!(phase(&proxy, "201"), "dual-standalone");
    let told = json(&proxy.cli_ok("rollback 201 --json"));
    assert_eq!(told["routes"], serde_json::json!([{ "route": "201", "to": "standalone" }]));
    assert!(told["adopted_ms"].as_f64().is_some_and(|ms| ms > 0.0), "{told}");
    assert!(proxy.cli_ok("rollback 201").contains("standalone, which has none before it"));
    let mut standalone = stores.standalone.connect();
    for (key, count) in traffic.stop() {
        assert!(count > 100, "{count} increments");
        assert_eq!(run(&mut standalone, &format!("GET {key}")), Value::BulkString(count.to_string().into_bytes()));
    }
    assert_eq!(run(&mut standalone, "GET provider:201:k299"), Value::BulkString(b"299".to_vec()));
}

#[test]
fn a_bake_stops_at_a_request_that_the_cluster_cannot_do() {
    let proxy = Settings::of(Stores::shared()).phase("202", "standalone").start().ready();
    let mut client = proxy.connect();
    run(&mut client, "SADD provider:202:a 1 2");
    run(&mut client, "SADD provider:202:b 2 3");
    let spans = |client: &mut redis::Connection| try_run(client, "SINTER provider:202:a provider:202:b");
    assert_eq!(spans(&mut client), Ok(Value::Array(vec![Value::BulkString(b"2".to_vec())])));
    let migrating = background(&proxy, "migrate 202 --bake 60s --rate 0");
    eventually("it is cut over", || phase(&proxy, "202") == "dual-cluster");
    std::thread::sleep(Duration::from_millis(1_500));
    let error = spans(&mut client).expect_err("two slots");
    assert!(error.to_string().to_lowercase().contains("slot"), "{error}");
    let began = Instant::now();
    let out = migrating.wait_with_output().expect("wait");
    assert!(began.elapsed() < Duration::from_secs(10), "long before the bake's end");
    let told = refused(&out);
    assert!(told.contains("refused 1 requests of 202") && told.contains("CROSSSLOT"), "{told}");
    assert!(told.contains("202 stays in phase dual-cluster") && told.contains("cutover rollback"), "{told}");
    assert_eq!(phase(&proxy, "202"), "dual-cluster");
    let metrics = proxy.http("/metrics").1;
    assert!(metrics.contains("cutover_refused_requests_total{reason=\"crossslot\"} 1"), "{metrics}");
    assert!(metrics.contains("cutover_route_refusals_total{route=\"202\"} 1"), "{metrics}");
    proxy.cli_ok("rollback 202");
    assert!(spans(&mut client).is_ok(), "the way back helps at once");
}

#[test]
fn a_key_that_differs_stops_migrate_before_the_cutover_and_the_same_command_goes_on_when_it_is_repaired() {
    let stores = Stores::shared();
    let proxy = Settings::of(stores).phase("203", "dual-standalone").phase("204", "standalone").start().ready();
    let mut client = proxy.connect();
    for n in 0..20 {
        run(&mut client, &format!("SET provider:203:k{n} {n}"));
    }
    proxy.cli_ok("backfill 203 --rate 0");
    assert_eq!(route(&proxy, "203")["keys_copied"], 20);
    stores.on_cluster(&["SET", "provider:203:k7", "wrong"], "provider:203:k7");
    let told = refused(&proxy.cli("migrate 203 204 --bake 0s --rate 0"));
    assert!(
        told.contains("provider:203:k7: the values differ") && told.contains("203 stays in phase dual-standalone"),
        "{told}"
    );
    assert!(told.contains("verify --repair") && told.contains("not begun: 204"), "{told}");
    assert_eq!((phase(&proxy, "203"), phase(&proxy, "204")), ("dual-standalone".into(), "standalone".into()));
    proxy.cli_ok("verify 203 --repair");
    let told = proxy.cli_ok("migrate 203 204 --bake 0s --rate 0 --json");
    let steps: Vec<Json> = told.lines().map(json).collect();
    let names: Vec<String> = steps
        .iter()
        .map(|step| format!("{} {}", step["routes"][0].as_str().unwrap_or(""), step["step"].as_str().unwrap_or("end")))
        .collect();
    let expected = [
        "203 verify",
        "203 dual-cluster",
        "203 verify",
        "204 dual-standalone",
        "204 backfill",
        "204 verify",
        "204 dual-cluster",
        "204 verify",
        "203 end",
    ];
    assert_eq!(names, expected, "one after the other");
    assert_eq!((phase(&proxy, "203"), phase(&proxy, "204")), ("dual-cluster".into(), "dual-cluster".into()));
}

#[test]
fn ctrl_c_leaves_every_route_in_a_safe_phase_and_a_backfill_running() {
    let proxy = Settings::of(Stores::shared()).phase("205", "standalone").start().ready();
    let mut client = proxy.connect();
    for n in 0..100 {
        run(&mut client, &format!("SET provider:205:k{n} {n}"));
    }
    // Slow enough that the walk is still going when it is interrupted.
    let migrating = background(&proxy, "migrate 205 --rate 40 --bake 60s");
    eventually("the backfill runs", || proxy.http("/api/jobs").1.contains("\"backfill\""));
    std::thread::sleep(Duration::from_millis(300));
    interrupt(&migrating);
    let told = refused(&migrating.wait_with_output().expect("wait"));
    assert!(told.contains("stopped by Ctrl-C") && told.contains("205 stays in phase dual-standalone"), "{told}");
    let jobs = json(&proxy.http("/api/jobs").1);
    let job = &jobs["jobs"][0];
    assert!(job["state"] == "running" || job["state"] == "done", "{job}");
    if job["state"] == "running" {
        let agent = ureq::Agent::new_with_defaults();
        agent
            .post(format!("http://127.0.0.1:{}/api/jobs/{}/cancel", proxy.admin_port, job["id"]))
            .send_empty()
            .expect("cancel");
        eventually("the slow walk ends", || proxy.http("/api/jobs").1.contains("\"cancelled\""));
    }
    let before = file(&proxy);
    let migrating = background(&proxy, "migrate 205 --rate 0 --bake 60s");
    eventually("it bakes", || phase(&proxy, "205") == "dual-cluster");
    std::thread::sleep(Duration::from_millis(300));
    interrupt(&migrating);
    let told = refused(&migrating.wait_with_output().expect("wait"));
    assert!(told.contains("205 stays in phase dual-cluster"), "{told}");
    assert_eq!(file(&proxy), before.replace("\"205\" = \"dual-standalone\"", "\"205\" = \"dual-cluster\""));
    for n in 0..100 {
        assert_eq!(run(&mut client, &format!("GET provider:205:k{n}")), Value::BulkString(n.to_string().into_bytes()));
    }
    proxy.cli_ok("migrate 205 --rate 0 --bake 0s --finish");
    assert_eq!(phase(&proxy, "205"), "cluster");
}

#[test]
fn all_stands_for_providers_of_the_table_and_of_the_stores_and_many_flip_as_one_table() {
    // Stores of its own: `--all` means every key in them.
    let stores = Stores::start();
    let mut direct = stores.standalone.connect();
    for provider in 300..330 {
        for n in 0..10 {
            run(&mut direct, &format!("SET provider:{provider}:k{n} {n}"));
        }
    }
    run(&mut direct, "SET provider:1..2:k x");
    run(&mut direct, "SET other x");
    let proxy = Settings::of(&stores).phase("300", "standalone").phase("310..314", "standalone").start().ready();
    let status = json(&proxy.cli_ok("status --all --json"));
    let shown = status["routes"].as_array().expect("routes");
    // 30 providers, of which five are one line.
    assert_eq!(shown.len(), 26, "{status}");
    let unnamed = shown.iter().find(|route| route["id"] == "329").expect("found in the store");
    assert_eq!((&unnamed["covered_by"], &unnamed["phase"]), (&"new_providers".into(), &"standalone".into()));

    let traffic = Traffic::start(proxy.port, &["300", "312", "329"]);
    let version = proxy.table()["table_version"].as_u64().expect("a version");
    let out = proxy.cli("move --all --to dual-standalone");
    assert!(out.status.success(), "{out:?}");
    assert!(text(&out.stderr).contains("left out: 1..2"), "an id that looks like a range cannot be named: {out:?}");
    assert_eq!(proxy.table()["table_version"], version + 1, "one table for all of them");
    for id in ["300", "310..314", "329"] {
        assert_eq!(phase(&proxy, id), "dual-standalone");
    }
    assert_eq!(phase(&proxy, "new_providers"), "standalone");
    proxy.cli_ok("backfill --all --rate 0");
    proxy.cli_ok("verify --all --rate 0");
    assert_eq!(route(&proxy, "310..314")["keys_copied"].as_u64().map(|copied| copied >= 50), Some(true));
    let told = proxy.cli_ok("migrate --all --bake 1s --rate 0 --finish");
    assert!(told.contains("300, 301, 302 and 23 more"), "{told}");
    assert_eq!(phase(&proxy, "329"), "cluster");

    let version = proxy.table()["table_version"].as_u64().expect("a version");
    let began = Instant::now();
    proxy.cli_ok("rollback --all");
    eprintln!("rollback --all of 26 lines: {:?}", began.elapsed());
    assert_eq!(proxy.table()["table_version"], version + 1);
    assert_eq!(phase(&proxy, "329"), "dual-cluster");
    // A range of ids stands for the lines in it.
    eventually("the way back is open", || {
        route(&proxy, "320")["synced"] == true && route(&proxy, "324")["synced"] == true
    });
    proxy.cli_ok("rollback 320..324");
    for (id, expected) in
        [("319", "dual-cluster"), ("320", "dual-standalone"), ("324", "dual-standalone"), ("325", "dual-cluster")]
    {
        assert_eq!(phase(&proxy, id), expected, "{id}");
    }
    for (key, count) in traffic.stop() {
        let now: i64 = command(&["GET", &key]).query(&mut proxy.connect()).expect("GET");
        assert_eq!(now, count, "{key}");
    }
}

#[test]
fn a_rollback_of_many_takes_those_back_that_may_go_and_names_the_rest() {
    let mut stores = Stores::start();
    let proxy = Settings { routing: "flip_timeout = \"1s\"".into(), ..Settings::of(&stores) };
    let proxy = proxy.phase("206", "dual-standalone").phase("207", "dual-standalone").start().ready();
    let mut client = proxy.connect();
    run(&mut client, "SET provider:206:a 1");
    run(&mut client, "SET provider:207:a 1");
    proxy.cli_ok("backfill 206 207 --rate 0");
    proxy.cli_ok("move 206 207 --to dual-cluster");
    // The standalone misses a write of 206 only.
    stores.standalone.signal("KILL");
    run(&mut client, "SET provider:206:a 2");
    eventually("the miss is open divergence", || route(&proxy, "206")["open_divergence"] == 1);
    let told = refused(&proxy.cli("rollback 206 207"));
    assert!(
        told.contains("route 206 cannot go from dual-cluster to dual-standalone") && told.contains("1 keys may differ"),
        "{told}"
    );
    assert_eq!((phase(&proxy, "206"), phase(&proxy, "207")), ("dual-cluster".into(), "dual-standalone".into()));
    stores.standalone.restart();
    // A server that came back may have lost more than what the proxy knows of: a walk that begins by itself finds out.
    eventually("it is repaired and walked", || {
        route(&proxy, "206")["open_divergence"] == 0 && route(&proxy, "206")["synced"] == true
    });
    proxy.cli_ok("rollback 206");
    assert_eq!(run(&mut client, "GET provider:206:a"), Value::BulkString(b"2".to_vec()));
}

#[test]
fn inventory_tells_what_the_standalone_holds_without_a_proxy_and_without_keys() {
    let redis = Redis::start(&[]);
    let mut direct = redis.connect();
    for n in 0..2_000 {
        run(&mut direct, &format!("SET provider:1:s{n} {n}"));
    }
    for n in 0..50 {
        run(&mut direct, &format!("SET :1:provider:2:t{n} {n} EX {}", if n < 20 { 60 } else { 7_200 }));
    }
    run(&mut direct, "SET provider:2:long x EX 864000");
    run(&mut direct, &format!("SET provider:2:big {}", "x".repeat(100_000)));
    run(&mut direct, "HSET provider:1:h a 1 b 2");
    run(&mut direct, "ZADD asgi:z 1 a 2 b");
    run(&mut direct, "SET celery x");
    run(&mut direct, "SET queue:1 x");
    run(&mut direct, "CONFIG RESETSTAT");
    let directory = tempfile::tempdir().expect("make a directory");
    let (config, report) = (directory.path().join("proxy.toml"), directory.path().join("report.json"));
    let lines = format!(
        "[standalone]\nurl = \"{}\"\n[routing]\nkeys = [\"provider:{{provider}}:*\", \"*:provider:{{provider}}:*\"]\n[prefixes]\n\"asgi:\" = \"standalone\"\n",
        redis.url()
    );
    std::fs::write(&config, lines).expect("write");
    let words = format!("inventory --top 3 --output {}", report.display());
    let out = cutover(&config, &words).output().expect("run cutover");
    let told = text(&out.stdout);
    assert!(out.status.success(), "{told}{}", text(&out.stderr));
    assert!(told.contains("provider:2:big") && told.contains("queue:*") && told.contains("asgi:"), "{told}");
    let found = json(&std::fs::read_to_string(&report).expect("a report"));
    assert_eq!(found["dbsize"], 2_056);
    assert_eq!(found["total"]["keys"], 2_056);
    let (first, second) = (&found["providers"]["1"], &found["providers"]["2"]);
    assert_eq!(first["keys"], 2_001);
    assert_eq!((&first["types"]["string"]["keys"], &first["types"]["hash"]["keys"]), (&2_000.into(), &1.into()));
    assert_eq!(second["ttls"], serde_json::json!({ "none": 1, "under_1h": 20, "under_1d": 30, "more": 1 }));
    assert_eq!(second["biggest"][0]["key"], "provider:2:big");
    assert!(second["biggest"][0]["bytes"].as_u64().is_some_and(|bytes| bytes > 100_000), "{second}");
    assert_eq!(second["biggest"].as_array().map(Vec::len), Some(3));
    assert_eq!(found["prefixes"]["asgi:"]["types"]["zset"]["keys"], 1);
    assert_eq!(found["other_keys"]["keys"], 2);
    assert_eq!(found["unsized_keys"], 0);
    let commands: String = command(&["INFO", "commandstats"]).query(&mut direct).expect("INFO");
    assert!(commands.contains("cmdstat_scan:") && !commands.contains("cmdstat_keys:"), "{commands}");
    let scans = commands
        .lines()
        .find_map(|line| line.strip_prefix("cmdstat_scan:calls=")?.split(',').next()?.parse::<u32>().ok());
    assert!(scans.is_some_and(|scans| scans >= 20), "small pages: {scans:?}");
    let out = cutover(&config, &format!("{words} --json")).output().expect("run cutover");
    assert_eq!(json(&text(&out.stdout))["total"]["keys"], 2_056);
    redis.signal("KILL");
    let out = cutover(&config, &words).output().expect("run cutover");
    assert!(refused(&out).contains("read the standalone"), "{out:?}");
}

#[test]
fn what_is_seen_in_traffic_is_listed_with_its_rate_and_the_stores_with_their_latency() {
    let proxy =
        Settings::of(Stores::shared()).phase("208", "standalone").phase("600..699", "standalone").start().ready();
    let over = Arc::new(AtomicBool::new(false));
    let client = {
        let (over, port) = (over.clone(), proxy.port);
        std::thread::spawn(move || {
            let mut client = connect(port);
            while !over.load(Ordering::Relaxed) {
                for key in ["provider:208:a", "provider:208:b", "provider:650:a", "provider:new-one:a", "rest"] {
                    run(&mut client, &format!("SET {key} 1"));
                }
                std::thread::sleep(Duration::from_millis(10));
            }
        })
    };
    let seen = |id: &str| {
        let providers = json(&proxy.http("/api/providers").1);
        providers["providers"].as_array().expect("providers").iter().find(|provider| provider["id"] == id).cloned()
    };
    let rate = |id: &str| seen(id).and_then(|provider| provider["ops_per_second"].as_f64()).unwrap_or(0.0);
    eventually("the rates are told", || {
        rate("208") > 20.0 && rate("new-one") > 10.0 && rate("650") > 10.0 && rate("600..699") > 10.0
    });
    std::thread::sleep(Duration::from_secs(3));
    let (named, unnamed) = (rate("208"), rate("new-one"));
    assert!((1.6..2.4).contains(&(named / unnamed)), "two requests to one: {named} {unnamed}");
    let found = seen("new-one").expect("seen");
    assert_eq!((&found["phase"], &found["covered_by"]), (&"standalone".into(), &"new_providers".into()));
    assert_eq!(seen("650").expect("seen")["covered_by"], "600..699");
    assert_eq!(seen("208").expect("named")["covered_by"], Json::Null);
    let latency = |side: &str| proxy.table()["stores"][side]["latency_ms"].as_f64();
    eventually("both latencies are told", || latency("standalone").is_some() && latency("cluster").is_some());
    assert!(latency("standalone").is_some_and(|ms| ms > 0.0 && ms < 1_000.0));
    let status = proxy.cli_ok("status");
    assert!(status.contains("answers in") && status.contains("OPS/S") && status.contains("COPIED"), "{status}");
    let metrics = proxy.http("/metrics").1;
    let metric = |name: &str| metrics.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<f64>().ok());
    assert!(metric("cutover_route_requests_total{route=\"208\"}").is_some_and(|requests| requests > 20.0), "{metrics}");
    assert!(
        metric("cutover_route_requests_total{route=\"other_keys\"}").is_some_and(|requests| requests > 10.0),
        "{metrics}"
    );
    assert!(
        metric("cutover_store_latency_seconds{store=\"cluster\"}").is_some_and(|seconds| seconds > 0.0),
        "{metrics}"
    );
    over.store(true, Ordering::Relaxed);
    client.join().expect("no error");
    eventually("the rate ends with the traffic", || rate("208") == 0.0);
}

#[test]
fn a_store_that_hangs_shows_in_its_latency() {
    let stores = Stores::start();
    let proxy = Settings::of(&stores).phase("209", "standalone").start().ready();
    let latency = || proxy.table()["stores"]["standalone"]["latency_ms"].as_f64();
    eventually("it is told", || latency().is_some());
    stores.standalone.signal("STOP");
    eventually("it grows while nothing is answered", || latency().is_some_and(|ms| ms > 1_500.0));
    stores.standalone.signal("CONT");
    eventually("it is short again", || latency().is_some_and(|ms| ms < 1_000.0));
}

#[test]
fn wrong_usage_exits_with_2_what_cannot_be_done_with_1_and_help_reads_as_a_manual() {
    let proxy = Settings::of(Stores::shared()).phase("210", "standalone").start();
    for wrong in [
        "migrate",
        "rollback",
        "migrate 1 --all",
        "migrate 1 --bake soon",
        "move 1",
        "inventory --top many",
        "status 1 --all",
    ] {
        assert_eq!(proxy.cli(wrong).status.code(), Some(2), "{wrong}");
    }
    for command in ["migrate", "rollback", "inventory", "move", "backfill", "verify", "status"] {
        let help = proxy.cli_ok(&format!("{command} --help"));
        assert!(help.contains("Usage: cutover") && help.len() > 600, "{help}");
    }
    let told = refused(&proxy.cli("backfill 211"));
    assert!(told.contains("no line for `211`") && told.contains("new_providers"), "{told}");
    let lonely = Settings { seeds: vec!["redis://127.0.0.1:1".into()], ..Settings::of(Stores::shared()) };
    let lonely = lonely.phase("212", "standalone").start();
    let told = refused(&lonely.cli("migrate 212 --bake 0s"));
    assert!(told.contains("the cluster does not answer") && told.contains("212 stays in phase standalone"), "{told}");
    let told = refused(&proxy.cli("migrate pubsub"));
    assert!(told.contains("cutover move pubsub"), "{told}");
}

#[test]
fn a_command_that_reaches_the_proxy_of_another_file_says_so_and_does_nothing() {
    let proxy = Settings::of(Stores::shared()).phase("901", "standalone").start();
    let folder = tempfile::tempdir().expect("a folder");
    let copy = folder.path().join("proxy.toml");
    std::fs::copy(proxy.config_path(), &copy).expect("copy");
    for words in ["status", "audit", "move 901 --to dual-standalone", "migrate 901 --bake 0s", "backfill 901"] {
        let told = refused(&cutover(&copy, words).output().expect("run"));
        assert!(
            told.contains("runs with another file") && told.contains(&*proxy.config_path().to_string_lossy()),
            "{told}"
        );
    }
    assert_eq!(phase(&proxy, "901"), "standalone");
    let missing = cutover(&folder.path().join("none.toml"), "status").output().expect("run");
    assert_eq!(missing.status.code(), Some(2));
    assert!(text(&missing.stderr).contains("`cutover init` writes one"), "{}", text(&missing.stderr));
}

#[test]
fn a_provider_of_which_there_is_no_key_is_doubted_aloud() {
    let proxy = Settings::of(Stores::shared()).start();
    assert!(proxy.cli_ok("status").contains("no provider has a line yet"));
    let out = proxy.cli("migrate never-seen --bake 0s");
    assert!(text(&out.stderr).contains("never-seen: no key is on either store"), "{}", text(&out.stderr));
    assert!(!proxy.cli_ok("status").contains("no provider has a line yet"));
}

#[test]
fn a_shell_completes_every_command_and_man_has_a_page_for_each() {
    let folder = tempfile::tempdir().expect("make a folder");
    let cutover = || Command::new(env!("CARGO_BIN_EXE_cutover"));
    let help = cutover().arg("--help").output().expect("run cutover");
    let help = text(&help.stdout);
    let listed =
        help.split("Commands:\n").nth(1).and_then(|rest| rest.split("\n\n").next()).expect("a list of commands");
    let commands: Vec<&str> =
        listed.lines().filter(|line| line.starts_with("  ") && !line.starts_with("   ")).collect();
    let commands: Vec<&str> =
        commands.iter().filter_map(|line| line.split_whitespace().next()).filter(|word| *word != "help").collect();
    assert!(commands.contains(&"migrate"), "{help}");
    let script = cutover().args(["completions", "bash"]).output().expect("run cutover");
    let loaded = folder.path().join("cutover.bash");
    std::fs::write(&loaded, &script.stdout).expect("write");
    let ask = format!(
        "source {}; COMP_WORDS=(cutover ''); COMP_CWORD=1; _cutover cutover '' cutover; echo \"${{COMPREPLY[@]}}\"",
        loaded.display()
    );
    let offered = Command::new("bash").args(["-c", &ask]).output().expect("run bash");
    let offered = text(&offered.stdout);
    let out = cutover().arg("man").arg(folder.path()).output().expect("run cutover");
    assert!(out.status.success(), "{}", text(&out.stderr));
    for command in commands {
        assert!(offered.split_whitespace().any(|word| word == command), "{command}: {offered}");
        let page = std::fs::read_to_string(folder.path().join(format!("cutover-{command}.1"))).expect(command);
        assert!(page.contains(".SH NAME") && page.contains(".SH DESCRIPTION"), "{command}");
    }
}

#[test]
fn what_may_lose_data_for_all_needs_a_yes_where_nobody_can_be_asked() {
    let proxy = Settings::of(Stores::shared()).phase("confirm1", "dual-standalone").start().ready();
    let error = refused(&proxy.cli("rollback --all --force"));
    assert!(error.contains("--yes"), "{error}");
    assert_eq!(phase(&proxy, "confirm1"), "dual-standalone");
    proxy.cli_ok("rollback --all --force --yes");
    assert_eq!(phase(&proxy, "confirm1"), "standalone");
}
