//! Who may come in, what each may do, and that no secret is seen anywhere.

use std::fs;
use std::process::Command;

use crate::common::{Proxy, Redis, Settings, Stores, eventually, run};
use crate::protocol::Raw;

/// As `sha256sum` prints it.
fn sha256(password: &str) -> String {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, password.as_bytes());
    digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

fn login(proxy: &Proxy, user: &str, password: &str) -> Raw {
    let mut client = Raw::to(proxy.port);
    client.send(format!("AUTH {user} {password}\r\n").as_bytes());
    client.expect(b"+OK\r\n");
    client
}

/// A line of [users] at the end of the settings, where [providers] begins.
fn with_users(lines: &str) -> Settings {
    let routing = format!("[users]\n{lines}");
    Settings { routing, ..Settings::of(Stores::shared()).phase("80", "dual-standalone").phase("81", "standalone") }
}

const NO_KEY: &[u8] = b"-NOPERM this user has no permissions to access one of the keys used as arguments\r\n";

#[test]
fn each_user_does_what_it_may_and_is_refused_the_rest_in_redis_s_words() {
    let users = format!(
        "\"shop\" = {{ password_sha256 = \"{}\", routes = [\"80\"] }}\n\"reader\" = {{ password_sha256 = \"{}\", commands = [\"@read\", \"-KEYS\"] }}\n\"root\" = {{ password_sha256 = \"{}\" }}\n",
        sha256("shop-secret"),
        sha256("reader-secret"),
        sha256("root-secret")
    );
    let mut proxy = with_users(&users).start().ready();
    let mut nobody = Raw::to(proxy.port);
    nobody
        .send(b"GET provider:80:a\r\nAUTH shop root-secret\r\nAUTH default x\r\nAUTH x\r\nHELLO 3 AUTH shop wrong\r\n");
    nobody.expect(b"-NOAUTH Authentication required.\r\n");
    for _ in 0..4 {
        nobody.expect(b"-WRONGPASS invalid username-password pair or user is disabled.\r\n");
    }
    // A stranger's request may not be large.
    nobody.send(b"*3\r\n$4\r\nAUTH\r\n$4\r\nshop\r\n$500000\r\n");
    assert!(nobody.rest().contains("Protocol error"));

    let mut shop = login(&proxy, "shop", "shop-secret");
    shop.send(
        b"SET provider:80:a 1\r\nGET provider:81:a\r\nMGET provider:80:a provider:81:a\r\nRENAME provider:80:a b\r\n",
    );
    shop.expect(b"+OK\r\n");
    shop.expect(&NO_KEY.repeat(3));
    shop.send(
        b"KEYS *\r\nEVAL \"return 1\" 0\r\nSELECT 3\r\nMULTI\r\nSET provider:80:a 2\r\nDEL provider:81:a\r\nEXEC\r\n",
    );
    for name in ["keys", "eval", "select"] {
        shop.expect(format!("-NOPERM this user has no permissions to run the '{name}' command\r\n").as_bytes());
    }
    shop.expect(&[b"+OK\r\n+QUEUED\r\n", NO_KEY].concat());
    shop.expect(b"-EXECABORT Transaction discarded because of previous errors.\r\n");
    shop.send(b"MULTI\r\nINCR provider:80:a\r\nEXEC\r\nRESET\r\nGET provider:80:a\r\n");
    shop.expect(b"+OK\r\n+QUEUED\r\n*1\r\n:2\r\n+RESET\r\n-NOAUTH Authentication required.\r\n");

    let mut reader = login(&proxy, "reader", "reader-secret");
    reader.send(b"GET provider:80:a\r\nSET provider:80:a 3\r\nKEYS *\r\nPING\r\n");
    reader.expect(b"$1\r\n2\r\n");
    for name in ["set", "keys"] {
        reader.expect(format!("-NOPERM this user has no permissions to run the '{name}' command\r\n").as_bytes());
    }
    reader.expect(b"+PONG\r\n");

    let mut root = redis::Client::open(format!("redis://root:root-secret@127.0.0.1:{}/", proxy.port))
        .and_then(|client| client.get_connection())
        .expect("a library logs in by the URL");
    let list = run(&mut root, "CLIENT LIST");
    let list = format!("{list:?}");
    for user in ["user=reader", "user=root", "user=default"] {
        assert!(list.contains(user), "{list}");
    }
    assert!(proxy.http("/metrics").1.contains("cutover_refused_requests_total{reason=\"denied\"}"));

    // Less is allowed from now on: who had more has to log in again, and the others go on.
    proxy.edit(|settings| Settings {
        routing: settings.routing.replace("routes = [\"80\"]", "routes = [\"81\"]"),
        ..settings
    });
    shop = login(&proxy, "shop", "shop-secret");
    eventually("the change is adopted", || {
        shop = login(&proxy, "shop", "shop-secret");
        shop.send(b"EXISTS provider:81:x\r\n");
        let mut first = [0];
        std::io::Read::read_exact(&mut shop.0, &mut first).is_ok() && first == *b":"
    });
    reader.send(b"PING\r\n");
    reader.expect(b"+PONG\r\n");
    proxy.edit(|settings| {
        let others =
            settings.routing.lines().filter(|line| !line.starts_with("\"reader\"")).map(|line| format!("{line}\n"));
        Settings { routing: others.collect(), ..settings }
    });
    assert_eq!(reader.rest(), "", "a user that is gone has no clients");
}

/// Each of these is a secret of a configuration; nothing that the program says may hold one.
#[test]
fn no_secret_is_in_any_log_answer_or_error() {
    let secrets = ["LISTEN-hunter2", "ADMIN-hunter2", "STORE-hunter2", "USER-hunter2", "WRONG-hunter2"];
    let [listen, admin, store, user, wrong] = secrets;
    let guarded = Redis::start(&[]);
    run(&mut guarded.connect(), &format!("CONFIG SET requirepass {store}"));
    let folder = tempfile::tempdir().expect("make a directory");
    let token = folder.path().join("token");
    fs::write(&token, format!("{admin}\n")).expect("write");
    let hash = sha256(user);
    let base = Settings::of(Stores::shared());
    let settings = Settings {
        standalone: format!("redis://:{store}@127.0.0.1:{}/0", guarded.port),
        listen: format!("password = \"{listen}\""),
        admin: format!("token = \"${{file:{}}}\"", token.display()),
        routing: format!("[users]\n\"u\" = {{ password_sha256 = \"{hash}\" }}\n[log]\nlevel = \"trace\""),
        ..base
    };
    let mut proxy = settings.start().ready();
    let mut said = String::new();
    let mut client = Raw::to(proxy.port);
    client.send(format!("AUTH {wrong}\r\nAUTH {listen}\r\nCLIENT LIST\r\nINFO\r\nCONFIG GET *\r\nNOSUCH {store}\r\nCLIENT INFO\r\nQUIT\r\n").as_bytes());
    // What the client itself sent, and what the store tells of its own settings to who may ask, are no leaks of ours.
    let answers = client.rest();
    said += &answers
        .lines()
        .filter(|line| !line.contains("unknown command"))
        .map(|line| format!("{line}\n"))
        .collect::<String>()
        .replace(store, "");
    let post = |token: &str| {
        let agent: ureq::Agent = ureq::Agent::config_builder().http_status_as_error(false).build().into();
        let request = agent.post(format!("http://127.0.0.1:{}/api/backfill", proxy.admin_port));
        let mut answer = request
            .header("Authorization", format!("Bearer {token}"))
            .send_json(serde_json::json!({}))
            .expect("an answer");
        (answer.status().as_u16(), answer.body_mut().read_to_string().expect("a body"))
    };
    let (status, refused) = post(wrong);
    assert_eq!(status, 401);
    assert_eq!(post(admin).0, 400, "the token of the file is the token");
    said += &refused;
    let shown = |proxy: &Proxy| {
        let pages =
            ["/", "/metrics", "/readyz", "/api/table", "/api/providers", "/api/audit", "/api/jobs", "/api/flips"];
        let pages = pages.map(|page| proxy.http(page).1).concat();
        let commands = ["check", "status", "status --json", "check --json", "lobby"].map(|words| {
            let out = proxy.cli(words);
            String::from_utf8_lossy(&[out.stdout, out.stderr].concat()).into_owned()
        });
        pages + &commands.concat()
    };
    said += &shown(&proxy);
    // A store that refuses the password, and files that are wrong in the very lines with secrets.
    let admin_lines = proxy.config_path();
    for (from, to) in [
        ("/0\"", "/zero\""),
        ("password = \"", "password = 5 # \""),
        ("password_sha256 = \"", "password_sha256 = \"00"),
        ("[users]", "[user]"),
        (listen, ""),
    ] {
        let text = fs::read_to_string(&admin_lines).expect("read");
        let before = proxy.log().matches("cannot be used").count();
        fs::write(&admin_lines, text.replacen(from, to, 1)).expect("write");
        eventually("the file is refused", || proxy.log().matches("cannot be used").count() > before);
        said += &shown(&proxy);
        fs::write(&admin_lines, text).expect("write");
        eventually("the file is good again", || proxy.table()["refused"].is_null());
    }
    run(
        &mut redis::Client::open(guarded.url().replace("redis://", &format!("redis://:{store}@")))
            .and_then(|client| client.get_connection())
            .expect("connect"),
        &format!("CONFIG SET requirepass {wrong}"),
    );
    guarded.signal("STOP");
    guarded.signal("CONT");
    let mut client = Raw::to(proxy.port);
    client.send(format!("AUTH {listen}\r\n").as_bytes());
    client.expect(b"+OK\r\n");
    let mut killer = redis::Client::open(guarded.url().replace("redis://", &format!("redis://:{wrong}@")))
        .and_then(|client| client.get_connection())
        .expect("connect");
    run(&mut killer, "CLIENT KILL TYPE normal SKIPME yes");
    eventually("the store refuses the password", || proxy.log().contains("WRONGPASS"));
    said += &shown(&proxy);
    assert_eq!(proxy.terminate(), Some(0));
    said += &proxy.log();
    for secret in secrets.iter().copied().chain([hash.as_str()]) {
        let at = said.find(secret);
        assert!(
            at.is_none(),
            "{secret} is seen: …{}",
            &said[at.unwrap_or(0).saturating_sub(200)..][..220.min(said.len())]
        );
    }
}

#[test]
fn an_address_that_others_reach_needs_a_password_unless_it_is_said_that_it_needs_none() {
    let directory = tempfile::tempdir().expect("make a directory");
    let path = directory.path().join("proxy.toml");
    let check = |listen: &str, admin: &str| {
        let text = format!(
            "[listen]\n{listen}\n[admin]\n{admin}\n[standalone]\nurl = \"redis://127.0.0.1:1/0\"\nconnect_timeout = \"10ms\"\n[routing]\nkeys = []\n"
        );
        fs::write(&path, text).expect("write");
        let out = Command::new(env!("CARGO_BIN_EXE_cutover")).arg("--config").arg(&path).arg("check").output();
        out.expect("run cutover").status.code() != Some(2)
    };
    let (open, admin) = ("address = \"0.0.0.0:6380\"", "address = \"[::]:9380\"");
    assert!(check("", "") && !check(open, "") && !check("", admin));
    assert!(check(&format!("{open}\nprotected_mode = false"), &format!("{admin}\nprotected_mode = false")));
    assert!(check(&format!("{open}\npassword = \"p\""), &format!("{admin}\ntoken = \"t\"")));
    assert!(!check("password = \"\"", ""), "an empty password is none");
}

#[test]
fn a_provider_that_asks_for_more_than_its_share_is_refused_and_others_are_not() {
    let limits = "[limits]\n\"80\" = { requests_per_second = 5 }\n";
    let mut proxy = Settings { routing: limits.into(), ..with_users("") }.start().ready();
    let mut client = Raw::to(proxy.port);
    let mut refused_of = |provider: u32| {
        client.send(format!("GET provider:{provider}:none\r\n").repeat(50).as_bytes());
        let mut refused = 0;
        for _ in 0..50 {
            let mut line = Vec::new();
            while !line.ends_with(b"\r\n") {
                let mut byte = [0];
                std::io::Read::read_exact(&mut client.0, &mut byte).expect("an answer");
                line.push(byte[0]);
            }
            match line.as_slice() {
                b"$-1\r\n" => {}
                b"-ERR cutover: more requests a second than this route may ask for; 'get' did not run, try again later\r\n" => {
                    refused += 1;
                }
                other => panic!("{}", other.escape_ascii()),
            }
        }
        refused
    };
    // Five are let through at once, and one more each fifth of a second that the rest takes.
    let refused = refused_of(80);
    assert!((25..=45).contains(&refused), "{refused}");
    assert_eq!(refused_of(81), 0);
    let counted = format!("cutover_refused_requests_total{{reason=\"limited\"}} {refused}\n");
    eventually("the refused are counted", || proxy.http("/metrics").1.contains(&counted));

    // Nothing of a transaction runs when one of its commands was too much, nor does a command for one that has enough.
    let mut other = Raw::to(proxy.port);
    other.send("GET provider:80:none\r\n".repeat(10).as_bytes());
    other.send(b"MULTI\r\nSET provider:81:a 1\r\nSET provider:80:a 1\r\nEXEC\r\nMSET provider:81:a 1 provider:80:a 1\r\nQUIT\r\n");
    let answers = other.rest();
    assert!(answers.contains("'set' did not run") && answers.contains("-EXECABORT"), "{answers}");
    assert!(answers.contains("'mset' did not run"), "{answers}");
    assert_eq!(run(&mut proxy.connect(), "EXISTS provider:81:a"), redis::Value::Int(0));

    proxy.edit(|settings| Settings { routing: String::new(), ..settings });
    eventually("the limit is gone", || refused_of(80) == 0);
}
