//! A connection that changes its protocol, handed on to the runtime byte by byte.
//!
//! SPDY and WebSocket are spoken by the client and the runtime; nothing here knows them.

use http::header::{self, HeaderMap};
use http::{Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use super::{Answer, text};

/// A refusal of the runtime is a sentence.
const MAX_REFUSAL_BYTES: usize = 64 * 1024;

/// Sends the request on to `url`, and once both sides have changed their protocol, all bytes.
/// Any other answer of the runtime goes back as it is.
pub(super) async fn splice(mut request: Request<Incoming>, url: &str) -> Answer {
    let Ok(uri) = url.parse::<Uri>() else {
        return text(StatusCode::INTERNAL_SERVER_ERROR, "the runtime's streaming address does not parse");
    };
    let Some(authority) = uri.authority().cloned() else {
        return text(StatusCode::INTERNAL_SERVER_ERROR, "the runtime's streaming address names no host");
    };
    let stream = match TcpStream::connect(authority.as_str()).await {
        Ok(stream) => stream,
        Err(error) => {
            return text(StatusCode::BAD_GATEWAY, &format!("cannot reach the runtime's streaming server: {error}"));
        }
    };
    let _ = stream.set_nodelay(true);
    let (mut sender, connection) = match hyper::client::conn::http1::handshake(TokioIo::new(stream)).await {
        Ok(pair) => pair,
        Err(error) => {
            return text(StatusCode::BAD_GATEWAY, &format!("the runtime's streaming server does not answer: {error}"));
        }
    };
    tokio::spawn(connection.with_upgrades());
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    let mut onward = Request::new(Empty::<bytes::Bytes>::new());
    *onward.method_mut() = request.method().clone();
    *onward.uri_mut() = path.parse().unwrap_or_default();
    *onward.headers_mut() = forwarded(request.headers());
    if let Ok(host) = authority.as_str().parse() {
        onward.headers_mut().insert(header::HOST, host);
    }
    let mut answer = match sender.send_request(onward).await {
        Ok(answer) => answer,
        Err(error) => return text(StatusCode::BAD_GATEWAY, &format!("the runtime's streaming server failed: {error}")),
    };
    if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
        let (head, body) = answer.into_parts();
        let body =
            Limited::new(body, MAX_REFUSAL_BYTES).collect().await.map(|body| body.to_bytes()).unwrap_or_default();
        let mut refusal = text(head.status, &String::from_utf8_lossy(&body));
        if let Some(kind) = head.headers.get(header::CONTENT_TYPE) {
            refusal.headers_mut().insert(header::CONTENT_TYPE, kind.clone());
        }
        return refusal;
    }
    let (to_runtime, to_client) = (hyper::upgrade::on(&mut answer), hyper::upgrade::on(&mut request));
    tokio::spawn(async move {
        match tokio::try_join!(to_runtime, to_client) {
            Ok((runtime, client)) => {
                // Either side may vanish at any time; that is how these streams end.
                let _ = tokio::io::copy_bidirectional(&mut TokioIo::new(runtime), &mut TokioIo::new(client)).await;
            }
            Err(error) => tracing::debug!(%error, "a stream to a container did not begin"),
        }
    });
    let mut switched = Response::new(super::empty());
    *switched.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    *switched.headers_mut() = answer.headers().clone();
    switched
}

/// The headers that the runtime negotiates by; not those that name the client.
fn forwarded(headers: &HeaderMap) -> HeaderMap {
    let mut kept = headers.clone();
    for name in [header::HOST, header::AUTHORIZATION, header::CONTENT_LENGTH, header::TRANSFER_ENCODING, header::ORIGIN]
    {
        kept.remove(name);
    }
    kept
}
