//! CLIENT: what a client may ask and say of itself and of the others.

use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::{Bytes, BytesMut};

use crate::command;
use crate::resp::request::Request;
use crate::resp::write;
use crate::session::clients::{Filter, Pause, Wish};
use crate::session::replies::Mute;
use crate::session::session::{Flow, Session};

const HELP: [&str; 21] = [
    "CLIENT <subcommand> [<arg> [value] [opt] ...]. Subcommands are:",
    "GETNAME",
    "    Return the name of the current connection.",
    "ID",
    "    Return the ID of the current connection.",
    "INFO",
    "    Return information about the current client connection.",
    "KILL <ip:port> | <option> <value> ...",
    "    Kill connections of clients of the proxy. Options: ADDR, LADDR, TYPE (NORMAL|PUBSUB), USER, SKIPME (YES|NO), ID.",
    "LIST [options ...]",
    "    Return information about clients of the proxy. Options: TYPE (NORMAL|PUBSUB), ID <id> [<id>...].",
    "PAUSE <timeout> [WRITE|ALL], UNPAUSE",
    "    Suspend all, or just write, clients for <timeout> milliseconds; end it.",
    "REPLY (ON|OFF|SKIP)",
    "    Control the replies sent to the current connection.",
    "SETNAME <name>, SETINFO (LIB-NAME|LIB-VER) <value>",
    "    Assign a name, or that of the library, to the current connection.",
    "UNBLOCK <clientid> [TIMEOUT|ERROR]",
    "    Unblock the specified blocked client.",
    "HELP",
    "    Print this help.",
];

const SYNTAX: &str = "ERR syntax error";
const NOT_AN_INTEGER: &str = "ERR value is not an integer or out of range";

impl Session {
    /// Writes the answer.
    pub(super) fn client(&mut self, out: &mut BytesMut, request: &Request) -> Flow {
        if let Some(text) = wrong_form(request) {
            write::error(out, &text);
            return Flow::Continue;
        }
        let sub = request.arg(1).to_ascii_uppercase();
        match (sub.as_slice(), request.len()) {
            (b"ID", 2) => write::integer(out, self.client.id as i64),
            (b"GETNAME", 2) => match self.client.names().name {
                name if name.is_empty() => write::null(out, self.protocol),
                name => write::bulk(out, &name),
            },
            (b"SETNAME", 3) => self.set_name(out, request.arg(2)),
            (b"SETINFO", 4) => self.set_info(out, request),
            (b"NO-EVICT" | b"NO-TOUCH", 3) => match request.arg(2).to_ascii_uppercase().as_slice() {
                // The links are shared, so what they say of one client would be said of all; both are but hints.
                b"ON" | b"OFF" => write::simple(out, "OK"),
                _ => write::error(out, SYNTAX),
            },
            (b"INFO", 2) => {
                let own = Filter { ids: Some(vec![self.client.id]), ..Filter::default() };
                write::text(out, self.protocol, &self.shared.clients.describe(&own));
            }
            (b"LIST", _) => match list_filter(request) {
                Ok(filter) => write::text(out, self.protocol, &self.shared.clients.describe(&filter)),
                Err(text) => write::error(out, &text),
            },
            (b"KILL", _) => return self.kill(out, request),
            (b"PAUSE", 3 | 4) => self.pause(out, request),
            (b"UNPAUSE", 2) => {
                self.shared.clients.unpause();
                write::simple(out, "OK");
            }
            (b"UNBLOCK", 3 | 4) => self.unblock_other(out, request),
            (b"REPLY", _) => self.reply_mode(out, request),
            (b"TRACKINGINFO", 2) => {
                write::map(out, self.protocol, 3);
                write::bulk(out, b"flags");
                write::set(out, self.protocol, 1);
                write::bulk(out, b"off");
                write::bulk(out, b"redirect");
                write::integer(out, -1);
                write::bulk(out, b"prefixes");
                write::array(out, 0);
            }
            (b"GETREDIR", 2) => write::integer(out, -1),
            (b"CACHING", 3) => write::error(
                out,
                "ERR CLIENT CACHING can be called only when the client is in tracking mode with OPTIN or OPTOUT mode enabled",
            ),
            // It is off for everybody.
            (b"TRACKING", 3) if request.arg(2).eq_ignore_ascii_case(b"OFF") => write::simple(out, "OK"),
            (b"TRACKING", _) if !request.arg(2).eq_ignore_ascii_case(b"ON") => write::error(out, SYNTAX),
            (b"TRACKING", _) => write::error(
                out,
                "ERR 'client|tracking' is not available through cutover: its links are shared, so invalidations would reach the wrong client",
            ),
            (b"HELP", 2) => {
                write::array(out, HELP.len());
                HELP.iter().for_each(|line| write::simple(out, line));
            }
            _ => {
                let sub = String::from_utf8_lossy(request.arg(1)).into_owned();
                write::error(
                    out,
                    &format!("ERR unknown subcommand or wrong number of arguments for '{sub}'. Try CLIENT HELP."),
                );
            }
        }
        Flow::Continue
    }

    pub(super) fn set_name(&self, out: &mut BytesMut, name: &[u8]) {
        if name.iter().any(|byte| !(b'!'..=b'~').contains(byte)) {
            return write::error(out, "ERR Client names cannot contain spaces, newlines or special characters.");
        }
        self.client.rename(|names| names.name = Bytes::copy_from_slice(name));
        write::simple(out, "OK");
    }

    fn set_info(&self, out: &mut BytesMut, request: &Request) {
        let (word, value) = (request.arg(2).to_ascii_uppercase(), Bytes::copy_from_slice(request.arg(3)));
        if value.iter().any(|byte| !(b'!'..=b'~').contains(byte)) {
            let word = String::from_utf8_lossy(request.arg(2)).to_lowercase();
            return write::error(out, &format!("ERR {word} cannot contain spaces, newlines or special characters."));
        }
        match word.as_slice() {
            b"LIB-NAME" => self.client.rename(|names| names.library = value),
            b"LIB-VER" => self.client.rename(|names| names.library_version = value),
            _ => {
                return write::error(
                    out,
                    &format!("ERR Unrecognized option '{}'", String::from_utf8_lossy(request.arg(2))),
                );
            }
        }
        write::simple(out, "OK");
    }

    fn kill(&self, out: &mut BytesMut, request: &Request) -> Flow {
        let (filter, is_old_form) =
            match kill_filter(request, self.client.id, |user| self.shared.users.load().has(user)) {
                Ok(found) => found,
                Err(text) => {
                    write::error(out, &text);
                    return Flow::Continue;
                }
            };
        let killed = self.shared.clients.kill(&filter);
        match (is_old_form, killed) {
            (true, 0) => write::error(out, "ERR No such client"),
            (true, _) => write::simple(out, "OK"),
            (false, _) => write::integer(out, killed as i64),
        }
        // A client that kills itself has its answer first.
        if self.client.take_wish() == Wish::Kill { Flow::Close } else { Flow::Continue }
    }

    fn pause(&self, out: &mut BytesMut, request: &Request) {
        let pause = match request.args().nth(3).map(<[u8]>::to_ascii_uppercase).as_deref() {
            None | Some(b"ALL") => Pause::All,
            Some(b"WRITE") => Pause::Writes,
            Some(_) => return write::error(out, "ERR CLIENT PAUSE mode must be WRITE or ALL"),
        };
        match whole(request.arg(2)).map(u64::try_from) {
            Some(Ok(time)) => {
                self.shared.clients.pause(Duration::from_millis(time), pause);
                write::simple(out, "OK");
            }
            Some(Err(_)) => write::error(out, "ERR timeout is negative"),
            None => write::error(out, "ERR timeout is not an integer or out of range"),
        }
    }

    fn unblock_other(&self, out: &mut BytesMut, request: &Request) {
        let wish = match request.args().nth(3).map(<[u8]>::to_ascii_uppercase).as_deref() {
            None | Some(b"TIMEOUT") => Wish::Unblock,
            Some(b"ERROR") => Wish::UnblockWithError,
            Some(_) => return write::error(out, "ERR CLIENT UNBLOCK reason should be TIMEOUT or ERROR"),
        };
        match number(request.arg(2)) {
            Some(id) => write::integer(out, self.shared.clients.unblock(id, wish).into()),
            None => write::error(out, NOT_AN_INTEGER),
        }
    }

    fn reply_mode(&self, out: &mut BytesMut, request: &Request) {
        match request.arg(2).to_ascii_uppercase().as_slice() {
            b"ON" => {
                self.replies.mute(Mute::No);
                write::simple(out, "OK");
            }
            b"OFF" => {
                self.replies.mute(Mute::All);
            }
            b"SKIP" => {
                if self.replies.mute(Mute::Soon) == Mute::All {
                    self.replies.mute(Mute::All);
                }
            }
            _ => write::error(out, SYNTAX),
        }
    }

    /// Tells the others that this client is not idle.
    #[inline]
    pub(super) fn note_activity(&self) {
        self.client.last_active.store(self.shared.clients.clock(), Ordering::Relaxed);
    }

    /// Tells the others which CLIENT this client sent; `place` is that of the command.
    pub(super) fn note_sub_command(&self, place: u32, request: &Request) {
        let sub = request.arg(1);
        let found = FORMS.iter().position(|(name, _)| sub.eq_ignore_ascii_case(name.as_bytes()));
        let number = found.map_or(0, |index| index as u32 + 1);
        self.client.last_command.store(number << 16 | place, Ordering::Relaxed);
    }

    /// Tells the others what this client is doing.
    #[inline]
    pub(super) fn note(&self, place: u32) {
        self.client.last_command.store(place, Ordering::Relaxed);
        self.note_activity();
    }
}

/// The sub-commands with their arity, as Redis has it: exact, or at least the negated number.
const FORMS: [(&str, i16); 18] = [
    ("ID", 2),
    ("GETNAME", 2),
    ("SETNAME", 3),
    ("SETINFO", 4),
    ("NO-EVICT", 3),
    ("NO-TOUCH", 3),
    ("INFO", 2),
    ("LIST", -2),
    ("KILL", -3),
    ("PAUSE", -3),
    ("UNPAUSE", 2),
    ("UNBLOCK", -3),
    ("REPLY", 3),
    ("TRACKINGINFO", 2),
    ("GETREDIR", 2),
    ("CACHING", 3),
    ("TRACKING", -3),
    ("HELP", 2),
];

/// The sub-command at a place.
pub(super) fn sub_command(place: u32) -> Option<&'static str> {
    FORMS.get(place as usize).map(|(name, _)| *name)
}

/// What is wrong with a CLIENT before any of it is looked at: an unknown sub-command, or too few or many arguments.
pub(super) fn wrong_form(request: &Request) -> Option<String> {
    let sub = String::from_utf8_lossy(request.arg(1));
    let Some((name, arity)) = FORMS.iter().find(|(name, _)| name.eq_ignore_ascii_case(&sub)) else {
        return Some(format!("ERR unknown subcommand '{sub}'. Try CLIENT HELP."));
    };
    let wrong = || format!("ERR wrong number of arguments for 'client|{}' command", name.to_lowercase());
    (!command::takes(*arity, request.len())).then(wrong)
}

fn number(text: &[u8]) -> Option<u64> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

fn whole(text: &[u8]) -> Option<i64> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

fn kind_of(word: &[u8]) -> Result<Bytes, String> {
    let kind = word.to_ascii_lowercase();
    match kind.as_slice() {
        b"slave" => Ok("replica".into()),
        b"normal" | b"pubsub" | b"master" | b"replica" => Ok(kind.into()),
        _ => Err(format!("ERR Unknown client type '{}'", String::from_utf8_lossy(word))),
    }
}

/// CLIENT LIST [TYPE type] [ID id …]
fn list_filter(request: &Request) -> Result<Filter, String> {
    let args: Vec<&[u8]> = request.args().skip(2).collect();
    let mut filter = Filter::default();
    match args.as_slice() {
        [] => {}
        [word, kind] if word.eq_ignore_ascii_case(b"TYPE") => filter.kind = Some(kind_of(kind)?),
        [word, ids @ ..] if word.eq_ignore_ascii_case(b"ID") && !ids.is_empty() => {
            // One that no client can have is no error.
            let ids = ids.iter().map(|id| whole(id).map(|id| u64::try_from(id).unwrap_or(0)));
            filter.ids = Some(ids.collect::<Option<_>>().ok_or("ERR Invalid client ID")?);
        }
        _ => return Err(SYNTAX.into()),
    }
    Ok(filter)
}

/// CLIENT KILL addr, or options; true for the first form, which answers OK or an error.
fn kill_filter(request: &Request, own: u64, is_user: impl Fn(&[u8]) -> bool) -> Result<(Filter, bool), String> {
    if request.len() == 3 {
        return Ok((Filter { peer: Some(Bytes::copy_from_slice(request.arg(2))), ..Filter::default() }, true));
    }
    if !request.len().is_multiple_of(2) {
        return Err(SYNTAX.into());
    }
    let mut filter = Filter { but: Some(own), ..Filter::default() };
    for index in (2..request.len()).step_by(2) {
        let (word, value) = (request.arg(index).to_ascii_uppercase(), request.arg(index + 1));
        let text = Bytes::copy_from_slice(value);
        match word.as_slice() {
            b"ID" => {
                let id = number(value).filter(|id| *id > 0);
                filter.ids = Some(vec![id.ok_or("ERR client-id should be greater than 0")?]);
            }
            b"ADDR" => filter.peer = Some(text),
            b"LADDR" => filter.local = Some(text),
            b"TYPE" => filter.kind = Some(kind_of(value)?),
            b"USER" => filter.user = Some(text),
            b"SKIPME" if value.eq_ignore_ascii_case(b"YES") => filter.but = Some(own),
            b"SKIPME" if value.eq_ignore_ascii_case(b"NO") => filter.but = None,
            _ => return Err(SYNTAX.into()),
        }
    }
    if let Some(user) = filter.user.as_deref().filter(|user| !is_user(user)) {
        let user = String::from_utf8_lossy(user);
        return Err(format!("ERR No such user '{user}'"));
    }
    Ok((filter, false))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kill_is_read_in_both_forms_and_spares_the_caller_unless_told_otherwise() {
        let (filter, is_old) =
            kill_filter(&Request::from_args(&["CLIENT", "KILL", "127.0.0.1:5"]), 7, |_| true).unwrap();
        assert!(is_old && filter.peer.as_deref() == Some(b"127.0.0.1:5") && filter.but.is_none());
        let (filter, is_old) =
            kill_filter(&Request::from_args(&["CLIENT", "KILL", "ID", "9", "TYPE", "slave"]), 7, |_| true).unwrap();
        assert!(
            !is_old
                && filter.ids == Some(vec![9])
                && filter.but == Some(7)
                && filter.kind.as_deref() == Some(b"replica")
        );
        for wrong in
            [&["CLIENT", "KILL", "ID", "0"][..], &["CLIENT", "KILL", "X", "1"], &["CLIENT", "KILL", "ID", "1", "TYPE"]]
        {
            assert!(kill_filter(&Request::from_args(wrong), 7, |_| true).is_err(), "{wrong:?}");
        }
    }
}
