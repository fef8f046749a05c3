//! What the proxy answers itself: the state of the connection.

use bytes::{Bytes, BytesMut};

use crate::command::CommandSpec;
use crate::resp::refusal::Refusal;
use crate::resp::reply::Protocol;
use crate::resp::request::Request;
use crate::resp::write;
use crate::session::session::{Flow, Session};

/// Redis has 16 by default; a number beyond what the standalone has is refused by its own SELECT.
const DATABASES: u32 = 16;

impl Session {
    pub(super) async fn local(&mut self, request: Request, spec: &'static CommandSpec) -> Flow {
        let mut out = BytesMut::new();
        match spec.name {
            "PING" if request.len() > 2 => return self.wrong_arity("ping"),
            "PING" if request.len() == 2 => write::bulk(&mut out, request.arg(1)),
            "PING" => write::simple(&mut out, "PONG"),
            "ECHO" => write::bulk(&mut out, request.arg(1)),
            "QUIT" => {
                self.answer(b"+OK\r\n");
                return Flow::Close;
            }
            "RESET" => {
                self.transaction.reset();
                self.replies.set_silent(false);
                self.subscriptions = None;
                (self.protocol, self.db, self.name) = (Protocol::Resp2, 0, Bytes::new());
                self.is_admitted = self.shared.limits.password.is_none();
                write::simple(&mut out, "RESET");
            }
            "SELECT" => match std::str::from_utf8(request.arg(1)).ok().and_then(|text| text.parse::<u32>().ok()) {
                Some(db) if db < DATABASES => {
                    self.db = db;
                    write::simple(&mut out, "OK");
                }
                Some(_) => write::error(&mut out, "ERR DB index is out of range"),
                None => write::error(&mut out, "ERR value is not an integer or out of range"),
            },
            "AUTH" => self.auth(&mut out, request.arg(request.len() - 1), request.len()),
            "HELLO" => self.hello(&mut out, &request),
            _ => self.client(&mut out, &request),
        }
        self.answer(&out);
        Flow::Continue
    }

    fn wrong_arity(&self, name: &str) -> Flow {
        self.refuse(Refusal::WrongArity(name.into()));
        Flow::Continue
    }

    fn is_password(&self, given: &[u8]) -> bool {
        let Some(password) = &self.shared.limits.password else { return true };
        // In constant time for equal lengths.
        password.len() == given.len()
            && password.bytes().zip(given).fold(0u8, |differs, (own, given)| differs | (own ^ given)) == 0
    }

    fn auth(&mut self, out: &mut BytesMut, given: &[u8], argc: usize) {
        if argc > 3 {
            return write::error(out, "ERR syntax error");
        }
        if self.shared.limits.password.is_none() && argc == 2 {
            return write::error(
                out,
                "ERR AUTH <password> called without any password configured for the default user. Are you sure your configuration is correct?",
            );
        }
        if self.is_password(given) {
            self.is_admitted = true;
            write::simple(out, "OK");
        } else {
            write::error(out, "WRONGPASS invalid username-password pair or user is disabled.");
        }
    }

    fn hello(&mut self, out: &mut BytesMut, request: &Request) {
        let mut protocol = self.protocol;
        if request.len() > 1 {
            protocol = match request.arg(1) {
                b"2" => Protocol::Resp2,
                b"3" => Protocol::Resp3,
                other if other.iter().all(u8::is_ascii_digit) => return write::error(out, "NOPROTO unsupported protocol version"),
                _ => return write::error(out, "ERR Protocol version is not an integer or out of range"),
            };
        }
        let mut index = 2;
        while index < request.len() {
            let word = request.arg(index).to_ascii_uppercase();
            match (word.as_slice(), request.len() - index) {
                (b"AUTH", 3..) => {
                    if !self.is_password(request.arg(index + 2)) {
                        return write::error(out, "WRONGPASS invalid username-password pair or user is disabled.");
                    }
                    self.is_admitted = true;
                    index += 3;
                }
                (b"SETNAME", 2..) => {
                    self.name = Bytes::copy_from_slice(request.arg(index + 1));
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
        self.protocol = protocol;
        write::map(out, protocol, 7);
        let pairs: [(&str, &str); 2] = [("server", "redis"), ("version", "7.0.15")];
        for (name, value) in pairs {
            write::bulk(out, name.as_bytes());
            write::bulk(out, value.as_bytes());
        }
        write::bulk(out, b"proto");
        write::integer(out, if protocol == Protocol::Resp2 { 2 } else { 3 });
        write::bulk(out, b"id");
        write::integer(out, self.id as i64);
        for (name, value) in [("mode", "standalone"), ("role", "master")] {
            write::bulk(out, name.as_bytes());
            write::bulk(out, value.as_bytes());
        }
        write::bulk(out, b"modules");
        write::array(out, 0);
    }

    fn client(&mut self, out: &mut BytesMut, request: &Request) {
        let sub = request.arg(1).to_ascii_uppercase();
        match (sub.as_slice(), request.len()) {
            (b"ID", 2) => write::integer(out, self.id as i64),
            (b"GETNAME", 2) if self.name.is_empty() => write::null(out, self.protocol),
            (b"GETNAME", 2) => write::bulk(out, &self.name),
            (b"SETNAME", 3) if request.arg(2).iter().any(|byte| !(b'!'..=b'~').contains(byte)) => {
                write::error(out, "ERR Client names cannot contain spaces, newlines or special characters.");
            }
            (b"SETNAME", 3) => {
                self.name = Bytes::copy_from_slice(request.arg(2));
                write::simple(out, "OK");
            }
            (b"SETINFO", 4) | (b"NO-EVICT" | b"NO-TOUCH", 3) => write::simple(out, "OK"),
            (b"INFO", 2) | (b"LIST", _) => {
                let line = self.describe();
                write::bulk(out, line.as_bytes());
            }
            (b"REPLY", 3) => match request.arg(2).to_ascii_uppercase().as_slice() {
                b"ON" => {
                    self.replies.set_silent(false);
                    write::simple(out, "OK");
                }
                b"OFF" => self.replies.set_silent(true),
                _ => write::error(out, "ERR 'client|reply' with SKIP is not available through cutover: replies are shared"),
            },
            _ => {
                let sub = String::from_utf8_lossy(request.arg(1)).into_owned();
                write::error(out, &format!("ERR unknown subcommand '{sub}'. Try CLIENT HELP."));
            }
        }
    }

    fn describe(&self) -> String {
        format!(
            "id={} addr={} name={} age={} db={} resp={} user=default lib-name= lib-ver=\n",
            self.id,
            self.peer,
            String::from_utf8_lossy(&self.name),
            self.created.elapsed().as_secs(),
            self.db,
            if self.protocol == Protocol::Resp2 { 2 } else { 3 },
        )
    }
}
