//! Challenges and what answers them: Basic, and Bearer tokens (distribution specification, "Token Authentication").
//!
//! A secret is bound to the registry that it was given for. It goes to another host only as a token request, over
//! https, and only to a realm that is trusted (negative test D3); it never appears in an error or in a log (D8).

use std::{fmt, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use cofferdam_types::{Error, Result};
use serde::Deserialize;
use ureq::http::HeaderMap;

use super::Access;

/// A user and a secret. With an empty user the secret is a refresh ("identity") token.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// The user; empty for a refresh token.
    pub user: String,
    /// Password or token.
    pub secret: String,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Credentials {{ user: {:?}, secret: (hidden) }}", self.user)
    }
}

impl Credentials {
    pub(super) fn basic(&self) -> String {
        format!("Basic {}", STANDARD.encode(format!("{}:{}", self.user, self.secret)))
    }
}

/// One parsed challenge.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Challenge {
    Basic,
    Bearer(Bearer),
}

/// What a token is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Bearer {
    pub realm: String,
    pub service: Option<String>,
    pub scope: Option<String>,
    pub error: Option<String>,
}

/// The best challenge of a 401 that we can answer: Bearer before Basic.
pub(super) fn challenge(headers: &HeaderMap) -> Option<Challenge> {
    let mut best = None;
    for value in headers.get_all("www-authenticate").iter().take(16) {
        for found in value.to_str().into_iter().flat_map(parse) {
            match found {
                Challenge::Bearer(_) => return Some(found),
                Challenge::Basic => best = Some(found),
            }
        }
    }
    best
}

/// Parses one header's challenges (RFC 9110, 11.6.1): schemes, each with a comma-separated list of parameters.
fn parse(header: &str) -> Vec<Challenge> {
    let mut out = Vec::new();
    let mut scheme = String::new();
    let mut params: Vec<(String, String)> = Vec::new();
    let mut rest = header;
    loop {
        rest = rest.trim_start_matches([' ', '\t', ',']);
        let Some((word, after)) = token(rest) else { break };
        let after_space = after.trim_start_matches([' ', '\t']);
        if let Some(value) = after_space.strip_prefix('=').filter(|_| !scheme.is_empty()) {
            let value = value.trim_start_matches([' ', '\t']);
            let Some((text, left)) = quoted(value).or_else(|| token(value).map(|(t, l)| (t.to_owned(), l))) else {
                break;
            };
            params.push((word.to_ascii_lowercase(), text));
            rest = left;
        } else {
            finish(&mut out, &scheme, &mut params);
            scheme = word.to_ascii_lowercase();
            rest = after;
        }
    }
    finish(&mut out, &scheme, &mut params);
    out
}

fn finish(out: &mut Vec<Challenge>, scheme: &str, params: &mut Vec<(String, String)>) {
    let mut take = |key: &str| params.iter().position(|(k, _)| k == key).map(|i| params.swap_remove(i).1);
    match scheme {
        "basic" => out.push(Challenge::Basic),
        "bearer" => {
            if let Some(realm) = take("realm") {
                let (service, scope, error) = (take("service"), take("scope"), take("error"));
                out.push(Challenge::Bearer(Bearer { realm, service, scope, error }));
            }
        }
        _ => {}
    }
    params.clear();
}

fn token(text: &str) -> Option<(&str, &str)> {
    let end =
        text.find(|c: char| !(c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~/:".contains(c))).unwrap_or(text.len());
    (end > 0).then(|| text.split_at(end))
}

fn quoted(text: &str) -> Option<(String, &str)> {
    let body = text.strip_prefix('"')?;
    let mut value = String::new();
    let mut chars = body.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Some((value, &body[at + 1..])),
            '\\' => value.push(chars.next()?.1),
            c => value.push(c),
        }
    }
    None
}

/// What a token server answers.
#[derive(Deserialize)]
pub(super) struct TokenReply {
    token: Option<String>,
    access_token: Option<String>,
    expires_in: Option<serde_json::Value>,
}

impl TokenReply {
    /// How long the token is good for, where that is said; a little less, so that it doesn't end on its way.
    pub fn lasts(&self) -> Option<Duration> {
        let seconds = self.expires_in.as_ref()?.as_f64()?;
        let whole = Duration::try_from_secs_f64(seconds).ok().filter(|whole| !whole.is_zero())?;
        Some(whole.saturating_sub((whole / 10).min(Duration::from_secs(10))))
    }

    /// The header that the token makes.
    pub fn header(self, realm_host: &str) -> Result<String> {
        let token = self.token.or(self.access_token).filter(|t| !t.is_empty());
        let token = token
            .ok_or_else(|| Error::denied("registry", realm_host, "the authorization server did not include a token"))?;
        if !token.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(Error::denied("registry", realm_host, "the authorization server sent a token that is not one"));
        }
        Ok(format!("Bearer {token}"))
    }
}

/// The scopes to ask for: ours and the challenge's, each once, sorted.
pub(super) fn scopes(path: &str, access: &Access, challenged: Option<&str>) -> Vec<String> {
    let mut all = match access {
        Access::Pull => vec![format!("repository:{path}:pull")],
        Access::Push(from) => {
            let own = std::iter::once(format!("repository:{path}:pull,push"));
            own.chain(from.iter().map(|from| format!("repository:{from}:pull"))).collect()
        }
    };
    all.extend(challenged.into_iter().flat_map(str::split_ascii_whitespace).take(16).map(str::to_owned));
    all.sort();
    all.dedup();
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(values: &[&str]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for value in values {
            map.append("www-authenticate", value.parse().unwrap());
        }
        map
    }

    fn bearer(realm: &str, service: Option<&str>, scope: Option<&str>) -> Challenge {
        let own = |s: Option<&str>| s.map(str::to_owned);
        Challenge::Bearer(Bearer { realm: realm.into(), service: own(service), scope: own(scope), error: None })
    }

    #[test]
    fn challenges() {
        let full = r#"Bearer realm="https://auth.h.io/token",service="h.io",scope="repository:a/b:pull""#;
        let want = bearer("https://auth.h.io/token", Some("h.io"), Some("repository:a/b:pull"));
        assert_eq!(challenge(&headers(&[full])), Some(want));
        assert_eq!(challenge(&headers(&["Basic realm=\"x\""])), Some(Challenge::Basic));
        assert_eq!(challenge(&headers(&["basic"])), Some(Challenge::Basic));
        // Bearer is preferred, in one header or in two.
        let two = bearer("https://a", None, None);
        assert_eq!(challenge(&headers(&["Basic realm=x, Bearer realm=\"https://a\""])), Some(two));
        let two = bearer("https://a", None, None);
        assert_eq!(challenge(&headers(&["Basic realm=x", "BEARER realm = https://a"])), Some(two));
        // Unknown schemes are passed over, quotes are undone.
        let odd = bearer("https://a/\"q\"", None, None);
        assert_eq!(challenge(&headers(&[r#"Digest qop="auth, x", Bearer realm="https://a/\"q\"""#])), Some(odd));
        for nothing in ["", "Negotiate", "Bearer", "Bearer realm", "Bearer realm=\"unterminated", ",,,", "=x"] {
            assert_eq!(challenge(&headers(&[nothing])), None, "{nothing}");
        }
    }

    #[test]
    fn scopes_are_each_once_and_sorted() {
        let pull = |path, challenged| scopes(path, &Access::Pull, challenged);
        assert_eq!(pull("a/b", Some("repository:a/b:pull")), ["repository:a/b:pull"]);
        assert_eq!(pull("b", Some("repository:a:pull x")), ["repository:a:pull", "repository:b:pull", "x"]);
        let push = scopes("b", &Access::Push(vec!["a".into()]), Some("repository:b:pull,push"));
        assert_eq!(push, ["repository:a:pull", "repository:b:pull,push"]);
    }

    // D8 of the negative tests.
    #[test]
    fn d8_a_secret_is_not_shown() {
        let shown = format!("{:?}", Credentials { user: "me".into(), secret: "s3cret".into() });
        assert!(shown.contains("me") && !shown.contains("s3cret"));
    }

    #[test]
    fn a_token_reply_without_a_token() {
        let reply: TokenReply = serde_json::from_str("{}").unwrap();
        assert!(reply.header("h").unwrap_err().message.contains("did not include a token"));
        let reply: TokenReply = serde_json::from_str(r#"{"access_token":"abc"}"#).unwrap();
        assert_eq!(reply.header("h").unwrap(), "Bearer abc");
        let reply: TokenReply = serde_json::from_str("{\"token\":\"a\\r\\nX: y\"}").unwrap();
        assert!(reply.header("h").is_err());
        for (text, lasts) in [("300", Some(290)), ("60.0", Some(54)), ("0", None), ("-1", None), ("\"x\"", None)] {
            let reply: TokenReply =
                serde_json::from_str(&format!("{{\"token\":\"a\",\"expires_in\":{text}}}")).unwrap();
            assert_eq!(reply.lasts(), lasts.map(Duration::from_secs), "{text}");
        }
    }
}
