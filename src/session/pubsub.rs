//! Subscriptions of a client. Its messages come from the worker's own subscriptions ([`crate::dual::Membership`]) straight into
//! its replies; RESP2 clients are in subscribe mode meanwhile, RESP3 clients may send anything.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::{Bytes, BytesMut};
use tokio::sync::oneshot;

use crate::command::CommandSpec;
use crate::dual::{Asked, Ear, Family, Push, ReplyTo, Verb};
use crate::resp::refusal::Refusal;
use crate::resp::reply::Protocol;
use crate::resp::request::Request;
use crate::resp::write;
use crate::session::clients::Client;
use crate::session::commands::Once;
use crate::session::refused;
use crate::session::replies::Replies;
use crate::session::session::Session;
use crate::store::Reply;

/// What a client hears goes behind its replies, in the protocol that it has then.
struct SessionEar {
    replies: Rc<Replies>,
    client: Arc<Client>,
}

impl Ear for SessionEar {
    fn hear(&self, push: &Push) {
        let is_resp3 = self.client.is_resp3.load(Ordering::Relaxed);
        let frame = push.in_protocol(if is_resp3 { Protocol::Resp3 } else { Protocol::Resp2 });
        self.replies.append_shared(frame);
    }

    fn note(&self, subscriptions: usize) {
        self.client.subscriptions.store(u32::try_from(subscriptions).unwrap_or(u32::MAX), Ordering::Relaxed);
    }

    fn refuse(&self, refusal: Refusal) {
        refused::count(&refusal);
        let mut text = BytesMut::new();
        refusal.write(&mut text);
        self.replies.append(Reply::Small(&text));
    }

    fn close(&self) {
        self.replies.close();
    }
}

impl Session {
    /// PUBLISH and SPUBLISH go to the store on which all channels meet, PUBSUB asks there.
    pub(super) async fn publish(&mut self, request: Request, spec: &CommandSpec) {
        let engine = &self.shared.engine;
        if spec.name == "PUBSUB" {
            self.replies.settle(0).await;
            return self.answer_with(engine.ask_channels(&request, self.protocol).await);
        }
        let Some(subscriber) = &self.subscriber else {
            return engine.publish(request, self.protocol, self.reply_to());
        };
        // Who hears its own message hears it before it is told how many did.
        self.replies.settle(0).await;
        let (sender, receiver) = oneshot::channel();
        engine.publish(request, self.protocol, ReplyTo { port: Rc::new(Once(RefCell::new(Some(sender)))), seq: 0 });
        let outcome = receiver.await.unwrap_or(Err(Refusal::UnknownOutcome));
        subscriber.catch_up().await;
        self.answer_with(outcome);
    }

    /// (P|S)SUBSCRIBE and (P|S)UNSUBSCRIBE: each name is confirmed in its turn, and what comes behind these waits for them.
    pub(super) async fn subscribe(&mut self, request: Request, spec: &CommandSpec) {
        let Some((family, verb)) = Family::of_command(spec.name) else { return };
        let asked = Asked::new((verb == Verb::Join).then(|| self.shared.engine.begin_subscribe()));
        self.replies.settle(0).await;
        let subscriber = self.subscriber.get_or_insert_with(|| {
            let ear = SessionEar { replies: self.replies.clone(), client: self.client.clone() };
            self.shared.engine.new_member(Rc::new(ear))
        });
        let names = match request.len() {
            1 => {
                let all = subscriber.names(family);
                if all.is_empty() {
                    return subscriber.confirm_none(family).await;
                }
                all
            }
            _ => request.args().skip(1).map(Bytes::copy_from_slice).collect(),
        };
        for name in names {
            if let Err(refusal) = subscriber.ask(&asked, family, verb, name).await {
                subscriber.settled().await;
                return self.refuse(refusal);
            }
        }
    }

    /// Waits until everything about subscriptions is answered, so that the next command finds the client in the right mode
    /// and its reply comes after theirs.
    pub(super) async fn settle_subscriptions(&mut self) {
        let Some(subscriber) = &self.subscriber else { return };
        subscriber.settled().await;
        if subscriber.count() == 0 {
            self.subscriber = None;
        }
    }

    /// What subscribe mode makes of a command: an answer of its own, or nothing.
    pub(super) fn is_answered_by_mode(&self, request: &Request, spec: &CommandSpec) -> bool {
        let is_in_mode = self.protocol == Protocol::Resp2 && self.subscriber.is_some();
        if !is_in_mode || matches!(spec.name, "QUIT" | "RESET") {
            return false;
        }
        if spec.name != "PING" {
            let name = String::from_utf8_lossy(request.arg(0)).to_lowercase();
            self.refuse(Refusal::Text(format!(
                "Can't execute '{name}': only (P|S)SUBSCRIBE / (P|S)UNSUBSCRIBE / PING / QUIT / RESET are allowed in this context"
            )));
            return true;
        }
        if request.len() > 2 {
            self.refuse(Refusal::WrongArity("ping".into()));
            return true;
        }
        let mut out = BytesMut::new();
        write::array(&mut out, 2);
        write::bulk(&mut out, b"pong");
        write::bulk(&mut out, request.args().nth(1).unwrap_or_default());
        self.answer(&out);
        true
    }
}
