//! `cutover health`: whether the running proxy can serve, for health checks.

use crate::cli::DONE;
use crate::cli::api_client::ApiClient;
use crate::cli::output::say;
use crate::config::Config;

/// The error, if there is one, says what is missing.
pub fn run(config: &Config, is_live_enough: bool) -> anyhow::Result<u8> {
    let path = if is_live_enough { "/healthz" } else { "/readyz" };
    let text = ApiClient::new(config).get_text(path)?;
    say!("{}", text.trim());
    Ok(DONE)
}
