//! `GET /api/events`: the feed as server-sent events. One `full`, then a `tick` each second with what changed. The stream
//! ends when the listener is behind; a browser then connects anew and begins with `full` again.

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::sse::{Event, Sse};
use futures_util::stream::{self, Stream};

use crate::admin::Parts;
use crate::admin::api::{Refused, refused};
use crate::admin::feed::{Heard, Listener};

type Sent = Result<Event, std::convert::Infallible>;

/// Lets a listener in, or answers 503.
pub async fn events(State(parts): State<Parts>) -> Result<Sse<impl Stream<Item = Sent>>, Refused> {
    let begun = tokio::task::spawn_blocking(move || parts.feed.clone().listen(&parts)).await;
    let begun = begun.map_err(|error| refused(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))?;
    let (full, listener) = begun.map_err(|full| refused(StatusCode::SERVICE_UNAVAILABLE, full.to_string()))?;
    Ok(Sse::new(stream::unfold((Some(full), listener), next)))
}

async fn next((full, mut listener): (Option<String>, Listener)) -> Option<(Sent, (Option<String>, Listener))> {
    let event = match full {
        Some(full) => Event::default().event("full").data(full),
        None => match listener.hear().await {
            Heard::Tick(tick) => Event::default().event("tick").data(tick),
            Heard::Behind => return None,
        },
    };
    Some((Ok(event), (None, listener)))
}
