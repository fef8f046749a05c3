//! Subscriptions: a connection of the client's own to the store on which all channels meet, its frames passed on as they
//! come. RESP2 clients are in subscribe mode meanwhile, RESP3 clients may send anything.

use bytes::Bytes;

use crate::command::{self, CommandSpec, Kind};
use crate::dual::Target;
use crate::resp::refusal::Refusal;
use crate::resp::reply::{self, Protocol};
use crate::resp::request::Request;
use crate::routing::Side;
use crate::session::session::{Flow, Session};
use crate::store::Reply;

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
        let replies = self.replies.clone();
        let Some(mut link) = self.subscriptions.take() else { return Flow::Continue };
        loop {
            tokio::select! {
                biased;
                frame = link.receive() => match frame {
                    Ok(frame) => {
                        let is_over = ends_subscriptions(&frame);
                        replies.append(Reply::Whole(frame));
                        if is_over {
                            return Flow::Continue;
                        }
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
                        match self.while_subscribed(request, &mut link).await {
                            Flow::Continue => {}
                            Flow::Close => return Flow::Close,
                        }
                    }
                },
                () = replies.closed.notified() => return Flow::Close,
                () = engine.closing() => if engine.is_stopping() { return Flow::Close },
            }
        }
    }

    async fn while_subscribed(&mut self, request: Request, link: &mut crate::store::PrivateLink) -> Flow {
        let spec = command::lookup(request.arg(0));
        let kind = spec.map(|spec| spec.kind);
        let name = spec.map_or("", |spec| spec.name);
        let passes = kind == Some(Kind::PubSub) || (self.protocol == Protocol::Resp2 && name == "PING");
        if passes {
            if link.send(request.bytes()).await.is_err() {
                self.replies.close();
                return Flow::Close;
            }
            return Flow::Continue;
        }
        if self.protocol == Protocol::Resp2 && !matches!(name, "QUIT" | "RESET") {
            let name = String::from_utf8_lossy(request.arg(0)).to_lowercase();
            self.refuse(Refusal::Text(format!(
                "Can't execute '{name}': only (P|S)SUBSCRIBE / (P|S)UNSUBSCRIBE / PING / QUIT / RESET are allowed in this context"
            )));
            return Flow::Continue;
        }
        if name == "RESET" {
            self.replies.close();
            return Flow::Close;
        }
        Box::pin(self.handle(request)).await
    }
}

/// Whether a frame is the answer to the UNSUBSCRIBE that left none.
fn ends_subscriptions(frame: &Bytes) -> bool {
    let Some(cells) = reply::elements(frame) else { return false };
    if cells.len() != 3 {
        return false;
    }
    let kind = reply::bulk(&frame[cells[0].clone()]).unwrap_or_default();
    kind.ends_with(b"unsubscribe") && reply::integer(&frame[cells[2].clone()]) == Some(0)
}
