//! Commands of a transaction that concern the connection and no store (CLIENT, AUTH, PING, SUBSCRIBE): they run behind those
//! that the stores ran, and their answers stand in EXEC's reply in their places. As in Redis, a SUBSCRIBE of several channels
//! answers once for each of them, whatever EXEC said how many answers there are.
//!
//! A message that is published in the same transaction is not heard by a SUBSCRIBE of it: it is sent first.

use bytes::{Bytes, BytesMut};

use crate::command::{CommandSpec, Kind};
use crate::resp::refusal::Refusal;
use crate::resp::reply::{self, Protocol};
use crate::resp::request::Request;
use crate::resp::write;
use crate::session::client_command;
use crate::session::session::{Flow, Session};

/// Stands in EXEC's reply until the aside has run.
pub(super) const PLACEHOLDER: &[u8] = b"+\r\n";

/// One of them, and which of the transaction's commands it is.
pub(super) struct Aside {
    pub number: usize,
    pub request: Request,
    pub spec: &'static CommandSpec,
}

/// Whether a command of a transaction is one; SELECT has its own way.
pub(super) fn is_aside(spec: &CommandSpec) -> bool {
    matches!(spec.kind, Kind::PubSub | Kind::Local) && spec.name != "SELECT" || spec.name == "UNWATCH"
}

/// Why a command cannot be queued, if it cannot.
pub(super) fn unfit(spec: &CommandSpec, request: &Request, protocol: Protocol) -> Option<Refusal> {
    let own_version = if protocol == Protocol::Resp2 { b"2" } else { b"3" };
    match spec.name {
        "HELLO" if request.args().nth(1).is_some_and(|version| version != own_version) => {
            Some(Refusal::Text("Command 'hello' not allowed inside a transaction where it changes the protocol".into()))
        }
        "CLIENT" => match client_command::wrong_form(request) {
            Some(text) => Some(Refusal::Verbatim(text)),
            None if request.arg(1).eq_ignore_ascii_case(b"REPLY") && !request.arg(2).eq_ignore_ascii_case(b"ON") => {
                Some(Refusal::Text("Command 'client|reply' not allowed inside a transaction".into()))
            }
            None => None,
        },
        _ => None,
    }
}

impl Session {
    /// Answers EXEC: the stores' frame, each placeholder in it filled in by running its command.
    pub(super) async fn answer_with_asides(&mut self, frame: Bytes, asides: Vec<Aside>) -> Flow {
        let is_array = frame.starts_with(b"*") && !reply::is_null(&frame);
        let Some(cells) = reply::elements(&frame).filter(|_| is_array) else {
            self.answer_with(Ok(frame));
            return Flow::Continue;
        };
        let (mut out, mut flow, mut asides) = (BytesMut::new(), Flow::Continue, asides.into_iter().peekable());
        write::array(&mut out, cells.len());
        for (number, cell) in cells.into_iter().enumerate() {
            match asides.next_if(|aside| aside.number == number) {
                None => out.extend_from_slice(&frame[cell]),
                Some(Aside { request, spec, .. }) if spec.kind == Kind::PubSub => {
                    out.extend_from_slice(&self.subscribe_aside(request, spec).await);
                }
                // What was watched was let go of before the first command ran.
                Some(Aside { spec, .. }) if spec.name == "UNWATCH" => write::simple(&mut out, "OK"),
                Some(Aside { request, spec, .. }) if spec.name == "PING" && self.is_in_subscribe_mode() => {
                    self.pong(&mut out, &request);
                }
                Some(Aside { request, spec, .. }) => {
                    flow = self.local(&mut out, &request, spec);
                    // Who has ended itself gets nothing more, as in Redis.
                    if flow == Flow::Close {
                        break;
                    }
                }
            }
        }
        self.answer(&out);
        if let Some(subscriber) = &self.subscriber {
            subscriber.ear.release();
        }
        flow
    }

    /// What a SUBSCRIBE or its like answers. What is heard from now on waits for EXEC's reply.
    async fn subscribe_aside(&mut self, request: Request, spec: &'static CommandSpec) -> BytesMut {
        if spec.name == "SSUBSCRIBE" {
            let mut out = BytesMut::new();
            write::error(&mut out, "ERR SSUBSCRIBE isn't allowed for a DENY BLOCKING client");
            return out;
        }
        self.subscriber().ear.hold();
        let refused = self.ask_subscriptions(request, spec).await.err();
        let subscriber = self.subscriber();
        subscriber.membership.settled().await;
        let mut out = subscriber.ear.take_confirmed();
        if let Some(refusal) = refused {
            refusal.write(&mut out);
        }
        out
    }
}
