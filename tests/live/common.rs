//! Real servers and a real proxy, and a few words to say what a test does with them.

use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Read};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use redis::{Connection, ConnectionLike, Value};
use tempfile::TempDir;

/// Longest wait for anything that is expected to happen.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Ports that servers of tests listen on: below those that the system gives to clients (32768 and up on Linux), so that no
/// connection takes one between the look and the server's start.
const PORTS: std::ops::Range<u32> = 12_000..32_000;

/// A port that nobody listens on now, and that no other test is given.
pub fn free_port() -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    // Test programs that run at the same time begin at different places.
    let begin = std::process::id().wrapping_mul(997);
    let mut ports = std::iter::repeat_with(|| {
        let number = begin.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed)) % (PORTS.end - PORTS.start);
        (PORTS.start + number) as u16
    });
    let is_free = |port: &u16| TcpListener::bind(("127.0.0.1", *port)).is_ok();
    ports.by_ref().take(PORTS.len()).find(is_free).expect("a port is free")
}

/// Polls until the condition holds; fails the test after [`PATIENCE`].
#[track_caller]
pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "waited {PATIENCE:?} in vain: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A `redis-server` process that ends with the test, however that ends: a shell kills it when our end of its stdin closes.
pub struct Redis {
    shell: Child,
    pid: u32,
    pub port: u16,
    pub bus_port: u16,
    pub directory: TempDir,
    arguments: Vec<String>,
}

impl Redis {
    pub fn start(arguments: &[&str]) -> Self {
        Self::launch(free_port(), arguments)
    }

    pub fn cluster_node(arguments: &[&str]) -> Self {
        let bus_port = free_port();
        let own = ["--cluster-enabled", "yes", "--cluster-node-timeout", "2000", "--cluster-port"];
        Self::launch(bus_port, &[&own[..], &[&bus_port.to_string()], arguments].concat())
    }

    /// `bus_port` is told to others; the server has it from its arguments.
    fn launch(bus_port: u16, arguments: &[&str]) -> Self {
        let port = free_port();
        let directory = tempfile::tempdir().expect("make a directory");
        let arguments = arguments.iter().map(ToString::to_string).collect();
        let (shell, pid) = Self::spawn(port, &directory, &arguments);
        let redis = Self { shell, pid, port, bus_port, directory, arguments };
        eventually("redis-server answers", || redis.try_connect().is_some());
        redis
    }

    fn spawn(port: u16, directory: &TempDir, arguments: &Vec<String>) -> (Child, u32) {
        let script =
            "redis-server \"$@\" >/dev/null & echo $!; read _; kill -CONT $! 2>/dev/null; kill -9 $! 2>/dev/null";
        let mut shell = Command::new("sh")
            .args(["-c", script, "sh", "--port", &port.to_string(), "--bind", "127.0.0.1", "--save", ""])
            .args(["--appendonly", "yes", "--appendfsync", "no", "--logfile", "redis.log", "--dir"])
            .arg(directory.path())
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("start a shell");
        let mut line = String::new();
        let out = shell.stdout.as_mut().expect("piped");
        BufReader::new(out).read_line(&mut line).expect("read the server's pid");
        (shell, line.trim().parse().expect("a pid"))
    }

    /// What stands behind one of its arguments.
    pub fn argument(&self, name: &str) -> Option<&str> {
        self.arguments.iter().skip_while(|argument| *argument != name).nth(1).map(String::as_str)
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}/0", self.port)
    }

    fn try_connect(&self) -> Option<Connection> {
        let client = redis::Client::open(self.url()).expect("a URL");
        let mut connection = client.get_connection_with_timeout(Duration::from_secs(2)).ok()?;
        connection.check_connection().then_some(connection)
    }

    pub fn connect(&self) -> Connection {
        connect(self.port)
    }

    /// All keys that are not the proxies' own.
    pub fn keys(&self) -> Vec<String> {
        let mut keys: Vec<String> = command(&["KEYS", "*"]).query(&mut self.connect()).expect("KEYS");
        keys.retain(|key| !key.starts_with("cutover:lease:"));
        keys
    }

    /// SIGSTOP, SIGCONT, SIGKILL and so on.
    pub fn signal(&self, name: &str) {
        signal(self.pid, name);
    }

    /// Starts it again with its data, after it was killed.
    pub fn restart(&mut self) {
        drop(self.shell.stdin.take());
        self.shell.wait().expect("wait for the shell");
        (self.shell, self.pid) = Self::spawn(self.port, &self.directory, &self.arguments);
        eventually("redis-server answers again", || self.try_connect().is_some());
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        drop(self.shell.stdin.take());
        let _ = self.shell.wait();
    }
}

pub fn signal(pid: u32, name: &str) {
    let done = Command::new("kill").args([&format!("-{name}"), &pid.to_string()]).status().expect("run kill");
    assert!(done.success(), "kill -{name} {pid}");
}

/// A connection of redis-rs, RESP2, that waits as long as a patient client does.
pub fn connect(port: u16) -> Connection {
    let client = redis::Client::open(format!("redis://127.0.0.1:{port}/")).expect("a URL");
    let connection = client.get_connection_with_timeout(Duration::from_secs(5)).expect("connect");
    connection.set_read_timeout(Some(PATIENCE)).expect("set a time-out");
    connection
}

/// Runs one command, its words separated by spaces.
pub fn run(connection: &mut Connection, words: &str) -> Value {
    try_run(connection, words).unwrap_or_else(|error| panic!("{words}: {error}"))
}

pub fn try_run(connection: &mut Connection, words: &str) -> redis::RedisResult<Value> {
    command(&words.split(' ').collect::<Vec<_>>()).query(connection)
}

pub fn command(words: &[&str]) -> redis::Cmd {
    let mut command = redis::Cmd::new();
    for word in words {
        command.arg(*word);
    }
    command
}

/// A standalone and a cluster of three primaries with a replica each.
pub struct Stores {
    pub standalone: Redis,
    pub nodes: Vec<Redis>,
}

impl Stores {
    pub fn start() -> Self {
        Self::start_with(Vec::new)
    }

    /// `further` arguments are asked for each server.
    pub fn start_with(further: impl Fn() -> Vec<String>) -> Self {
        let start = |launch: fn(&[&str]) -> Redis| {
            let further = further();
            launch(&further.iter().map(String::as_str).collect::<Vec<_>>())
        };
        let nodes: Vec<Redis> = (0..6).map(|_| start(Redis::cluster_node)).collect();
        let standalone = start(Redis::start);
        let first = &nodes[0];
        // Nodes whose bus speaks TLS know each other by those ports.
        let port = first.argument("--tls-port").map_or(first.port.to_string(), str::to_string);
        for node in &nodes[1..] {
            run(&mut node.connect(), &format!("CLUSTER MEET 127.0.0.1 {port} {}", first.bus_port));
        }
        for (node, range) in nodes.iter().zip(["0 5460", "5461 10922", "10923 16383"]) {
            run(&mut node.connect(), &format!("CLUSTER ADDSLOTSRANGE {range}"));
        }
        for (primary, replica) in nodes[..3].iter().zip(&nodes[3..]) {
            let id: String = command(&["CLUSTER", "MYID"]).query(&mut primary.connect()).expect("an id");
            eventually("the replica knows its primary", || {
                try_run(&mut replica.connect(), &format!("CLUSTER REPLICATE {id}")).is_ok()
            });
        }
        for node in &nodes {
            eventually("the cluster is ready", || {
                let info: String = command(&["CLUSTER", "INFO"]).query(&mut node.connect()).unwrap_or_default();
                info.contains("cluster_state:ok") && info.contains("cluster_known_nodes:6")
            });
        }
        for replica in &nodes[3..] {
            eventually("the replica is in step", || {
                let info: String = command(&["INFO", "replication"]).query(&mut replica.connect()).unwrap_or_default();
                info.contains("master_link_status:up")
            });
        }
        Self { standalone, nodes }
    }

    /// Of all tests that do no harm to it.
    pub fn shared() -> &'static Self {
        static SHARED: OnceLock<Stores> = OnceLock::new();
        SHARED.get_or_init(Self::start)
    }

    /// A command on the primary that serves its key.
    pub fn on_cluster(&self, words: &[&str], key: &str) -> Value {
        let slot = cutover::slot::of(key.as_bytes());
        let node = &self.nodes[usize::from(slot > 5460) + usize::from(slot > 10922)];
        command(words).query(&mut node.connect()).unwrap_or_else(|error| panic!("{words:?}: {error}"))
    }
}

/// A cutover process with a configuration and a state of its own.
pub struct Proxy {
    child: Child,
    pub port: u16,
    pub admin_port: u16,
    pub directory: TempDir,
    settings: Settings,
    log: Arc<Mutex<String>>,
}

/// What stands in a test's proxy.toml.
#[derive(Clone)]
pub struct Settings {
    pub standalone: String,
    pub seeds: Vec<String>,
    pub providers: Vec<(String, String)>,
    pub workers: usize,
    /// Further lines of the sections that are named.
    pub listen: String,
    pub admin: String,
    pub routing: String,
    pub stores: String,
    /// Between two looks for writers that go around the proxy: tests write to the shared stores themselves.
    pub look_every: &'static str,
    /// Lines of `[lease]`; without them a lease of its own, for tests share stores and have nothing in common.
    pub lease: String,
    /// What the shell does first that becomes the proxy.
    pub before: &'static str,
}

impl Settings {
    pub fn of(stores: &Stores) -> Self {
        Self {
            standalone: stores.standalone.url(),
            seeds: stores.nodes.iter().map(|node| format!("redis://127.0.0.1:{}", node.port)).collect(),
            providers: Vec::new(),
            workers: 2,
            listen: String::new(),
            admin: String::new(),
            routing: String::new(),
            stores: String::new(),
            look_every: "0s",
            before: "true",
            lease: format!("name = \"{}-{}\"", std::process::id(), free_port()),
        }
    }

    pub fn phase(mut self, provider: &str, phase: &str) -> Self {
        self.providers.retain(|(known, _)| known != provider);
        self.providers.push((provider.into(), phase.into()));
        self
    }

    pub fn start(self) -> Proxy {
        Proxy::start(self)
    }

    fn text(&self, port: u16, admin_port: u16) -> String {
        let Self { standalone, seeds, workers, listen, admin, routing, stores, look_every, lease, .. } = self;
        let mut text = format!(
            "[listen]\naddress = \"127.0.0.1:{port}\"\nworkers = {workers}\n{listen}\n[admin]\naddress = \"127.0.0.1:{admin_port}\"\n{admin}\n\
             [standalone]\nurl = \"{standalone}\"\n{stores}\n[cluster]\nseeds = {seeds:?}\n{stores}\n\
             [routing]\nkeys = [\"provider:{{provider}}:*\", \"*:provider:{{provider}}:*\"]\n{routing}\n[bypass]\nlook_every = \"{look_every}\"\n[lease]\n{lease}\n[state]\ndirectory = \"STATE\"\n[providers]\n"
        );
        for (provider, phase) in &self.providers {
            writeln!(text, "\"{provider}\" = \"{phase}\"").expect("a String takes all");
        }
        text
    }
}

impl Proxy {
    fn start(settings: Settings) -> Self {
        let directory = tempfile::tempdir().expect("make a directory");
        let (port, admin_port) = (free_port(), free_port());
        std::fs::write(directory.path().join("proxy.toml"), Self::config(&settings, port, admin_port, &directory))
            .expect("write");
        let (child, log) = Self::spawn(&directory, settings.before, &[]);
        let mut proxy = Self { child, port, admin_port, directory, settings, log };
        proxy.wait_until_up();
        proxy
    }

    fn config(settings: &Settings, port: u16, admin_port: u16, directory: &TempDir) -> String {
        let state = directory.path().join("state");
        settings.text(port, admin_port).replace("STATE", &state.display().to_string())
    }

    fn spawn(directory: &TempDir, before: &str, arguments: &[&str]) -> (Child, Arc<Mutex<String>>) {
        let mut command = Command::new("sh");
        let mut child = command
            .args(["-c", &format!("{before} && exec \"$@\""), "sh"])
            .arg(env!("CARGO_BIN_EXE_cutover"))
            .arg("--config")
            .arg(directory.path().join("proxy.toml"))
            .arg("serve")
            .args(arguments)
            .stderr(Stdio::piped())
            .spawn()
            .expect("start cutover");
        let log = Arc::new(Mutex::new(String::new()));
        let (stderr, kept) = (child.stderr.take().expect("piped"), log.clone());
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                let mut log = kept.lock().expect("no holder panics");
                log.push_str(&line);
                log.push('\n');
            }
        });
        (child, log)
    }

    fn wait_until_up(&mut self) {
        let ports = [self.port, self.admin_port];
        eventually("the proxy accepts", || {
            if let Some(status) = self.child.try_wait().expect("look at the proxy") {
                panic!("the proxy ended with {status}:\n{}", self.log());
            }
            // What it says before it serves has been read by then.
            self.log().contains("serving") && ports.iter().all(|port| TcpStream::connect(("127.0.0.1", *port)).is_ok())
        });
    }

    /// Waits until both stores answer.
    pub fn ready(self) -> Self {
        eventually("the proxy is ready", || self.http("/readyz").0 == 200);
        self
    }

    pub fn connect(&self) -> Connection {
        connect(self.port)
    }

    pub fn log(&self) -> String {
        self.log.lock().expect("no holder panics").clone()
    }

    pub fn config_path(&self) -> PathBuf {
        self.directory.path().join("proxy.toml")
    }

    /// GET on the admin side: status and body.
    pub fn http(&self, path: &str) -> (u16, String) {
        let agent: ureq::Agent = ureq::Agent::config_builder().http_status_as_error(false).build().into();
        match agent.get(format!("http://127.0.0.1:{}{path}", self.admin_port)).call() {
            Ok(mut answer) => {
                let mut body = String::new();
                answer.body_mut().as_reader().read_to_string(&mut body).expect("read the body");
                (answer.status().as_u16(), body)
            }
            Err(_) => (0, String::new()),
        }
    }

    pub fn table(&self) -> serde_json::Value {
        serde_json::from_str(&self.http("/api/table").1).expect("JSON")
    }

    /// The command line with this proxy's configuration.
    pub fn cli(&self, words: &str) -> Output {
        Command::new(env!("CARGO_BIN_EXE_cutover"))
            .arg("--config")
            .arg(self.config_path())
            .args(words.split(' '))
            .output()
            .expect("run cutover")
    }

    /// The same, which must end with 0; gives what it printed.
    #[track_caller]
    pub fn cli_ok(&self, words: &str) -> String {
        let out = self.cli(words);
        let (text, error) = (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
        assert!(out.status.success(), "cutover {words}: {}\n{text}{error}\nlog:\n{}", out.status, self.log());
        text.into_owned()
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn kill(&mut self) {
        self.child.kill().expect("kill the proxy");
        self.child.wait().expect("wait for the proxy");
    }

    /// SIGTERM; gives the exit code.
    pub fn terminate(&mut self) -> Option<i32> {
        signal(self.child.id(), "TERM");
        self.child.wait().expect("wait for the proxy").code()
    }

    pub fn start_again(&mut self) {
        self.spawn_again();
        self.wait_until_up();
    }

    /// Starts it, whether it comes up or not.
    pub fn spawn_again(&mut self) {
        (self.child, self.log) = Self::spawn(&self.directory, self.settings.before, &[]);
    }

    /// Another process takes this one's place; gives the exit code of this one, and its log.
    pub fn be_succeeded(&mut self) -> (Option<i32>, String) {
        let (child, log) = Self::spawn(&self.directory, self.settings.before, &["--takeover"]);
        let mut before = std::mem::replace(&mut self.child, child);
        let log = std::mem::replace(&mut self.log, log);
        let mut code = None;
        eventually("the old proxy ends", || {
            if let Some(status) = self.child.try_wait().expect("look at the proxy") {
                panic!("the successor ended with {status}:\n{}", self.log());
            }
            code = before.try_wait().expect("look at the old proxy");
            code.is_some()
        });
        let code = code.and_then(|status| status.code());
        self.wait_until_up();
        (code, log.lock().expect("no holder panics").clone())
    }

    /// Rewrites the file, as an editor does.
    pub fn edit(&mut self, change: impl Fn(Settings) -> Settings) {
        self.settings = change(self.settings.clone());
        let text = Self::config(&self.settings, self.port, self.admin_port, &self.directory);
        let new = self.directory.path().join("proxy.toml.new");
        std::fs::write(&new, text).expect("write");
        std::fs::rename(new, self.config_path()).expect("rename");
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the proxy's log:\n{}", self.log());
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
