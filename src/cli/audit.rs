//! `cutover audit`: what the running proxy saw that will not work the same on a cluster.

use serde_json::Value;

use crate::cli::api_client::ApiClient;
use crate::cli::output::{print_table, say};
use crate::cli::{DONE, REFUSED};
use crate::config::Config;

/// Prints the findings; the exit code tells whether there are any.
pub fn run(config: &Config, as_json: bool) -> anyhow::Result<u8> {
    let answer = ApiClient::new(config).get("/api/audit")?;
    let findings: Vec<&Value> = answer["findings"].as_array().map(|all| all.iter().collect()).unwrap_or_default();
    let code = if findings.is_empty() { DONE } else { REFUSED };
    if as_json {
        say!("{answer}");
        return Ok(code);
    }
    let since = humantime::format_duration(std::time::Duration::from_secs(answer["seconds"].as_u64().unwrap_or(0)));
    if findings.is_empty() {
        say!("nothing in {since}: all that was seen works the same on the cluster");
        return Ok(code);
    }
    let mut kind = "";
    let mut rows: Vec<[String; 5]> = Vec::new();
    let print = |kind: &str, remedy: &str, rows: &mut Vec<[String; 5]>| {
        say!("{kind}: {remedy}");
        print_table(["  COMMAND", "ROUTE", "CLIENT", "COUNT", "EXAMPLE"], std::mem::take(rows));
        say!("");
    };
    let text = |finding: &Value, key: &str| finding[key].as_str().unwrap_or_default().to_string();
    for (index, finding) in findings.iter().enumerate() {
        kind = finding["kind"].as_str().unwrap_or(kind);
        let command = format!("  {}", text(finding, "command"));
        rows.push([
            command,
            text(finding, "route"),
            text(finding, "client"),
            finding["count"].to_string(),
            text(finding, "example"),
        ]);
        let is_last = findings.get(index + 1).is_none_or(|next| next["kind"] != finding["kind"]);
        if is_last {
            print(kind, &text(finding, "remedy"), &mut rows);
        }
    }
    if let Some(dropped) = answer["dropped"].as_u64().filter(|dropped| *dropped > 0) {
        say!("{dropped} more were seen after the list was full");
    }
    say!("seen in {since} of traffic; what did not come up in it is not in the list");
    Ok(code)
}
