//! The loop of one client: read, parse, send on.

use std::cell::RefCell;
use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::{Bytes, BytesMut};
use futures_util::future::{FutureExt, LocalBoxFuture};

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
use crate::session::chunks::Chunks;
use crate::session::clients::{Client, Clients, Wish};
use crate::session::pubsub::Subscriber;
use crate::session::replies::{Outlet, Replies};
use crate::session::scripts::Scripts;
use crate::session::transaction::Transaction;
use crate::session::users::{Db, Rights, Users};
use crate::store::Reply;
use crate::wire::Stream;

/// What one read takes; a session that is idle holds no buffer at all.
const READ_BYTES: usize = 16 << 10;
/// The longest request that room is kept for before it comes.
const RECENT_BYTES_MAX: usize = 256 << 10;
/// Requests of one client that may be unanswered; then it is not read until some are.
const PIPELINE_MAX: u64 = 8192;

/// What the sessions of a worker share.
pub struct Shared {
    pub engine: Engine,
    pub bounds: Arc<Bounds>,
    pub users: Arc<ArcSwap<Users>>,
    pub outlet: Rc<Outlet>,
    pub clients: Arc<Clients>,
    pub scripts: Arc<Scripts>,
    pub audit: Arc<Audit>,
    /// All sessions read into these.
    pub chunks: RefCell<Chunks>,
}

/// When the program ends, who came less than this ago is served for the rest of it: a client that finds its connection closed
/// in the midst of its greeting takes the server for broken, and one that is closed between two requests connects anew.
const GREETING: Duration = Duration::from_secs(1);
/// What a client that is sent away has for taking its last answers.
const FAREWELL: Duration = Duration::from_secs(5);

/// Whether the client stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    Continue,
    /// Closes when everything is answered and written.
    Close,
}

/// What handling a request comes to. Waiting stands in a box that is made when it comes: else every client's task would have
/// room for the longest.
pub enum Step<'s> {
    Done(Flow),
    Waits(LocalBoxFuture<'s, Flow>),
}

impl<'s> Step<'s> {
    pub(super) fn waits(rest: impl Future<Output = Flow> + 's) -> Self {
        Self::Waits(Box::pin(rest))
    }

    /// The same for a client that stays, whatever comes of it.
    pub(super) fn stays(rest: impl Future<Output = ()> + 's) -> Self {
        Self::waits(rest.map(|()| Flow::Continue))
    }
}

impl Future for Step<'_> {
    type Output = Flow;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Flow> {
        match self.get_mut() {
            Self::Done(flow) => Poll::Ready(*flow),
            Self::Waits(rest) => rest.as_mut().poll(context),
        }
    }
}

/// What an idle client is woken by.
enum Event {
    /// Bytes have come.
    Read,
    Gone,
    /// [`Client::bell`].
    Rung,
}

/// One client.
pub struct Session {
    pub shared: Rc<Shared>,
    pub replies: Rc<Replies>,
    pub buffer: BytesMut,
    scanner: RequestScanner,
    /// Length of its latest request, or [`RECENT_BYTES_MAX`]: the next one is read into as much, as it comes.
    recent_bytes: u32,
    /// What the others see of it.
    pub client: Arc<Client>,
    pub protocol: Protocol,
    /// As the client numbers them.
    pub db: u32,
    pub is_admitted: bool,
    /// Of its user; `None`: it may do everything.
    pub rights: Option<Arc<Rights>>,
    /// `None`: it has begun nothing.
    pub transaction: Option<Box<Transaction>>,
    pub subscriber: Option<Box<Subscriber>>,
}

impl Session {
    pub fn new(shared: Rc<Shared>, stream: Stream, client: Arc<Client>) -> Self {
        let replies = Replies::new(stream.into(), client.clone(), shared.outlet.clone());
        let mut session = Self {
            shared,
            replies,
            buffer: BytesMut::new(),
            scanner: RequestScanner::default(),
            recent_bytes: 0,
            client,
            protocol: Protocol::Resp2,
            db: 0,
            is_admitted: false,
            rights: None,
            transaction: None,
            subscriber: None,
        };
        session.become_nobody();
        session
    }

    /// Serves the client until it goes, or is to be sent away.
    pub async fn serve(&mut self) -> Flow {
        loop {
            while let Some(step) = self.next_step() {
                if step.await == Flow::Close {
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
                poll_fn(|context| self.replies.poll_settled(PIPELINE_MAX / 2, context)).await;
            }
            match poll_fn(|context| self.poll_event(context)).await {
                Event::Read => {}
                Event::Gone => return Flow::Continue,
                Event::Rung if self.replies.is_closed() => return Flow::Continue,
                Event::Rung => match self.client.take_wish() {
                    Wish::Kill => return Flow::Close,
                    // A client that waits for an answer is not idle.
                    Wish::CloseIfIdle if self.replies.open() == 0 => return Flow::Close,
                    Wish::CloseIfIdle => self.note_activity(),
                    Wish::None | Wish::Unblock | Wish::UnblockWithError => {}
                },
            }
        }
    }

    /// Gives a client that is sent away its last answers; one that does not take them goes without.
    pub async fn farewell(&self) {
        let last = async {
            self.replies.settle(0).await;
            while !self.replies.is_flushed() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let _ = tokio::time::timeout(FAREWELL, last).await;
    }

    fn poll_event(&mut self, context: &mut Context<'_>) -> Poll<Event> {
        if let Poll::Ready(is_there) = self.poll_read(context) {
            return Poll::Ready(if is_there { Event::Read } else { Event::Gone });
        }
        self.client.bell.poll_rung(context).map(|()| Event::Rung)
    }

    /// Reads once; false when the client is gone. Cancelling it loses nothing.
    pub async fn read(&mut self) -> bool {
        poll_fn(|context| self.poll_read(context)).await
    }

    fn poll_read(&mut self, context: &mut Context<'_>) -> Poll<bool> {
        let Self { shared, replies, buffer, scanner, recent_bytes, .. } = self;
        let mut socket = replies.socket();
        let reader = Pin::new(&mut socket);
        let read = if buffer.is_empty() {
            let mut chunks = shared.chunks.borrow_mut();
            // A byte more than is expected: a read that fills all of its room is followed by one that finds nothing.
            let room = chunks.room(READ_BYTES.max(*recent_bytes as usize + 1));
            let read = tokio_util::io::poll_read_buf(reader, context, room);
            // A view of no bytes would hold the chunk's memory too.
            if !room.is_empty() {
                *buffer = room.split();
            }
            read
        } else {
            let wanted = scanner.wanted().saturating_sub(buffer.len());
            buffer.reserve(wanted.clamp(READ_BYTES, buffer.len().max(4 * READ_BYTES)));
            tokio_util::io::poll_read_buf(reader, context, buffer)
        };
        read.map(|read| read.is_ok_and(|bytes| bytes > 0))
    }

    /// Begins with the next request, if it has come.
    fn next_step(&mut self) -> Option<Step<'_>> {
        match self.next_request()? {
            Ok(request) => Some(self.handle(request)),
            Err(text) => {
                self.refuse(Refusal::Verbatim(format!("ERR {text}")));
                Some(Step::Done(Flow::Close))
            }
        }
    }

    /// The next whole request in the buffer; an error ends the client.
    fn next_request(&mut self) -> Option<Result<Request, String>> {
        let limits = if self.is_admitted { self.shared.bounds.requests() } else { Limits::STRANGER };
        loop {
            let length = match self.scanner.scan(&self.buffer, &limits) {
                Ok(Some(length)) => length,
                Ok(None) => return None,
                Err(error) => return Some(Err(error.to_string())),
            };
            self.recent_bytes = length.min(RECENT_BYTES_MAX) as u32;
            let bytes = self.buffer.split_to(length).freeze();
            if self.buffer.is_empty() {
                // Lets go of the chunk, so that its memory can be used again.
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
    fn handle(&mut self, request: Request) -> Step<'_> {
        match command::lookup(request.arg(0)).or_else(|| command::learnt::find(request.arg(0))) {
            Some(spec) => self.dispatch(request, spec),
            None => Step::waits(self.unknown(request)),
        }
    }

    fn dispatch(&mut self, request: Request, spec: &'static CommandSpec) -> Step<'_> {
        if self.subscriber.is_none() || spec.kind == Kind::PubSub {
            return self.judge(request, spec);
        }
        Step::waits(async move {
            self.settle_subscriptions().await;
            self.judge(request, spec).await
        })
    }

    /// Refuses what may not be done.
    fn judge(&mut self, request: Request, mut spec: &'static CommandSpec) -> Step<'_> {
        if !self.is_admitted && !matches!(spec.name, "AUTH" | "HELLO" | "QUIT" | "RESET") {
            self.refuse(Refusal::Verbatim("NOAUTH Authentication required.".into()));
            return Step::Done(Flow::Continue);
        }
        if !spec.takes(request.len()) {
            self.refuse_arity(spec);
            return Step::Done(Flow::Continue);
        }
        let place = command::place(spec);
        match self.shared.bounds.chosen(place).map_or(Wanted::Usual, |chosen| chosen.of(spec, &request)) {
            Wanted::Usual => {}
            Wanted::Passed(row) => spec = row,
            Wanted::Refused => {
                self.spoil();
                let reason = "its operator has refused it";
                self.refuse(Refusal::NotSupported { command: spec.name.to_lowercase(), reason });
                return Step::Done(Flow::Continue);
            }
        }
        if let Some(rights) = &self.rights {
            let db = Db { own: self.db, moving: self.shared.engine.db() };
            if let Some(refusal) = rights.refuse(spec, &request, &self.shared.engine.table(), db) {
                self.spoil();
                self.refuse(refusal);
                return Step::Done(Flow::Continue);
            }
        }
        if let Some(shares) = self.shared.bounds.shares()
            && let Some(keys) = command::keys_of(spec, &request)
            && let keys = keys.iter().map(|index| request.arg(*index))
            && let Err(what) = shares.take(&self.shared.engine.table(), keys, request.bytes().len())
        {
            self.spoil();
            self.refuse(Refusal::Limited { command: spec.name.to_lowercase(), what });
            return Step::Done(Flow::Continue);
        }
        self.note(place);
        if self.subscriber.is_some() && spec.kind != Kind::PubSub && self.is_answered_by_mode(&request, spec) {
            return Step::Done(Flow::Continue);
        }
        if !self.shared.clients.is_paused() {
            return self.carry_out(request, spec);
        }
        Step::waits(async move {
            self.replies.settle(0).await;
            let is_write = spec.access == Access::Write || spec.kind == Kind::Publish;
            self.shared.clients.wait_unpaused(is_write).await;
            self.carry_out(request, spec).await
        })
    }

    fn carry_out(&mut self, request: Request, spec: &'static CommandSpec) -> Step<'_> {
        if self.is_queueing() && !matches!(spec.name, "EXEC" | "DISCARD" | "MULTI" | "WATCH" | "QUIT" | "RESET") {
            self.queue(request, spec);
            return Step::Done(Flow::Continue);
        }
        match spec.kind {
            Kind::Keyed if command::is_blocking(spec, &request) => Step::stays(self.block(request, spec)),
            Kind::Keyed => self.keyed(request, spec),
            Kind::Split(how) => Step::stays(self.split(request, spec, how)),
            Kind::Local => {
                if spec.name == "CLIENT" {
                    self.note_sub_command(command::place(spec), &request);
                }
                let mut out = BytesMut::new();
                let flow = self.local(&mut out, &request, spec);
                self.answer(&out);
                Step::Done(flow)
            }
            Kind::Keyless => self.keyless(request, spec),
            Kind::Publish => Step::stays(self.publish(request, spec)),
            Kind::PubSub => Step::stays(self.subscribe(request, spec)),
            Kind::Transaction => Step::waits(self.transaction_command(request, spec)),
            Kind::Blocking => Step::stays(self.block(request, spec)),
            Kind::Script => Step::stays(self.script(request, spec)),
            Kind::Scan | Kind::KeyspaceWide => Step::stays(self.keyspace(request, spec)),
            Kind::Refused(reason) => {
                self.audit(spec.name, Unlike::Refused, String::new(), || reason.into());
                self.refuse(Refusal::NotSupported { command: spec.name.to_lowercase(), reason });
                Step::Done(Flow::Continue)
            }
        }
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
        self.spoil();
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
        self.spoil();
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
        ReplyTo { port: self.replies.clone(), seq: self.replies.number() }
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
