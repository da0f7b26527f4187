//! How a response that is found part by part becomes messages: pieces of the size that
//! etcd cuts, for clients that put them together, and otherwise whole revisions.

use quorate_proto::etcd::WatchResponse;

use super::watch_codec::{Reply, size_of_event};
use crate::watch::EncodedEvent;

/// A message is not continued once it is larger. etcd has no such bound: its largest
/// message is a thousand revisions.
const MAX_WHOLE_BYTES: usize = 1 << 20;

/// Parts of one response. The other watches of a stream wait for the last piece, and a part
/// takes a bounded time to read.
const MAX_PARTS: usize = 64;

/// A response that is not complete yet.
pub(super) struct Pieces {
    head: WatchResponse,
    /// The size that no piece of more than one event reaches; none is not to be cut.
    limit: Option<usize>,
    /// What the next piece has so far, and its size.
    events: Vec<EncodedEvent>,
    bytes: usize,
    /// How often something was added.
    parts: usize,
}

impl Pieces {
    pub(super) fn new(head: WatchResponse, limit: Option<usize>) -> Self {
        Self { head, limit, events: Vec::new(), bytes: 0, parts: 0 }
    }

    /// Adds events; returns the pieces that are full.
    pub(super) fn add(&mut self, events: Vec<EncodedEvent>) -> Vec<Reply> {
        self.parts += 1;
        let mut full = Vec::new();
        let head = WatchResponse { fragment: true, ..self.head.clone() };
        let size = Reply { head: head.clone(), events: Vec::new() }.size();
        for event in events {
            let bytes = size_of_event(&event);
            let fits = self.limit.is_none_or(|limit| size + self.bytes + bytes < limit);
            if !fits && !self.events.is_empty() {
                full.push(Reply { head: head.clone(), events: std::mem::take(&mut self.events) });
                self.bytes = 0;
            }
            self.bytes += bytes;
            self.events.push(event);
        }
        full
    }

    pub(super) fn is_empty(&self) -> bool {
        self.events.is_empty()
    }

    /// Whether what follows goes into a response of its own.
    pub(super) fn is_large(&self) -> bool {
        self.parts >= MAX_PARTS || (self.limit.is_none() && self.bytes > MAX_WHOLE_BYTES)
    }

    /// The last piece.
    pub(super) fn last(self) -> Reply {
        Reply { head: self.head, events: self.events }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use quorate_proto::mvccpb::{Event, KeyValue};

    use super::*;

    fn event(size: usize) -> EncodedEvent {
        let kv = KeyValue { value: Bytes::from(vec![1; size]), ..KeyValue::default() };
        EncodedEvent::of_event(&Event { kv: Some(kv), ..Event::default() })
    }

    /// How many events each message has, and whether another piece follows it.
    fn cut(parts: &[&[usize]], limit: Option<usize>) -> Vec<(usize, bool)> {
        let mut pieces = Pieces::new(WatchResponse { watch_id: 7, ..WatchResponse::default() }, limit);
        let mut replies = Vec::new();
        for part in parts {
            replies.extend(pieces.add(part.iter().map(|size| event(*size)).collect()));
        }
        replies.push(pieces.last());
        assert!(replies.iter().all(|reply| reply.head.watch_id == 7));
        let fits = |reply: &Reply| limit.is_none_or(|limit| reply.size() < limit || reply.events.len() == 1);
        assert!(replies.iter().all(fits));
        replies.iter().map(|reply| (reply.events.len(), reply.head.fragment)).collect()
    }

    #[test]
    fn pieces_stay_below_the_limit_and_lose_nothing() {
        let limit = Some(1000);
        assert_eq!(cut(&[&[]], limit), [(0, false)]);
        assert_eq!(cut(&[&[300, 300, 300]], limit), [(3, false)]);
        assert_eq!(cut(&[&[500, 500]], limit), [(1, true), (1, false)]);
        assert_eq!(cut(&[&[2000, 1, 2000, 1, 1]], limit), [(1, true), (1, true), (1, true), (2, false)]);
        assert_eq!(cut(&[&[500, 500]], None), [(2, false)]);
    }

    #[test]
    fn parts_make_no_difference() {
        let sizes = [400, 700, 20, 90, 900, 3, 999, 10, 500, 450, 60];
        for limit in [Some(1000), Some(1500), None] {
            let whole = cut(&[&sizes], limit);
            for first in 0..sizes.len() {
                for second in first..sizes.len() {
                    let parts = [&sizes[..first], &sizes[first..second], &sizes[second..], &[]];
                    assert_eq!(cut(&parts, limit), whole, "{limit:?} {first} {second}");
                }
            }
        }
    }
}
