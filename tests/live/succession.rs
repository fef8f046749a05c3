//! The proxy itself is replaced and reconfigured, and its clients do not notice.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use redis::Value;

use crate::common::{Settings, Stores, command, connect, eventually, run, try_run};

/// Clients that come, write a key of their own, read it and go, each on a new connection, until told to stop. Any that is
/// refused, reset or answered wrongly ends the test.
struct Callers {
    over: Arc<AtomicBool>,
    calls: Arc<AtomicU64>,
    threads: Vec<std::thread::JoinHandle<Result<Duration, String>>>,
}

impl Callers {
    fn start(port: u16, provider: &str, count: usize) -> Self {
        let (over, calls) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let caller = |number: usize| {
            let (over, calls, provider) = (over.clone(), calls.clone(), provider.to_string());
            std::thread::spawn(move || {
                let mut slowest = Duration::ZERO;
                for call in 0u64.. {
                    if over.load(Ordering::Relaxed) {
                        break;
                    }
                    let (key, began) = (format!("provider:{provider}:{number}"), Instant::now());
                    Self::call(port, &key, &call.to_string())
                        .inspect_err(|error| eprintln!("call {call} of {number}: {error}"))?;
                    slowest = slowest.max(began.elapsed());
                    calls.fetch_add(1, Ordering::Relaxed);
                }
                Ok(slowest)
            })
        };
        let threads = (0..count).map(caller).collect();
        Self { over, calls, threads }
    }

    fn call(port: u16, key: &str, value: &str) -> Result<(), String> {
        let doing = |what: &'static str| move |error: std::io::Error| format!("{what}: {error}");
        let mut stream = TcpStream::connect(("127.0.0.1", port)).map_err(doing("connect"))?;
        stream.set_read_timeout(Some(Duration::from_secs(30))).map_err(doing("set a time-out"))?;
        for (request, wanted) in [
            (format!("SET {key} {value}\r\n"), "+OK\r\n".to_string()),
            (format!("GET {key}\r\n"), format!("${}\r\n{value}\r\n", value.len())),
        ] {
            stream.write_all(request.as_bytes()).map_err(doing("send"))?;
            let mut answer = vec![0; wanted.len()];
            stream.read_exact(&mut answer).map_err(doing("receive"))?;
            if answer != wanted.as_bytes() {
                return Err(format!("{request:?} was answered {:?}", String::from_utf8_lossy(&answer)));
            }
        }
        Ok(())
    }

    /// Waits until so many more were served, or one was not.
    #[track_caller]
    fn wait_for(&self, more: u64) {
        let wanted = self.calls.load(Ordering::Relaxed) + more;
        eventually("clients come and go", || {
            assert!(!self.threads.iter().any(|thread| thread.is_finished()), "a client was refused: see the end");
            self.calls.load(Ordering::Relaxed) >= wanted
        });
    }

    #[track_caller]
    fn end(self) -> (u64, Duration) {
        self.over.store(true, Ordering::Relaxed);
        let ends: Vec<_> = self.threads.into_iter().map(|thread| thread.join().expect("no panic")).collect();
        let slowest = ends.into_iter().map(|end| end.unwrap_or_else(|error| panic!("{error}"))).max();
        (self.calls.load(Ordering::Relaxed), slowest.unwrap_or_default())
    }
}

#[test]
fn a_successor_takes_over_and_no_client_is_refused() {
    let stores = Stores::shared();
    let mut proxy = Settings::of(stores).phase("heir", "dual-standalone").start().ready();
    proxy.cli_ok("backfill heir");
    let callers = Callers::start(proxy.port, "heir", 8);
    for _ in 0..3 {
        callers.wait_for(100);
        let (code, log) = proxy.be_succeeded();
        assert_eq!(code, Some(0), "{log}");
        assert!(log.contains("drained"), "{log}");
    }
    callers.wait_for(100);
    let (calls, slowest) = callers.end();
    println!("{calls} clients in 3 successions, the slowest waited {slowest:?}");
    assert!(!proxy.log().contains("did not end cleanly"), "{}", proxy.log());
    let route = proxy.table()["routes"].as_array().expect("routes").iter().find(|route| route["id"] == "heir").cloned();
    let route = route.expect("the route");
    assert!(route["synced"] == true && route["in_doubt"] == false, "{route}");
    proxy.cli_ok("verify heir");
}

#[test]
fn without_being_told_to_a_second_proxy_does_not_start_and_says_how_it_would() {
    let proxy = Settings::of(Stores::shared()).start().ready();
    let out = proxy.cli("serve");
    let error = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(!out.status.success() && error.contains("--takeover"), "{error}");
    assert_eq!(run(&mut proxy.connect(), "PING"), Value::SimpleString("PONG".into()));
}

#[test]
fn sockets_that_a_service_manager_holds_outlive_the_proxy() {
    let mut proxy = Settings::of(Stores::shared()).start().ready();
    assert_eq!(proxy.terminate(), Some(0));
    // What systemd does with a socket unit: the socket is the manager's, and each process gets it as descriptor 3.
    let held = TcpListener::bind(("127.0.0.1", proxy.port)).expect("bind");
    rustix::io::fcntl_setfd(&held, rustix::io::FdFlags::empty()).expect("let it be inherited");
    let start = || {
        let script = format!("exec 3<&{}; LISTEN_PID=$$ LISTEN_FDS=1 exec \"$@\"", held.as_raw_fd());
        let mut shell = Command::new("bash");
        shell.args(["-c", &script, "bash", env!("CARGO_BIN_EXE_cutover"), "--config"]).arg(proxy.config_path());
        shell.arg("serve").stderr(Stdio::inherit()).spawn().expect("start cutover")
    };
    let callers = Callers::start(proxy.port, "held", 4);
    for _ in 0..2 {
        let mut child = start();
        callers.wait_for(50);
        let sent = Command::new("kill").arg(child.id().to_string()).status().expect("run kill");
        let ended = child.wait().expect("wait");
        assert!(sent.success() && ended.success(), "{ended}");
    }
    let mut last = start();
    callers.wait_for(50);
    callers.end();
    last.kill().expect("kill");
    last.wait().expect("wait");
}

#[test]
fn limits_of_clients_change_without_a_restart() {
    let mut proxy = Settings::of(Stores::shared()).start().ready();
    let mut first = proxy.connect();
    run(&mut first, "SET limits:a 1");
    proxy.edit(|settings| Settings {
        listen: "max_clients = 1\nmax_query_bytes = \"1KiB\"\nidle_timeout = \"1s\"".into(),
        ..settings
    });
    eventually("a second client is refused", || {
        let refused = redis::Client::open(format!("redis://127.0.0.1:{}/", proxy.port)).expect("a URL");
        refused.get_connection_with_timeout(Duration::from_secs(2)).is_err()
    });
    // The first one is idle meanwhile; one that subscribes or blocks is not.
    eventually("the idle client is closed", || try_run(&mut first, "PING").is_err());
    let mut blocked = connect(proxy.port);
    let popped: Value =
        command(&["BLPOP", "limits:none", "3"]).query(&mut blocked).expect("three seconds are not idle");
    assert_eq!(popped, Value::Nil);
    let long = "x".repeat(2 << 10);
    assert!(try_run(&mut blocked, &format!("SET limits:b {long}")).is_err(), "a request that is too long");
    proxy.edit(|settings| Settings { listen: String::new(), ..settings });
    eventually("the limits are as before", || {
        let Ok(client) = redis::Client::open(format!("redis://127.0.0.1:{}/", proxy.port)) else { return false };
        let connections: Vec<_> = (0..3).filter_map(|_| client.get_connection().ok()).collect();
        connections.len() == 3
            && connections.into_iter().all(|mut one| try_run(&mut one, &format!("SET limits:b {long}")).is_ok())
    });
    assert!(!proxy.log().contains("takes effect at the next start"), "{}", proxy.log());
}

#[test]
fn what_is_saved_while_a_successor_begins_is_adopted() {
    let mut proxy = Settings::of(Stores::shared()).phase("641", "standalone").start().ready();
    // Stopped, so that the successor has read the file and still waits for the place.
    crate::common::signal(proxy.pid(), "STOP");
    let (before, config) = (proxy.pid(), proxy.config_path());
    let editor = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_secs(1));
        let text = std::fs::read_to_string(&config).expect("read");
        let new = text.replace("\"641\" = \"standalone\"", "\"641\" = \"dual-standalone\"");
        assert_ne!(new, text);
        std::fs::write(&config, new).expect("write");
        std::thread::sleep(Duration::from_millis(500));
        crate::common::signal(before, "CONT");
    });
    assert_eq!(proxy.be_succeeded().0, Some(0));
    editor.join().expect("edited");
    eventually("what was saved meanwhile is adopted", || {
        let table = proxy.table();
        let mut routes = table["routes"].as_array().expect("routes").iter();
        routes.any(|route| route["id"] == "641" && route["phase"] == "dual-standalone")
    });
}
