//! `cutover status`.

use std::time::Duration;

use anyhow::bail;
use serde_json::{Value, json};

use crate::cli::DONE;
use crate::cli::api_client::ApiClient;
use crate::config::Config;

/// Shows the routes once, or again each second.
pub fn run(config: &Config, routes: &[String], watch: bool, as_json: bool) -> anyhow::Result<u8> {
    let client = ApiClient::new(config);
    loop {
        let table = client.get("/api/table")?;
        let shown = select(&table, routes)?;
        if as_json {
            println!("{}", json!({ "table_version": table["table_version"], "stores": table["stores"], "refused": table["refused"], "routes": shown }));
        } else {
            if watch {
                // Home and clear, as watch(1) does.
                print!("\x1b[H\x1b[2J");
            }
            print(&table, &shown);
        }
        if !watch {
            return Ok(DONE);
        }
        std::thread::sleep(Duration::from_secs(1));
    }
}

fn select<'t>(table: &'t Value, routes: &[String]) -> anyhow::Result<Vec<&'t Value>> {
    let all: Vec<&Value> = table["routes"].as_array().map(|routes| routes.iter().collect()).unwrap_or_default();
    if routes.is_empty() {
        return Ok(all);
    }
    let mut found = Vec::new();
    for name in routes {
        match all.iter().find(|route| route["id"] == name.as_str()) {
            Some(route) => found.push(*route),
            None => bail!("the table has no line for `{name}`: it goes by `new_providers` or by a range; `cutover status` lists all"),
        }
    }
    Ok(found)
}

fn print(table: &Value, routes: &[&Value]) {
    let up = |side: &str| if table["stores"][side]["up"] == true { "answers" } else { "does not answer" };
    println!(
        "table {}   standalone {}   cluster {}   {} clients   {} requests",
        table["table_version"],
        up("standalone"),
        up("cluster"),
        table["clients"],
        table["requests_total"]
    );
    if let Some(reason) = table["refused"].as_str() {
        println!("the newest proxy.toml is refused, the running table stays: {reason}");
    }
    let cells = |route: &Value| {
        let text = |key: &str| route[key].as_str().unwrap_or("-").to_string();
        let synced = match (route["follower"].is_null(), route["in_doubt"] == true, route["synced"] == true) {
            (true, ..) => "-",
            (_, true, _) => "in doubt",
            (.., true) => "yes",
            _ => "no",
        };
        [text("id"), text("phase"), text("leader"), synced.to_string(), route["open_divergence"].to_string()]
    };
    let heads = ["ROUTE", "PHASE", "LEADER", "SYNCED", "DIVERGENCE"].map(str::to_string);
    let rows: Vec<[String; 5]> = std::iter::once(heads).chain(routes.iter().map(|route| cells(route))).collect();
    let widths: Vec<usize> = (0..5).map(|column| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0)).collect();
    for row in rows {
        let line: Vec<String> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        println!("{}", line.join("  ").trim_end());
    }
}
