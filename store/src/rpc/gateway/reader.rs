//! The messages of a request's body: JSON values one after the other, read as they come.

use axum::body::{Body, BodyDataStream};
use bytes::BytesMut;
use futures::{Stream, StreamExt, stream};
use prost::Message;
use prost_reflect::{DynamicMessage, MessageDescriptor};
use tonic::Status;

use super::json;

/// How much longer than the message its text may be: base64 adds a third, and names,
/// white space and escapes have the rest.
const TEXT_FACTOR: usize = 2;

pub(super) struct Reader {
    body: BodyDataStream,
    input: MessageDescriptor,
    max_message_bytes: usize,
    /// What was received and not read.
    text: BytesMut,
    end: EndOfValue,
    ended: bool,
}

impl Reader {
    pub(super) fn new(body: Body, input: MessageDescriptor, max_message_bytes: usize) -> Self {
        Self {
            body: body.into_data_stream(),
            input,
            max_message_bytes,
            text: BytesMut::new(),
            end: EndOfValue::default(),
            ended: false,
        }
    }

    /// The next message; none at the end of the body.
    pub(super) async fn next(&mut self) -> Option<Result<DynamicMessage, Status>> {
        loop {
            if let Some(end) = self.end.find(&self.text) {
                let text = self.text.split_to(end);
                self.end = EndOfValue::default();
                return Some(self.message(&text));
            }
            if self.ended {
                let text = self.text.split();
                return (!text.trim_ascii().is_empty()).then(|| self.message(&text));
            }
            if self.text.len() > TEXT_FACTOR * self.max_message_bytes {
                return Some(Err(too_large(self.text.len(), TEXT_FACTOR * self.max_message_bytes)));
            }
            match self.body.next().await {
                Some(Ok(bytes)) => self.text.extend_from_slice(&bytes),
                Some(Err(error)) => return Some(Err(Status::cancelled(error.to_string()))),
                None => self.ended = true,
            }
        }
    }

    /// All further messages, up to one that cannot be read: as etcd, that ends what the
    /// caller sends.
    pub(super) fn rest(self) -> impl Stream<Item = DynamicMessage> {
        stream::unfold(self, |mut reader| async move {
            match reader.next().await? {
                Ok(message) => Some((message, reader)),
                Err(status) => {
                    tracing::debug!(%status, "a message of a stream cannot be read");
                    None
                }
            }
        })
    }

    fn message(&self, text: &[u8]) -> Result<DynamicMessage, Status> {
        let value = serde_json::from_slice(text).map_err(|error| Status::invalid_argument(error.to_string()))?;
        let message = json::decode(&self.input, &value).map_err(Status::invalid_argument)?;
        match message.encoded_len() {
            size if size > self.max_message_bytes => Err(too_large(size, self.max_message_bytes)),
            _ => Ok(message),
        }
    }
}

/// Finds where an object or a list ends, looking at every byte once. What is neither
/// ends where one begins, or with the body.
#[derive(Default)]
struct EndOfValue {
    seen: usize,
    depth: usize,
    quoted: bool,
    escaped: bool,
    other: bool,
}

impl EndOfValue {
    /// The length of the first value in `text`, which grew since the last call.
    fn find(&mut self, text: &[u8]) -> Option<usize> {
        while let Some(byte) = text.get(self.seen) {
            self.seen += 1;
            match byte {
                _ if self.escaped => self.escaped = false,
                b'\\' if self.quoted => self.escaped = true,
                b'"' => self.quoted = !self.quoted,
                _ if self.quoted => {}
                b'{' | b'[' if self.depth == 0 && self.other => return Some(self.seen - 1),
                b'{' | b'[' => self.depth += 1,
                b'}' | b']' if self.depth <= 1 => return Some(self.seen),
                b'}' | b']' => self.depth -= 1,
                byte if self.depth == 0 && !byte.is_ascii_whitespace() => self.other = true,
                _ => {}
            }
        }
        None
    }
}

/// In the words of etcd's gRPC library.
fn too_large(size: usize, limit: usize) -> Status {
    Status::resource_exhausted(format!("grpc: received message larger than max ({size} vs. {limit})"))
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;
    use crate::rpc::gateway::descriptors;

    const LIMIT: usize = 1 << 10;

    async fn read(pieces: &[&str]) -> Vec<Result<String, String>> {
        let pieces: Vec<Result<String, Infallible>> = pieces.iter().map(|piece| Ok((*piece).to_owned())).collect();
        let input = descriptors().get_message_by_name("etcdserverpb.LeaseKeepAliveRequest").unwrap();
        let mut reader = Reader::new(Body::from_stream(stream::iter(pieces)), input, LIMIT);
        let mut read = Vec::new();
        while let Some(found) = reader.next().await {
            let failed = found.is_err();
            read.push(found.map(|message| json::encode(&message)).map_err(|status| status.message().to_owned()));
            if failed {
                break;
            }
        }
        read
    }

    #[tokio::test]
    async fn messages_are_read_however_they_are_cut() {
        let check = async |pieces: &[&str], expected: &[&str]| {
            let expected: Vec<Result<String, String>> = expected.iter().map(|text| Ok((*text).to_owned())).collect();
            assert_eq!(read(pieces).await, expected, "{pieces:?}");
        };
        check(&[], &[]).await;
        check(&["", " \n"], &[]).await;
        check(&[r#"{"ID":1}{"ID":2}"#], &[r#"{"ID":"1"}"#, r#"{"ID":"2"}"#]).await;
        check(&["{", r#""ID""#, ":", "12", "34}", "\n{}"], &[r#"{"ID":"1234"}"#, "{}"]).await;
        check(&["nul", "l"], &["{}"]).await;
        check(&["null{}"], &["{}", "{}"]).await;
        check(&[r#"{"a":"}\\\"{","ID":"7","b":[{}]} {"#, "}"], &[r#"{"ID":"7"}"#, "{}"]).await;
    }

    #[tokio::test]
    async fn a_message_is_read_before_the_next_one_begins() {
        let (sender, receiver) = tokio::sync::mpsc::channel::<Result<&str, Infallible>>(2);
        let input = descriptors().get_message_by_name("etcdserverpb.LeaseKeepAliveRequest").unwrap();
        let body = Body::from_stream(tokio_stream::wrappers::ReceiverStream::new(receiver));
        let mut reader = Reader::new(body, input, LIMIT);
        for piece in [r#"{"ID":"1""#, "}"] {
            sender.send(Ok(piece)).await.unwrap();
        }
        assert_eq!(json::encode(&reader.next().await.unwrap().unwrap()), r#"{"ID":"1"}"#);
    }

    #[tokio::test]
    async fn what_is_no_message_is_said() {
        assert!(read(&["x"]).await[0].is_err());
        assert!(read(&[r#"{"ID":"#]).await[0].is_err());
        assert!(read(&["]{}"]).await[0].is_err());
        assert_eq!(read(&["{} trailing"]).await[0], Ok("{}".to_owned()));
        assert_eq!(read(&["{}", r#"{"ID":[]}"#]).await[1], Err("field ID: a list is not an int64".to_owned()));
        let endless = "[".repeat(LIMIT);
        assert!(read(&[&endless, &endless, &endless]).await[0].is_err());
    }

    #[tokio::test]
    async fn messages_have_a_bound() {
        let input = descriptors().get_message_by_name("etcdserverpb.PutRequest").unwrap();
        let value = "A".repeat(1368);
        let mut reader = Reader::new(Body::from(format!("{{\"key\":\"AAAA\",\"value\":\"{value}\"}}")), input, LIMIT);
        let status = reader.next().await.unwrap().unwrap_err();
        assert_eq!(status.code(), tonic::Code::ResourceExhausted);
        assert_eq!(status.message(), "grpc: received message larger than max (1034 vs. 1024)");
    }
}
