//! TLS on both sides: real servers that speak it, a client with a certificate, and what is said where it does not come about.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use tempfile::TempDir;

use crate::common::{PATIENCE, Proxy, Redis, Settings, Stores, command, eventually, free_port, run};
use crate::protocol::Raw;

/// A CA, and the files of what it signed.
struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    directory: TempDir,
}

fn key() -> KeyPair {
    KeyPair::generate().expect("generate a key")
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let directory = tempfile::tempdir().expect("make a directory");
        params.distinguished_name.push(DnType::CommonName, directory.path().display().to_string());
        let issuer = CertifiedIssuer::self_signed(params, key()).expect("sign");
        fs::write(directory.path().join("ca.crt"), issuer.pem()).expect("write");
        Self { issuer, directory }
    }

    fn path(&self, file: &str) -> PathBuf {
        self.directory.path().join(file)
    }

    fn ca(&self) -> String {
        self.path("ca.crt").display().to_string()
    }

    /// `NAME.crt` and `NAME.key`, for these hosts.
    fn issue(&self, name: &str, hosts: &[&str]) -> [String; 2] {
        self.issue_as(name, hosts, |_| {})
    }

    fn issue_as(&self, name: &str, hosts: &[&str], change: impl Fn(&mut CertificateParams)) -> [String; 2] {
        let mut params =
            CertificateParams::new(hosts.iter().map(ToString::to_string).collect::<Vec<_>>()).expect("hosts");
        change(&mut params);
        let key = key();
        let certificate = params.signed_by(&key, &self.issuer).expect("sign");
        [("crt", certificate.pem()), ("key", key.serialize_pem())].map(|(kind, pem)| {
            let path = self.path(&format!("{name}.{kind}"));
            // As those who renew certificates do it: no reader sees half of a file.
            let new = path.with_extension("new");
            fs::write(&new, pem).expect("write");
            fs::rename(new, &path).expect("rename");
            path.display().to_string()
        })
    }

    /// Arguments of a redis-server that speaks TLS too, on a port of its own, and asks its clients for certificates.
    fn server(&self, [cert, key]: &[String; 2]) -> Vec<String> {
        let (port, ca) = (free_port().to_string(), self.ca());
        let words = [
            ["--tls-port", &port],
            ["--tls-cert-file", cert],
            ["--tls-key-file", key],
            ["--tls-ca-cert-file", &ca],
            ["--tls-auth-clients", "yes"],
            ["--tls-replication", "yes"],
            ["--tls-cluster", "yes"],
        ];
        words.concat().into_iter().map(str::to_string).collect()
    }
}

fn start(arguments: &[String]) -> Redis {
    Redis::start(&arguments.iter().map(String::as_str).collect::<Vec<_>>())
}

fn secure_url(redis: &Redis) -> String {
    format!("rediss://127.0.0.1:{}/0", redis.argument("--tls-port").expect("speaks TLS"))
}

/// A line of proxy.toml; the section tells whose.
fn table(words: &[(&str, &str)]) -> String {
    let words: Vec<String> = words.iter().map(|(name, path)| format!("{name} = {path:?}")).collect();
    format!("tls = {{ {} }}", words.join(", "))
}

/// A client of the proxy that speaks TLS.
struct Secure(StreamOwned<ClientConnection, TcpStream>);

impl Secure {
    fn to(port: u16, ca: &Path, identity: Option<&[String; 2]>) -> Self {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(ca).expect("a certificate")).expect("a CA");
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let config = config.expect("versions").with_root_certificates(roots);
        let config = match identity {
            None => config.with_no_client_auth(),
            Some([cert, key]) => {
                let chain = vec![CertificateDer::from_pem_file(cert).expect("a certificate")];
                config.with_client_auth_cert(chain, PrivateKeyDer::from_pem_file(key).expect("a key")).expect("a pair")
            }
        };
        let name = ServerName::try_from("127.0.0.1").expect("an address");
        let session = ClientConnection::new(Arc::new(config), name).expect("a session");
        let stream = TcpStream::connect(("127.0.0.1", port)).expect("connect");
        stream.set_read_timeout(Some(PATIENCE)).expect("set a time-out");
        Self(StreamOwned::new(session, stream))
    }

    #[track_caller]
    fn ask(&mut self, request: &[u8], wanted: &[u8]) {
        self.0.write_all(request).expect("write");
        self.expect(wanted);
    }

    #[track_caller]
    fn expect(&mut self, wanted: &[u8]) {
        let mut got = vec![0; wanted.len()];
        self.0.read_exact(&mut got).expect("read");
        assert!(got == wanted, "{} for {}", got.escape_ascii(), wanted.escape_ascii());
    }

    /// Why the proxy did not let it in.
    fn refusal(mut self) -> String {
        let wrote = self.0.write_all(b"PING\r\n").and_then(|()| self.0.read_exact(&mut [0]));
        wrote.expect_err("refused").to_string()
    }

    fn certificate(&self) -> CertificateDer<'static> {
        self.0.conn.peer_certificates().expect("shown")[0].clone().into_owned()
    }
}

#[test]
fn every_phase_works_over_tls_on_both_sides_and_who_has_no_certificate_is_not_let_in() {
    let authority = Authority::new();
    let (own, client) = (authority.issue("server", &["127.0.0.1"]), authority.issue("client", &["client"]));
    let stores = Stores::start_with(|| authority.server(&own));
    let ca = authority.ca();
    let to_stores = table(&[("ca", &ca), ("cert", &client[0]), ("key", &client[1])]);
    let settings = Settings {
        standalone: secure_url(&stores.standalone),
        seeds: stores.nodes.iter().map(secure_url).collect(),
        listen: table(&[("cert", &own[0]), ("key", &own[1]), ("client_ca", &ca)]),
        stores: to_stores,
        ..Settings::of(&stores)
    };
    let phases = ["standalone", "dual-standalone", "dual-cluster", "cluster"];
    let settings = phases
        .iter()
        .enumerate()
        .fold(settings, |settings, (number, phase)| settings.phase(&format!("{}", 90 + number), phase));
    let proxy = settings.start().ready();
    let connect = || Secure::to(proxy.port, &authority.path("ca.crt"), Some(&client));
    let mut secure = connect();
    let large = vec![b'x'; 3 << 20];
    for provider in 90..94 {
        let key = |name: &str| format!("provider:{provider}:{name}");
        let set = format!("SET {} 1\r\nINCR {}\r\nMGET {} {}\r\n", key("a"), key("a"), key("a"), key("b"));
        secure.ask(set.as_bytes(), b"+OK\r\n:2\r\n*2\r\n$1\r\n2\r\n$-1\r\n");
        // Larger than what TLS, the sockets and one read take at once, there and back.
        let name = key("large");
        let head = format!("*3\r\n$3\r\nSET\r\n${}\r\n{name}\r\n${}\r\n", name.len(), large.len());
        secure.ask(&[head.as_bytes(), &large, b"\r\n"].concat(), b"+OK\r\n");
        let reply = [format!("${}\r\n", large.len()).as_bytes(), &large, b"\r\n"].concat();
        secure.ask(format!("GET {name}\r\nGET {name}\r\n").as_bytes(), &reply.repeat(2));
        let transaction = format!("MULTI\r\nINCR {0}\r\nEXEC\r\n", key("a"));
        secure.ask(transaction.as_bytes(), b"+OK\r\n+QUEUED\r\n*1\r\n:3\r\n");
        let mut blocked = connect();
        blocked.0.write_all(format!("BLPOP {} 0\r\n", key("list")).as_bytes()).expect("write");
        secure.ask(format!("RPUSH {} y\r\n", key("list")).as_bytes(), b":1\r\n");
        let name = key("list");
        blocked.expect(format!("*2\r\n${}\r\n{name}\r\n$1\r\ny\r\n", name.len()).as_bytes());
    }
    // A pipeline deeper than any buffer on the way, written before anything is read.
    let many = 10_000;
    secure.ask(&b"INCR provider:93:many\r\n".repeat(many), b":1\r\n");
    (2..=many).for_each(|number| secure.expect(format!(":{number}\r\n").as_bytes()));
    let follower = stores.on_cluster(&["GET", "provider:91:a"], "provider:91:a");
    assert_eq!(follower, redis::Value::BulkString(b"3".to_vec()));
    proxy.cli_ok("backfill 91");
    assert!(proxy.cli_ok("verify 91").contains("equal"));
    assert!(proxy.cli_ok("check").contains("3 primaries serve all slots"));
    // The stores were reached over TLS and in no other way.
    let list: String =
        command(&["CLIENT", "LIST", "TYPE", "normal"]).query(&mut stores.standalone.connect()).expect("a list");
    let port = format!("laddr=127.0.0.1:{} ", stores.standalone.argument("--tls-port").expect("a port"));
    assert_eq!(list.lines().filter(|line| !line.contains(&port)).count(), 1, "{list}");
    // OpenSSL, too, and who has no certificate is told nothing and told of.
    let [cert, key] = &client;
    let cli = redis_cli(&proxy, &["--tls", "--cacert", &ca, "--cert", cert, "--key", key, "GET", "provider:93:a"]);
    assert_eq!(String::from_utf8_lossy(&cli.stdout), "3\n");
    let refusal = Secure::to(proxy.port, &authority.path("ca.crt"), None).refusal();
    assert!(refusal.contains("CertificateRequired"), "{refusal}");
    let strangers = Authority::new();
    let stranger = strangers.issue("client", &["client"]);
    assert!(!Secure::to(proxy.port, &authority.path("ca.crt"), Some(&stranger)).refusal().is_empty());
    let mut plain = Raw::to(proxy.port);
    plain.send(b"GET provider:93:a\r\n");
    assert!(!plain.rest().contains('3'));
    eventually("they are counted", || {
        let (_, metrics) = proxy.http("/metrics");
        let count = metrics.lines().find_map(|line| line.strip_prefix("cutover_tls_handshakes_failed_total "));
        count.is_some_and(|count| count.parse::<u64>().expect("a number") >= 3)
    });
    assert!(proxy.log().contains("a client was refused in its TLS handshake"));
    eventually("those who were refused are counted out", || proxy.table()["clients"] == 1);
}

fn redis_cli(proxy: &Proxy, words: &[&str]) -> Output {
    let port = proxy.port.to_string();
    Command::new("redis-cli").args(["-p", &port]).args(words).output().expect("run redis-cli")
}

#[test]
fn what_keeps_a_store_from_being_reached_over_tls_is_told_to_the_operator() {
    let (authority, others) = (Authority::new(), Authority::new());
    let (good, client) = (authority.issue("good", &["127.0.0.1"]), authority.issue("client", &["client"]));
    let expired = authority.issue_as("expired", &["127.0.0.1"], |params| {
        (params.not_before, params.not_after) = (rcgen::date_time_ymd(2020, 1, 1), rcgen::date_time_ymd(2021, 1, 1));
    });
    let elsewhere = authority.issue("elsewhere", &["redis.example"]);
    let [good, expired, elsewhere] = [&good, &expired, &elsewhere].map(|files| start(&authority.server(files)));
    let plain = Redis::start(&[]);
    let (ca, other_ca, [cert, key]) = (authority.ca(), others.ca(), client);
    let with = |ca: &str, more: &str| format!("tls = {{ ca = {ca:?}, cert = {cert:?}, key = {key:?}{more} }}");
    let plain_url = plain.url().replace("redis:", "rediss:");
    let cases = [
        (secure_url(&good), with(&other_ca, ""), "signed by a CA that is not trusted here"),
        (secure_url(&expired), with(&ca, ""), "its certificate has expired"),
        (secure_url(&elsewhere), with(&ca, ""), "its certificate is for another name"),
        (plain_url, with(&ca, ""), "does it speak TLS on this port?"),
        (secure_url(&good), table(&[("ca", &ca)]), "it asks for a certificate of ours"),
        (secure_url(&good), with("/nowhere/ca.crt", ""), "/nowhere/ca.crt: No such file"),
        (secure_url(&good), with(&key, ""), "no certificate in PEM form"),
        (secure_url(&elsewhere), with(&ca, ", server_name = \"redis.example\""), "Redis 7"),
        (secure_url(&elsewhere), format!("tls = {{ cert = {cert:?}, key = {key:?}, verify = false }}"), "Redis 7"),
    ];
    for (standalone, stores, wanted) in cases {
        let directory = tempfile::tempdir().expect("make a directory");
        let path = directory.path().join("proxy.toml");
        let text = format!(
            "[standalone]\nurl = {standalone:?}\n{stores}\n[routing]\nkeys = []\n[state]\ndirectory = {:?}\n",
            directory.path().join("state")
        );
        fs::write(&path, text).expect("write");
        let checked = Command::new(env!("CARGO_BIN_EXE_cutover")).arg("--config").arg(&path).arg("check").output();
        let checked = checked.expect("run cutover");
        let told = [checked.stdout, checked.stderr].concat();
        let told = String::from_utf8_lossy(&told);
        assert!(told.contains(wanted), "expected `{wanted}`: {told}");
        assert_eq!(checked.status.success(), wanted == "Redis 7", "{told}");
    }
}

/// As in an image that holds the program and nothing else.
#[test]
fn a_system_without_any_ca_serves_where_no_tls_is_spoken() {
    let before = "export SSL_CERT_FILE=/nowhere SSL_CERT_DIR=/nowhere";
    let settings = Settings { before, ..Settings::of(Stores::shared()).phase("tls-0", "dual-standalone") };
    let proxy = settings.start().ready();
    run(&mut proxy.connect(), "SET provider:tls-0:key value");
    let own_ca = "no trusted CA was found on this system";
    assert!(!proxy.log().contains(own_ca), "{}", proxy.log());
}

#[test]
fn new_certificates_are_used_without_a_restart_and_bad_ones_change_nothing() {
    let authority = Authority::new();
    let own = authority.issue("own", &["127.0.0.1"]);
    let settings = Settings { listen: table(&[("cert", &own[0]), ("key", &own[1])]), ..Settings::of(Stores::shared()) };
    let proxy = settings.start().ready();
    let ca = authority.path("ca.crt");
    let shown = || {
        let mut client = Secure::to(proxy.port, &ca, None);
        client.ask(b"PING\r\n", b"+PONG\r\n");
        client.certificate()
    };
    let mut early = Secure::to(proxy.port, &ca, None);
    early.ask(b"SET renewed 1\r\n", b"+OK\r\n");
    let first = early.certificate();
    assert_eq!(shown(), first);
    authority.issue("own", &["127.0.0.1"]);
    eventually("new clients see the new certificate", || shown() != first);
    early.ask(b"GET renewed\r\n", b"$1\r\n1\r\n");
    let second = shown();
    let metric =
        |value: &str| proxy.http("/metrics").1.contains(&format!("\ncutover_tls_certificates_refused {value}\n"));
    eventually("both files were taken", || metric("0"));
    fs::write(authority.path("own.crt"), "spoilt").expect("write");
    eventually("the spoilt file is refused", || metric("1"));
    assert!(proxy.log().contains("no certificate in PEM form in it"), "{}", proxy.log());
    assert_eq!(shown(), second);
    let third = authority.issue("own", &["127.0.0.1"]);
    eventually("the next good one is taken", || metric("0") && shown() != second);
    let key = fs::read_to_string(&third[1]).expect("read");
    let body = key.lines().nth(1).expect("a key has lines");
    assert!(!proxy.log().contains(body), "no key in the log");
    assert_eq!(run(&mut Stores::shared().standalone.connect(), "GET renewed"), redis::Value::BulkString(b"1".to_vec()));
}

/// The second proxy has to greet the first one by TLS and log in there before it can send it anything.
#[test]
fn proxies_behind_tls_and_a_password_send_each_other_what_needs_the_lease() {
    let authority = Authority::new();
    let own = authority.issue("proxy", &["127.0.0.1"]);
    let (stores, ca) = (Stores::shared(), authority.ca());
    let lease = |more: &str| format!("name = \"secured\"\ntime = \"2s\"\nca = {ca:?}\n{more}");
    let settings = Settings {
        listen: format!("password = \"secret\"\n{}", table(&[("cert", &own[0]), ("key", &own[1])])),
        lease: lease(""),
        ..Settings::of(stores)
    };
    let settings = settings.phase("971", "dual-standalone").phase("972", "standalone");
    let role = |proxy: &Proxy| proxy.table()["lease"]["role"].as_str().unwrap_or_default().to_string();
    let first = settings.clone().start().ready();
    eventually("the first holds the lease", || role(&first) == "holds");
    let second = settings.clone().start().ready();
    eventually("the second follows", || role(&second) == "follows");
    assert_eq!(second.table()["lease"]["holder"], format!("rediss://127.0.0.1:{}", first.port));
    let mut clients = [&first, &second].map(|proxy| {
        let mut client = Secure::to(proxy.port, &authority.path("ca.crt"), None);
        client.ask(b"AUTH secret\r\n", b"+OK\r\n");
        client
    });
    for number in (1..100).step_by(2) {
        clients[0].ask(b"INCR provider:971:n\r\n", format!(":{number}\r\n").as_bytes());
        clients[1].ask(b"INCR provider:971:n\r\n", format!(":{}\r\n", number + 1).as_bytes());
    }
    clients[1].ask(b"MULTI\r\nINCR provider:971:n\r\nEXEC\r\n", b"+OK\r\n+QUEUED\r\n*1\r\n:101\r\n");
    clients[1].ask(b"INCR provider:972:n\r\n", b":1\r\n");
    eventually("both stores have it", || {
        let words = ["GET", "provider:971:n"];
        stores.on_cluster(&words, words[1]) == redis::Value::BulkString(b"101".to_vec())
    });
    // One that cannot log in has what it may serve alone, says why it has no more, and does no dual write of its own.
    let stranger = Settings { lease: lease("password = \"wrong\""), ..settings }.start().ready();
    eventually("it knows who holds the lease", || role(&stranger) == "follows");
    let mut client = Secure::to(stranger.port, &authority.path("ca.crt"), None);
    client.ask(b"AUTH secret\r\nINCR provider:972:n\r\n", b"+OK\r\n:2\r\n");
    client.ask(b"INCR provider:971:n\r\n", b"-");
    eventually("the log says why", || stranger.log().contains("WRONGPASS"));
    clients[0].ask(b"GET provider:971:n\r\n", b"$3\r\n101\r\n");
}
