//! The last touch on an answer: indented for people, compressed for large lists,
//! ended with the server for streams.

use std::io::Write as _;

use bytes::{BufMut, Bytes, BytesMut};
use flate2::Compression;
use flate2::write::GzEncoder;
use futures::StreamExt;
use http::Response;
use http::header::{self, HeaderMap, HeaderValue};
use http_body::Body as _;
use http_body_util::{BodyExt, BodyStream, StreamBody};
use tokio_util::sync::CancellationToken;

use super::Query;
use super::body::{self, Body};

/// Below this, compressing costs more than it saves. Upstream's figure.
const GZIP_FROM_BYTES: u64 = 128 * 1024;

/// How the client wants its answer written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Wishes {
    pub(super) pretty: bool,
    pub(super) gzip: bool,
}

impl Wishes {
    /// Indentation is for those who ask for it, and for people's tools that do not say.
    pub(super) fn of(headers: &HeaderMap, query: &Query) -> Self {
        let text = |name| headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok()).unwrap_or("");
        let agent = text(header::USER_AGENT);
        let by_agent = ["curl", "Wget", "Mozilla/5.0"].iter().any(|prefix| agent.starts_with(prefix));
        let pretty = if query.get("pretty").is_some() { query.flag("pretty") } else { by_agent };
        let gzip =
            text(header::ACCEPT_ENCODING).split(',').any(|coding| coding.trim().split(';').next() == Some("gzip"));
        Self { pretty, gzip }
    }
}

/// Writes a whole answer as the client wishes. Streams pass untouched.
pub(super) async fn finish(response: Response<Body>, wishes: &Wishes) -> Response<Body> {
    let Some(length) = response.body().size_hint().exact() else { return response };
    let is_json = response
        .headers()
        .get(header::CONTENT_TYPE)
        .is_some_and(|value| value.as_bytes().starts_with(b"application/json"));
    let pretty = wishes.pretty && is_json && length > 0;
    let gzip = wishes.gzip && length > GZIP_FROM_BYTES && !response.headers().contains_key(header::CONTENT_ENCODING);
    if !pretty && !gzip {
        return response;
    }
    let (mut parts, body) = response.into_parts();
    let Ok(collected) = body.collect().await else {
        return Response::from_parts(parts, body::full(""));
    };
    let mut bytes = collected.to_bytes();
    parts.headers.remove(header::CONTENT_LENGTH);
    if pretty {
        bytes = indent(&bytes);
    }
    if gzip {
        parts.headers.append(header::VARY, HeaderValue::from_static("Accept-Encoding"));
        // Megabytes take milliseconds: not on a thread that serves others.
        let plain = bytes.clone();
        match tokio::task::spawn_blocking(move || compress(&plain)).await {
            Ok(Ok(packed)) => {
                parts.headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
                bytes = packed;
            }
            Ok(Err(error)) => tracing::warn!(%error, "could not compress an answer"),
            Err(error) => tracing::warn!(%error, "could not compress an answer"),
        }
    }
    Response::from_parts(parts, body::full(bytes))
}

fn compress(plain: &[u8]) -> std::io::Result<Bytes> {
    let mut encoder = GzEncoder::new(Vec::with_capacity(plain.len() / 4), Compression::fast());
    encoder.write_all(plain)?;
    encoder.finish().map(Bytes::from)
}

/// Indents valid JSON by two spaces, keeping its order; ends with a newline.
fn indent(json: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(json.len() * 2);
    let mut depth = 0usize;
    let (mut in_string, mut escaped) = (false, false);
    let line = |out: &mut BytesMut, depth: usize| {
        out.put_u8(b'\n');
        out.put_bytes(b' ', depth * 2);
    };
    for (index, &byte) in json.iter().enumerate() {
        if in_string {
            out.put_u8(byte);
            match byte {
                _ if escaped => escaped = false,
                b'\\' => escaped = true,
                b'"' => in_string = false,
                _ => {}
            }
            continue;
        }
        match byte {
            b'"' => {
                in_string = true;
                out.put_u8(byte);
            }
            b'{' | b'[' => {
                out.put_u8(byte);
                let closes = json[index + 1..].iter().find(|next| !next.is_ascii_whitespace());
                depth += 1;
                if !matches!(closes, Some(b'}' | b']')) {
                    line(&mut out, depth);
                }
            }
            b'}' | b']' => {
                depth = depth.saturating_sub(1);
                if !matches!(out.last(), Some(b'{' | b'[')) {
                    line(&mut out, depth);
                }
                out.put_u8(byte);
            }
            b',' => {
                out.put_u8(byte);
                line(&mut out, depth);
            }
            b':' => out.put_slice(b": "),
            byte if byte.is_ascii_whitespace() => {}
            byte => out.put_u8(byte),
        }
    }
    out.put_u8(b'\n');
    out.freeze()
}

/// A body that ends, in good order, when `ending` is cancelled.
pub(super) fn until(body: Body, ending: CancellationToken) -> Body {
    if body.is_end_stream() {
        return body;
    }
    StreamBody::new(BodyStream::new(body).take_until(ending.cancelled_owned())).boxed_unsync()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(agent: &str, query: &str, expected: bool) {
        let mut headers = HeaderMap::new();
        headers.insert(header::USER_AGENT, HeaderValue::from_str(agent).unwrap());
        assert_eq!(Wishes::of(&headers, &Query::parse(query)).pretty, expected, "{agent} ?{query}");
    }

    #[test]
    fn only_people_get_indentation() {
        check("curl/8.0", "", true);
        check("curl/8.0", "pretty=false", false);
        check("kubectl/v1.32.4", "", false);
        check("kubectl/v1.32.4", "pretty=1", true);
        check("kube-rs", "", false);
    }

    #[test]
    fn indentation_changes_nothing_else() {
        let plain = br#"{"a":[1,{"b":"x\",{:}"}],"c":{},"d":[]}"#;
        let pretty = indent(plain);
        assert_eq!(
            std::str::from_utf8(&pretty).unwrap(),
            "{\n  \"a\": [\n    1,\n    {\n      \"b\": \"x\\\",{:}\"\n    }\n  ],\n  \"c\": {},\n  \"d\": []\n}\n"
        );
        let before: serde_json::Value = serde_json::from_slice(plain).unwrap();
        assert_eq!(serde_json::from_slice::<serde_json::Value>(&pretty).unwrap(), before);
    }

    #[tokio::test]
    async fn large_answers_are_compressed() {
        let large = vec![b'a'; 200 * 1024];
        let response = body::text(http::StatusCode::OK, large.clone());
        let response = finish(response, &Wishes { gzip: true, pretty: false }).await;
        assert_eq!(response.headers()[header::CONTENT_ENCODING], "gzip");
        let packed = response.into_body().collect().await.unwrap().to_bytes();
        let mut plain = Vec::new();
        std::io::Read::read_to_end(&mut flate2::read::GzDecoder::new(&packed[..]), &mut plain).unwrap();
        assert_eq!(plain, large);
    }
}
