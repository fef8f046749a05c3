//! The dashboard's files. They are part of the program, and the page may load nothing else: no script that does not stand
//! in one of these files runs in it, whatever a provider is called.

use axum::extract::Path;
use axum::http::{HeaderName, StatusCode, header};
use axum::response::{IntoResponse, Response};

const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

const HEADERS: [(HeaderName, &str); 4] = [
    (header::CONTENT_SECURITY_POLICY, POLICY),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::REFERRER_POLICY, "no-referrer"),
    // A new binary brings a new page.
    (header::CACHE_CONTROL, "no-cache"),
];

/// Name, content type, content.
const FILES: [(&str, &str, &str); 9] = [
    ("style.css", CSS, include_str!("dashboard/style.css")),
    ("main.js", SCRIPT, include_str!("dashboard/main.js")),
    ("feed.js", SCRIPT, include_str!("dashboard/feed.js")),
    ("head.js", SCRIPT, include_str!("dashboard/head.js")),
    ("routes.js", SCRIPT, include_str!("dashboard/routes.js")),
    ("side.js", SCRIPT, include_str!("dashboard/side.js")),
    ("actions.js", SCRIPT, include_str!("dashboard/actions.js")),
    ("words.js", SCRIPT, include_str!("dashboard/words.js")),
    ("icon.svg", "image/svg+xml", include_str!("dashboard/icon.svg")),
];
const CSS: &str = "text/css; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";

/// `/`
pub async fn page() -> Response {
    let kind = [(header::CONTENT_TYPE, "text/html; charset=utf-8")];
    (HEADERS, kind, include_str!("dashboard/index.html")).into_response()
}

/// `/dashboard/{name}`
pub async fn file(Path(name): Path<String>) -> Response {
    match FILES.iter().find(|(known, ..)| *known == name) {
        Some((_, kind, content)) => (HEADERS, [(header::CONTENT_TYPE, *kind)], *content).into_response(),
        None => (StatusCode::NOT_FOUND, "there is no such file\n").into_response(),
    }
}
