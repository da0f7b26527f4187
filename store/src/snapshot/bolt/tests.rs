use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::*;

type Bucket = (Vec<u8>, Vec<(Vec<u8>, Vec<u8>)>);

fn write(buckets: &[Bucket]) -> Vec<u8> {
    let mut writer = Writer::new(tempfile::tempfile().unwrap()).unwrap();
    for (name, items) in buckets {
        writer.bucket(name).unwrap();
        for (key, value) in items {
            writer.put(key, value).unwrap();
        }
    }
    let (mut file, size) = writer.finish().unwrap();
    let mut bytes = Vec::new();
    file.seek(SeekFrom::Start(0)).unwrap();
    file.read_to_end(&mut bytes).unwrap();
    assert_eq!(bytes.len() as u64, size);
    bytes
}

fn file(bytes: &[u8]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    file
}

fn read(bytes: &[u8]) -> Result<Vec<Bucket>, BoltError> {
    let reader = Reader::new(file(bytes), bytes.len() as u64)?;
    let mut buckets = Vec::new();
    let mut names = reader.buckets()?;
    while let Some(bucket) = names.next()? {
        if !bucket.is_bucket {
            return Err(BoltError::Format("a key beside the buckets"));
        }
        let mut items = Vec::new();
        let mut cursor = reader.bucket(&bucket.value)?;
        while let Some(item) = cursor.next()? {
            items.push((item.key.to_vec(), item.value.to_vec()));
        }
        buckets.push((bucket.key.to_vec(), items));
    }
    Ok(buckets)
}

fn numbered(count: usize, value: usize) -> Vec<(Vec<u8>, Vec<u8>)> {
    (0..count).map(|number| ((number as u64).to_be_bytes().to_vec(), vec![number as u8; value])).collect()
}

fn pick(random: &mut StdRng, choices: &[usize]) -> usize {
    choices[random.random_range(0..choices.len())]
}

fn random(seed: u64) -> Vec<Bucket> {
    let mut random = StdRng::seed_from_u64(seed);
    let names: std::collections::BTreeSet<u8> = (0..random.random_range(0..12)).map(|_| random.random()).collect();
    let bucket = |random: &mut StdRng| {
        let mut items = std::collections::BTreeMap::new();
        let largest = pick(random, &[8, 200, 3000, 20_000]);
        let most = pick(random, &[3, 40, 700]);
        for _ in 0..random.random_range(0..most) {
            let key: Vec<u8> = (0..random.random_range(1..30)).map(|_| random.random()).collect();
            items.insert(key, vec![random.random(); random.random_range(0..largest)]);
        }
        items.into_iter().collect()
    };
    names.into_iter().map(|name| (vec![name], bucket(&mut random))).collect()
}

#[test]
fn what_was_written_is_read() {
    for (count, value) in [(0, 0), (1, 0), (1, 5000), (2, 5000), (3, 5000), (200, 1), (20_000, 10), (50, 10_000)] {
        let buckets = vec![(b"a".to_vec(), numbered(count, value)), (b"b".to_vec(), numbered(3, 3))];
        assert!(read(&write(&buckets)).unwrap() == buckets, "{count} values of {value}");
    }
    for seed in 0..200 {
        let buckets = random(seed);
        assert!(read(&write(&buckets)).unwrap() == buckets, "seed {seed}");
    }
}

/// bbolt stops when a page that is no root has less than two elements and is merged.
#[test]
fn no_page_but_a_root_has_a_single_element() {
    for count in 1..1200 {
        let bytes = write(&[(b"a".to_vec(), numbered(count, 900))]);
        let mut counts: Vec<(u16, u16)> = Vec::new();
        let mut position = 2 * PAGE_BYTES;
        while position < bytes.len() {
            let mut header = &bytes[position + 8..position + 16];
            let (flags, elements, overflow) = (header.get_u16_le(), header.get_u16_le(), header.get_u32_le());
            counts.push((flags, elements));
            position += (overflow as usize + 1) * PAGE_BYTES;
        }
        // The buckets' page and the freelist come last, before them the bucket's root.
        counts.truncate(counts.len() - 2);
        let root = counts.pop();
        assert!(counts.iter().all(|(_, elements)| *elements >= 2), "{count}: {counts:?}");
        assert!(root.is_none_or(|(flags, elements)| flags == LEAF || elements >= 2), "{count}: {root:?}");
    }
}

#[test]
fn keys_out_of_order_are_refused() {
    let mut writer = Writer::new(tempfile::tempfile().unwrap()).unwrap();
    assert!(writer.put(b"a", b"").is_err(), "no bucket");
    writer.bucket(b"x").unwrap();
    assert!(writer.put(b"", b"").is_err(), "an empty key");
    writer.put(b"b", b"").unwrap();
    assert!(writer.put(b"b", b"").is_err() && writer.put(b"a", b"").is_err());
}

#[test]
fn a_damaged_meta_page_leaves_the_other_one() {
    let buckets = vec![(b"a".to_vec(), numbered(100, 100))];
    let bytes = write(&buckets);
    for meta in [0, PAGE_BYTES] {
        let mut damaged = bytes.clone();
        damaged[meta + HEADER_BYTES + 20] ^= 1;
        assert!(read(&damaged).unwrap() == buckets);
    }
    let mut damaged = bytes.clone();
    damaged[HEADER_BYTES] ^= 1;
    damaged[PAGE_BYTES + HEADER_BYTES] ^= 1;
    assert!(matches!(read(&damaged), Err(BoltError::Format(_))));
    assert!(matches!(read(&bytes[..bytes.len() - 1]), Err(BoltError::Short { .. })));
    for length in [0, 1, 16, 80, 4096, 5000] {
        assert!(read(&bytes[..length]).is_err());
    }
}

#[test]
fn circles_end() {
    let bytes = write(&[(b"a".to_vec(), numbered(5000, 100))]);
    let pages = bytes.len() / PAGE_BYTES;
    let branch = (2..pages).find(|page| bytes[page * PAGE_BYTES + 8] == BRANCH as u8).unwrap();
    for target in 0..=pages as u64 {
        let mut damaged = bytes.clone();
        let element = branch * PAGE_BYTES + HEADER_BYTES + ELEMENT_BYTES;
        damaged[element + 8..element + 16].copy_from_slice(&target.to_le_bytes());
        if damaged != bytes {
            assert!(read(&damaged).is_err(), "page {target}");
        }
    }
}

#[test]
fn damage_is_an_error_and_never_a_panic() {
    for seed in 0..60 {
        let bytes = write(&random(seed));
        let mut random = StdRng::seed_from_u64(seed);
        for _ in 0..20 {
            let mut damaged = bytes.clone();
            for _ in 0..random.random_range(1..6) {
                // Where pages keep their lengths and numbers, most of the time.
                let page = random.random_range(0..damaged.len() / PAGE_BYTES) * PAGE_BYTES;
                let end = pick(&mut random, &[96, PAGE_BYTES]);
                let within = random.random_range(0..end);
                damaged[page + within] = random.random();
            }
            // What it says is of no matter: it must say something.
            drop(read(&damaged));
        }
    }
}
