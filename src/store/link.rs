//! One multiplexed connection to a node: requests go out in the order of `send`, replies come back in that order.
//!
//! Nothing is written while reading: `send` appends to the out-buffer and marks the link dirty, [`Link::flush`] gives the
//! socket one gathered write. Small requests are copied behind each other, large ones are kept as they are. What nobody waits
//! for (an effect for the follower) goes out a few turns later as long as there is something else to do. What has been written
//! and has no reply when the link ends is of unknown outcome; what has not been written surely did not run.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io::IoSlice;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::AsyncReadExt;
use tokio::sync::Notify;

use crate::keep::{Turn, keep};
use crate::resp::reply::{self, Protocol};
use crate::resp::scan::ReplyScanner;
use crate::store::connect::{connect, late};
use crate::store::overload::{Overload, Turned};
use crate::store::private_link::{Greeting, end, greet, run_id};
use crate::store::stopwatch::{Batches, Stopwatch};
use crate::store::{Fence, LinkError, Login, Loss, Reply, Timeouts};
use crate::wire::{self, Connector, Socket};

/// Requests and replies of this size and more are passed on without a copy; a copy of less costs under 1 µs.
pub const LARGE_BYTES: usize = 16 << 10;
/// A request that nobody waits for is not copied from this size on: it has left the caches meanwhile, and a copy would cost
/// more than a place of its own in a gathered write.
const COLD_BYTES: usize = 512;
/// What one read takes at most when no frame asks for more.
const READ_BYTES: usize = 64 << 10;
/// A link's own buffer for requests: what pipelining clients of a busy worker send in one turn.
const LINK_KEPT_BYTES: usize = 256 << 10;
/// What need not go out at once does when it is as much as this.
const LATER_BYTES_MAX: usize = 64 << 10;
/// Buffers in one gathered write; Linux takes up to 1,024.
const SLICES_MAX: usize = 256;
/// Places for chunks that a buffer may keep when all is written.
const CHUNKS_KEPT: usize = 1024;

/// A request as a link is to send it.
pub struct Outgoing<'p> {
    /// Goes first, in the same breath.
    pub prefix: &'static [u8],
    pub request: &'p Bytes,
    /// The last of these replies counts.
    pub replies: u32,
    /// What the reply is wanted in; `None` where that is all the same.
    pub protocol: Option<Protocol>,
}

/// A request, and who gets its reply.
pub trait Pending: 'static {
    /// What is to be sent.
    fn outgoing(&self) -> Outgoing<'_>;
    /// It is refused where the node has more to do than it can.
    fn may_be_refused(&self) -> bool;
    /// Somebody waits for the reply.
    fn is_urgent(&self) -> bool;
    /// One whole reply.
    fn reply(self, reply: Reply<'_>);
    /// The link ended. `error` says whether the request may have run.
    fn failed(self, error: LinkError);
}

/// Kept small: it is moved in and out of the queue for each request.
struct Entry<P> {
    /// `None`: the reply to a HELLO that the link put in by itself.
    pending: Option<P>,
    sent: Instant,
}

impl<P: Pending> Entry<P> {
    fn outgoing(&self) -> Outgoing<'_> {
        static NOTHING: Bytes = Bytes::new();
        let hello = Outgoing { prefix: HELLO_2, request: &NOTHING, replies: 1, protocol: None };
        self.pending.as_ref().map_or(hello, Pending::outgoing)
    }
}

/// What has come of the answers to the oldest request.
#[derive(Default)]
struct Head {
    /// Those before the one that counts (to MULTI, and QUEUED).
    skipped: u32,
    first_error: Option<Bytes>,
}

/// Bytes to be written: large chunks as they are, small ones copied together.
#[derive(Default)]
pub struct OutBuffer {
    chunks: VecDeque<Bytes>,
    tail: BytesMut,
    bytes: usize,
    /// A buffer that has grown beyond this is given back when all is written.
    kept_bytes: usize,
}

impl OutBuffer {
    /// An empty one that keeps a buffer of up to that size when all is written.
    pub fn keeping(kept_bytes: usize) -> Self {
        Self { kept_bytes, ..Self::default() }
    }

    /// Appends: a copy, or the bytes themselves where they are at least so many.
    pub fn push(&mut self, bytes: &Bytes, least: usize) {
        if bytes.len() < least {
            return self.copy(bytes);
        }
        if !self.tail.is_empty() {
            self.chunks.push_back(self.tail.split().freeze());
        }
        self.chunks.push_back(bytes.clone());
        self.bytes += bytes.len();
    }

    /// Appends a copy.
    pub fn copy(&mut self, bytes: &[u8]) {
        self.tail.extend_from_slice(bytes);
        self.bytes += bytes.len();
    }

    /// How much is to be written.
    pub fn len(&self) -> usize {
        self.bytes
    }

    /// Memory that it keeps.
    pub fn held_bytes(&self) -> usize {
        self.tail.capacity() + self.chunks.capacity() * size_of::<Bytes>()
    }

    /// Whether nothing is.
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// Writes as much as the socket takes; gives the bytes written. Memory is given back when all is out.
    pub fn write_to(&mut self, socket: &Socket) -> std::io::Result<usize> {
        let mut total = 0;
        while self.bytes > 0 {
            let written = if self.chunks.is_empty() {
                socket.try_write(&self.tail)
            } else {
                let tail = (!self.tail.is_empty()).then_some(&self.tail[..]);
                let slices: smallvec::SmallVec<[IoSlice<'_>; SLICES_MAX]> =
                    self.chunks.iter().map(|chunk| &chunk[..]).chain(tail).take(SLICES_MAX).map(IoSlice::new).collect();
                socket.try_write_vectored(&slices)
            };
            match written {
                Ok(0) => return Err(std::io::ErrorKind::WriteZero.into()),
                Ok(written) => {
                    self.advance(written);
                    total += written;
                }
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        socket.send_on()?;
        if self.bytes == 0 && self.tail.capacity() > self.kept_bytes {
            self.tail = BytesMut::new();
        }
        if self.bytes == 0 && self.chunks.capacity() > CHUNKS_KEPT {
            self.chunks = VecDeque::new();
        }
        Ok(total)
    }

    fn advance(&mut self, mut written: usize) {
        self.bytes -= written;
        while let Some(chunk) = self.chunks.front_mut() {
            if written < chunk.len() {
                return chunk.advance(written);
            }
            written -= chunk.len();
            self.chunks.pop_front();
        }
        if written == self.tail.len() {
            self.tail.clear();
        } else {
            self.tail.advance(written);
        }
    }
}

/// How soon a socket is to be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mark {
    No,
    Later,
    Now,
}

/// A list of sockets that have something to write; the worker's flusher empties it once a turn.
pub struct Dirty<T> {
    list: RefCell<Vec<Rc<T>>>,
    /// Those that may wait.
    later: RefCell<Vec<Rc<T>>>,
    wake: Rc<Notify>,
}

impl<T> Dirty<T> {
    /// `wake` is told when the list ceases to be empty.
    pub fn new(wake: Rc<Notify>) -> Self {
        Self { list: RefCell::default(), later: RefCell::default(), wake }
    }

    /// Marks; the caller sees to it that a socket is marked once.
    pub fn mark(&self, item: Rc<T>) {
        let mut list = self.list.borrow_mut();
        if list.is_empty() {
            self.wake.notify_one();
        }
        list.push(item);
    }

    /// Marks what need not go out with this turn.
    pub fn mark_later(&self, item: Rc<T>) {
        let mut later = self.later.borrow_mut();
        if later.is_empty() {
            self.wake.notify_one();
        }
        later.push(item);
    }

    /// Takes all that are marked for this turn.
    pub fn take(&self) -> Vec<Rc<T>> {
        std::mem::take(&mut self.list.borrow_mut())
    }

    /// Whether something is marked for later.
    pub fn has_later(&self) -> bool {
        !self.later.borrow().is_empty()
    }

    /// Takes what is marked for later. Some of it may have been written meanwhile.
    pub fn take_later(&self) -> Vec<Rc<T>> {
        std::mem::take(&mut self.later.borrow_mut())
    }
}

/// Which node, and how to greet it.
#[derive(Clone, Debug)]
pub struct Endpoint {
    pub address: Arc<str>,
    /// For a `rediss://` store.
    pub tls: Option<Arc<Connector>>,
    pub login: Login,
    pub db: u32,
    pub timeouts: Timeouts,
}

/// See the module.
pub struct Link<P> {
    endpoint: Endpoint,
    socket: RefCell<Option<Rc<Socket>>>,
    out: RefCell<OutBuffer>,
    entries: RefCell<VecDeque<Entry<P>>>,
    head: RefCell<Head>,
    appended: Cell<u64>,
    written: Cell<u64>,
    protocol: Cell<Protocol>,
    mark: Cell<Mark>,
    dirty: Rc<Dirty<Link<P>>>,
    now: Rc<Cell<Instant>>,
    queue_bytes_max: usize,
    /// Set while the link tries to connect; the error of the last try.
    last_error: RefCell<Option<String>>,
    is_up: Cell<bool>,
    ended: Cell<bool>,
    /// Told when the socket takes bytes again, or when the link is to be closed.
    writable: Notify,
    close: Notify,
    /// Of the connection that is up, or was last.
    greeting: RefCell<Greeting>,
    /// Of the server process that was reached last.
    run_id: RefCell<String>,
    loss: Arc<Loss>,
    /// [`Loss::restarts`] when the last connection ended.
    restarts: Cell<u64>,
    fence: Arc<Fence>,
    /// [`Fence::ends`] when it was connected: what was queued under a lease that has ended since must not go out.
    ends: Cell<u32>,
    answered: Cell<u64>,
    requests: Cell<u64>,
    batches: Batches,
    overload: Overload,
    watch: Rc<Stopwatch>,
}

impl<P: Pending> Link<P> {
    /// A link that connects by itself and again after every loss, until it is dropped by [`Link::end`].
    pub fn start(
        endpoint: Endpoint,
        dirty: Rc<Dirty<Link<P>>>,
        now: Rc<Cell<Instant>>,
        queue_bytes_max: usize,
        (loss, fence): (Arc<Loss>, Arc<Fence>),
        watch: Rc<Stopwatch>,
    ) -> Rc<Self> {
        let link = Rc::new(Self {
            overload: Overload::new(endpoint.timeouts.queue),
            endpoint,
            socket: RefCell::new(None),
            out: RefCell::new(OutBuffer::keeping(LINK_KEPT_BYTES)),
            entries: RefCell::new(VecDeque::new()),
            head: RefCell::new(Head::default()),
            appended: Cell::new(0),
            written: Cell::new(0),
            protocol: Cell::new(Protocol::Resp2),
            mark: Cell::new(Mark::No),
            dirty,
            now,
            queue_bytes_max,
            last_error: RefCell::new(None),
            is_up: Cell::new(false),
            ended: Cell::new(false),
            writable: Notify::new(),
            close: Notify::new(),
            greeting: RefCell::new(Greeting::default()),
            run_id: RefCell::new(String::new()),
            restarts: Cell::new(loss.restarts()),
            loss,
            ends: Cell::new(fence.ends()),
            fence,
            answered: Cell::new(0),
            requests: Cell::new(0),
            batches: Batches::default(),
            watch,
        });
        let kept = link.clone();
        keep("link", move |turn| {
            let link = kept.clone();
            async move {
                if turn == Turn::AfterPanic {
                    // Nobody knows any more whose reply comes next.
                    link.fail("an internal error", Some(LinkError::Lost));
                }
                link.run().await;
            }
        });
        link
    }

    /// The host part of the node's address.
    pub fn host(&self) -> &str {
        self.endpoint.address.rsplit_once(':').map_or(&self.endpoint.address, |(host, _)| host)
    }

    /// The node's version; empty before the first connection.
    pub fn version(&self) -> String {
        self.greeting.borrow().version.clone()
    }

    /// Whether the node answers.
    pub fn is_up(&self) -> bool {
        self.is_up.get()
    }

    /// What is to be written.
    pub fn queued_bytes(&self) -> usize {
        self.out.borrow().len()
    }

    /// How many requests were ever sent, and how many of these are over: who remembers the first number knows by the
    /// second when everything sent before has been answered.
    pub fn progress(&self) -> (u64, u64) {
        (self.requests.get(), self.answered.get())
    }

    /// Appends a request. Gives `pending` back, with the reason, when nothing was sent.
    pub fn send(self: &Rc<Self>, pending: P) -> Result<(), (P, LinkError)> {
        if !self.is_up.get() {
            let reason = self.last_error.borrow().clone();
            // A link that has never tried yet is given the time of its first connection.
            if let Some(reason) = reason {
                return Err((pending, LinkError::Down(reason)));
            }
        }
        let mut out = self.out.borrow_mut();
        let Outgoing { prefix, request, protocol, .. } = pending.outgoing();
        if out.len() + request.len() > self.queue_bytes_max && !out.is_empty() {
            return Err((pending, LinkError::Overflow));
        }
        let mut entries = self.entries.borrow_mut();
        if self.overload.refuses(entries.len()) && pending.may_be_refused() {
            return Err((pending, LinkError::Overloaded));
        }
        let sent = self.now.get();
        if let Some(wanted) = protocol
            && wanted != self.protocol.get()
        {
            let hello: &[u8] = if wanted == Protocol::Resp3 { HELLO_3 } else { HELLO_2 };
            out.copy(hello);
            self.appended.set(self.appended.get() + hello.len() as u64);
            entries.push_back(Entry { pending: None, sent });
            self.protocol.set(wanted);
        }
        out.copy(prefix);
        let is_urgent = pending.is_urgent();
        out.push(request, if is_urgent { LARGE_BYTES } else { COLD_BYTES });
        self.appended.set(self.appended.get() + (prefix.len() + request.len()) as u64);
        self.requests.set(self.requests.get() + 1);
        let is_now = is_urgent || out.len() >= LATER_BYTES_MAX;
        entries.push_back(Entry { pending: Some(pending), sent });
        drop((out, entries));
        if is_now {
            self.mark()
        } else {
            self.mark_later()
        }
        Ok(())
    }

    fn mark(self: &Rc<Self>) {
        if self.mark.replace(Mark::Now) != Mark::Now {
            self.dirty.mark(self.clone());
        }
    }

    fn mark_later(self: &Rc<Self>) {
        if self.mark.get() == Mark::No {
            self.mark.set(Mark::Later);
            self.dirty.mark_later(self.clone());
        }
    }

    /// Writes what is queued; the rest goes out when the socket takes it.
    pub fn flush(&self) {
        self.mark.set(Mark::No);
        let Some(socket) = self.socket.borrow().clone() else { return };
        if !self.is_up.get() {
            return;
        }
        if self.fence.check() != self.ends.get() {
            return self.cut_off();
        }
        self.batches.write(self.requests.get());
        let mut out = self.out.borrow_mut();
        match out.write_to(&socket) {
            Ok(written) => {
                self.written.set(self.written.get() + written as u64);
                if !out.is_empty() || socket.has_unsent() {
                    self.writable.notify_one();
                }
            }
            Err(_) => self.close.notify_one(),
        }
    }

    /// The lease under which something may have been queued has ended: nothing of it is sent, now or later. Whoever waits is
    /// told that the outcome is unknown, which what was not sent is not tried again for.
    #[cold]
    fn cut_off(&self) {
        *self.last_error.borrow_mut() = Some(LEASE_ENDED.into());
        self.close.notify_one();
    }

    /// Closes the link when the oldest request has waited for too long.
    pub fn tick(&self, now: Instant) {
        let oldest = self.entries.borrow().front().map(|entry| entry.sent);
        if self.is_up.get() && oldest.is_some_and(|sent| now.duration_since(sent) > self.endpoint.timeouts.reply) {
            *self.last_error.borrow_mut() = Some("no reply in time".into());
            self.close.notify_one();
        }
    }

    /// Closes for good.
    pub fn end(&self) {
        self.ended.set(true);
        self.close.notify_one();
    }

    async fn run(self: Rc<Self>) {
        let mut backoff_ms = 10u64;
        while !self.ended.get() {
            let limit = self.endpoint.timeouts.connect;
            let opened = tokio::time::timeout(limit, self.open()).await;
            match opened.unwrap_or_else(|_| Err(late(&self.endpoint).into())) {
                Ok(stream) => {
                    backoff_ms = 10;
                    self.serve(stream).await;
                }
                Err(reason) => {
                    if self.last_error.borrow().as_ref() != Some(&reason) {
                        tracing::warn!(node = %self.endpoint.address, %reason, "cannot connect; trying again");
                    }
                    self.fail(&reason, None);
                }
            }
            // Full jitter, so that the workers' links don't come back in step; capped so that a store that returns is found soon.
            tokio::time::sleep(Duration::from_millis(fastrand::u64(5..=backoff_ms.max(5)))).await;
            backoff_ms = (backoff_ms * 2).min(500);
        }
        self.fail("the link was closed", None);
    }

    /// Connects, greets, and makes sure that nothing of the previous connection runs any more.
    async fn open(&self) -> Result<wire::Stream, String> {
        let mut stream = connect(&self.endpoint).await?;
        let greeting = greet(&mut stream, &self.endpoint, Protocol::Resp2).await?;
        let run_id = run_id(&mut stream).await?;
        let before = self.run_id.replace(run_id.clone());
        let predecessor = self.greeting.replace(greeting).id;
        match before.is_empty() {
            true => {}
            // Another process would have given that number to somebody else.
            false if before == run_id => end(&mut stream, predecessor).await?,
            false if self.loss.restarted(&self.endpoint.address, &run_id, self.restarts.get()) => {
                tracing::warn!(node = %self.endpoint.address, "the node was restarted; what it had acknowledged last may be lost, so dual routes are walked again");
            }
            false => {}
        }
        self.protocol.set(Protocol::Resp2);
        Ok(stream)
    }

    async fn serve(self: &Rc<Self>, stream: wire::Stream) {
        let socket = Rc::new(Socket::from(stream));
        *self.socket.borrow_mut() = Some(socket.clone());
        if self.last_error.borrow_mut().take().is_some() {
            tracing::info!(node = %self.endpoint.address, "connected");
        }
        self.is_up.set(true);
        self.mark();
        let reason = tokio::select! {
            reason = self.read(&socket) => reason,
            reason = self.write(&socket) => reason,
            () = self.close.notified() => self.last_error.borrow().clone().unwrap_or_else(|| "closed".into()),
        };
        self.restarts.set(self.loss.restarts());
        if !self.ended.get() {
            tracing::warn!(node = %self.endpoint.address, %reason, waiting = self.entries.borrow().len(), "link lost; connecting again");
        }
        if self.ends.replace(self.fence.ends()) != self.fence.ends() {
            self.written.set(self.appended.get());
        }
        let timed_out = reason == "no reply in time";
        self.fail(&reason, Some(if timed_out { LinkError::TimedOut } else { LinkError::Lost }));
    }

    /// Writes on when a write was short.
    async fn write(&self, socket: &Socket) -> String {
        loop {
            self.writable.notified().await;
            if let Err(error) = socket.writable().await {
                return error.to_string();
            }
            self.flush();
        }
    }

    async fn read(&self, mut socket: &Socket) -> String {
        let mut buffer = BytesMut::new();
        let mut scanner = ReplyScanner::default();
        loop {
            // Doubling rather than what the length promises: a length that lies costs no memory.
            let wanted =
                scanner.wanted().saturating_sub(buffer.len()).clamp(READ_BYTES / 4, buffer.len().max(READ_BYTES));
            buffer.reserve(wanted);
            match socket.read_buf(&mut buffer).await {
                Ok(0) => return "closed by the node".into(),
                Ok(_) => self.now.set(Instant::now()),
                Err(error) => return wire::explain(&error),
            }
            let now = self.now.get();
            let slow_until = self.batches.slow_until(now, &self.watch);
            let answered_before = self.answered.get();
            loop {
                match scanner.scan(&buffer) {
                    Ok(Some(length)) => {
                        if let Err(reason) = self.take(&mut buffer, length, slow_until) {
                            return reason;
                        }
                    }
                    Ok(None) => break,
                    Err(error) => return error.to_string(),
                }
            }
            self.batches.answer(self.answered.get(), now, &self.watch);
            self.look_at_load(self.answered.get() - answered_before, now);
        }
    }

    fn look_at_load(&self, count: u64, now: Instant) {
        let (waiting, oldest) = {
            let entries = self.entries.borrow();
            (entries.len(), entries.front().map(|entry| entry.sent))
        };
        let oldest = oldest.map_or(Duration::ZERO, |sent| now.saturating_duration_since(sent));
        let Some(turned) = self.overload.answered(count, waiting, oldest, now) else { return };
        let node = &self.endpoint.address;
        match turned {
            Turned::Overloaded => tracing::warn!(
                %node,
                waiting,
                "the node has more to do than it can, and its answers come later than queue_time; further requests are refused until it has caught up"
            ),
            Turned::CaughtUp => tracing::info!(%node, "the node has caught up"),
        }
    }

    /// Gives the reply in `buffer[..length]` to whom it belongs. `slow_until`: the last request that took long.
    fn take(&self, buffer: &mut BytesMut, length: usize, slow_until: u64) -> Result<(), String> {
        if reply::is_push(&buffer[..length]) {
            buffer.advance(length);
            return Ok(());
        }
        let mut entries = self.entries.borrow_mut();
        let Some(entry) = entries.front() else { return Err("a reply that nobody asked for".into()) };
        let replies = entry.outgoing().replies;
        let mut first_error = None;
        if replies > 1 {
            let mut head = self.head.borrow_mut();
            head.skipped += 1;
            if head.skipped < replies {
                if reply::is_error(&buffer[..length]) && head.first_error.is_none() {
                    head.first_error = Some(Bytes::copy_from_slice(&buffer[..length]));
                }
                buffer.advance(length);
                return Ok(());
            }
            first_error = std::mem::take(&mut *head).first_error;
        }
        let pending = entries.pop_front().and_then(|entry| entry.pending);
        drop(entries);
        let Some(pending) = pending else {
            buffer.advance(length);
            return Ok(());
        };
        self.answered.set(self.answered.get() + 1);
        if self.answered.get() <= slow_until {
            self.note_slow(pending.outgoing().request);
        }
        match first_error {
            // The cause, not EXECABORT: a redirect in it sends the batch to where it belongs.
            Some(error) => {
                buffer.advance(length);
                pending.reply(Reply::Whole(error));
            }
            None if length >= LARGE_BYTES => pending.reply(Reply::Whole(buffer.split_to(length).freeze())),
            None => {
                pending.reply(Reply::Small(&buffer[..length]));
                buffer.advance(length);
            }
        }
        Ok(())
    }

    #[cold]
    fn note_slow(&self, request: &Bytes) {
        let took = self.batches.age(self.answered.get(), self.now.get());
        self.watch.note(&self.endpoint.address, request, took);
    }

    /// Ends everything on the link. With `sent_error`, what was at least partly written gets it; the rest did not run.
    fn fail(&self, reason: &str, sent_error: Option<LinkError>) {
        self.is_up.set(false);
        *self.socket.borrow_mut() = None;
        *self.last_error.borrow_mut() = Some(reason.to_string());
        let entries = std::mem::take(&mut *self.entries.borrow_mut());
        *self.head.borrow_mut() = Head::default();
        *self.out.borrow_mut() = OutBuffer::keeping(LINK_KEPT_BYTES);
        self.batches.clear();
        self.overload.clear();
        let written = self.written.replace(self.appended.get());
        let length = |entry: &Entry<P>| {
            let Outgoing { prefix, request, .. } = entry.outgoing();
            (prefix.len() + request.len()) as u64
        };
        let mut begin = self.appended.get() - entries.iter().map(length).sum::<u64>();
        for entry in entries {
            let was_sent = begin < written;
            begin += length(&entry);
            let Some(pending) = entry.pending else { continue };
            self.answered.set(self.answered.get() + 1);
            match &sent_error {
                Some(error) if was_sent => pending.failed(error.clone()),
                _ => pending.failed(LinkError::Down(reason.to_string())),
            }
        }
    }
}

const LEASE_ENDED: &str = "the lease under which it was used has ended";
const HELLO_2: &[u8] = b"*2\r\n$5\r\nHELLO\r\n$1\r\n2\r\n";
const HELLO_3: &[u8] = b"*2\r\n$5\r\nHELLO\r\n$1\r\n3\r\n";
