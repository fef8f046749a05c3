//! The running proxy, by its admin address.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail};
use serde_json::Value;

use crate::config::Config;
use crate::secret::Secret;

/// See the module.
pub struct ApiClient {
    agent: ureq::Agent,
    base: String,
    token: Option<Secret>,
}

impl ApiClient {
    /// Nothing is sent yet.
    pub fn new(config: &Config) -> Self {
        let settings = ureq::Agent::config_builder()
            .timeout_global(Some(Duration::from_secs(10)))
            .http_status_as_error(false)
            .build();
        let mut address = config.admin.address;
        // A proxy that listens everywhere is reached by loopback.
        if address.ip().is_unspecified() {
            address.set_ip(std::net::Ipv4Addr::LOCALHOST.into());
        }
        Self { agent: settings.into(), base: format!("http://{address}"), token: config.admin.token.clone() }
    }

    /// Why the proxy that answers is not the one that goes by this file, if that is sure: two of them with the same admin
    /// address in their files are easily taken for each other. A file that is not on this machine tells nothing.
    pub fn stranger(&self, path: &Path) -> Option<String> {
        let adopted = self.get("/api/adopted").ok()?;
        let theirs = Path::new(adopted["config"].as_str()?);
        // An edit puts a new file in the place of the old one, also between two looks at the same path.
        let is_same_path = fs::canonicalize(theirs).ok()? == fs::canonicalize(path).ok()?;
        let place = |path: &Path| fs::metadata(path).ok().map(|file| (file.dev(), file.ino()));
        let is_other = !is_same_path && place(theirs)? != place(path)?;
        is_other.then(|| {
            format!(
                "the proxy that answers at {} runs with another file, {}; use that one (--config), or give this one's proxy an admin address of its own",
                self.base,
                theirs.display()
            )
        })
    }

    /// Reads.
    pub fn get(&self, path: &str) -> anyhow::Result<Value> {
        let answer = self.agent.get(format!("{}{path}", self.base)).call();
        self.understand(answer)
    }

    /// Reads what is no JSON; an answer that is no success is an error with its text.
    pub fn get_text(&self, path: &str) -> anyhow::Result<String> {
        let answer = self.agent.get(format!("{}{path}", self.base)).call();
        self.text(answer).and_then(|(status, text)| match status.is_success() {
            true => Ok(text),
            false => bail!("{}", text.trim()),
        })
    }

    /// Changes something.
    pub fn post(&self, path: &str, body: &Value) -> anyhow::Result<Value> {
        let mut request = self.agent.post(format!("{}{path}", self.base));
        if let Some(token) = &self.token {
            request = request.header("Authorization", format!("Bearer {}", token.expose()));
        }
        self.understand(request.send_json(body))
    }

    fn text(
        &self,
        answer: Result<ureq::http::Response<ureq::Body>, ureq::Error>,
    ) -> anyhow::Result<(ureq::http::StatusCode, String)> {
        let mut answer = answer.with_context(|| {
            format!(
                "the proxy's admin side does not answer at {}; is `cutover serve` running with this configuration?",
                self.base
            )
        })?;
        let text = answer.body_mut().read_to_string().context("read the proxy's answer")?;
        Ok((answer.status(), text))
    }

    fn understand(&self, answer: Result<ureq::http::Response<ureq::Body>, ureq::Error>) -> anyhow::Result<Value> {
        let (status, text) = self.text(answer)?;
        if status.is_success() {
            return serde_json::from_str(&text).context("understand the proxy's answer");
        }
        let reason =
            serde_json::from_str::<Value>(&text).ok().and_then(|body| body["error"].as_str().map(str::to_string));
        bail!("{}", reason.unwrap_or_else(|| text.trim().to_string()))
    }
}
