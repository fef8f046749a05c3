//! One word changed, comments and layout kept.

use toml_edit::{Array, DocumentMut, Item, Table, value};

use crate::routing::Phase;

/// The file is no TOML.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct EditError(#[from] toml_edit::TomlError);

/// Sets the phase of a provider (an id or a range that has a line, else a new line), a prefix that has a line, or one of
/// the defaults (`new_providers`, `other_keys`, `pubsub`).
pub fn set_phase(text: &str, route: &str, phase: Phase) -> Result<String, EditError> {
    set_phases(text, &[(route.to_string(), phase)])
}

/// The same for many routes, each with its own phase, in one edit.
pub fn set_phases(text: &str, changes: &[(String, Phase)]) -> Result<String, EditError> {
    let mut document: DocumentMut = text.parse()?;
    for (route, phase) in changes {
        set(&mut document, route, *phase);
    }
    Ok(document.to_string())
}

fn set(document: &mut DocumentMut, route: &str, phase: Phase) {
    let has = |section: &str| document.get(section).and_then(|item| item.get(route)).is_some();
    let section = match route {
        "new_providers" | "other_keys" | "pubsub" => "routing",
        _ if has("prefixes") => "prefixes",
        _ => "providers",
    };
    let table = document.entry(section).or_insert_with(|| Item::Table(Table::new()));
    match table.get_mut(route).and_then(Item::as_value_mut) {
        Some(old) => {
            let decor = old.decor().clone();
            *old = phase.to_string().into();
            *old.decor_mut() = decor;
        }
        None => table[route] = value(phase.to_string()),
    }
}

/// Adds routes to `routing.force`.
pub fn add_force(text: &str, routes: &[String]) -> Result<String, EditError> {
    let mut document: DocumentMut = text.parse()?;
    let routing = document.entry("routing").or_insert_with(|| Item::Table(Table::new()));
    let mut forced = routing.get("force").and_then(Item::as_array).cloned().unwrap_or_else(Array::new);
    for route in routes {
        if !forced.iter().any(|known| known.as_str() == Some(route)) {
            forced.push(route.as_str());
        }
    }
    routing["force"] = value(forced);
    Ok(document.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_word_changes() {
        let text = "# mine\n[providers]   # all\n\"7\" = \"standalone\"   # the first\n\"8\"=\"cluster\"\n";
        let edited = set_phase(text, "7", Phase::DualStandalone).unwrap();
        assert_eq!(edited, text.replace("\"standalone\"", "\"dual-standalone\""));
        let added = set_phase(text, "9", Phase::Cluster).unwrap();
        let both = set_phases(text, &[("7".into(), Phase::DualStandalone), ("9".into(), Phase::Cluster)]).unwrap();
        assert_eq!(both, set_phase(&edited, "9", Phase::Cluster).unwrap());
        assert!(
            added.starts_with(text)
                && (added.ends_with("9 = \"cluster\"\n") || added.ends_with("\"9\" = \"cluster\"\n")),
            "{added}"
        );
    }
}
