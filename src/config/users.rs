//! Who may come in and what clients may ask for: `[users]`, `[commands]`, `[limits]`, and addresses that anybody can reach.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use toml::Spanned;

use crate::command::chosen::{self, Chosen, Named, Unfit};
use crate::command::permitted::Permitted;
use crate::config::load::{CommandsSection, File, UserTable};
use crate::config::report::{Finding, Reporter, nearest};
use crate::config::{RouteLimit, User};
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

/// Reads `[commands]`.
pub(super) fn chosen(section: &CommandsSection, reporter: &Reporter<'_>, findings: &mut Vec<Finding>) -> Chosen {
    let mut chosen = Chosen::default();
    let mut put = |text: &Spanned<String>, list: fn(&mut Chosen, Named) -> Result<(), Unfit>| {
        let unfit = Named::parse(text.get_ref()).and_then(|named| {
            match named.unknown().and_then(|unfit| near(&unfit).map(|_| unfit)) {
                Some(unfit) => Err(unfit),
                None => list(&mut chosen, named),
            }
        });
        if let Err(unfit) = unfit {
            findings.push(reporter.at(text.span(), unfit.to_string(), help(&unfit)));
        }
    };
    // What is allowed may be a part of what is refused.
    section.refuse.iter().for_each(|text| put(text, Chosen::refuse));
    section.allow.iter().for_each(|text| put(text, Chosen::allow));
    chosen
}

/// The known name that was meant.
fn near(unfit: &Unfit) -> Option<String> {
    match unfit {
        Unfit::Unknown(name) => nearest(name, Permitted::names()).map(Into::into),
        Unfit::UnknownSub { name, sub } => match chosen::subs_of(name) {
            Some(subs) => nearest(sub, subs.iter().copied()).map(|sub| format!("{name} {sub}")),
            None => Some(name.clone()),
        },
        _ => None,
    }
}

fn help(unfit: &Unfit) -> Option<String> {
    match unfit {
        Unfit::Form(_) => Some("write it as \"FLUSHALL\" or \"CONFIG SET\"".into()),
        Unfit::Unknown(_) | Unfit::UnknownSub { .. } => near(unfit).map(|near| format!("did you mean `{near}`?")),
        Unfit::NotRefused(_) => {
            Some("leave it out: `allow` is for commands that docs/commands.md calls refused, and for parts of what `refuse` names".into())
        }
        Unfit::Needed(_) | Unfit::Never { .. } => Some("leave it out".into()),
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

/// Reads `[limits]`: ids, prefixes, `other_keys`, and `providers` for each that has no line of its own.
pub(super) fn limits(file: &File, reporter: &Reporter<'_>, findings: &mut Vec<Finding>) -> Vec<RouteLimit> {
    let mut limits = Vec::new();
    for (name, table) in &file.limits {
        match limited(name.get_ref(), &file.prefixes) {
            Ok(route) => limits.push(RouteLimit {
                route,
                requests_per_second: table.requests_per_second.unwrap_or(0),
                bytes_per_second: table.bytes_per_second.map_or(0, |size| size.as_u64()),
            }),
            Err((message, help)) => findings.push(reporter.at(name.span(), message, Some(help))),
        }
    }
    limits
}

/// The route that a line of `[limits]` names, or what is wrong with it and the remedy.
fn limited(
    text: &str,
    prefixes: &BTreeMap<Spanned<String>, Spanned<String>>,
) -> Result<Option<RouteName>, (&'static str, String)> {
    let prefixes = || prefixes.keys().map(|prefix| prefix.get_ref().as_str());
    match text {
        "providers" => Ok(None),
        "other_keys" => Ok(Some(RouteName::OtherKeys)),
        _ if prefixes().any(|prefix| prefix == text) => Ok(Some(RouteName::Prefix(text.into()))),
        "new_providers" => {
            Err(("these are not limited together", "`providers` limits each that has no line here".into()))
        }
        _ if text.contains("..") => {
            let help = "name an id, a prefix, `other_keys`, or `providers` for each that has no line here";
            Err(("a range has no limit of its own", help.into()))
        }
        _ if text.contains(':') => Err((
            "this is no id, for that ends at a `:`, and no line under [prefixes]",
            match nearest(text, prefixes()) {
                Some(near) => format!("did you mean `{near}`?"),
                None => "name the prefix under [prefixes]; it may stay in the phase that it has".into(),
            },
        )),
        id => Ok(Some(RouteName::Provider(id.into()))),
    }
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
