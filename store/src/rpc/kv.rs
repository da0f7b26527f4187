//! The service `KV`.

use std::pin::Pin;

use futures::{Stream, stream};
use quorate_proto::etcd::kv_server::Kv as Service;
use quorate_proto::etcd::range_request::{SortOrder, SortTarget};
use quorate_proto::etcd::{
    CompactionRequest, CompactionResponse, DeleteRangeRequest, DeleteRangeResponse, PutRequest, PutResponse,
    RangeRequest, RangeResponse, RangeStreamResponse, ResponseHeader, TxnRequest, TxnResponse,
};
use tonic::{Request, Response, Status};

use super::{admit, answer, learner, unsupported};
use crate::mvcc::{Listing, successor};
use crate::node::Store;

/// Keys of the first message of a streamed range (etcd's number): it comes soon. Each
/// message may have twice as many keys as the one before.
const FIRST_KEYS: usize = 10;

/// No message has more keys, however small they are.
const MAX_KEYS: usize = 64 << 10;

pub(super) struct Kv(pub(super) Store);

#[tonic::async_trait]
impl Service for Kv {
    type RangeStreamStream = Pin<Box<dyn Stream<Item = Result<RangeStreamResponse, Status>> + Send>>;

    async fn range(&self, request: Request<RangeRequest>) -> Result<Response<RangeResponse>, Status> {
        let store = admit(&self.0, &request)?;
        if !request.get_ref().serializable && store.serves_as_learner() {
            return Err(learner::refusal());
        }
        answer(store.range(request.into_inner()).await)
    }

    async fn range_stream(&self, request: Request<RangeRequest>) -> Result<Response<Self::RangeStreamStream>, Status> {
        let store = admit(&self.0, &request)?;
        let request = request.into_inner();
        if !in_key_order(&request) || filtered(&request) {
            return Err(unsupported("a streamed range with its own order or with revision filters"));
        }
        let first = Page { request, sent: 0, keys: FIRST_KEYS };
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

impl Kv {
    /// A range as bytes, with its header; for a request that is [`crate::mvcc::is_plain`].
    pub(super) async fn list(&self, request: Request<RangeRequest>) -> Result<(ResponseHeader, Listing), Status> {
        let store = admit(&self.0, &request)?;
        let listing = store.list(request.get_ref()).await?;
        Ok((store.header(listing.revision), listing))
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
    /// Of the next message.
    keys: usize,
}

impl Page {
    async fn read(mut self, store: &Store) -> Result<(RangeResponse, Option<Page>), Status> {
        if self.request.count_only || self.request.range_end.is_empty() {
            return Ok((store.range(self.request).await?, None));
        }
        let left = match self.request.limit {
            limit if limit > 0 => usize::try_from(limit - self.sent).unwrap_or(0),
            _ => usize::MAX,
        };
        let page = store.range_page(&self.request, self.keys.min(left), store.max_request_bytes()).await?;
        // The next pages are of the same revision, which this member has.
        self.request.revision = page.at;
        self.request.serializable = true;
        self.sent += i64::try_from(page.kvs.len()).unwrap_or(i64::MAX);
        let last = page.kvs.len() == left || !page.more;
        if !last {
            if page.kvs.len() == self.keys {
                self.keys = (self.keys * 2).min(MAX_KEYS);
            } else {
                // Cut short by its bytes.
                self.keys = page.kvs.len().max(1);
            }
            self.request.key = page.kvs.last().map(|last| successor(&last.key)).unwrap_or_default();
            return Ok((RangeResponse { kvs: page.kvs, ..RangeResponse::default() }, Some(self)));
        }
        let mut count = self.sent;
        if page.more {
            let key = page.kvs.last().map(|last| successor(&last.key)).unwrap_or_default();
            let rest = store.range(RangeRequest { key, count_only: true, limit: 0, ..self.request }).await?;
            count += rest.count;
        }
        let header = Some(store.header(page.revision));
        Ok((RangeResponse { header, kvs: page.kvs, more: page.more, count }, None))
    }
}
