//! `cutover inventory`: what the standalone holds, as a table and as a report file.

use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;

use crate::cli::output::{print_table, say, size, time};
use crate::cli::progress::Progress;
use crate::cli::{DONE, Inventory as Asked};
use crate::config::Config;
use crate::jobs::inventory::{self, BigKey, Inventory, Tally, by_bytes};
use crate::routing::Table;
use crate::serve;

/// Reads, writes the report, prints.
pub fn run(config: &Config, asked: &Asked, as_json: bool) -> anyhow::Result<u8> {
    // A report that cannot be written is better known before the walk than after it.
    write(&asked.output, "")?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let table = Table::build(&config.routing, 1, None);
    let progress = Progress::new(as_json);
    let tell = |at: inventory::Progress| {
        progress.show(at.scanned as f64, at.total as f64, || format!("{} of about {} keys read", at.scanned, at.total));
    };
    let found = runtime.block_on(inventory::take(&serve::standalone(config)?, &table, asked.top, tell));
    progress.end();
    let found = found.context("read the standalone")?;
    let report = serde_json::to_string_pretty(&found)?;
    write(&asked.output, &format!("{report}\n"))?;
    match as_json {
        true => say!("{report}"),
        false => print(&found, asked),
    }
    Ok(DONE)
}

fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    std::fs::write(path, text).with_context(|| format!("write the report {}", path.display()))
}

fn print(found: &Inventory, asked: &Asked) {
    say!(
        "{} database {}: {} keys, {} in {} providers, read in {}",
        found.address,
        found.databases.iter().map(u32::to_string).collect::<Vec<_>>().join(", "),
        found.total.keys,
        size(found.total.bytes),
        found.providers.len(),
        time(Duration::from_secs_f64(found.seconds)),
    );
    let providers = by_bytes(&found.providers);
    let mut rows: Vec<[String; 8]> = providers.iter().take(asked.top).map(|(id, tally)| row(id, tally)).collect();
    rows.extend(found.prefixes.iter().map(|(prefix, tally)| row(prefix, tally)));
    rows.push(row("other_keys", &found.other_keys));
    rows.push(row("all", &found.total));
    print_table(["ROUTE", "KEYS", "BYTES", "NO TTL", "<1H", "<1D", "MORE", "BYTES BY TYPE"], rows);
    if providers.len() > asked.top {
        say!("… and {} smaller providers: all are in the report", providers.len() - asked.top);
    }
    if !found.total.biggest.is_empty() {
        say!("\nthe biggest keys:");
        let cells = |big: &BigKey| [size(big.bytes), big.kind.clone(), big.key.clone()];
        print_table(["BYTES", "TYPE", "KEY"], found.total.biggest.iter().map(cells));
    }
    if !found.other_segments.is_empty() {
        say!("\nkeys without a provider begin with:");
        let mut segments: Vec<_> = found.other_segments.iter().collect();
        segments.sort_by_key(|(segment, sum)| (std::cmp::Reverse(sum.keys), (*segment).clone()));
        let cells = segments
            .into_iter()
            .take(asked.top)
            .map(|(segment, sum)| [segment.clone(), sum.keys.to_string(), size(sum.bytes)]);
        print_table(["BEGIN", "KEYS", "BYTES"], cells);
    }
    if found.unsized_keys > 0 {
        say!(
            "\nthe server did not tell the size of {} keys (MEMORY USAGE); they count with 0 bytes",
            found.unsized_keys
        );
    }
    say!("\nthe whole report: {}", asked.output.display());
}

fn row(name: &str, tally: &Tally) -> [String; 8] {
    let types: Vec<String> = tally.types.iter().map(|(kind, sum)| format!("{kind} {}", size(sum.bytes))).collect();
    let ttls = &tally.ttls;
    let [none, hour, day, more] = [ttls.none, ttls.under_1h, ttls.under_1d, ttls.more].map(|keys| keys.to_string());
    [name.to_string(), tally.keys.to_string(), size(tally.bytes), none, hour, day, more, types.join(", ")]
}
