//! Subscriptions of a client. Its messages come from the worker's own subscriptions ([`crate::dual::Membership`]) straight into
//! its replies; RESP2 clients are in subscribe mode meanwhile, RESP3 clients may send anything.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::{Bytes, BytesMut};
use tokio::sync::oneshot;

use crate::command::CommandSpec;
use crate::dual::{Asked, Ear, Family, Membership, Push, ReplyTo, Verb};
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
pub struct SessionEar {
    replies: Rc<Replies>,
    client: Arc<Client>,
    held: RefCell<Option<Held>>,
}

/// What is heard while EXEC's reply is put together.
#[derive(Default)]
struct Held {
    /// Is a part of that reply.
    confirmed: BytesMut,
    /// Comes behind it. Bounded as unread replies are.
    messages: BytesMut,
}

/// A client's subscriptions, and what hears for it.
pub struct Subscriber {
    pub membership: Membership,
    pub ear: Rc<SessionEar>,
}

impl SessionEar {
    /// From now on what is heard waits.
    pub fn hold(&self) {
        self.held.borrow_mut().get_or_insert_default();
    }

    /// The confirmations since the last time.
    pub fn take_confirmed(&self) -> BytesMut {
        self.held.borrow_mut().as_mut().map(|held| held.confirmed.split()).unwrap_or_default()
    }

    /// What has waited goes to the client.
    pub fn release(&self) {
        if let Some(held) = self.held.take()
            && !held.messages.is_empty()
        {
            self.replies.append(Reply::Whole(held.messages.freeze()));
        }
    }

    /// Whether a frame waits now.
    fn is_held(&self, frame: &[u8], is_message: bool) -> bool {
        let mut held = self.held.borrow_mut();
        let Some(held) = &mut *held else { return false };
        let kept = if is_message { &mut held.messages } else { &mut held.confirmed };
        kept.extend_from_slice(frame);
        if kept.len() > self.replies.unread_bytes_max() {
            self.replies.close();
        }
        true
    }
}

impl Ear for SessionEar {
    fn hear(&self, push: &Push) {
        let is_resp3 = self.client.is_resp3.load(Ordering::Relaxed);
        let frame = push.in_protocol(if is_resp3 { Protocol::Resp3 } else { Protocol::Resp2 });
        if !self.is_held(frame, push.is_message()) {
            self.replies.append_shared(frame);
        }
    }

    fn note(&self, subscriptions: [usize; 3]) {
        for (count, known) in subscriptions.into_iter().zip(&self.client.subscriptions) {
            known.store(u32::try_from(count).unwrap_or(u32::MAX), Ordering::Relaxed);
        }
    }

    fn refuse(&self, refusal: Refusal) {
        refused::count(&refusal);
        let mut text = BytesMut::new();
        refusal.write(&mut text);
        if !self.is_held(&text, false) {
            self.replies.append(Reply::Small(&text));
        }
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
        subscriber.membership.catch_up().await;
        self.answer_with(outcome);
    }

    /// (P|S)SUBSCRIBE and (P|S)UNSUBSCRIBE: each name is confirmed in its turn, and what comes behind these waits for them.
    pub(super) async fn subscribe(&mut self, request: Request, spec: &CommandSpec) {
        if let Err(refusal) = self.ask_subscriptions(request, spec).await {
            self.subscriber().membership.settled().await;
            self.refuse(refusal);
        }
    }

    /// Those of the client, which may have none yet.
    pub(super) fn subscriber(&mut self) -> &Subscriber {
        self.subscriber.get_or_insert_with(|| {
            let (replies, client) = (self.replies.clone(), self.client.clone());
            let ear = Rc::new(SessionEar { replies, client, held: RefCell::default() });
            Box::new(Subscriber { membership: self.shared.engine.new_member(ear.clone()), ear })
        })
    }

    /// Asks for what a command names, up to the first name that is refused.
    pub(super) async fn ask_subscriptions(&mut self, request: Request, spec: &CommandSpec) -> Result<(), Refusal> {
        let Some((family, verb)) = Family::of_command(spec.name) else { return Ok(()) };
        let asked = Asked::new((verb == Verb::Join).then(|| self.shared.engine.begin_subscribe()));
        self.replies.settle(0).await;
        let subscriber = &self.subscriber().membership;
        let names = match request.len() {
            1 => {
                let all = subscriber.names(family);
                if all.is_empty() {
                    subscriber.confirm_none(family).await;
                }
                all
            }
            _ => request.args().skip(1).map(Bytes::copy_from_slice).collect(),
        };
        for name in names {
            subscriber.ask(&asked, family, verb, name).await?;
        }
        Ok(())
    }

    /// Waits until everything about subscriptions is answered, so that the next command finds the client in the right mode
    /// and its reply comes after theirs.
    pub(super) async fn settle_subscriptions(&mut self) {
        let Some(subscriber) = &self.subscriber else { return };
        subscriber.membership.settled().await;
        if subscriber.membership.count() == 0 {
            self.subscriber = None;
        }
    }

    /// Whether a client of RESP2 may do little else than hear.
    pub(super) fn is_in_subscribe_mode(&self) -> bool {
        self.protocol == Protocol::Resp2
            && self.subscriber.as_ref().is_some_and(|subscriber| subscriber.membership.count() > 0)
    }

    /// What subscribe mode makes of a command: an answer of its own, or nothing.
    pub(super) fn is_answered_by_mode(&self, request: &Request, spec: &CommandSpec) -> bool {
        if !self.is_in_subscribe_mode() || matches!(spec.name, "QUIT" | "RESET") {
            return false;
        }
        if spec.name == "PING" {
            let mut out = BytesMut::new();
            self.pong(&mut out, request);
            self.answer(&out);
            return true;
        }
        let name = String::from_utf8_lossy(request.arg(0)).to_lowercase();
        self.refuse(Refusal::Text(format!(
            "Can't execute '{name}': only (P|S)SUBSCRIBE / (P|S)UNSUBSCRIBE / PING / QUIT / RESET are allowed in this context"
        )));
        true
    }

    /// What PING answers in subscribe mode.
    pub(super) fn pong(&self, out: &mut BytesMut, request: &Request) {
        if request.len() > 2 {
            let refusal = Refusal::WrongArity("ping".into());
            refused::count(&refusal);
            return refusal.write(out);
        }
        write::array(out, 2);
        write::bulk(out, b"pong");
        write::bulk(out, request.args().nth(1).unwrap_or_default());
    }
}
