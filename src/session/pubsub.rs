//! Subscriptions: a connection of the client's own to the store on which all channels meet, its frames passed on as they
//! come. RESP2 clients are in subscribe mode meanwhile, RESP3 clients may send anything.

use std::collections::{BTreeSet, VecDeque};
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::{Bytes, BytesMut};

use crate::command::{self, Kind};
use crate::dual::{Seat, Target, Unconfirmed};
use crate::resp::refusal::Refusal;
use crate::resp::reply::{self, Protocol};
use crate::resp::request::Request;
use crate::resp::write;
use crate::routing::Side;
use crate::session::clients::Wish;
use crate::session::session::{Flow, Session};
use crate::store::{LinkError, PrivateLink, Reply};

impl Session {
    /// PUBLISH, SPUBLISH, PUBSUB: to the store on which all channels meet.
    pub(super) fn publish(&mut self, request: &Request) {
        let channel = request.args().nth(1).unwrap_or_default();
        self.shared.engine.publish(request.bytes(), channel, self.protocol, self.reply_to());
    }

    /// A connection of the subscriber's own on a side.
    async fn subscriber_link(&self, side: Side, channel: &[u8]) -> Result<PrivateLink, Refusal> {
        let target = match side {
            Side::Standalone => Target::Standalone { db: self.db },
            Side::Cluster => Target::Slot(crate::slot::of(channel)),
        };
        self.private_link(&target).await
    }

    /// The first SUBSCRIBE of a client, and what came in one piece with it; later ones come to
    /// [`Session::serve_subscriptions`].
    pub(super) async fn subscribe(&mut self, request: Request) {
        let unconfirmed = self.shared.engine.begin_subscribe();
        if let Some(subscriber) = &mut self.subscriber {
            if subscriber.send(&request, unconfirmed).await.is_err() {
                self.replies.close();
            }
            return;
        }
        self.replies.settle(0).await;
        let seat = self.shared.engine.take_seat();
        let channel = request.args().nth(1).unwrap_or_default();
        let link = match self.subscriber_link(seat.side(), channel).await {
            Ok(link) => link,
            Err(refusal) => return self.refuse(refusal),
        };
        let mut subscriber = Subscriber::new(link, seat);
        if subscriber.send(&request, unconfirmed).await.is_err() {
            return self.replies.close();
        }
        self.subscriber = Some(Box::new(subscriber));
    }

    /// Passes messages on until the last subscription is gone, or until the client has sent something to be handled.
    pub(super) async fn serve_subscriptions(&mut self) -> Flow {
        let engine = self.shared.engine.clone();
        let (replies, client) = (self.replies.clone(), self.client.clone());
        let Some(mut subscriber) = self.subscriber.take() else { return Flow::Continue };
        loop {
            if subscriber.seat.is_behind() && self.go_over(&mut subscriber).await.is_err() {
                // The old side still has everything; the adoption gives up if the new one does not come.
                tokio::time::sleep(GO_OVER_AGAIN).await;
            }
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
                () = engine.turned() => {}
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

    /// Waits until all that was published on any node of the cluster has come to this subscriber's. The nodes pass messages on
    /// behind their answer to PUBLISH, each in its order: so a last one from every node comes after all others.
    async fn wait_for_bus(&mut self, subscriber: &mut Subscriber) -> Result<(), LinkError> {
        let engine = self.shared.engine.clone();
        let channel = format!("cutover:last:{}:{}", self.client.id, fastrand::u64(..)).into_bytes();
        subscriber.link.send(&crate::dual::effect::command(&[b"SUBSCRIBE", &channel])).await?;
        loop {
            let frame = subscriber.link.receive().await?;
            let name = reply::elements(&frame).and_then(|cells| cells.get(1).cloned());
            if name.is_some_and(|name| reply::bulk(&frame[name]) == Some(&channel[..])) {
                break;
            }
            self.replies.append(Reply::Whole(frame));
        }
        let nodes = engine.stores().primaries();
        for address in &nodes {
            let publish = crate::dual::effect::command(&[b"PUBLISH", &channel, address.as_bytes()]);
            engine.call(&Target::Node(address.clone()), &publish, self.protocol).await?;
        }
        let mut owed = nodes.len();
        while owed > 0 {
            let frame = subscriber.link.receive().await?;
            match is_message_on(&frame, &channel) {
                true => owed -= 1,
                false => self.replies.append(Reply::Whole(frame)),
            }
        }
        Ok(())
    }

    /// Subscribes on the other side, after everything that was sent on this one. Nobody publishes meanwhile.
    async fn go_over(&mut self, subscriber: &mut Subscriber) -> Result<(), LinkError> {
        self.confirm(subscriber).await?;
        if subscriber.seat.side() == Side::Cluster {
            let passed = tokio::time::timeout(BUS_PATIENCE, self.wait_for_bus(subscriber)).await;
            passed.map_err(|_| LinkError::TimedOut)??;
        }
        let (ask, answers) = subscriber.subscribe_all();
        let channel = subscriber.channels.first().or(subscriber.shard_channels.first()).cloned().unwrap_or_default();
        let opened = self.subscriber_link(subscriber.seat.side().other(), &channel).await;
        let mut link = opened.map_err(|refusal| LinkError::Down(refusal.to_string()))?;
        link.send(&ask).await?;
        for _ in 0..answers {
            let frame = link.receive().await?;
            if reply::is_error(&frame) {
                return Err(LinkError::Down(String::from_utf8_lossy(reply::error_text(&frame)).into_owned()));
            }
        }
        subscriber.link = link;
        subscriber.seat.go_over();
        Ok(())
    }

    async fn while_subscribed(&mut self, request: Request, subscriber: &mut Subscriber) -> Flow {
        let spec = command::lookup(request.arg(0));
        let kind = spec.map(|spec| spec.kind);
        let name = spec.map_or("", |spec| spec.name);
        let passes = kind == Some(Kind::PubSub) || (self.protocol == Protocol::Resp2 && name == "PING");
        if passes {
            let unconfirmed = self.shared.engine.begin_subscribe();
            if subscriber.send(&request, unconfirmed).await.is_err() {
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
pub struct Subscriber {
    link: PrivateLink,
    seat: Seat,
    channels: BTreeSet<Bytes>,
    patterns: BTreeSet<Bytes>,
    shard_channels: BTreeSet<Bytes>,
    /// Subscriptions, as the answers so far have said.
    count: u32,
    /// The last subscription is gone.
    is_over: bool,
    /// Every (UN)SUBSCRIBE that was sent has been answered.
    is_confirmed: bool,
    /// SUBSCRIBEs that were sent, each with the answers it is owed.
    unconfirmed: VecDeque<(Unconfirmed, usize)>,
}

/// What the proxy asks to learn that everything before it was answered. No client sends a PING with these words.
const MARK: &[u8] = b"cutover: all before this is answered";
/// Between two tries to subscribe on the other side.
const GO_OVER_AGAIN: Duration = Duration::from_millis(50);
/// How long the nodes of a cluster get to pass on what was published.
const BUS_PATIENCE: Duration = Duration::from_secs(2);

impl Subscriber {
    fn new(link: PrivateLink, seat: Seat) -> Self {
        Self {
            link,
            seat,
            channels: BTreeSet::new(),
            patterns: BTreeSet::new(),
            shard_channels: BTreeSet::new(),
            count: 0,
            is_over: false,
            is_confirmed: false,
            unconfirmed: VecDeque::new(),
        }
    }

    /// Sends a request of subscribe mode.
    async fn send(&mut self, request: &Request, unconfirmed: Unconfirmed) -> Result<(), LinkError> {
        self.is_confirmed = false;
        if request.arg(0).to_ascii_lowercase().ends_with(b"subscribe") && !is_end(request.arg(0)) && request.len() > 1 {
            self.unconfirmed.push_back((unconfirmed, request.len() - 1));
        }
        self.link.send(request.bytes()).await
    }

    /// Takes note of an answer to (UN)SUBSCRIBE: `[kind, name, how many are left]`.
    fn look_at(&mut self, frame: &Bytes) {
        if reply::is_error(frame) {
            // Whichever it was, it subscribed to nothing.
            self.unconfirmed.pop_front();
        }
        let Some(cells) = reply::elements(frame).filter(|cells| cells.len() == 3) else { return };
        let (names, comes) = match reply::bulk(&frame[cells[0].clone()]) {
            Some(b"subscribe") => (&mut self.channels, true),
            Some(b"unsubscribe") => (&mut self.channels, false),
            Some(b"psubscribe") => (&mut self.patterns, true),
            Some(b"punsubscribe") => (&mut self.patterns, false),
            Some(b"ssubscribe") => (&mut self.shard_channels, true),
            Some(b"sunsubscribe") => (&mut self.shard_channels, false),
            _ => return,
        };
        if let (true, Some((_, owed))) = (comes, self.unconfirmed.front_mut()) {
            *owed -= 1;
            if *owed == 0 {
                self.unconfirmed.pop_front();
            }
        }
        // The name is null where UNSUBSCRIBE found nothing.
        if let Some(name) = reply::bulk(&frame[cells[1].clone()]).map(Bytes::copy_from_slice) {
            if comes {
                names.insert(name)
            } else {
                names.remove(&name)
            };
        }
        // Redis counts shard channels apart from the others; what is left is left of all of them.
        self.count = (self.channels.len() + self.patterns.len() + self.shard_channels.len()) as u32;
        self.is_over = self.count == 0;
    }

    /// What subscribes everything anew, and how many answers that has.
    fn subscribe_all(&self) -> (BytesMut, usize) {
        let mut out = BytesMut::new();
        let all: [(&[u8], _); 3] =
            [(b"SUBSCRIBE", &self.channels), (b"PSUBSCRIBE", &self.patterns), (b"SSUBSCRIBE", &self.shard_channels)];
        for (command, names) in all.iter().filter(|(_, names)| !names.is_empty()) {
            let args: Vec<&[u8]> = std::iter::once(*command).chain(names.iter().map(|name| &name[..])).collect();
            write::command(&mut out, &args);
        }
        (out, all.iter().map(|(_, names)| names.len()).sum())
    }
}

/// Whether a command of subscribe mode ends subscriptions.
fn is_end(name: &[u8]) -> bool {
    [&b"UNSUBSCRIBE"[..], b"PUNSUBSCRIBE", b"SUNSUBSCRIBE"].iter().any(|end| name.eq_ignore_ascii_case(end))
}

/// Whether a frame is a message on a channel.
fn is_message_on(frame: &Bytes, channel: &[u8]) -> bool {
    let Some(cells) = reply::elements(frame).filter(|cells| cells.len() == 3) else { return false };
    let bulk = |index: usize| reply::bulk(&frame[cells[index].clone()]);
    bulk(0) == Some(b"message") && bulk(1) == Some(channel)
}

/// Whether a frame answers PING with [`MARK`], inside subscribe mode or out of it.
fn is_mark(frame: &Bytes) -> bool {
    let last = reply::elements(frame).and_then(|cells| cells.last().cloned()).filter(|_| !frame.starts_with(b"$"));
    let text = last.map_or(&frame[..], |range| &frame[range]);
    reply::bulk(text) == Some(MARK)
}
