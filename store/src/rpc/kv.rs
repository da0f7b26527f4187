//! The service `KV`.

use std::pin::Pin;

use bytes::{BufMut, Bytes, BytesMut};
use futures::{Stream, stream};
use quorate_proto::etcd::kv_server::Kv as Service;
use quorate_proto::etcd::range_request::{SortOrder, SortTarget};
use quorate_proto::etcd::{
    CompactionRequest, CompactionResponse, DeleteRangeRequest, DeleteRangeResponse, PutRequest, PutResponse,
    RangeRequest, RangeResponse, RangeStreamResponse, TxnRequest, TxnResponse,
};
use tonic::{Request, Response, Status};

use super::{admit, answer, unsupported};
use crate::node::Store;

/// Keys of one message of a streamed range.
const STREAM_KEYS: i64 = 500;

pub(super) struct Kv(pub(super) Store);

#[tonic::async_trait]
impl Service for Kv {
    type RangeStreamStream = Pin<Box<dyn Stream<Item = Result<RangeStreamResponse, Status>> + Send>>;

    async fn range(&self, request: Request<RangeRequest>) -> Result<Response<RangeResponse>, Status> {
        let store = admit(&self.0, &request)?;
        answer(store.range(request.into_inner()).await)
    }

    async fn range_stream(&self, request: Request<RangeRequest>) -> Result<Response<Self::RangeStreamStream>, Status> {
        let store = admit(&self.0, &request)?;
        let request = request.into_inner();
        if !in_key_order(&request) || filtered(&request) {
            return Err(unsupported("a streamed range with its own order or with revision filters"));
        }
        let first = Page { request, sent: 0, pinned: false };
        let pages = stream::try_unfold(Some(first), move |page| {
            let store = store.clone();
            async move {
                let Some(page) = page else { return Ok::<_, Status>(None) };
                let (response, next) = page.read(&store).await?;
                Ok(Some((RangeStreamResponse { range_response: Some(response) }, next)))
            }
        });
        Ok(Response::new(Box::pin(pages)))
    }

    async fn put(&self, request: Request<PutRequest>) -> Result<Response<PutResponse>, Status> {
        let store = admit(&self.0, &request)?;
        answer(store.put(request.into_inner()).await)
    }

    async fn delete_range(
        &self,
        request: Request<DeleteRangeRequest>,
    ) -> Result<Response<DeleteRangeResponse>, Status> {
        let store = admit(&self.0, &request)?;
        answer(store.delete_range(request.into_inner()).await)
    }

    async fn txn(&self, request: Request<TxnRequest>) -> Result<Response<TxnResponse>, Status> {
        let store = admit(&self.0, &request)?;
        answer(store.txn(request.into_inner(), None).await)
    }

    async fn compact(&self, request: Request<CompactionRequest>) -> Result<Response<CompactionResponse>, Status> {
        let store = admit(&self.0, &request)?;
        answer(store.compact(request.into_inner()).await)
    }
}

fn in_key_order(request: &RangeRequest) -> bool {
    request.sort_order() == SortOrder::None
        || (request.sort_order() == SortOrder::Ascend && request.sort_target() == SortTarget::Key)
}

fn filtered(request: &RangeRequest) -> bool {
    let bounds =
        [request.min_mod_revision, request.max_mod_revision, request.min_create_revision, request.max_create_revision];
    bounds.iter().any(|bound| *bound != 0)
}

/// The rest of a streamed range. Header, `more` and `count` are on its last message.
struct Page {
    request: RangeRequest,
    sent: i64,
    pinned: bool,
}

impl Page {
    async fn read(mut self, store: &Store) -> Result<(RangeResponse, Option<Page>), Status> {
        let whole = self.request.count_only || self.request.range_end.is_empty();
        let left = match self.request.limit {
            0 => i64::MAX,
            limit => limit - self.sent,
        };
        let limit = if whole { self.request.limit } else { left.min(STREAM_KEYS) };
        let mut response = store.range(RangeRequest { limit, ..self.request.clone() }).await?;
        let count = i64::try_from(response.kvs.len()).unwrap_or(i64::MAX);
        if whole || !response.more || count >= left {
            response.count += self.sent;
            return Ok((response, None));
        }
        if !self.pinned {
            // Later pages are of the same revision, which this member has.
            let now = response.header.as_ref().map_or(0, |header| header.revision);
            self.request.revision = if self.request.revision > 0 { self.request.revision } else { now };
            self.request.serializable = true;
            self.pinned = true;
        }
        self.sent += count;
        if let Some(last) = response.kvs.last() {
            self.request.key = successor(&last.key);
        }
        Ok((RangeResponse { header: None, more: false, count: 0, kvs: response.kvs }, Some(self)))
    }
}

/// The first key after `key`.
fn successor(key: &[u8]) -> Bytes {
    let mut next = BytesMut::with_capacity(key.len() + 1);
    next.extend_from_slice(key);
    next.put_u8(0);
    next.freeze()
}
