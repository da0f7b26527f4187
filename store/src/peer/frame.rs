//! The bytes of a line: what members say to each other all the time, framed.
//!
//! A frame is the length of its body (4 bytes, big endian), its kind (1), the number of the
//! call or stream that it belongs to (4), and the body, a message of `peer.proto`.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use prost::Message;
use tonic::{Code, Status};

use super::MAX_MESSAGE_BYTES;

/// What a line begins with. No method of HTTP begins with its first byte.
pub(crate) const MAGIC: &[u8; 8] = b"quorate\x01";

const HEADER_BYTES: usize = 9;

/// What a frame says. The numbers are those of the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    /// An `Origin`: who speaks, and to whom. The first frame of a line, and only that.
    Hello = 0,
    /// An `AppendRequest` of a stream.
    Append = 1,
    /// The stream has no more requests.
    AppendEnd = 2,
    /// An `AppendRequest` without entries.
    Heartbeat = 3,
    /// A `ProposeRequest`.
    Propose = 4,
    /// A `ReadIndexRequest`.
    ReadIndex = 5,
    /// Is anybody there? Answered by `Pong`.
    Ping = 7,
    /// A `RenewRequest`.
    Renew = 8,
    /// A `TimeLeftRequest`.
    TimeLeft = 9,
    /// The answer to the call of that number, or the next one of the stream.
    Answer = 16,
    /// In its place: a code of gRPC in one byte, and a text.
    Refusal = 17,
    /// The stream has no more answers.
    AnswerEnd = 18,
    Pong = 19,
}

impl Kind {
    const ALL: [Kind; 13] = [
        Kind::Hello,
        Kind::Append,
        Kind::AppendEnd,
        Kind::Heartbeat,
        Kind::Propose,
        Kind::ReadIndex,
        Kind::Ping,
        Kind::Renew,
        Kind::TimeLeft,
        Kind::Answer,
        Kind::Refusal,
        Kind::AnswerEnd,
        Kind::Pong,
    ];

    fn of(byte: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| *kind as u8 == byte)
    }
}

/// One frame as it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Frame {
    pub(super) kind: Kind,
    pub(super) number: u32,
    /// Shares the memory of what was read.
    pub(super) body: Bytes,
}

/// What is no frame.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum FrameError {
    #[error("a peer's frame has the unknown kind {0}")]
    Kind(u8),
    #[error("a peer's frame of {0} bytes is larger than {MAX_MESSAGE_BYTES}")]
    TooLarge(usize),
}

impl From<FrameError> for std::io::Error {
    fn from(error: FrameError) -> Self {
        std::io::Error::new(std::io::ErrorKind::InvalidData, error)
    }
}

/// Writes a frame behind what is in `buffer`; returns the length of its body. A message that
/// is too large is the peer's to refuse.
pub(super) fn put(buffer: &mut BytesMut, kind: Kind, number: u32, message: &impl Message) -> usize {
    let length = message.encoded_len();
    begin(buffer, kind, number, length);
    // It has the room that it needs.
    message.encode_raw(buffer);
    length
}

/// Writes the frame that says why a call is not answered.
pub(super) fn put_refusal(buffer: &mut BytesMut, number: u32, status: &Status) {
    let text = status.message().as_bytes();
    begin(buffer, Kind::Refusal, number, 1 + text.len());
    buffer.put_u8(i32::from(status.code()) as u8);
    buffer.put_slice(text);
}

fn begin(buffer: &mut BytesMut, kind: Kind, number: u32, length: usize) {
    buffer.reserve(HEADER_BYTES + length);
    buffer.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
    buffer.put_u8(kind as u8);
    buffer.put_u32(number);
}

/// What a refusal says.
pub(super) fn refusal(body: &[u8]) -> Status {
    let (code, text) =
        body.split_first().map_or((Code::Unknown, &[][..]), |(code, text)| (Code::from(i32::from(*code)), text));
    Status::new(code, String::from_utf8_lossy(text))
}

/// Takes the next whole frame out of what was read; none if more has to be read first.
///
/// # Errors
/// When what was read is no frame: the line cannot go on.
pub(super) fn take(read: &mut BytesMut) -> Result<Option<Frame>, FrameError> {
    let Some(header) = read.first_chunk::<HEADER_BYTES>() else { return Ok(None) };
    let [a, b, c, d, kind, number @ ..] = *header;
    let length = u32::from_be_bytes([a, b, c, d]) as usize;
    let kind = Kind::of(kind).ok_or(FrameError::Kind(kind))?;
    if length > MAX_MESSAGE_BYTES {
        return Err(FrameError::TooLarge(length));
    }
    if read.len() < HEADER_BYTES + length {
        return Ok(None);
    }
    read.advance(HEADER_BYTES);
    Ok(Some(Frame { kind, number: u32::from_be_bytes(number), body: read.split_to(length).freeze() }))
}

#[cfg(test)]
mod tests {
    use quorate_proto::raft as wire;

    use super::*;

    #[test]
    fn frames_come_back_as_they_were_however_they_are_cut() {
        let mut written = BytesMut::new();
        put(&mut written, Kind::Propose, 7, &wire::ProposeRequest { commands: vec!["a".into(), "bc".into()] });
        put(&mut written, Kind::Ping, 0, &wire::ReadIndexRequest {});
        put_refusal(&mut written, u32::MAX, &Status::failed_precondition("no"));
        for cut in 0..=written.len() {
            let (mut read, mut frames) = (BytesMut::new(), Vec::new());
            for part in [&written[..cut], &written[cut..]] {
                read.extend_from_slice(part);
                while let Some(frame) = take(&mut read).unwrap() {
                    frames.push(frame);
                }
            }
            assert!(read.is_empty());
            let heads: Vec<_> = frames.iter().map(|frame| (frame.kind, frame.number)).collect();
            assert_eq!(heads, [(Kind::Propose, 7), (Kind::Ping, 0), (Kind::Refusal, u32::MAX)], "cut at {cut}");
            let request = wire::ProposeRequest::decode(frames[0].body.clone()).unwrap();
            assert_eq!(request.commands, ["a", "bc"]);
            let status = refusal(&frames[2].body);
            assert_eq!((status.code(), status.message()), (Code::FailedPrecondition, "no"));
        }
    }

    #[test]
    fn what_is_no_frame_is_an_error() {
        let check = |bytes: &[u8], expected| assert_eq!(take(&mut BytesMut::from(bytes)), expected, "{bytes:?}");
        check(&[0, 0, 0, 0, 6, 0, 0, 0, 0], Err(FrameError::Kind(6)));
        check(&[4, 0, 0, 1, 1, 0, 0, 0, 0], Err(FrameError::TooLarge(MAX_MESSAGE_BYTES + 1)));
        check(&[4, 0, 0, 0, 1, 0, 0, 0, 0], Ok(None));
        check(&[0; 8], Ok(None));
        assert_eq!(refusal(&[]).code(), Code::Unknown);
        assert_eq!(refusal(&[99, 0xff]).code(), Code::Unknown);
    }
}
