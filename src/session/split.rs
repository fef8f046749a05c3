//! One request over several slots and stores: a part for each key, all sent at once, the answers merged in order.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use bytes::{Bytes, BytesMut};

use crate::command::{CommandSpec, Split};
use crate::dual::{Caller, ReplyPort, ReplyTo};
use crate::resp::refusal::Refusal;
use crate::resp::request::Request;
use crate::resp::{reply, write};
use crate::session::away::Way;
use crate::session::session::Session;
use crate::store::Reply;

/// Gathers the answers of the parts.
struct Merge {
    how: Split,
    parts: RefCell<Vec<Option<Result<Bytes, Refusal>>>>,
    owed: Cell<usize>,
    to: ReplyTo,
}

impl ReplyPort for Merge {
    fn deliver(&self, seq: u64, outcome: Result<Reply<'_>, Refusal>) {
        self.parts.borrow_mut()[seq as usize] = Some(outcome.map(|reply| reply.to_bytes()));
        self.owed.set(self.owed.get() - 1);
        if self.owed.get() == 0 {
            let parts = self.parts.take().into_iter().flatten().collect::<Result<Vec<_>, _>>();
            let whole = parts.map(|parts| merge(self.how, &parts));
            self.to.port.deliver(self.to.seq, whole.map(Reply::Whole));
        }
    }
}

/// One reply from those of the parts; the first error is the answer, as it would be of the whole.
pub(super) fn merge(how: Split, parts: &[Bytes]) -> Bytes {
    if let Some(error) = parts.iter().find(|part| reply::is_error(part)) {
        return error.clone();
    }
    let mut out = BytesMut::new();
    match how {
        Split::Mset => write::simple(&mut out, "OK"),
        Split::Count => write::integer(&mut out, parts.iter().filter_map(|part| reply::integer(part)).sum()),
        Split::Mget => {
            write::array(&mut out, parts.len());
            for part in parts {
                // Each part is an array of one.
                out.extend_from_slice(part.strip_prefix(b"*1\r\n").unwrap_or(part));
            }
        }
    }
    out.freeze()
}

/// A request for each key of a splittable one.
pub(super) fn parts_of(request: &Request, places: &[(usize, u32)], how: Split) -> Vec<Request> {
    let part = |(index, _): &(usize, u32)| match how {
        Split::Mset => Request::from_args(&[request.arg(0), request.arg(*index), request.arg(*index + 1)]),
        Split::Mget | Split::Count => Request::from_args(&[request.arg(0), request.arg(*index)]),
    };
    places.iter().map(part).collect()
}

impl Session {
    /// MGET, MSET, DEL, UNLINK, EXISTS, TOUCH.
    pub(super) async fn split(&mut self, request: Request, spec: &'static CommandSpec, how: Split) {
        let Some(places) = self.places(spec, &request) else { return self.refuse(Refusal::Syntax) };
        if how == Split::Mset && request.len().is_multiple_of(2) {
            return self.refuse(Refusal::WrongArity("mset".into()));
        }
        let engine = self.shared.engine.clone();
        let request = match engine.is_holder() {
            true => request,
            false => match self.send_away(request, &places).await {
                Way::Here(request) => request,
                Way::Gone => return,
            },
        };
        if engine.is_simple(&request, &places) {
            self.keyed(request, spec).await;
            return;
        }
        self.wait_open(&request, &places).await;
        let parts = parts_of(&request, &places, how);
        let merge = Rc::new(Merge {
            how,
            parts: RefCell::new(vec![None; parts.len()]),
            owed: Cell::new(parts.len()),
            to: self.reply_to(),
        });
        for (seq, part) in parts.into_iter().enumerate() {
            let to = ReplyTo { port: merge.clone(), seq: seq as u64 };
            engine.submit(part, spec, &[(1, self.db)], Caller { db: self.db, protocol: self.protocol, to });
        }
    }
}
