//! Subscriptions: a connection of the client's own to the store on which all channels meet, its frames passed on as they
//! come. RESP2 clients are in subscribe mode meanwhile, RESP3 clients may send anything.

use std::sync::atomic::Ordering;

use bytes::Bytes;

use crate::command::{self, CommandSpec, Kind};
use crate::dual::Target;
use crate::resp::refusal::Refusal;
use crate::resp::reply::{self, Protocol};
use crate::resp::request::Request;
use crate::routing::Side;
use crate::session::clients::Wish;
use crate::session::session::{Flow, Session};
use crate::store::{LinkError, PrivateLink, Reply};

impl Session {
    /// PUBLISH, SPUBLISH, PUBSUB: to the store on which all channels meet.
    pub(super) fn publish(&mut self, request: Request, _spec: &'static CommandSpec) {
        let engine = self.shared.engine.clone();
        let to = self.reply_to();
        match engine.table().pubsub().leader() {
            Side::Standalone => engine.submit_elsewhere(engine.db(), request.bytes(), self.protocol, to),
            Side::Cluster => engine.submit_slot(self.pubsub_slot(&request), request.bytes(), self.protocol, to),
        }
    }

    fn pubsub_slot(&self, request: &Request) -> u16 {
        request.args().nth(1).map_or(0, crate::slot::of)
    }

    /// The first SUBSCRIBE of a client, or one more.
    pub(super) async fn subscribe(&mut self, request: Request) {
        self.replies.settle(0).await;
        if self.subscriptions.is_none() {
            let target = match self.shared.engine.table().pubsub().leader() {
                Side::Standalone => Target::Standalone { db: self.db },
                Side::Cluster => Target::Slot(self.pubsub_slot(&request)),
            };
            match self.private_link(&target).await {
                Ok(link) => self.subscriptions = Some(link),
                Err(refusal) => return self.refuse(refusal),
            }
        }
        let Some(link) = &mut self.subscriptions else { return };
        if link.send(request.bytes()).await.is_err() {
            self.replies.close();
        }
    }

    /// Passes messages on until the last subscription is gone, or until the client has sent something to be handled.
    pub(super) async fn serve_subscriptions(&mut self) -> Flow {
        let engine = self.shared.engine.clone();
        let (replies, client) = (self.replies.clone(), self.client.clone());
        let Some(link) = self.subscriptions.take() else { return Flow::Continue };
        let mut subscriber = Subscriber { link, count: 0, is_over: false, is_confirmed: false };
        loop {
            // A SUBSCRIBE may have been sent on behind the UNSUBSCRIBE that ended the last one.
            if subscriber.is_over && !subscriber.is_confirmed && self.confirm(&mut subscriber).await.is_err() {
                replies.close();
                return Flow::Close;
            }
            self.client.subscriptions.store(subscriber.count, Ordering::Relaxed);
            if subscriber.is_over {
                return Flow::Continue;
            }
            tokio::select! {
                biased;
                frame = subscriber.link.receive() => match frame {
                    Ok(frame) => {
                        subscriber.look_at(&frame);
                        replies.append(Reply::Whole(frame));
                    }
                    // As when Redis goes away: the client reconnects and subscribes again.
                    Err(_) => {
                        replies.close();
                        return Flow::Close;
                    }
                },
                read = self.read() => {
                    if !read {
                        replies.close();
                        return Flow::Close;
                    }
                    while let Some(parsed) = self.next_request() {
                        let Ok(request) = parsed else {
                            replies.close();
                            return Flow::Close;
                        };
                        if self.while_subscribed(request, &mut subscriber).await == Flow::Close {
                            return Flow::Close;
                        }
                        if subscriber.is_over {
                            return Flow::Continue;
                        }
                    }
                },
                () = replies.closed.notified() => return Flow::Close,
                () = client.wake.notified() => if client.take_wish() == Wish::Kill {
                    replies.close();
                    return Flow::Close;
                },
                () = engine.closing() => if engine.is_stopping() { return Flow::Close },
            }
        }
    }

    /// Passes on what comes until every (UN)SUBSCRIBE before this is answered, so that a command behind it finds the client
    /// in the right mode and its reply comes after theirs.
    async fn confirm(&mut self, subscriber: &mut Subscriber) -> Result<(), LinkError> {
        subscriber.link.send(&crate::dual::effect::command(&[b"PING", MARK])).await?;
        loop {
            let frame = subscriber.link.receive().await?;
            if is_mark(&frame) {
                subscriber.is_confirmed = true;
                return Ok(());
            }
            subscriber.look_at(&frame);
            self.replies.append(Reply::Whole(frame));
        }
    }

    async fn while_subscribed(&mut self, request: Request, subscriber: &mut Subscriber) -> Flow {
        let spec = command::lookup(request.arg(0));
        let kind = spec.map(|spec| spec.kind);
        let name = spec.map_or("", |spec| spec.name);
        let passes = kind == Some(Kind::PubSub) || (self.protocol == Protocol::Resp2 && name == "PING");
        if passes {
            subscriber.is_confirmed = false;
            if subscriber.link.send(request.bytes()).await.is_err() {
                self.replies.close();
                return Flow::Close;
            }
            return Flow::Continue;
        }
        if !subscriber.is_confirmed && self.confirm(subscriber).await.is_err() {
            self.replies.close();
            return Flow::Close;
        }
        if subscriber.is_over {
            return Box::pin(self.handle(request)).await;
        }
        if self.protocol == Protocol::Resp2 && !matches!(name, "QUIT" | "RESET") {
            let name = String::from_utf8_lossy(request.arg(0)).to_lowercase();
            self.refuse(Refusal::Text(format!(
                "Can't execute '{name}': only (P|S)SUBSCRIBE / (P|S)UNSUBSCRIBE / PING / QUIT / RESET are allowed in this context"
            )));
            return Flow::Continue;
        }
        if name == "RESET" {
            (subscriber.is_over, subscriber.is_confirmed, subscriber.count) = (true, true, 0);
        }
        Box::pin(self.handle(request)).await
    }
}

/// The connection on which a client's subscriptions are, and what its frames said of them.
struct Subscriber {
    link: PrivateLink,
    /// Subscriptions, as the last answer said.
    count: u32,
    /// The last subscription is gone.
    is_over: bool,
    /// Every (UN)SUBSCRIBE that was sent has been answered.
    is_confirmed: bool,
}

/// What the proxy asks to learn that everything before it was answered. No client sends a PING with these words.
const MARK: &[u8] = b"cutover: all before this is answered";

impl Subscriber {
    /// Takes note of an answer to (UN)SUBSCRIBE: it says how many subscriptions are left.
    fn look_at(&mut self, frame: &Bytes) {
        let Some(cells) = reply::elements(frame).filter(|cells| cells.len() == 3) else { return };
        let kind = reply::bulk(&frame[cells[0].clone()]).unwrap_or_default();
        if let (true, Some(left)) = (kind.ends_with(b"subscribe"), reply::integer(&frame[cells[2].clone()])) {
            self.is_over = left == 0;
            self.count = left.clamp(0, u32::MAX.into()) as u32;
        }
    }
}

/// Whether a frame answers PING with [`MARK`], inside subscribe mode or out of it.
fn is_mark(frame: &Bytes) -> bool {
    let last = reply::elements(frame).and_then(|cells| cells.last().cloned()).filter(|_| !frame.starts_with(b"$"));
    let text = last.map_or(&frame[..], |range| &frame[range]);
    reply::bulk(text) == Some(MARK)
}
