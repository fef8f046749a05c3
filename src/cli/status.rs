//! `cutover status`.

use std::time::{Duration, SystemTime};

use anyhow::bail;
use serde_json::{Value, json};

use crate::change::{self, Missing};
use crate::cli::api_client::ApiClient;
use crate::cli::lines;
use crate::cli::output::{names, print_table, say};
use crate::cli::{DONE, Status};
use crate::config::Config;
use crate::routing::{SHARES, Table};

/// Shows the routes once, or again each second.
pub fn run(config: &Config, asked: &Status, as_json: bool) -> anyhow::Result<u8> {
    let client = ApiClient::new(config);
    let named = select(config, asked, as_json)?;
    loop {
        let table = client.get("/api/table")?;
        let shown = match &named {
            None => table["routes"].as_array().cloned().unwrap_or_default(),
            Some(named) => find(config, &table, named)?,
        };
        if as_json {
            let head = [
                "bypass",
                "bypass_listening",
                "other_proxies",
                "lease",
                "lease_proxies",
                "table_version",
                "stores",
                "refused",
                "clients",
                "requests_total",
                "refused_requests",
            ];
            let mut document: serde_json::Map<String, Value> =
                head.iter().map(|key| (key.to_string(), table[*key].clone())).collect();
            document.insert("routes".into(), json!(shown));
            say!("{}", Value::Object(document));
        } else {
            if asked.watch {
                // Home and clear, as watch(1) does.
                say!("\x1b[H\x1b[2J");
            }
            print(&table, &shown);
            print_jobs(&client.get("/api/jobs")?);
            if named.is_none() && shown.iter().all(|route| route["kind"] == "default") {
                say!(
                    "no provider has a line yet: `cutover inventory` lists them, `cutover migrate ID` moves the first"
                );
            }
        }
        if !asked.watch {
            return Ok(DONE);
        }
        std::thread::sleep(Duration::from_secs(1));
    }
}

/// What is shown: everything that the table names, or the routes that were asked for.
fn select(config: &Config, asked: &Status, as_json: bool) -> anyhow::Result<Option<Vec<String>>> {
    if asked.all {
        let everyone = lines::everyone(config, as_json)?;
        return Ok(Some(everyone.lines.into_iter().chain(everyone.unnamed).collect()));
    }
    match asked.routes.is_empty() {
        true => Ok(None),
        false => Ok(Some(change::select(config, &asked.routes, Missing::IsCovered)?)),
    }
}

/// Routes by their names; a provider without a line is shown as the line that covers it.
fn find(config: &Config, table: &Value, named: &[String]) -> anyhow::Result<Vec<Value>> {
    let lines = Table::build(&config.routing, 1, None);
    let known = |name: &str| table["routes"].as_array()?.iter().find(|route| route["id"] == name).cloned();
    let mut found = Vec::new();
    for name in named {
        if let Some(route) = known(name) {
            found.push(route);
            continue;
        }
        let covering = lines.provider_route(name.as_bytes()).name.to_string();
        let Some(mut route) = known(&covering).filter(|_| !name.contains("..")) else {
            bail!("the table has no line for `{name}`; `cutover status` lists all");
        };
        // Its phase is that of the line; its traffic and keys are not.
        route["id"] = json!(name);
        route["covered_by"] = json!(covering);
        route["kind"] = json!("provider");
        route["keys_copied"] = Value::Null;
        route["ops_per_second"] = Value::Null;
        found.push(route);
    }
    Ok(found)
}

fn print(table: &Value, routes: &[Value]) {
    let store = |side: &str| {
        let store = &table["stores"][side];
        match (store["up"] == true, store["latency_ms"].as_f64()) {
            (true, Some(ms)) => format!("answers in {ms:.2} ms"),
            (true, None) => "answers".to_string(),
            (false, _) => "does not answer".to_string(),
        }
    };
    say!(
        "table {}   standalone {}   cluster {}   {} clients   {} requests",
        table["table_version"],
        store("standalone"),
        store("cluster"),
        table["clients"],
        table["requests_total"]
    );
    for (name, address) in table["other_proxies"].as_object().into_iter().flatten() {
        say!(
            "another cutover ({name}, from {}) is connected to these stores: two without a lease in common break the order of writes in dual phases; give both the same lease.name, or stop one",
            address.as_str().unwrap_or("?")
        );
    }
    print_lease(table);
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
    for writer in table["bypass"].as_array().into_iter().flatten() {
        say!("{}", bypass_line(writer, now));
    }
    if let Some(reason) = table["refused"].as_str() {
        say!("the newest proxy.toml is refused, the running table stays: {reason}");
    }
    let heads = ["ROUTE", "PHASE", "LEADER", "COPIED", "SYNCED", "DIVERGENCE", "OPS/S"];
    print_table(heads, gathered(routes).iter().map(cells));
}

/// Who writes around the proxy, and what to do; `now` in seconds since 1970.
fn bypass_line(writer: &Value, now: u64) -> String {
    let text = |key: &str| writer[key].as_str().unwrap_or("").to_string();
    let place = format!("{} {}", text("store"), text("node"));
    let (place, writes) = (place.trim_end(), writer["writes"].as_u64().unwrap_or(0));
    let ago = now.saturating_sub(writer["last_seen"].as_u64().unwrap_or(now)) / 60;
    let last = if ago == 0 { String::new() } else { format!(", the last {ago} min ago") };
    match writer["found_by"].as_str() {
        Some("count") => format!(
            "the {place} has run {writes} commands that write which no proxy sent{last}: somebody writes around the proxy on connections that come and go; stop it, then run `cutover backfill --all`"
        ),
        Some("notification") => {
            let (route, key) = (text("route"), text("key"));
            format!(
                "route {route}: {writes} changes on the {place} were made around the proxy{last}, such as {} of {key}: stop who makes them, then run `cutover backfill {route}`",
                text("command")
            )
        }
        _ => {
            let name = if text("name").is_empty() { String::new() } else { format!(" ({})", text("name")) };
            let does = if ago == 0 { "writes".to_string() } else { format!("wrote, {ago} min ago,") };
            format!(
                "{}{name} {does} to the {place} around the proxy ({}): stop it, then run `cutover backfill --all`",
                text("address"),
                text("command")
            )
        }
    }
}

/// What walks the stores now.
fn print_jobs(jobs: &Value) {
    for job in jobs["jobs"].as_array().into_iter().flatten().filter(|job| job["state"] == "running") {
        let number = |key: &str| job[key].as_f64().unwrap_or(0.0);
        let routes: Vec<String> = serde_json::from_value(job["routes"].clone()).unwrap_or_default();
        say!(
            "{} {} runs: {:.0}% of the keys scanned, {:.0}/s: {}",
            job["kind"].as_str().unwrap_or("job"),
            job["id"],
            (100.0 * number("scanned") / number("keys_total").max(1.0)).min(100.0),
            number("keys_per_second"),
            names(&routes)
        );
    }
}

/// Who holds the lease, where that is worth a line.
fn print_lease(table: &Value) {
    let lease = &table["lease"];
    let holder = lease["holder"].as_str().unwrap_or("?");
    let others = table["lease_proxies"].as_object().map_or(0, serde_json::Map::len);
    match lease["role"].as_str().unwrap_or_default() {
        "holds" if others > 0 => {
            say!("this proxy holds the lease of the dual routes; {others} more send it their traffic");
        }
        "follows" => {
            say!("the proxy at {holder} holds the lease of the dual routes, and gets their traffic from this one")
        }
        "waits" => say!(
            "no proxy holds the lease of the dual routes, whose commands wait: {}",
            lease["reason"].as_str().unwrap_or("the stores have not been asked yet")
        ),
        _ => {}
    }
    for differs in lease["differs"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        say!("this proxy.toml differs from the holder's table: {differs}");
    }
}

/// The parts of the share that are in one phase are one row for a person.
fn gathered(routes: &[Value]) -> Vec<Value> {
    let mut rows: Vec<Value> = Vec::with_capacity(routes.len());
    // By phase: the row, and how many parts it stands for.
    let mut shares: Vec<(&Value, usize, u32)> = Vec::new();
    for route in routes {
        let known = shares.iter_mut().find(|(phase, ..)| route["kind"] == "share" && **phase == route["phase"]);
        let Some((_, at, parts)) = known else {
            if route["kind"] == "share" {
                shares.push((&route["phase"], rows.len(), 1));
            }
            rows.push(route.clone());
            continue;
        };
        *parts += 1;
        rows[*at]["id"] = json!(format!("share ({parts} of {SHARES})"));
        add(&mut rows[*at], route);
    }
    rows
}

fn add(row: &mut Value, route: &Value) {
    for key in ["keys_copied", "open_divergence", "ops_per_second"] {
        row[key] = match (row[key].as_f64(), route[key].as_f64()) {
            (Some(one), Some(other)) => json!(((one + other) * 10.0).round() / 10.0),
            (one, other) => json!(one.or(other)),
        };
    }
    row["synced"] = json!(row["synced"] == true && route["synced"] == true);
    row["in_doubt"] = json!(row["in_doubt"] == true || route["in_doubt"] == true);
}

fn cells(route: &Value) -> [String; 7] {
    let text = |key: &str| route[key].as_str().unwrap_or("-").to_string();
    let number = |key: &str| route[key].as_f64().map_or("-".to_string(), |number| number.to_string());
    let synced = match (route["follower"].is_null(), route["in_doubt"] == true, route["synced"] == true) {
        (true, ..) => "-",
        (_, true, _) => "in doubt",
        (.., true) => "yes",
        _ => "no",
    };
    let id = match route["covered_by"].as_str() {
        Some(line) => format!("{} (by {line})", text("id")),
        None => text("id"),
    };
    [
        id,
        text("phase"),
        text("leader"),
        number("keys_copied"),
        synced.into(),
        number("open_divergence"),
        number("ops_per_second"),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_the_share_in_one_phase_are_one_row_that_is_as_good_as_the_worst_of_them() {
        let part = |id: &str, phase: &str, synced: bool, copied: Option<u32>| {
            json!({ "id": id, "kind": "share", "phase": phase, "leader": "standalone", "follower": "cluster", "synced": synced,
                "in_doubt": false, "open_divergence": 2, "keys_copied": copied, "ops_per_second": 0.5 })
        };
        let mut other = part("42", "dual-standalone", true, None);
        other["kind"] = json!("provider");
        let routes = [
            part("share_0", "dual-cluster", true, None),
            part("share_1", "dual-standalone", true, Some(3)),
            part("share_2", "dual-standalone", false, None),
            part("share_3", "dual-standalone", true, Some(4)),
            other,
        ];
        let shown: Vec<[String; 7]> = gathered(&routes).iter().map(cells).collect();
        let row = |cells: [&str; 7]| cells.map(str::to_string);
        assert_eq!(
            shown,
            [
                row(["share_0", "dual-cluster", "standalone", "-", "yes", "2", "0.5"]),
                row(["share (3 of 100)", "dual-standalone", "standalone", "7", "no", "6", "1.5"]),
                row(["42", "dual-standalone", "standalone", "-", "yes", "2", "0.5"]),
            ]
        );
    }
}
