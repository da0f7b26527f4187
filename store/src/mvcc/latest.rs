//! The newest versions of the keys written last, so that writing them again need not
//! look for what was there.

use std::collections::HashMap;

use bytes::Bytes;

use super::pending::Change;
use super::rows::Row;

/// What an entry costs beside its key and value: two places in a table, as up to half of
/// them are free, and two allocations.
const ENTRY_BYTES: usize = 2 * size_of::<(Bytes, Row)>() + 32;

/// Two generations: when the young one is full it becomes the old one, whose entries go
/// unless they are used before the next turn.
pub(crate) struct Latest {
    /// The bound of keys and values kept; most writes go to a few keys (leases, statuses).
    size_bytes: usize,
    young: HashMap<Bytes, Row>,
    old: HashMap<Bytes, Row>,
    young_bytes: usize,
}

impl Latest {
    pub(crate) fn new(size_bytes: usize) -> Latest {
        Latest { size_bytes, young: HashMap::new(), old: HashMap::new(), young_bytes: 0 }
    }

    /// Forgets everything: the database is another one.
    pub(crate) fn clear(&mut self) {
        *self = Latest::new(self.size_bytes);
    }

    /// The newest version of `key`, a tombstone too, if it is known.
    pub(super) fn get(&self, key: &[u8]) -> Option<&Row> {
        self.young.get(key).or_else(|| self.old.get(key))
    }

    /// Notes a change that was written.
    pub(super) fn note(&mut self, change: &Change) {
        let Change { key, row, .. } = change;
        let row = row.clone();
        let size = key.len() + row.value.len() + ENTRY_BYTES;
        match self.young.get_mut(key) {
            Some(known) => {
                self.young_bytes = self.young_bytes + row.value.len() - known.value.len();
                *known = row;
            }
            None => {
                let key = match self.old.remove_entry(key) {
                    Some((key, _)) => key,
                    None => key.clone(),
                };
                self.young.insert(key, row);
                self.young_bytes += size;
            }
        }
        if self.young_bytes > self.size_bytes / 2 {
            self.old = std::mem::take(&mut self.young);
            self.young_bytes = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mvcc::rows::Revision;

    fn change(key: u32, value: usize) -> Change {
        let row = Row {
            revision: Revision { main: i64::from(key), sub: 0 },
            tombstone: false,
            create: 1,
            version: 1,
            lease: 0,
            value: vec![0; value].into(),
        };
        Change { key: key.to_be_bytes().to_vec().into(), row, previous: None }
    }

    #[test]
    fn the_newest_stay_and_the_bound_holds() {
        const SIZE_BYTES: usize = 8 << 20;
        let mut latest = Latest::new(SIZE_BYTES);
        for key in 0..40_000 {
            latest.note(&change(key, 1000));
            latest.note(&change(7, 10));
        }
        let bytes: usize =
            latest.young.iter().chain(&latest.old).map(|(key, row)| key.len() + row.value.len() + ENTRY_BYTES).sum();
        assert!(bytes <= SIZE_BYTES + 2 * 1100, "{bytes}");
        assert!(latest.get(&39_999u32.to_be_bytes()).is_some());
        assert_eq!(latest.get(&7u32.to_be_bytes()).map(|row| row.value.len()), Some(10));
        assert!(latest.get(&8u32.to_be_bytes()).is_none());
    }
}
