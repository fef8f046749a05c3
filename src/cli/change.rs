//! `cutover move`.

use std::path::Path;

use anyhow::bail;
use serde_json::json;

use crate::change::{Change, Changed, Judgement, Missing, change, select};
use crate::cli::api_client::ApiClient;
use crate::cli::consent::{self, Given};
use crate::cli::interrupt::Interrupt;
use crate::cli::lines;
use crate::cli::output::{names, say, time};
use crate::cli::{DONE, Move, REFUSED};
use crate::config::Config;

/// Changes phases in proxy.toml, in one edit, and waits for the running proxy.
pub fn run(config: &Config, path: &Path, asked: &Move, as_json: bool) -> anyhow::Result<u8> {
    let (to, judgement) = (asked.to, if asked.force { Judgement::Forced } else { Judgement::Stands });
    let routes = match asked.all {
        true => {
            let everyone = lines::everyone(config, as_json)?;
            everyone.lines.into_iter().chain(everyone.unnamed).collect()
        }
        false => select(config, &asked.routes, Missing::GetsLine)?,
    };
    if routes.is_empty() {
        bail!(
            "there is no provider: proxy.toml names none, and no key in the stores fits the patterns of routing.keys"
        );
    }
    if asked.force {
        let danger =
            format!("{} to {to} without a judgement: what differs between the stores may be lost", names(&routes));
        consent::ask(&danger, Given::of(asked.yes, asked.all))?;
    }
    // From here on Ctrl-C waits for the proxy's answer, so that a refused edit is put back and a force is taken out.
    let _interrupt = Interrupt::listen()?;
    let changes: Vec<Change> = routes.iter().map(|route| (route.clone(), to)).collect();
    let changed = change(config, path, &changes, judgement, &ApiClient::new(config))?;
    let named = names(&routes);
    if as_json {
        let (adopted_ms, refused) = match &changed {
            Changed::Adopted(took) => (Some(took.as_secs_f64() * 1e3), None),
            Changed::Refused(reason) => (None, Some(reason)),
            Changed::Already | Changed::Written => (None, None),
        };
        say!("{}", json!({ "routes": routes, "to": to, "adopted_ms": adopted_ms, "refused": refused }));
    } else {
        match &changed {
            Changed::Already => say!("{named} {} in phase {to} already", if routes.len() == 1 { "is" } else { "are" }),
            Changed::Adopted(took) => say!("{named} → {to}, adopted in {}", time(*took)),
            Changed::Written => say!(
                "{} now says {to} for {named}; no proxy runs with it, so the flip is judged when one starts",
                path.display()
            ),
            Changed::Refused(reason) => eprintln!("refused: {reason}\n{} is as it was before", path.display()),
        }
    }
    Ok(if matches!(changed, Changed::Refused(_)) { REFUSED } else { DONE })
}
