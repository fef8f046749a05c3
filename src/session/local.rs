//! What the proxy answers itself: the state of the connection.

use bytes::{Bytes, BytesMut};

use crate::audit::Kind as Unlike;
use crate::command::CommandSpec;
use crate::resp::refusal::Refusal;
use crate::resp::reply::Protocol;
use crate::resp::request::Request;
use crate::resp::write;
use crate::routing::DATABASES;
use crate::session::refused;
use crate::session::replies::Mute;
use crate::session::session::{Flow, Session};
use crate::session::users;

/// What the proxy needs of its stores, and says it is while it has not reached the standalone yet.
const VERSION_LEAST: &str = "7.0.0";
const WRONG_PASSWORD: &str = "WRONGPASS invalid username-password pair or user is disabled.";

/// The number that SELECT and its like name, or Redis's error.
pub(super) fn database(text: &[u8]) -> Result<u32, &'static str> {
    let number: Option<i64> = std::str::from_utf8(text).ok().and_then(|text| text.parse().ok());
    let number = number.filter(|number| number.to_string().as_bytes() == text);
    let db = number.ok_or("ERR value is not an integer or out of range")?;
    u32::try_from(db).ok().filter(|db| *db < DATABASES).ok_or("ERR DB index is out of range")
}

impl Session {
    /// Writes the answer.
    pub(super) fn local(&mut self, out: &mut BytesMut, request: &Request, spec: &'static CommandSpec) -> Flow {
        match spec.name {
            "PING" if request.len() > 2 => {
                let refusal = Refusal::WrongArity("ping".into());
                refused::count(&refusal);
                refusal.write(out);
            }
            "PING" if request.len() == 2 => write::bulk(out, request.arg(1)),
            "PING" => write::simple(out, "PONG"),
            "ECHO" => write::bulk(out, request.arg(1)),
            "QUIT" => {
                write::simple(out, "OK");
                return Flow::Close;
            }
            "RESET" => {
                self.reset();
                write::simple(out, "RESET");
            }
            "SELECT" => match database(request.arg(1)) {
                Ok(db) => {
                    self.set_db(db);
                    if !self.is_moving_db() {
                        self.audit("select", Unlike::Database, String::new(), || format!("database {db}"));
                    }
                    write::simple(out, "OK");
                }
                Err(text) => write::error(out, text),
            },
            "AUTH" => self.auth(out, request),
            "HELLO" => self.hello(out, request),
            _ => return self.client(out, request),
        }
        Flow::Continue
    }

    /// As a new connection, but for its number.
    pub(super) fn reset(&mut self) {
        self.reset_transaction();
        self.replies.mute(Mute::No);
        self.subscriber = None;
        self.set_protocol(Protocol::Resp2);
        self.set_db(0);
        self.client.rename(|names| names.name = Bytes::new());
        self.become_nobody();
    }

    /// As a client that has not said who it is: the default user, if that needs no password.
    pub(super) fn become_nobody(&mut self) {
        let users = self.shared.users.load_full();
        let user = users.unasked();
        self.is_admitted = user.is_some();
        self.rights = user.and_then(|user| user.rights.clone());
        self.client.rename(|names| names.user = users::DEFAULT.into());
    }

    /// Whether the password is the user's; then the client is that user from now on.
    fn login(&mut self, user: &[u8], password: &[u8]) -> bool {
        let users = self.shared.users.load_full();
        let Some(user) = users.login(user, password) else {
            refused::count(&Refusal::Denied(String::new()));
            return false;
        };
        self.is_admitted = true;
        self.rights = user.rights.clone();
        self.client.rename(|names| names.user = user.name.clone());
        true
    }

    fn auth(&mut self, out: &mut BytesMut, request: &Request) {
        let (user, given) = match request.len() {
            2 => (users::DEFAULT.as_bytes(), request.arg(1)),
            3 => (request.arg(1), request.arg(2)),
            _ => return write::error(out, "ERR syntax error"),
        };
        if request.len() == 2 && self.shared.users.load().unasked().is_some() {
            return write::error(
                out,
                "ERR AUTH <password> called without any password configured for the default user. Are you sure your configuration is correct?",
            );
        }
        if self.login(user, given) {
            write::simple(out, "OK");
        } else {
            write::error(out, WRONG_PASSWORD);
        }
    }

    fn hello(&mut self, out: &mut BytesMut, request: &Request) {
        let mut protocol = self.protocol;
        if request.len() > 1 {
            protocol = match request.arg(1) {
                b"2" => Protocol::Resp2,
                b"3" => Protocol::Resp3,
                other if other.iter().all(u8::is_ascii_digit) => {
                    return write::error(out, "NOPROTO unsupported protocol version");
                }
                _ => return write::error(out, "ERR Protocol version is not an integer or out of range"),
            };
        }
        let mut index = 2;
        while index < request.len() {
            let word = request.arg(index).to_ascii_uppercase();
            match (word.as_slice(), request.len() - index) {
                (b"AUTH", 3..) => {
                    if !self.login(request.arg(index + 1), request.arg(index + 2)) {
                        return write::error(out, WRONG_PASSWORD);
                    }
                    index += 3;
                }
                (b"SETNAME", 2..) => {
                    let mut answer = BytesMut::new();
                    self.set_name(&mut answer, request.arg(index + 1));
                    if answer.starts_with(b"-") {
                        return out.unsplit(answer);
                    }
                    index += 2;
                }
                _ => {
                    let word = String::from_utf8_lossy(request.arg(index)).into_owned();
                    return write::error(out, &format!("ERR Syntax error in HELLO option '{word}'"));
                }
            }
        }
        if !self.is_admitted {
            return write::error(
                out,
                "NOAUTH HELLO must be called with the client already authenticated, otherwise the HELLO <proto> AUTH <user> <pass> option can be used to authenticate the client and select the RESP protocol version at the same time",
            );
        }
        self.set_protocol(protocol);
        write::map(out, protocol, 7);
        let version = self.shared.engine.stores().version();
        let version = if version.is_empty() { VERSION_LEAST } else { &version };
        for (name, value) in [("server", "redis"), ("version", version)] {
            write::bulk(out, name.as_bytes());
            write::bulk(out, value.as_bytes());
        }
        write::bulk(out, b"proto");
        write::integer(out, if protocol == Protocol::Resp2 { 2 } else { 3 });
        write::bulk(out, b"id");
        write::integer(out, self.client.id as i64);
        for (name, value) in [("mode", "standalone"), ("role", "master")] {
            write::bulk(out, name.as_bytes());
            write::bulk(out, value.as_bytes());
        }
        write::bulk(out, b"modules");
        write::array(out, 0);
    }
}
