//! A wire that breaks when it is told to: stands between any client and any server, passes real traffic, and damages it
//! at a byte that the test names.
//!
//! Every connection looks for its own [`Point`]: a marker in one way of the traffic, and a number of bytes behind it. What
//! strikes once ([`Fault::Cut`], [`Fault::Garble`], [`Fault::Insert`]) strikes the first connection that comes to its point,
//! and then all is passed again; what lasts is done to each connection that is past its point, until [`FaultProxy::pass`].

use std::collections::HashMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::common::{Redis, eventually, free_port};
use crate::protocol::Raw;

/// How long a thread that waits looks away.
const GLANCE: Duration = Duration::from_millis(2);

/// One of the two ways through a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// From the client to the server.
    Requests,
    Replies,
}

/// Where in one way of a connection a fault begins: so many bytes behind the first marker that comes after the fault was
/// ordered. Without a marker the bytes are counted from the order on, or from the beginning of a later connection.
#[derive(Clone, Debug)]
pub struct Point {
    way: Way,
    marker: Vec<u8>,
    bytes: u64,
}

impl Point {
    pub fn after(way: Way, bytes: u64) -> Self {
        Self { way, marker: Vec::new(), bytes }
    }

    pub fn behind(way: Way, marker: impl Into<Vec<u8>>, bytes: u64) -> Self {
        Self { way, marker: marker.into(), bytes }
    }
}

/// Of bytes that were read together.
pub type Rewrite = Arc<dyn Fn(&[u8]) -> Vec<u8> + Send + Sync>;

/// What happens at the point.
#[derive(Clone)]
pub enum Fault {
    /// Once: what stands before the point arrives, and both ends are closed. No byte has to follow.
    Cut,
    /// Once: the byte at the point arrives with its bits turned round.
    Garble,
    /// Once: these bytes come before the one at the point.
    Insert(Vec<u8>),
    /// Nothing from the point on arrives, until traffic is passed again.
    Stall,
    /// What is read from the point on arrives so much later.
    Slow(Duration),
    /// From the point on everything is what this makes of it.
    Rewrite(Rewrite),
}

/// See the module. Listens until it is dropped, which cuts all of its connections.
pub struct FaultProxy {
    pub port: u16,
    wire: Arc<Wire>,
}

/// What its threads share.
struct Wire {
    server: u16,
    order: Mutex<Order>,
    /// Bytes that went on, by the way.
    passed: [AtomicU64; 2],
    accepted: AtomicU64,
    is_refusing: AtomicBool,
    is_keeping: AtomicBool,
    is_over: AtomicBool,
    /// Both ends of each connection, by its number.
    open: Mutex<HashMap<u64, (TcpStream, TcpStream)>>,
}

/// What was ordered last.
#[derive(Clone, Default)]
struct Order {
    /// Orders are numbered, so that a connection knows a new one.
    number: u64,
    fault: Option<(Point, Fault)>,
    has_struck: bool,
}

impl FaultProxy {
    /// In front of a server on this machine.
    pub fn before(server: u16) -> Self {
        let port = free_port();
        let listener = TcpListener::bind(("127.0.0.1", port)).expect("listen");
        listener.set_nonblocking(true).expect("set non-blocking");
        let wire = Arc::new(Wire {
            server,
            order: Mutex::default(),
            passed: Default::default(),
            accepted: AtomicU64::new(0),
            is_refusing: AtomicBool::new(false),
            is_keeping: AtomicBool::new(false),
            is_over: AtomicBool::new(false),
            open: Mutex::default(),
        });
        let shared = wire.clone();
        std::thread::spawn(move || shared.listen(&listener));
        Self { port, wire }
    }

    /// Orders a fault, in place of the last one.
    pub fn inflict(&self, point: Point, fault: Fault) {
        self.wire.order(Some((point, fault)));
    }

    /// From now on everything is passed; what was held up arrives.
    pub fn pass(&self) {
        self.wire.is_refusing.store(false, Ordering::SeqCst);
        self.wire.is_keeping.store(false, Ordering::SeqCst);
        self.wire.order(None);
    }

    /// That a client closes does not reach the server, until [`FaultProxy::pass`].
    pub fn keep_open(&self) {
        self.wire.is_keeping.store(true, Ordering::SeqCst);
    }

    /// Cuts what is open now; later connections are not touched.
    pub fn cut_all(&self) {
        for (_, (client, server)) in self.wire.open().drain() {
            close(&client, &server);
        }
    }

    /// Cuts what is open, and closes new connections at once, until [`FaultProxy::pass`].
    pub fn refuse(&self) {
        self.wire.is_refusing.store(true, Ordering::SeqCst);
        self.cut_all();
    }

    /// Whether any connection has come to the point of the last order.
    pub fn has_struck(&self) -> bool {
        self.wire.order.lock().expect("no holder panics").has_struck
    }

    /// Bytes that went on so far.
    pub fn passed(&self, way: Way) -> u64 {
        self.wire.passed[way as usize].load(Ordering::SeqCst)
    }

    /// Connections that were accepted so far.
    pub fn accepted(&self) -> u64 {
        self.wire.accepted.load(Ordering::SeqCst)
    }
}

impl Drop for FaultProxy {
    fn drop(&mut self) {
        self.wire.is_over.store(true, Ordering::SeqCst);
        self.cut_all();
    }
}

fn close(client: &TcpStream, server: &TcpStream) {
    // Closed already is as good.
    let _ = client.shutdown(Shutdown::Both);
    let _ = server.shutdown(Shutdown::Both);
}

impl Wire {
    fn open(&self) -> std::sync::MutexGuard<'_, HashMap<u64, (TcpStream, TcpStream)>> {
        self.open.lock().expect("no holder panics")
    }

    fn order(&self, fault: Option<(Point, Fault)>) {
        let mut order = self.order.lock().expect("no holder panics");
        *order = Order { number: order.number + 1, fault, has_struck: false };
    }

    fn is_over(&self) -> bool {
        self.is_over.load(Ordering::SeqCst)
    }

    fn listen(self: Arc<Self>, listener: &TcpListener) {
        while !self.is_over() {
            match listener.accept() {
                Ok((client, _)) => self.accept(client),
                Err(_) => std::thread::sleep(GLANCE),
            }
        }
    }

    fn accept(self: &Arc<Self>, client: TcpStream) {
        if self.is_refusing.load(Ordering::SeqCst) {
            return;
        }
        // A server that is away closes the connection, as a wire to nowhere does.
        let Ok(server) = TcpStream::connect(("127.0.0.1", self.server)) else { return };
        let number = self.accepted.fetch_add(1, Ordering::SeqCst);
        for socket in [&client, &server] {
            socket.set_nonblocking(false).expect("set blocking");
            socket.set_nodelay(true).expect("set no delay");
        }
        let clone = |socket: &TcpStream| socket.try_clone().expect("clone a socket");
        self.open().insert(number, (clone(&client), clone(&server)));
        for (way, from, to) in [(Way::Requests, clone(&client), clone(&server)), (Way::Replies, server, client)] {
            let wire = self.clone();
            std::thread::spawn(move || {
                Passage { wire: &wire, way, seen: Seen::default() }.run(&from, &to);
                close(&from, &to);
                wire.open().remove(&number);
            });
        }
    }
}

/// How far one way of one connection is from the point of the last order.
#[derive(Default)]
struct Seen {
    order: u64,
    /// Bytes behind the marker; `None` before it.
    bytes: Option<u64>,
    /// The last bytes, in which a marker may have begun.
    tail: Vec<u8>,
}

/// One way of one connection.
struct Passage<'w> {
    wire: &'w Wire,
    way: Way,
    seen: Seen,
}

impl Passage<'_> {
    fn run(&mut self, mut from: &TcpStream, to: &TcpStream) {
        let mut buffer = vec![0; 64 << 10];
        loop {
            match from.read(&mut buffer) {
                Ok(0) => {
                    while self.way == Way::Requests
                        && self.wire.is_keeping.load(Ordering::SeqCst)
                        && !self.wire.is_over()
                    {
                        std::thread::sleep(GLANCE);
                    }
                    return;
                }
                Ok(read) => {
                    if self.forward(&buffer[..read], to).is_err() {
                        return;
                    }
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return,
            }
        }
    }

    fn send(&self, mut to: &TcpStream, bytes: &[u8]) -> std::io::Result<()> {
        to.write_all(bytes)?;
        self.wire.passed[self.way as usize].fetch_add(bytes.len() as u64, Ordering::SeqCst);
        Ok(())
    }

    /// Passes what was read, or does to it what was ordered. An error ends the connection.
    fn forward(&mut self, bytes: &[u8], to: &TcpStream) -> std::io::Result<()> {
        let order = self.wire.order.lock().expect("no holder panics").clone();
        if self.seen.order != order.number {
            self.seen = Seen { order: order.number, ..Seen::default() };
        }
        let Some((point, fault)) = order.fault.filter(|(point, _)| point.way == self.way) else {
            return self.send(to, bytes);
        };
        let is_once = matches!(fault, Fault::Cut | Fault::Garble | Fault::Insert(_));
        if is_once && order.has_struck {
            return self.send(to, bytes);
        }
        let Some(at) = self.seen.find(&point, bytes) else { return self.send(to, bytes) };
        self.send(to, &bytes[..at])?;
        let rest = &bytes[at..];
        if rest.is_empty() && !matches!(fault, Fault::Cut) {
            return Ok(());
        }
        if !self.strike(order.number) && is_once {
            return self.send(to, rest);
        }
        match fault {
            Fault::Cut => Err(ErrorKind::ConnectionAborted.into()),
            Fault::Garble => {
                self.send(to, &[!rest[0]])?;
                self.send(to, &rest[1..])
            }
            Fault::Insert(inserted) => {
                self.send(to, &inserted)?;
                self.send(to, rest)
            }
            Fault::Stall => {
                while self.wire.order.lock().expect("no holder panics").number == order.number {
                    if self.wire.is_over() {
                        return Err(ErrorKind::ConnectionAborted.into());
                    }
                    std::thread::sleep(GLANCE);
                }
                self.forward(rest, to)
            }
            Fault::Slow(delay) => {
                std::thread::sleep(delay);
                self.send(to, rest)
            }
            Fault::Rewrite(rewrite) => self.send(to, &rewrite(rest)),
        }
    }

    /// Notes that the order was carried out; false if another connection was first.
    fn strike(&self, number: u64) -> bool {
        let mut order = self.wire.order.lock().expect("no holder panics");
        order.number == number && !std::mem::replace(&mut order.has_struck, true)
    }
}

impl Seen {
    /// Where in these bytes, or right behind them, the point stands; they are counted.
    fn find(&mut self, point: &Point, bytes: &[u8]) -> Option<usize> {
        let mut begin = 0;
        if self.bytes.is_none() {
            let before = self.tail.len();
            self.tail.extend_from_slice(bytes);
            let marker = &point.marker;
            let found = match marker.is_empty() {
                true => Some(0),
                false => self.tail.windows(marker.len()).position(|window| window == marker),
            };
            let Some(found) = found else {
                let keep = self.tail.len().min(marker.len() - 1);
                self.tail.drain(..self.tail.len() - keep);
                return None;
            };
            begin = (found + marker.len()).saturating_sub(before);
            self.bytes = Some(0);
        }
        let counted = self.bytes.get_or_insert(0);
        let left = point.bytes.saturating_sub(*counted);
        *counted += (bytes.len() - begin) as u64;
        let at = begin as u64 + left;
        (at <= bytes.len() as u64).then_some(at as usize)
    }
}

#[test]
fn the_wire_damages_the_bytes_that_it_was_told_to() {
    let server = Redis::start(&[]);
    let wire = FaultProxy::before(server.port);
    let get = |marker: &str| format!("*2\r\n$4\r\nECHO\r\n${}\r\n{marker}\r\n", marker.len());
    let ask = |marker: &str| {
        let mut client = Raw::to(wire.port);
        client.send(get(marker).as_bytes());
        client
    };
    ask("plain").expect(b"$5\r\nplain\r\n");
    for bytes in 0..4 {
        wire.inflict(Point::behind(Way::Replies, "cut-", bytes), Fault::Cut);
        assert_eq!(ask("cut-xyz").rest(), format!("$7\r\ncut-{}", &"xyz\r"[..bytes as usize]));
        assert!(wire.has_struck());
        ask("cut-xyz").expect(b"$7\r\ncut-xyz\r\n");
    }
    let whole = get("request").len() as u64;
    for bytes in [0, 1, whole - 1, whole] {
        let before = wire.passed(Way::Requests);
        wire.inflict(Point::after(Way::Requests, bytes), Fault::Cut);
        // The server may have answered the whole request before it was cut off.
        assert!(["", "$7\r\nrequest\r\n"].contains(&ask("request").rest().as_str()));
        assert_eq!(wire.passed(Way::Requests) - before, bytes);
    }
    wire.inflict(Point::behind(Way::Replies, "gar", 0), Fault::Garble);
    ask("garb").expect(&[b"$4\r\ngar", &[!b'b'][..], b"\r\n"].concat());
    wire.inflict(Point::after(Way::Replies, 0), Fault::Insert(b"+more\r\n".to_vec()));
    ask("x").expect(b"+more\r\n$1\r\nx\r\n");
    wire.inflict(Point::after(Way::Replies, 2), Fault::Rewrite(Arc::new(<[u8]>::to_ascii_uppercase)));
    ask("loud").expect(b"$4\r\nLOUD\r\n");
    wire.inflict(Point::after(Way::Requests, 0), Fault::Slow(Duration::from_millis(1)));
    ask("late").expect(b"$4\r\nlate\r\n");
    wire.inflict(Point::behind(Way::Replies, "sta", 0), Fault::Stall);
    let mut stalled = ask("stall");
    stalled.expect(b"$5\r\nsta");
    eventually("it struck", || wire.has_struck());
    wire.pass();
    stalled.expect(b"ll\r\n");
    let accepted = wire.accepted();
    wire.refuse();
    assert_eq!((stalled.rest().as_str(), Raw::to(wire.port).rest().as_str(), wire.accepted()), ("", "", accepted));
    wire.pass();
    ask("again").expect(b"$5\r\nagain\r\n");
}
