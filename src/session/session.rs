//! The loop of one client: read, parse, send on.

use std::cell::RefCell;
use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use arc_swap::ArcSwap;
use bytes::{Bytes, BytesMut};

use crate::audit::{Audit, Kind as Unlike};
use crate::command::chosen::Wanted;
use crate::command::{self, Access, CommandSpec, Kind};
use crate::dual::{Caller, Engine, ReplyPort, ReplyTo, Target};
use crate::resp::limits::Limits;
use crate::resp::refusal::Refusal;
use crate::resp::reply::Protocol;
use crate::resp::request::Request;
use crate::resp::scan::{RequestScanner, split_inline};
use crate::routing::{Key, Places, places_of};
use crate::session::bounds::Bounds;
use crate::session::clients::{Client, Clients, Wish};
use crate::session::pubsub::Subscriber;
use crate::session::replies::Replies;
use crate::session::scripts::Scripts;
use crate::session::transaction::Transaction;
use crate::session::users::{Db, Rights, Users};
use crate::store::Reply;
use crate::store::link::Dirty;
use crate::wire::{ReadHalf, Stream};

/// What one read takes; a session that is idle holds no buffer at all.
const READ_BYTES: usize = 16 << 10;
/// Requests of one client that may be unanswered; then it is not read until some are.
const PIPELINE_MAX: u64 = 8192;

/// What the sessions of a worker share.
pub struct Shared {
    pub engine: Engine,
    pub bounds: Arc<Bounds>,
    pub users: Arc<ArcSwap<Users>>,
    pub dirty: Rc<Dirty<Replies>>,
    pub clients: Arc<Clients>,
    pub scripts: Arc<Scripts>,
    pub audit: Arc<Audit>,
    /// All sessions read into this, so that memory is held only by bytes that wait for something.
    pub arena: RefCell<BytesMut>,
}

/// When the program ends, who came less than this ago is served for the rest of it: a client that finds its connection closed
/// in the midst of its greeting takes the server for broken, and one that is closed between two requests connects anew.
const GREETING: std::time::Duration = std::time::Duration::from_secs(1);

/// Whether the client stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    Continue,
    /// Closes when everything is answered and written.
    Close,
}

/// One client.
pub struct Session {
    pub shared: Rc<Shared>,
    pub replies: Rc<Replies>,
    port: Rc<dyn ReplyPort>,
    pub reader: ReadHalf,
    pub buffer: BytesMut,
    scanner: RequestScanner,
    /// What the others see of it.
    pub client: Arc<Client>,
    pub protocol: Protocol,
    /// As the client numbers them.
    pub db: u32,
    pub is_admitted: bool,
    /// Of its user; `None`: it may do everything.
    pub rights: Option<Arc<Rights>>,
    pub transaction: Transaction,
    pub subscriber: Option<Subscriber>,
}

impl Session {
    pub fn new(shared: Rc<Shared>, stream: Stream, client: Arc<Client>) -> Self {
        let (reader, writer) = stream.into_split();
        let replies = Replies::new(writer, shared.dirty.clone(), shared.bounds.clone());
        let mut session = Self {
            port: replies.clone(),
            shared,
            replies,
            reader,
            buffer: BytesMut::new(),
            scanner: RequestScanner::default(),
            client,
            protocol: Protocol::Resp2,
            db: 0,
            is_admitted: false,
            rights: None,
            transaction: Transaction::default(),
            subscriber: None,
        };
        session.become_nobody();
        session
    }

    /// Serves the client until it goes or is sent away.
    pub async fn run(mut self) {
        let flow = self.serve().await;
        if flow == Flow::Close {
            let patience = std::time::Duration::from_secs(5);
            let last = async {
                self.replies.settle(0).await;
                while !self.replies.is_flushed() {
                    tokio::time::sleep(std::time::Duration::from_millis(5)).await;
                }
            };
            let _ = tokio::time::timeout(patience, last).await;
        }
    }

    async fn serve(&mut self) -> Flow {
        loop {
            while let Some(parsed) = self.next_request() {
                let request = match parsed {
                    Ok(request) => request,
                    Err(text) => {
                        self.refuse(Refusal::Verbatim(format!("ERR {text}")));
                        return Flow::Close;
                    }
                };
                if self.handle(request).await == Flow::Close {
                    return Flow::Close;
                }
            }
            if self.shared.engine.is_stopping() {
                let left = GREETING.saturating_sub(self.client.age());
                let read = Box::pin(tokio::time::timeout(left, self.read()));
                if left.is_zero() || !read.await.unwrap_or(false) {
                    return Flow::Close;
                }
                continue;
            }
            if self.replies.open() >= PIPELINE_MAX {
                self.replies.settle(PIPELINE_MAX / 2).await;
            }
            let engine = self.shared.engine.clone();
            let (replies, client) = (self.replies.clone(), self.client.clone());
            tokio::select! {
                biased;
                read = self.read() => if !read { return Flow::Continue },
                () = replies.closed.notified() => return Flow::Continue,
                () = client.wake.notified() => match client.take_wish() {
                    Wish::Kill => return Flow::Close,
                    // A client that waits for an answer is not idle.
                    Wish::CloseIfIdle if self.replies.open() == 0 => return Flow::Close,
                    Wish::CloseIfIdle => self.note_activity(),
                    Wish::None | Wish::Unblock | Wish::UnblockWithError => {}
                },
                () = engine.closing() => {}
            }
        }
    }

    /// Reads once; false when the client is gone. Cancelling it loses nothing.
    pub async fn read(&mut self) -> bool {
        let Self { shared, reader, buffer, scanner, .. } = self;
        let read = poll_fn(|context| {
            let reader = Pin::new(&mut *reader);
            if !buffer.is_empty() {
                let wanted = scanner.wanted().saturating_sub(buffer.len());
                buffer.reserve(wanted.clamp(READ_BYTES, buffer.len().max(4 * READ_BYTES)));
                return tokio_util::io::poll_read_buf(reader, context, buffer);
            }
            let mut arena = shared.arena.borrow_mut();
            if arena.capacity() - arena.len() < READ_BYTES {
                arena.reserve(4 * READ_BYTES);
            }
            let read = tokio_util::io::poll_read_buf(reader, context, &mut *arena);
            *buffer = arena.split();
            read
        });
        matches!(read.await, Ok(read) if read > 0)
    }

    /// The next whole request in the buffer; an error ends the client.
    pub fn next_request(&mut self) -> Option<Result<Request, String>> {
        let limits = if self.is_admitted { self.shared.bounds.requests() } else { Limits::STRANGER };
        loop {
            let length = match self.scanner.scan(&self.buffer, &limits) {
                Ok(Some(length)) => length,
                Ok(None) => return None,
                Err(error) => return Some(Err(error.to_string())),
            };
            let bytes = self.buffer.split_to(length).freeze();
            if self.buffer.is_empty() {
                // Lets go of the arena, so that its memory can be used again.
                self.buffer = BytesMut::new();
            }
            if self.scanner.is_inline() {
                match split_inline(&bytes) {
                    Ok(words) if words.is_empty() => continue,
                    Ok(words) => return Some(Ok(Request::from_args(&words))),
                    Err(error) => return Some(Err(error.to_string())),
                }
            }
            if !self.scanner.args().is_empty() {
                return Some(Ok(Request::new(bytes, self.scanner.args().clone())));
            }
        }
    }

    /// One request, to where it belongs.
    pub async fn handle(&mut self, request: Request) -> Flow {
        match command::lookup(request.arg(0)).or_else(|| command::learnt::find(request.arg(0))) {
            Some(spec) => self.dispatch(request, spec).await,
            None => Box::pin(self.unknown(request)).await,
        }
    }

    async fn dispatch(&mut self, request: Request, mut spec: &'static CommandSpec) -> Flow {
        if self.subscriber.is_some() && spec.kind != Kind::PubSub {
            Box::pin(self.settle_subscriptions()).await;
        }
        if !self.is_admitted && !matches!(spec.name, "AUTH" | "HELLO" | "QUIT" | "RESET") {
            self.refuse(Refusal::Verbatim("NOAUTH Authentication required.".into()));
            return Flow::Continue;
        }
        if !spec.takes(request.len()) {
            self.refuse_arity(spec);
            return Flow::Continue;
        }
        let place = command::place(spec);
        match self.shared.bounds.chosen(place).map_or(Wanted::Usual, |chosen| chosen.of(spec, &request)) {
            Wanted::Usual => {}
            Wanted::Passed(row) => spec = row,
            Wanted::Refused => {
                self.transaction.spoil();
                let reason = "its operator has refused it";
                self.refuse(Refusal::NotSupported { command: spec.name.to_lowercase(), reason });
                return Flow::Continue;
            }
        }
        if let Some(rights) = &self.rights {
            let db = Db { own: self.db, moving: self.shared.engine.db() };
            if let Some(refusal) = rights.refuse(spec, &request, &self.shared.engine.table(), db) {
                self.transaction.spoil();
                self.refuse(refusal);
                return Flow::Continue;
            }
        }
        if let Some(shares) = self.shared.bounds.shares()
            && let Some(keys) = command::keys_of(spec, &request)
            && let keys = keys.iter().map(|index| request.arg(*index))
            && let Err(what) = shares.take(&self.shared.engine.table(), keys, request.bytes().len())
        {
            self.transaction.spoil();
            self.refuse(Refusal::Limited { command: spec.name.to_lowercase(), what });
            return Flow::Continue;
        }
        self.note(place);
        if self.subscriber.is_some() && spec.kind != Kind::PubSub && self.is_answered_by_mode(&request, spec) {
            return Flow::Continue;
        }
        if self.shared.clients.is_paused() {
            self.replies.settle(0).await;
            let is_write = spec.access == Access::Write || spec.kind == Kind::Publish;
            Box::pin(self.shared.clients.wait_unpaused(is_write)).await;
        }
        if self.transaction.is_queueing()
            && !matches!(spec.name, "EXEC" | "DISCARD" | "MULTI" | "WATCH" | "QUIT" | "RESET")
        {
            self.queue(request, spec);
            return Flow::Continue;
        }
        // What is rare stands in a box of its own, made when it comes: else every client's task would have room for it.
        match spec.kind {
            Kind::Keyed if command::is_blocking(spec, &request) => Box::pin(self.block(request, spec)).await,
            Kind::Keyed => self.keyed(request, spec).await,
            Kind::Split(how) => Box::pin(self.split(request, spec, how)).await,
            Kind::Local => {
                if spec.name == "CLIENT" {
                    self.note_sub_command(place, &request);
                }
                let mut out = BytesMut::new();
                let flow = self.local(&mut out, &request, spec);
                self.answer(&out);
                return flow;
            }
            Kind::Keyless => self.keyless(request, spec).await,
            Kind::Publish => Box::pin(self.publish(request, spec)).await,
            Kind::PubSub => Box::pin(self.subscribe(request, spec)).await,
            Kind::Transaction => return Box::pin(self.transaction_command(request, spec)).await,
            Kind::Blocking => Box::pin(self.block(request, spec)).await,
            Kind::Script => Box::pin(self.script(request, spec)).await,
            Kind::Scan | Kind::KeyspaceWide => Box::pin(self.keyspace(request, spec)).await,
            Kind::Refused(reason) => {
                self.audit(spec.name, Unlike::Refused, String::new(), || reason.into());
                self.refuse(Refusal::NotSupported { command: spec.name.to_lowercase(), reason });
            }
        }
        Flow::Continue
    }

    /// An EXEC that is wrong ends its transaction; any other command spoils it.
    fn refuse_arity(&mut self, spec: &CommandSpec) {
        let refusal = Refusal::WrongArity(spec.name.to_lowercase());
        if spec.name == "EXEC" {
            self.reset_transaction();
            let why = refusal.to_string();
            let why = why.trim_start_matches("ERR ");
            return self.refuse(Refusal::Verbatim(format!("EXECABORT Transaction discarded because of: {why}")));
        }
        self.transaction.spoil();
        self.refuse(refusal);
    }

    /// A command that the table lacks: the standalone knows whether it exists, and where its keys are.
    async fn unknown(&mut self, request: Request) -> Flow {
        self.settle_subscriptions().await;
        if self.is_admitted {
            self.replies.settle(0).await;
            let (engine, target) = (self.shared.engine.clone(), Target::Standalone { db: self.shared.engine.db() });
            let ask = crate::dual::effect::command(&[b"COMMAND", b"INFO", request.arg(0)]);
            let info = engine.call(&target, &ask, Protocol::Resp2).await;
            if let Some(spec) = info.ok().and_then(|frame| command::learnt::learn(&frame)) {
                tracing::info!(
                    command = spec.name,
                    "a command that the proxy does not know was learnt from the standalone's COMMAND INFO; in a dual phase its keys are copied"
                );
                return self.dispatch(request, spec).await;
            }
        }
        self.transaction.spoil();
        let name = String::from_utf8_lossy(&request.arg(0)[..request.arg(0).len().min(128)]).into_owned();
        let begin: String = request.args().skip(1).take(20).fold(String::new(), |mut text, arg| {
            if text.len() < 128 {
                text.push_str(&format!("'{}' ", String::from_utf8_lossy(&arg[..arg.len().min(128)])));
            }
            text
        });
        self.refuse(Refusal::Verbatim(format!("ERR unknown command '{name}', with args beginning with: {begin}")));
        Flow::Continue
    }

    /// Where the answer to the next request goes.
    pub fn reply_to(&self) -> ReplyTo {
        ReplyTo { port: self.port.clone(), seq: self.replies.number() }
    }

    /// Answers at once, in turn.
    pub fn answer(&self, frame: &[u8]) {
        let seq = self.replies.number();
        self.replies.deliver(seq, Ok(Reply::Small(frame)));
    }

    /// Answers at once with an error.
    pub fn refuse(&self, refusal: Refusal) {
        let seq = self.replies.number();
        self.replies.deliver(seq, Err(refusal));
    }

    /// Answers with whatever came of an awaited command.
    pub fn answer_with(&self, outcome: Result<Bytes, Refusal>) {
        let seq = self.replies.number();
        self.replies.deliver(seq, outcome.map(Reply::Whole));
    }

    /// Changes the protocol, and tells the others.
    pub fn set_protocol(&mut self, protocol: Protocol) {
        self.protocol = protocol;
        self.client.is_resp3.store(protocol == Protocol::Resp3, Ordering::Relaxed);
    }

    /// Changes the database, and tells the others.
    pub fn set_db(&mut self, db: u32) {
        self.db = db;
        self.client.db.store(db, Ordering::Relaxed);
    }

    /// Whether the client's database moves.
    pub fn is_moving_db(&self) -> bool {
        self.shared.engine.is_moving(self.db)
    }

    /// Whose reply the next request's is.
    pub fn caller(&self) -> Caller {
        Caller { db: self.db, protocol: self.protocol, to: self.reply_to() }
    }

    /// Where a request has its keys, if it can be understood.
    pub fn places(&self, spec: &CommandSpec, request: &Request) -> Option<Places> {
        places_of(self.db, spec, request)
    }
}

/// The keys of a request, to be looked at.
pub fn views_at<'r>(request: &'r Request, places: &[(usize, u32)]) -> Vec<(u32, &'r [u8])> {
    places.iter().map(|(index, db)| (*db, request.arg(*index))).collect()
}

/// The keys of a request, to be kept.
pub fn keys_at(request: &Request, places: &[(usize, u32)]) -> Vec<Key> {
    places.iter().map(|(index, db)| Key::copied(*db, request.arg(*index))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An idle client is its session's task and little else.
    #[test]
    fn a_client_s_task_is_small() {
        fn size_of_future<F: Future>(_: impl Fn(Session) -> F) -> usize {
            size_of::<F>()
        }
        let bytes = size_of_future(Session::run);
        assert!(bytes <= 2_560, "{bytes} bytes");
    }
}
