//! What an operator's tools see: metrics as Prometheus wants them, a dashboard and alerts that name what there is, and the
//! log of slow commands.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::common::{PATIENCE, Proxy, Settings, Stores, command, eventually, free_port, run, signal};

fn dual_proxy() -> Proxy {
    Settings::of(Stores::shared()).phase("metrics-1", "dual-standalone").start().ready()
}

#[test]
fn the_metrics_pass_promtool() {
    let proxy = dual_proxy();
    run(&mut proxy.connect(), "SET provider:metrics-1:a 1");
    let page = proxy.http("/metrics").1;
    let mut promtool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("promtool is missing; `make test` installs it (Debian: apt install prometheus)");
    promtool.stdin.take().expect("piped").write_all(page.as_bytes()).expect("write the page");
    let out = promtool.wait_with_output().expect("wait for promtool");
    let said = [out.stdout, out.stderr].concat();
    assert!(out.status.success() && said.is_empty(), "{}\n{page}", String::from_utf8_lossy(&said));
}

/// The words of a text that can only be names of metrics.
fn metric_names(text: &str) -> BTreeSet<&str> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    words.filter(|word| word.starts_with("cutover_") || word.starts_with("process_")).collect()
}

#[test]
fn the_dashboard_the_alerts_and_the_docs_name_only_metrics_that_there_are() {
    let proxy = dual_proxy();
    let mut connection = proxy.connect();
    run(&mut connection, "SET provider:metrics-1:a 1");
    eventually("both stores have been timed", || {
        let page = proxy.http("/metrics").1;
        page.matches("cutover_store_latency_seconds{").count() == 2
    });
    let page = proxy.http("/metrics").1;
    let known = metric_names(&page);
    for file in ["docker/grafana/cutover.json", "docker/prometheus/alerts.yml", "docs/runbook.md"] {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
        let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let unknown: Vec<_> = metric_names(&text).difference(&known).copied().collect();
        assert!(unknown.is_empty(), "{file} names metrics that the proxy does not have: {unknown:?}");
    }
}

#[test]
fn a_slow_command_is_logged_with_route_and_store_and_without_its_key() {
    let log = "[log]\nslow_command = \"30ms\"\n";
    let mut settings = Settings::of(Stores::shared()).phase("slow-1", "standalone").phase("slow-2", "cluster");
    settings.routing = log.into();
    let mut proxy = settings.start().ready();
    let mut connection = proxy.connect();
    let script = "for i = 1, 2e7 do end return redis.call('GET', KEYS[1])";
    let mut run_slowly = |key: &str| {
        let _: Option<String> = command(&["EVAL", script, "1", key]).query(&mut connection).expect("the script runs");
    };
    for (key, route, store) in
        [("provider:slow-1:a", "slow-1", "standalone"), ("provider:slow-2:a", "slow-2", "cluster")]
    {
        run_slowly(key);
        let wanted = format!("command=\"eval\" route=\"{route}\" store={store}");
        eventually("the slow command is logged", || proxy.log().contains(&wanted));
        assert!(!proxy.log().contains(key), "{}", proxy.log());
        let counted = format!("cutover_slow_commands_total{{store=\"{store}\"}} ");
        eventually("it is counted", || {
            let page = proxy.http("/metrics").1;
            page.lines().any(|line| line.strip_prefix(&counted).is_some_and(|count| count != "0"))
        });
    }
    // Both settings of it are taken from a file that is saved.
    proxy.edit(|mut settings| {
        settings.routing = "[log]\nslow_command = \"30ms\"\nslow_command_keys = true\n".into();
        settings
    });
    eventually("the key stands in the log", || {
        run_slowly("provider:slow-1:a");
        proxy.log().contains("key=\"provider:slow-1:a\"")
    });
}

#[test]
fn a_service_manager_hears_when_the_proxy_serves_and_when_it_drains() {
    let mut proxy = dual_proxy();
    assert_eq!(proxy.terminate(), Some(0));
    let path = proxy.directory.path().join("notify");
    let socket = UnixDatagram::bind(&path).expect("bind");
    socket.set_read_timeout(Some(PATIENCE)).expect("set a time-out");
    let mut child = Command::new(env!("CARGO_BIN_EXE_cutover"))
        .arg("--config")
        .arg(proxy.config_path())
        .arg("serve")
        .env("NOTIFY_SOCKET", &path)
        .stderr(Stdio::null())
        .spawn()
        .expect("start cutover");
    let receive = || {
        let mut bytes = [0; 256];
        let length = socket.recv(&mut bytes).expect("a datagram");
        String::from_utf8_lossy(&bytes[..length]).into_owned()
    };
    assert_eq!(receive(), format!("READY=1\nSTATUS=serving redis://127.0.0.1:{}/0", proxy.port));
    // Ready means that clients are accepted.
    run(&mut proxy.connect(), "PING");
    signal(child.id(), "TERM");
    assert_eq!(receive(), "STOPPING=1\nSTATUS=draining");
    assert_eq!(child.wait().expect("wait for the proxy").code(), Some(0));
}

#[test]
fn health_says_what_is_missing() {
    let mut settings = Settings::of(Stores::shared()).phase("health-1", "dual-standalone");
    let proxy = settings.clone().start().ready();
    assert_eq!(proxy.cli_ok("health"), "ready\n");
    // Nobody listens there.
    settings.standalone = format!("redis://127.0.0.1:{}/0", free_port());
    let mut proxy = settings.start();
    assert!(proxy.cli("health --live").status.success());
    let out = proxy.cli("health");
    let error = String::from_utf8_lossy(&out.stderr).into_owned();
    assert_eq!(out.status.code(), Some(1));
    assert!(error.contains("the standalone does not answer"), "{error}");
    proxy.kill();
    let out = proxy.cli("health --live");
    assert_eq!(out.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&out.stderr).contains("is `cutover serve` running"));
}
