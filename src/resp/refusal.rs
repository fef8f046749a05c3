//! Every error that an application can get from the proxy itself: a first word that its library knows, the command, the
//! reason, and no host or secret.

use bytes::BytesMut;

use crate::resp::write;

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("ERR unknown command '{0}'")]
    UnknownCommand(String),
    #[error("ERR wrong number of arguments for '{0}' command")]
    WrongArity(String),
    #[error("ERR syntax error")]
    Syntax,
    #[error("CROSSSLOT '{command}' cannot run: {reason}")]
    CrossSlot { command: String, reason: &'static str },
    #[error("ERR '{command}' is not available through cutover: {reason}")]
    NotSupported { command: String, reason: &'static str },
    #[error("ERR cutover: the store that has to answer cannot be reached; nothing was changed, try again later")]
    StoreDown,
    #[error(
        "ERR cutover: the store that has to answer has more to do than it can; the command did not run, try again later"
    )]
    Overloaded,
    #[error(
        "ERR cutover: the store did not answer; whether the command ran is not known, so look before you send it again"
    )]
    UnknownOutcome,
    /// A command that needs a connection of its own (blocking, WATCH), and the store has none left.
    #[error(
        "ERR cutover: all connections for commands that need one of their own are in use; nothing was changed, try again later, or have private_links raised"
    )]
    NoLinkFree,
    /// Several proxies, and none is known that may do dual writes.
    #[error("TRYAGAIN cutover: no proxy holds the lease of this key's route at the moment; nothing was changed")]
    NoHolder,
    /// Another proxy sent it here, and a third one should have got it.
    #[error("TRYAGAIN cutover: this proxy does not hold the lease of this key's route; nothing was changed")]
    NotHolder,
    #[error("ERR max number of clients reached")]
    TooManyClients,
    /// A wrong password, or something that the user may not do; with its own first word.
    #[error("{0}")]
    Denied(String),
    #[error("ERR cutover: more {what} a second than this route may ask for; '{command}' did not run, try again later")]
    Limited { command: String, what: &'static str },
    #[error("ERR {0}")]
    Text(String),
    /// An error with its own first word.
    #[error("{0}")]
    Verbatim(String),
}

impl Refusal {
    /// Appends the error as a reply.
    pub fn write(&self, out: &mut BytesMut) {
        write::error(out, &self.to_string());
    }
}
