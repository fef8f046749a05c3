//! Looks at what a client sends with the cluster in mind, wherever its keys are now.

use bytes::Bytes;

use crate::audit::{Kind, Subject};
use crate::session::session::Session;

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
