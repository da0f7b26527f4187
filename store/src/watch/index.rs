//! Which watches want a key: single keys in a hash map, ranges in an interval tree.
//!
//! Equal ranges share one entry. The tree is a treap ordered by where ranges begin; each
//! node knows the greatest end below it, so a lookup visits what it finds and about
//! log(n) nodes more, however many ranges there are.

use std::cmp::Ordering;
use std::collections::HashMap;

use bytes::Bytes;

/// Values by range of keys.
#[derive(Debug)]
pub(super) struct Index<T> {
    points: HashMap<Bytes, T>,
    ranges: Link<T>,
    /// Of the generator that keeps the tree flat.
    state: u64,
}

type Link<T> = Option<Box<Node<T>>>;

/// `end` and `greatest_end` are exclusive; none is the end of all keys.
#[derive(Debug)]
struct Node<T> {
    start: Bytes,
    end: Option<Bytes>,
    greatest_end: Option<Bytes>,
    priority: u64,
    left: Link<T>,
    right: Link<T>,
    value: T,
}

/// The exclusive end that etcd's `range_end` means.
fn end_of(range_end: &Bytes) -> Option<Bytes> {
    (range_end[..] != [0]).then(|| range_end.clone())
}

/// No end is greater than any.
fn compare_ends(a: Option<&Bytes>, b: Option<&Bytes>) -> Ordering {
    match (a, b) {
        (Some(a), Some(b)) => a.cmp(b),
        (a, b) => a.is_none().cmp(&b.is_none()),
    }
}

impl<T> Node<T> {
    fn compare(&self, start: &Bytes, end: Option<&Bytes>) -> Ordering {
        self.start.cmp(start).then_with(|| compare_ends(self.end.as_ref(), end))
    }

    /// To be called when a child has changed.
    fn update(&mut self) {
        let children = [&self.left, &self.right].into_iter().flatten().map(|child| child.greatest_end.as_ref());
        let greatest = children.chain([self.end.as_ref()]).max_by(|a, b| compare_ends(*a, *b));
        self.greatest_end = greatest.flatten().cloned();
    }
}

/// Splits into what comes before a range and the rest.
fn split<T>(link: Link<T>, start: &Bytes, end: Option<&Bytes>) -> (Link<T>, Link<T>) {
    let Some(mut node) = link else { return (None, None) };
    if node.compare(start, end).is_lt() {
        let (before, rest) = split(node.right.take(), start, end);
        node.right = before;
        node.update();
        (Some(node), rest)
    } else {
        let (before, rest) = split(node.left.take(), start, end);
        node.left = rest;
        node.update();
        (before, Some(node))
    }
}

/// Joins trees; everything in `left` comes before everything in `right`.
fn merge<T>(left: Link<T>, right: Link<T>) -> Link<T> {
    match (left, right) {
        (None, other) | (other, None) => other,
        (Some(mut left), Some(mut right)) => {
            if left.priority > right.priority {
                left.right = merge(left.right.take(), Some(right));
                left.update();
                Some(left)
            } else {
                right.left = merge(Some(left), right.left.take());
                right.update();
                Some(right)
            }
        }
    }
}

fn find<'a, T>(mut link: &'a Link<T>, start: &Bytes, end: Option<&Bytes>) -> Option<&'a T> {
    while let Some(node) = link {
        match node.compare(start, end) {
            Ordering::Equal => return Some(&node.value),
            Ordering::Greater => link = &node.left,
            Ordering::Less => link = &node.right,
        }
    }
    None
}

fn remove<T>(link: &mut Link<T>, start: &Bytes, end: Option<&Bytes>) -> Option<T> {
    let node = link.as_mut()?;
    let removed = match node.compare(start, end) {
        Ordering::Greater => remove(&mut node.left, start, end),
        Ordering::Less => remove(&mut node.right, start, end),
        Ordering::Equal => {
            let node = link.take()?;
            *link = merge(node.left, node.right);
            return Some(node.value);
        }
    };
    node.update();
    removed
}

fn visit<T>(link: &Link<T>, key: &[u8], found: &mut impl FnMut(&T)) {
    let Some(node) = link else { return };
    if node.greatest_end.as_ref().is_some_and(|end| &end[..] <= key) {
        return;
    }
    visit(&node.left, key, found);
    if node.start[..] <= *key {
        if node.end.as_ref().is_none_or(|end| key < &end[..]) {
            found(&node.value);
        }
        visit(&node.right, key, found);
    }
}

impl<T> Index<T> {
    pub(super) fn new() -> Index<T> {
        Index { points: HashMap::new(), ranges: None, state: 0x9E37_79B9_7F4A_7C15 }
    }

    /// The value of exactly this range, as etcd's requests say it.
    pub(super) fn get(&self, key: &Bytes, range_end: &Bytes) -> Option<&T> {
        match range_end.is_empty() {
            true => self.points.get(key),
            false => find(&self.ranges, key, end_of(range_end).as_ref()),
        }
    }

    /// Gives a range that has none a value.
    pub(super) fn insert(&mut self, key: &Bytes, range_end: &Bytes, value: T) {
        if range_end.is_empty() {
            self.points.insert(key.clone(), value);
            return;
        }
        // xorshift64: never zero, and nobody gains by guessing it.
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        let end = end_of(range_end);
        let (before, rest) = split(self.ranges.take(), key, end.as_ref());
        let (start, greatest_end, priority) = (key.clone(), end.clone(), self.state);
        let node = Box::new(Node { start, end, greatest_end, priority, left: None, right: None, value });
        self.ranges = merge(merge(before, Some(node)), rest);
    }

    pub(super) fn remove(&mut self, key: &Bytes, range_end: &Bytes) -> Option<T> {
        match range_end.is_empty() {
            true => self.points.remove(key),
            false => remove(&mut self.ranges, key, end_of(range_end).as_ref()),
        }
    }

    /// Calls `found` with the value of each range that contains `key`.
    pub(super) fn matches(&self, key: &[u8], mut found: impl FnMut(&T)) {
        if let Some(value) = self.points.get(key) {
            found(value);
        }
        visit(&self.ranges, key, &mut found);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use rand::rngs::StdRng;
    use rand::{RngExt, SeedableRng};

    use super::*;
    use crate::mvcc::KeyRange;

    fn depth<T>(link: &Link<T>) -> usize {
        link.as_ref().map_or(0, |node| 1 + depth(&node.left).max(depth(&node.right)))
    }

    #[test]
    fn finds_what_looking_at_every_range_finds() {
        for seed in 0..20 {
            let mut random = StdRng::seed_from_u64(seed);
            let key = |random: &mut StdRng| {
                let length = random.random_range(1..4);
                Bytes::from((0..length).map(|_| random.random_range(0..4)).collect::<Vec<u8>>())
            };
            let mut index = Index::new();
            let mut all = BTreeMap::new();
            for step in 0..2000 {
                let start = key(&mut random);
                let end = match random.random_range(0..4) {
                    0 => Bytes::new(),
                    1 => Bytes::from_static(&[0]),
                    _ => key(&mut random),
                };
                let range = (start, end);
                assert_eq!(index.get(&range.0, &range.1), all.get(&range), "seed {seed}");
                if let Some(value) = all.remove(&range) {
                    assert_eq!(index.remove(&range.0, &range.1), Some(value), "seed {seed}");
                } else {
                    index.insert(&range.0, &range.1, step);
                    all.insert(range, step);
                }
                let key = key(&mut random);
                let mut found = Vec::new();
                index.matches(&key, |value| found.push(*value));
                found.sort_unstable();
                let contains = |(start, end): &(Bytes, Bytes)| KeyRange::new(start, end).contains(&key);
                let mut wanted: Vec<i32> =
                    all.iter().filter(|(range, _)| contains(range)).map(|(_, value)| *value).collect();
                wanted.sort_unstable();
                assert_eq!(found, wanted, "seed {seed}, key {key:?}");
            }
        }
    }

    #[test]
    fn ranges_in_order_do_not_make_it_deep() {
        let mut index = Index::new();
        for number in 0..10_000u32 {
            let start = Bytes::copy_from_slice(&number.to_be_bytes());
            let end = Bytes::copy_from_slice(&(number + 1).to_be_bytes());
            index.insert(&start, &end, number);
        }
        assert!(depth(&index.ranges) < 60, "{}", depth(&index.ranges));
        let mut found = Vec::new();
        index.matches(&7777u32.to_be_bytes(), |value| found.push(*value));
        assert_eq!(found, [7777]);
    }
}
