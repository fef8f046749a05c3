//! A command as it arrived: its bytes and the places of its arguments.

use bytes::{Bytes, BytesMut};

use crate::resp::limits::Limits;
use crate::resp::scan::{ArgRange, ArgRanges, RequestScanner};
use crate::resp::write;

/// One command: always a RESP array of bulk strings, whatever it arrived as. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Request {
    bytes: Bytes,
    args: ArgRanges,
}

impl Request {
    /// A request whose arguments the scanner found in `bytes`.
    pub fn new(bytes: Bytes, args: ArgRanges) -> Self {
        Self { bytes, args }
    }

    /// A request of the proxy's own, or an inline one.
    pub fn from_args<A: AsRef<[u8]>>(args: &[A]) -> Self {
        let views: Vec<&[u8]> = args.iter().map(AsRef::as_ref).collect();
        let mut bytes = BytesMut::new();
        let ranges = write::command(&mut bytes, &views);
        Self { bytes: bytes.freeze(), args: ranges }
    }

    /// A request that stands whole in `bytes`; `None` where there is none.
    pub fn parse(bytes: Bytes) -> Option<Self> {
        let mut scanner = RequestScanner::default();
        let length = scanner.scan(&bytes, &Limits::default()).ok()??;
        (length == bytes.len() && !scanner.is_inline()).then(|| Self { args: scanner.args().clone(), bytes })
    }

    /// The whole frame.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// The whole frame, given away.
    pub fn into_bytes(self) -> Bytes {
        self.bytes
    }

    /// How many arguments it has, the command's name included.
    pub fn len(&self) -> usize {
        self.args.len()
    }

    /// Whether it has no argument at all, not even a name.
    pub fn is_empty(&self) -> bool {
        self.args.is_empty()
    }

    /// Argument `index`; 0 is the name. Panics where `index >= len()`.
    pub fn arg(&self, index: usize) -> &[u8] {
        let ArgRange { start, end } = self.args[index];
        &self.bytes[start as usize..end as usize]
    }

    /// Where in the frame argument `index` stands.
    pub fn place(&self, index: usize) -> ArgRange {
        self.args[index]
    }

    /// Argument `index` as a view that keeps the frame alive.
    pub fn arg_bytes(&self, index: usize) -> Bytes {
        let ArgRange { start, end } = self.args[index];
        self.bytes.slice(start as usize..end as usize)
    }

    /// The arguments, the name first.
    pub fn args(&self) -> impl ExactSizeIterator<Item = &[u8]> {
        (0..self.len()).map(|index| self.arg(index))
    }
}
