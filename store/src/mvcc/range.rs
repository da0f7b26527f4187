//! Range requests: limits, filters, order.

use std::cmp::Ordering;

use bytes::{BufMut, Bytes, BytesMut};
use quorate_proto::etcd::range_request::{SortOrder, SortTarget};
use quorate_proto::etcd::{RangeRequest, RangeResponse, ResponseHeader};
use quorate_proto::mvccpb::KeyValue;

use super::EngineError;
use super::counts::Counts;
use super::view::{KeyRange, Keys};
use crate::command::ApplyError;

/// The checks that need no state.
pub(super) fn check(request: &RangeRequest) -> Result<(), ApplyError> {
    if request.key.is_empty() {
        return Err(ApplyError::EmptyKey);
    }
    let known = SortOrder::try_from(request.sort_order).is_ok() && SortTarget::try_from(request.sort_target).is_ok();
    if known { Ok(()) } else { Err(ApplyError::InvalidSortOption) }
}

/// The revision to read at, given the current and the compacted one.
pub(super) fn revision(request: &RangeRequest, current: i64, compacted: i64) -> Result<i64, ApplyError> {
    match request.revision {
        wanted if wanted <= 0 => Ok(current),
        wanted if wanted > current => Err(ApplyError::FutureRevision),
        wanted if wanted < compacted => Err(ApplyError::Compacted),
        wanted => Ok(wanted),
    }
}

/// The same check inside a transaction, where etcd takes 0 alone for the current one.
pub(super) fn check_in_txn(request: &RangeRequest, current: i64, compacted: i64) -> Result<(), ApplyError> {
    match request.revision {
        0 => Ok(()),
        wanted if wanted > current => Err(ApplyError::FutureRevision),
        wanted if wanted < compacted => Err(ApplyError::Compacted),
        _ => Ok(()),
    }
}

pub(super) fn key_range(request: &RangeRequest) -> KeyRange<'_> {
    KeyRange::new(&request.key, &request.range_end)
}

/// In which order, if not in that of the keys.
fn order(request: &RangeRequest) -> Option<(SortTarget, bool)> {
    let target = request.sort_target();
    match (request.sort_order(), target) {
        (SortOrder::None | SortOrder::Ascend, SortTarget::Key) => None,
        (SortOrder::None | SortOrder::Ascend, _) => Some((target, false)),
        (SortOrder::Descend, _) => Some((target, true)),
    }
}

/// Whether the answer is the first keys as they come, whatever they hold.
pub(crate) fn is_plain(request: &RangeRequest) -> bool {
    !request.range_end.is_empty() && !request.count_only && order(request).is_none() && !has_filters(request)
}

/// Whether the scan has to bring the values.
pub(super) fn needs_values(request: &RangeRequest) -> bool {
    let by_value = order(request).is_some_and(|(target, _)| target == SortTarget::Value);
    !request.count_only && (!request.keys_only || by_value)
}

fn has_filters(request: &RangeRequest) -> bool {
    let bounds =
        [request.min_mod_revision, request.max_mod_revision, request.min_create_revision, request.max_create_revision];
    bounds != [0; 4]
}

fn passes(request: &RangeRequest, kv: &KeyValue) -> bool {
    let within = |value, min, max| (min == 0 || value >= min) && (max == 0 || value <= max);
    within(kv.mod_revision, request.min_mod_revision, request.max_mod_revision)
        && within(kv.create_revision, request.min_create_revision, request.max_create_revision)
}

fn compare(target: SortTarget, a: &KeyValue, b: &KeyValue) -> Ordering {
    match target {
        SortTarget::Key => a.key.cmp(&b.key),
        SortTarget::Version => a.version.cmp(&b.version),
        SortTarget::Create => a.create_revision.cmp(&b.create_revision),
        SortTarget::Mod => a.mod_revision.cmp(&b.mod_revision),
        SortTarget::Value => a.value.cmp(&b.value),
    }
}

/// Answers `request`, which is read at revision `at`, from its keys. `count` is of all of
/// them, whatever the limit and the filters.
pub(super) fn collect<'a>(
    request: &RangeRequest,
    keys: impl FnOnce() -> Result<Keys<'a>, EngineError>,
    at: i64,
    counts: Option<&Counts>,
    header_revision: i64,
) -> Result<RangeResponse, EngineError> {
    let order = order(request);
    let limit = usize::try_from(request.limit).unwrap_or(0);
    let limit = if limit == 0 { usize::MAX } else { limit };
    // One key is counted as soon as it is found.
    let counts = counts.filter(|_| !request.range_end.is_empty() && (request.count_only || limit < usize::MAX));
    let known = counts.and_then(|counts| counts.get(request, at));
    let header = Some(ResponseHeader { revision: header_revision, ..Default::default() });
    if request.count_only {
        let count = known.map_or_else(|| keys()?.count(), Ok)?;
        if let Some(counts) = counts.filter(|_| known.is_none()) {
            counts.put(&request.key, &request.range_end, at, count);
        }
        return Ok(RangeResponse { header, count, ..RangeResponse::default() });
    }
    // Asked to sort or filter, everything is looked at. When the order is only implied by the
    // target, etcd sorts the first keys up to the limit and one more, and so does this.
    let looks_at_all = request.sort_order() != SortOrder::None || has_filters(request);
    let stop_at = if looks_at_all { usize::MAX } else { limit.saturating_add(1) };
    let mut keys = keys()?;
    let mut kvs: Vec<KeyValue> = Vec::new();
    let (mut count, mut more) = (0, false);
    while let Some((key, row)) = keys.next()? {
        count += 1;
        let kv = row.to_key_value(key);
        if !passes(request, &kv) {
            continue;
        }
        kvs.push(kv);
        if kvs.len() == stop_at {
            more = true;
            let rest = if known.is_none() { keys.count()? } else { 0 };
            count = known.unwrap_or(count + rest);
            if let (Some(counts), Some(last)) = (counts, kvs[..limit].last()) {
                counts.put_page(request, at, count, known.is_none(), limit, &last.key);
            }
            break;
        }
    }
    if let Some((target, descending)) = order {
        kvs.sort_by(|a, b| {
            let order = compare(target, a, b);
            if descending { order.reverse() } else { order }
        });
    }
    if kvs.len() > limit {
        kvs.truncate(limit);
        more = true;
    }
    if request.keys_only {
        kvs.iter_mut().for_each(|kv| kv.value.clear());
    }
    Ok(RangeResponse { header, kvs, more, count })
}

/// The first key after `key`.
pub(crate) fn successor(key: &[u8]) -> Bytes {
    let mut next = BytesMut::with_capacity(key.len() + 1);
    next.extend_from_slice(key);
    next.put_u8(0);
    next.freeze()
}

/// The first keys of a request whose order is theirs: up to `max_keys`, and no more than
/// begin within `max_bytes`; and whether there are others.
pub(super) fn page(
    request: &RangeRequest,
    mut keys: Keys<'_>,
    max_keys: usize,
    max_bytes: usize,
) -> Result<(Vec<KeyValue>, bool), EngineError> {
    let mut kvs: Vec<KeyValue> = Vec::new();
    let mut bytes = 0;
    while let Some((key, row)) = keys.next()? {
        if kvs.len() == max_keys || bytes >= max_bytes {
            return Ok((kvs, true));
        }
        let mut kv = row.to_key_value(key);
        if request.keys_only {
            kv.value.clear();
        }
        bytes += kv.key.len() + kv.value.len();
        kvs.push(kv);
    }
    Ok((kvs, false))
}
