//! Who may come in: `[users]`, and addresses that anybody can reach.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use toml::Spanned;

use crate::command::permitted::Permitted;
use crate::config::User;
use crate::config::load::{File, UserTable};
use crate::config::report::{Finding, Reporter, nearest};
use crate::routing::{RouteName, Scope};
use crate::secret::{Digest, Secret};

/// The user whose password is `listen.password`.
const DEFAULT: &str = "default";

/// Reads `[users]`.
pub(super) fn users(file: &File, reporter: &Reporter<'_>, findings: &mut Vec<Finding>) -> Vec<User> {
    let mut users = Vec::new();
    for (name, table) in &file.users {
        if name.get_ref() == DEFAULT && file.listen.password.is_some() {
            let help = Some("`password` under [listen] is that of the user `default`: keep one of them".to_string());
            findings.push(reporter.at(name.span(), "the user `default` has two passwords", help));
        }
        let Some(password) = Digest::parse(table.password_sha256.get_ref().expose()) else {
            let help = "write its SHA-256 in hexadecimal: printf %s \"$PASSWORD\" | sha256sum".to_string();
            findings.push(reporter.at(table.password_sha256.span(), "this is no SHA-256 of a password", Some(help)));
            continue;
        };
        let commands = commands(table, reporter, findings);
        let scope = table.routes.as_ref().map(|routes| scope(routes, &file.prefixes, reporter, findings));
        users.push(User { name: name.get_ref().clone(), password, commands, scope });
    }
    users
}

fn commands(table: &UserTable, reporter: &Reporter<'_>, findings: &mut Vec<Finding>) -> Option<Permitted> {
    let words = table.commands.as_ref()?;
    match Permitted::parse(words.get_ref().iter().map(String::as_str)) {
        Ok(permitted) => {
            if let Some(name) = permitted.unknown()
                && let Some(near) = nearest(name, Permitted::names())
            {
                let help = Some(format!("did you mean `{near}`?"));
                findings.push(reporter.at(words.span(), format!("there is no command `{name}`"), help));
            }
            Some(permitted)
        }
        Err(word) => {
            let help =
                Some("@all, @read, @write or the name of a command, each with `-` before it to take it away".into());
            findings.push(reporter.at(words.span(), format!("`{word}` names no commands"), help));
            None
        }
    }
}

/// Routes by the names of their lines: an id, a range, a prefix, `new_providers`, `other_keys`.
fn scope(
    routes: &[Spanned<String>],
    prefixes: &BTreeMap<Spanned<String>, Spanned<String>>,
    reporter: &Reporter<'_>,
    findings: &mut Vec<Finding>,
) -> Scope {
    let mut names = Vec::new();
    for route in routes {
        let text = route.get_ref();
        names.push(match (text.as_str(), text.split_once("..")) {
            ("new_providers", _) => RouteName::NewProviders,
            ("other_keys", _) => RouteName::OtherKeys,
            _ if prefixes.keys().any(|prefix| prefix.get_ref() == text) => RouteName::Prefix(text.clone()),
            (_, None) => RouteName::Provider(text.clone()),
            (_, Some((first, last))) => match (first.parse(), last.parse()) {
                (Ok(first), Ok(last)) if first <= last => RouteName::Range(first, last),
                _ => {
                    let message = "a range is two numbers, the lower one first: \"100..199\"";
                    findings.push(reporter.at(route.span(), message, None));
                    continue;
                }
            },
        });
    }
    Scope(names)
}

/// An address that others than this machine reach needs a password, unless it is said that it needs none.
pub(super) fn protection(file: &File, reporter: &Reporter<'_>, findings: &mut Vec<Finding>) {
    let (listen, admin) = (&file.listen, &file.admin);
    for secret in [&listen.password, &admin.token].into_iter().flatten().filter(|secret| secret.get_ref().is_empty()) {
        let help = Some("is the variable that it comes from set? leave the line out where none is wanted".to_string());
        findings.push(reporter.at(secret.span(), "an empty password is none", help));
    }
    let mut look = |address: &Option<Spanned<SocketAddr>>, is_protected: bool, mode: Option<bool>, needs: &str| {
        let open = address.as_ref().filter(|address| !address.get_ref().ip().is_loopback());
        if let Some(address) = open.filter(|_| !is_protected && mode != Some(false)) {
            let help = format!(
                "set {needs}; where the network keeps others away, `protected_mode = false` beside the address"
            );
            findings.push(reporter.at(address.span(), "anybody who reaches this address could use it", Some(help)));
        }
    };
    let asks_for_certificates = listen.tls.as_ref().is_some_and(|tls| tls.client_ca.is_some());
    let is_protected = is_set(&listen.password) || !file.users.is_empty() || asks_for_certificates;
    look(&listen.address, is_protected, listen.protected_mode, "a `password`, [users] or `client_ca` in `tls`");
    look(&admin.address, is_set(&admin.token), admin.protected_mode, "a `token`");
}

fn is_set(secret: &Option<Spanned<Secret>>) -> bool {
    secret.as_ref().is_some_and(|secret| !secret.get_ref().is_empty())
}
