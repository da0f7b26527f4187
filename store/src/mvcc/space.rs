//! Which parts of the keys take how much space.

use bytes::Bytes;
use rocksdb::Range;

use super::EngineError;
use super::db::Instance;
use super::rows::{self, KEYS};

/// Prefixes and keys outside of them that are looked at; the rest is summed up.
const MAX_STEPS: usize = 10_000;

/// How the space of the keys, with their history, is spread.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Space {
    /// Each prefix ends with a slash; the largest first. Estimates, of what is in files.
    pub prefixes: Vec<(Bytes, u64)>,
    /// What all keys take.
    pub total_bytes: u64,
    /// What keys under none of the prefixes take.
    pub other_bytes: u64,
    /// Whether all keys were looked at; there may be prefixes besides those listed otherwise.
    pub complete: bool,
}

/// The first `depth` segments of a path with their slashes; none when it has no more
/// segments than that. A slash in front does not count.
fn prefix_of(key: &[u8], depth: usize) -> Option<&[u8]> {
    let start = usize::from(key.first() == Some(&b'/'));
    let slashes = key.iter().enumerate().skip(start).filter(|(_, byte)| **byte == b'/');
    let (end, _) = slashes.take(depth).nth(depth.checked_sub(1)?)?;
    key.get(..=end)
}

/// Sums up the space below each different prefix of `depth` segments.
pub(super) fn by_prefix(instance: &Instance, depth: usize) -> Result<Space, EngineError> {
    let mut iterator = instance.range_iterator(&[KEYS], &[KEYS + 1]);
    let mut found: Vec<(Bytes, Vec<u8>, Vec<u8>)> = Vec::new();
    let mut complete = false;
    iterator.seek([KEYS]);
    for _ in 0..MAX_STEPS {
        let Some(row_key) = iterator.key() else {
            complete = true;
            break;
        };
        let damaged = |bad| instance.damaged(bad);
        let (escaped, _) = rows::split_version(row_key).map_err(damaged)?;
        let key = rows::unescape(escaped).map_err(damaged)?;
        let mut next = escaped.to_vec();
        match prefix_of(&key, depth) {
            Some(prefix) => {
                let mut from = Vec::new();
                rows::put_key_prefix(&mut from, prefix);
                // Without the end of the key, and a slash further: all that begin with it.
                from.truncate(from.len() - rows::KEY_END_LEN);
                next.clone_from(&from);
                if let Some(slash) = next.last_mut() {
                    *slash += 1;
                }
                found.push((Bytes::copy_from_slice(prefix), from, next.clone()));
            }
            None => rows::prefix_to_next_key(&mut next),
        }
        iterator.seek(&next);
    }
    iterator.status().map_err(instance.failed("be read"))?;
    let mut ranges: Vec<Range<'_>> = found.iter().map(|(_, from, to)| Range::new(from, to)).collect();
    ranges.push(Range::new(&[KEYS], &[KEYS + 1]));
    let mut sizes = instance.db.get_approximate_sizes(&ranges);
    let total_bytes = sizes.pop().unwrap_or(0);
    let other_bytes = total_bytes.saturating_sub(sizes.iter().sum());
    let mut prefixes: Vec<(Bytes, u64)> = found.into_iter().map(|(prefix, ..)| prefix).zip(sizes).collect();
    prefixes.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
    Ok(Space { prefixes, total_bytes, other_bytes, complete })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_are_whole_segments() {
        let check = |key: &str, depth: usize, expected: Option<&str>| {
            assert_eq!(prefix_of(key.as_bytes(), depth), expected.map(str::as_bytes), "{key} {depth}");
        };
        check("/registry/pods/ns/a", 1, Some("/registry/"));
        check("/registry/pods/ns/a", 2, Some("/registry/pods/"));
        check("/registry/health", 2, None);
        check("registry/pods/a", 2, Some("registry/pods/"));
        check("registry/pods/", 2, Some("registry/pods/"));
        check("//a", 1, Some("//"));
        check("a", 1, None);
        check("a/b", 0, None);
        check("", 1, None);
    }
}
