//! Requests over plain HTTP/1.1: the JSON gateway, and what monitoring asks.

use anyhow::{Context, Result, bail};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::call::{Call, Target, Who, clip};

/// The largest answer that is read.
const MAX_ANSWER_BYTES: u64 = 16 << 20;

/// Asks for a path; `body` is sent if it is not empty. Compared are the status, the
/// content type and the body, as JSON if it is that.
pub(crate) fn http(method: &'static str, path: &'static str, body: impl Into<String>) -> Call {
    let body = body.into();
    let text = format!("{method} {path} {}", clip(&body, 300));
    Call::new(text, move |target| {
        let body = body.clone();
        Box::pin(async move {
            match ask(&target, method, path, &body).await {
                Ok(text) => text,
                Err(error) => format!("no answer: {error:#}"),
            }
        })
    })
}

async fn ask(target: &Target, method: &str, path: &str, body: &str) -> Result<String> {
    let address = target.addresses[target.place(Who::Leader)];
    let mut stream = TcpStream::connect(address).await?;
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    // In one piece: etcd closes a refused request without waiting for what is still to come,
    // which resets the connection before its answer is read.
    stream.write_all((head + body).as_bytes()).await?;
    let mut bytes = Vec::new();
    stream.take(MAX_ANSWER_BYTES).read_to_end(&mut bytes).await?;
    let end = bytes.windows(4).position(|window| window == b"\r\n\r\n").context("no head")?;
    let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
    let header = |name: &str| {
        let lines = head.lines().filter_map(|line| line.split_once(": "));
        lines.filter(|(found, _)| found.eq_ignore_ascii_case(name)).map(|(_, value)| value.to_owned()).next()
    };
    let body = match header("transfer-encoding").as_deref() {
        Some("chunked") => dechunk(&bytes[end + 4..])?,
        _ => bytes[end + 4..].to_vec(),
    };
    let status = head.lines().next().and_then(|line| line.split(' ').nth(1)).context("no status")?;
    let content_type = header("content-type").unwrap_or_default();
    Ok(format!("{status} {content_type}\n{}", pretty(&String::from_utf8_lossy(&body))))
}

/// JSON values, one or several, with their fields sorted; anything else as it is.
fn pretty(body: &str) -> String {
    let values: Result<Vec<Value>, _> = serde_json::Deserializer::from_str(body).into_iter().collect();
    match values {
        Ok(values) if !values.is_empty() => {
            values.iter().map(|value| format!("{value:#}")).collect::<Vec<_>>().join("\n")
        }
        _ => body.to_owned(),
    }
}

fn dechunk(mut bytes: &[u8]) -> Result<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let Some(end) = bytes.windows(2).position(|window| window == b"\r\n") else { bail!("a chunk is cut short") };
        let size = usize::from_str_radix(std::str::from_utf8(&bytes[..end])?.trim(), 16)?;
        let chunk = bytes.get(end + 2..end + 2 + size).context("a chunk is cut short")?;
        if size == 0 {
            return Ok(body);
        }
        body.extend_from_slice(chunk);
        bytes = bytes.get(end + 4 + size..).context("a chunk is cut short")?;
    }
}
