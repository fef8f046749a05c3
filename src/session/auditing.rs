//! Looks at what a client sends with the cluster in mind, wherever its keys are now.

use bytes::Bytes;

use crate::audit::{Kind, Subject};
use crate::command::lua::Undeclared;
use crate::command::{self, CommandSpec};
use crate::resp::reply;
use crate::routing::Key;
use crate::session::session::Session;
use crate::store::LinkError;

/// Parts of what a node says of a script that touches keys of other slots, or that may not run on a cluster.
const LEFT_ITS_SLOT: [&str; 4] =
    ["access a non local key", "do not hash to the same slot", "undeclared key", "Can not run script on cluster"];

/// The keys of a script; without any it runs where keys without a provider are, which the empty name is.
fn names_of(keys: &[Key]) -> Vec<&[u8]> {
    match keys {
        [] => vec![b""],
        keys => keys.iter().map(|key| &key.name[..]).collect(),
    }
}

impl Session {
    /// Keys that one command, transaction or WATCH needs at once: whether they are in one slot and of one route.
    pub(super) fn audit_together(&self, command: &str, kind: Kind, keys: &[(u32, &[u8])]) {
        let Some(first) = keys.first().filter(|_| keys.len() > 1) else { return };
        let table = self.shared.engine.table();
        if !keys.iter().any(|(db, _)| table.databases().is_moving(*db)) {
            return;
        }
        let slot = table.slot_of(first.0, first.1);
        if keys.iter().all(|(db, name)| table.slot_of(*db, name) == slot) {
            return;
        }
        let mut routes: Vec<String> = keys.iter().map(|(_, name)| table.route_of(name).0.name.to_string()).collect();
        routes.sort();
        routes.dedup();
        let kind = if kind == Kind::CrossSlot && routes.len() > 1 { Kind::CrossRoute } else { kind };
        let example = || keys.iter().map(|(_, name)| name.escape_ascii().to_string()).collect::<Vec<_>>().join(" ");
        // Many providers in one command are one finding.
        let route = if routes.len() > 3 { format!("{} routes", routes.len()) } else { routes.join(" ") };
        self.audit(command, kind, route, example);
    }

    /// A script whose text shows that it touches keys which it does not declare. What it writes there in a dual phase is not
    /// copied, so the routes of its keys are in doubt; without keys, the one of keys without a provider, where it runs.
    pub(super) fn note_undeclared(&self, spec: &CommandSpec, keys: &[Key], undeclared: &Undeclared) {
        self.audit_script(spec, keys, &undeclared.example);
        if !undeclared.writes || spec.name.ends_with("_RO") {
            return;
        }
        let nothing = [Key { name: Bytes::new(), db: self.db }];
        let keys = if keys.is_empty() { &nothing } else { keys };
        for route in keys.iter().filter_map(|key| self.shared.engine.doubt_route_of(key)) {
            tracing::warn!(
                %route,
                command = spec.name,
                "a script writes keys that it does not declare, and these are not copied: the route is in doubt until a backfill has gone through it without such a script (`cutover audit`)"
            );
        }
    }

    /// What a node says of a script that left its slot.
    pub(super) fn audit_script_error(&self, spec: &CommandSpec, keys: &[Key], answer: &Result<Bytes, LinkError>) {
        let Some(text) =
            answer.as_ref().ok().filter(|frame| spec.kind == command::Kind::Script && reply::is_error(frame))
        else {
            return;
        };
        let text = String::from_utf8_lossy(reply::error_text(text));
        if LEFT_ITS_SLOT.iter().any(|part| text.contains(part)) {
            self.audit_script(spec, keys, &text);
        }
    }

    fn audit_script(&self, spec: &CommandSpec, keys: &[Key], example: &str) {
        let table = self.shared.engine.table();
        let mut routes: Vec<String> =
            names_of(keys).into_iter().map(|name| table.route_of(name).0.name.to_string()).collect();
        routes.sort();
        routes.dedup();
        self.audit(spec.name, Kind::ScriptUndeclared, routes.join(" "), || example.replace(char::is_control, " "));
    }

    /// Something that is told by itself.
    pub(super) fn audit(&self, command: &str, kind: Kind, route: String, example: impl FnOnce() -> String) {
        let subject = Subject { kind, command: command.to_lowercase(), route, client: self.called() };
        self.shared.audit.note(subject, example);
    }

    fn called(&self) -> String {
        let names = self.client.names();
        let name = [names.name, names.library].into_iter().find(|name: &Bytes| !name.is_empty());
        name.map_or_else(|| self.client.peer.ip().to_string(), |name| String::from_utf8_lossy(&name).into_owned())
    }
}
