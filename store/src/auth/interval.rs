//! Sets of keys, as the union of half-open intervals.

use bytes::Bytes;

/// Intervals that neither overlap nor touch, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct IntervalSet(Vec<Interval>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Interval {
    from: Bytes,
    /// None is the end of all keys.
    to: Option<Bytes>,
}

impl Interval {
    /// The keys of a range as etcd writes it; none when it ends before it begins.
    fn of(key: &Bytes, range_end: &Bytes) -> Option<Interval> {
        let to = match &range_end[..] {
            [] => Some(Bytes::from([&key[..], &[0]].concat())),
            [0] => None,
            _ => Some(range_end.clone()),
        };
        let some = to.as_ref().is_none_or(|to| key < to);
        some.then(|| Interval { from: key.clone(), to })
    }
}

impl IntervalSet {
    /// The union of ranges as etcd writes them.
    pub(super) fn union<'a>(ranges: impl IntoIterator<Item = (&'a Bytes, &'a Bytes)>) -> IntervalSet {
        let mut all: Vec<Interval> = ranges.into_iter().filter_map(|(key, end)| Interval::of(key, end)).collect();
        all.sort_by(|a, b| a.from.cmp(&b.from));
        let mut merged: Vec<Interval> = Vec::with_capacity(all.len());
        for next in all {
            match merged.last_mut() {
                Some(last) if last.to.as_ref().is_none_or(|to| *to >= next.from) => {
                    let longer = match (&last.to, &next.to) {
                        (None, _) => false,
                        (Some(_), None) => true,
                        (Some(last), Some(next)) => last < next,
                    };
                    if longer {
                        last.to = next.to;
                    }
                }
                _ => merged.push(next),
            }
        }
        IntervalSet(merged)
    }

    /// Whether every key of the range is in the set. A range without keys is not: a mistake
    /// must not look like a permission.
    pub(super) fn covers(&self, key: &Bytes, range_end: &Bytes) -> bool {
        let Some(wanted) = Interval::of(key, range_end) else { return false };
        // Touching intervals are merged: one of them holds all of it, or none does.
        let position = self.0.partition_point(|interval| interval.from <= wanted.from);
        let Some(candidate) = position.checked_sub(1).and_then(|before| self.0.get(before)) else { return false };
        match (&candidate.to, &wanted.to) {
            (None, _) => true,
            (Some(_), None) => false,
            (Some(held), Some(wanted)) => held >= wanted,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(ranges: &[(&'static str, &'static str)]) -> IntervalSet {
        let ranges: Vec<(Bytes, Bytes)> = ranges.iter().map(|(key, end)| ((*key).into(), (*end).into())).collect();
        IntervalSet::union(ranges.iter().map(|(key, end)| (key, end)))
    }

    #[test]
    fn ranges_are_covered_as_etcd_says() {
        let check = |ranges: &[(&'static str, &'static str)], key: &'static str, end: &'static str, expected: bool| {
            assert_eq!(set(ranges).covers(&key.into(), &end.into()), expected, "{ranges:?} over {key:?}..{end:?}");
        };
        check(&[], "a", "", false);
        check(&[("a", "")], "a", "", true);
        check(&[("a", "")], "a\0", "", false);
        check(&[("a", "")], "a", "a\0", true);
        check(&[("a", "")], "a", "b", false);
        check(&[("a", "c")], "b", "", true);
        check(&[("a", "c")], "c", "", false);
        check(&[("a", "c")], "a", "c", true);
        check(&[("a", "c")], "a", "d", false);
        check(&[("a", "c")], "b", "\0", false);
        check(&[("a", "c")], "0", "c", false);
        // Pieces that touch make a whole; a gap does not.
        check(&[("a", "c"), ("c", "e")], "b", "d", true);
        check(&[("a", "c"), ("d", "e")], "b", "e", false);
        check(&[("a", ""), ("a\0", "c")], "a", "c", true);
        check(&[("b", "d"), ("a", "z"), ("c", "e")], "a", "z", true);
        // Open ends.
        check(&[("b", "\0")], "b", "\0", true);
        check(&[("b", "\0")], "zzz", "", true);
        check(&[("b", "\0")], "a", "\0", false);
        check(&[("b", "\0"), ("a", "b")], "a", "\0", true);
        check(&[("\0", "\0")], "\0", "\0", true);
        // Ranges without keys permit nothing and are not permitted.
        check(&[("b", "a")], "b", "", false);
        check(&[("a", "z")], "c", "b", false);
        check(&[("a", "z")], "c", "c", false);
    }

    #[test]
    fn a_set_agrees_with_its_ranges_key_by_key() {
        let keys: Vec<Bytes> = (b'a'..=b'f').map(|byte| Bytes::copy_from_slice(&[byte])).collect();
        let ends: Vec<Bytes> = keys.iter().cloned().chain([Bytes::new(), Bytes::from_static(b"\0")]).collect();
        let ranges: Vec<(&Bytes, &Bytes)> =
            keys.iter().flat_map(|key| ends.iter().map(move |end| (key, end))).collect();
        for (number, first) in ranges.iter().enumerate() {
            for second in &ranges[number..] {
                let set = IntervalSet::union([*first, *second]);
                for key in &keys {
                    let inside = |(from, end): (&Bytes, &Bytes)| match &end[..] {
                        [] => key == from,
                        [0] => key >= from,
                        _ => key >= from && key < end,
                    };
                    let expected = inside(*first) || inside(*second);
                    assert_eq!(set.covers(key, &Bytes::new()), expected, "{first:?} {second:?} {key:?}");
                }
            }
        }
    }
}
