//! Who may change something: whoever has the token, and no page of another origin.

use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use crate::admin::Parts;
use crate::secret::Secret;

/// Lets a request pass, or answers 401 or 403 and why.
pub async fn check(State(parts): State<Parts>, request: Request, next: Next) -> Response {
    if is_foreign(request.headers()) {
        return (StatusCode::FORBIDDEN, "refused: the call comes from a web page of another origin\n").into_response();
    }
    if !has_token(parts.token.as_ref(), request.headers()) {
        let how = "refused: send the admin token of proxy.toml as `Authorization: Bearer TOKEN`\n";
        return (StatusCode::UNAUTHORIZED, how).into_response();
    }
    if parts.token.is_none() && is_named(request.headers()) {
        let how = "refused: a page that is reached by a host name may change something only with an admin token, because any site could give its name this address; set `token` under [admin], or open the page by its IP address\n";
        return (StatusCode::FORBIDDEN, how).into_response();
    }
    next.run(request).await
}

/// Whether a page calls that was reached by a name: whoever owns the name could have let it point here, and then the page
/// is theirs although the origin is ours.
fn is_named(headers: &HeaderMap) -> bool {
    if !headers.contains_key(header::ORIGIN) {
        return false;
    }
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    let name = host.rsplit_once(':').filter(|(_, port)| port.parse::<u16>().is_ok()).map_or(host, |(name, _)| name);
    let is_address = name.trim_start_matches('[').trim_end_matches(']').parse::<std::net::IpAddr>().is_ok();
    !is_address && name != "localhost"
}

/// A browser names the page that a call comes from; a command line does not.
fn is_foreign(headers: &HeaderMap) -> bool {
    let Some(origin) = headers.get(header::ORIGIN) else { return false };
    let own = headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    let place = origin.to_str().ok().and_then(|origin| origin.split_once("://"));
    place.is_none_or(|(_, place)| place != own)
}

fn has_token(token: Option<&Secret>, headers: &HeaderMap) -> bool {
    let Some(token) = token else { return true };
    let given = headers.get(header::AUTHORIZATION).and_then(|value| value.as_bytes().strip_prefix(b"Bearer "));
    given.is_some_and(|given| token.is(given))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(header::HeaderName, &str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.clone(), value.parse().unwrap())).collect()
    }

    #[test]
    fn a_page_of_another_origin_is_foreign_and_a_command_line_is_not() {
        let host = (header::HOST, "127.0.0.1:9380");
        assert!(!is_foreign(&headers(std::slice::from_ref(&host))));
        assert!(!is_foreign(&headers(&[host.clone(), (header::ORIGIN, "http://127.0.0.1:9380")])));
        assert!(is_foreign(&headers(&[host.clone(), (header::ORIGIN, "https://evil.example")])));
        assert!(is_foreign(&headers(&[host, (header::ORIGIN, "null")])));
    }

    #[test]
    fn a_page_reached_by_a_name_is_told_from_one_reached_by_an_address() {
        let page = |host: &str| headers(&[(header::HOST, host), (header::ORIGIN, "http://x")]);
        for host in ["127.0.0.1:9380", "[::1]:9380", "[::1]", "10.1.2.3", "localhost:9380", "localhost"] {
            assert!(!is_named(&page(host)), "{host}");
        }
        assert!(is_named(&page("proxy.example:9380")) && is_named(&page("example")) && is_named(&page("")));
        assert!(!is_named(&headers(&[(header::HOST, "proxy.example")])), "a command line names no page");
    }

    #[test]
    fn only_the_whole_token_counts() {
        let with = |value: &str| headers(&[(header::AUTHORIZATION, value)]);
        assert!(has_token(None, &headers(&[])));
        assert!(has_token(Some(&Secret::from("abc")), &with("Bearer abc")));
        for wrong in ["Bearer ab", "Bearer abcd", "Bearer ", "abc"] {
            assert!(!has_token(Some(&Secret::from("abc")), &with(wrong)), "{wrong}");
        }
    }
}
