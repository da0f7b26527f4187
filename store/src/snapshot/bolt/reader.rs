//! Reads a file front to back, key by key, keeping one page of each level in memory.

use std::fs::File;
use std::os::unix::fs::FileExt;

use bytes::{Buf, Bytes};

use super::{
    BRANCH, BUCKET_BYTES, BoltError, ELEMENT_BYTES, HEADER_BYTES, LEAF, MAX_PAGE_BYTES, META, META_BYTES,
    MIN_PAGE_BYTES, MetaPage, NESTED,
};

/// The largest page, overflow included: far above etcd's largest value.
const MAX_SPAN_BYTES: u64 = 256 << 20;

/// More levels than a tree of any file has.
const MAX_DEPTH: usize = 32;

/// One key of a bucket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Item {
    pub(crate) key: Bytes,
    pub(crate) value: Bytes,
    /// The value describes a bucket; see [`Reader::bucket`].
    pub(crate) is_bucket: bool,
}

/// A file being read.
pub(crate) struct Reader {
    file: File,
    meta: MetaPage,
}

impl Reader {
    /// Reads where everything is in the first `length` bytes of `file`.
    pub(crate) fn new(file: File, length: u64) -> Result<Reader, BoltError> {
        let meta = find_meta(&file, length)?;
        let size = u64::from(meta.page_bytes);
        if !(MIN_PAGE_BYTES..=MAX_PAGE_BYTES).contains(&(size as usize)) || !size.is_power_of_two() {
            return Err(BoltError::Format("its page size is not possible"));
        }
        let expected = meta.end.checked_mul(size).ok_or(BoltError::Format("its size is not possible"))?;
        if expected > length {
            return Err(BoltError::Short { expected, found: length });
        }
        Ok(Reader { file, meta })
    }

    /// The bytes that its pages take.
    pub(crate) fn size_bytes(&self) -> u64 {
        self.meta.end * u64::from(self.meta.page_bytes)
    }

    /// How many pages there are, the two first ones included.
    pub(crate) fn pages(&self) -> u64 {
        self.meta.end
    }

    /// The buckets, by name.
    pub(crate) fn buckets(&self) -> Result<Cursor<'_>, BoltError> {
        self.cursor(self.page(self.meta.root)?)
    }

    /// The keys of a bucket, which is the value of an item.
    pub(crate) fn bucket(&self, value: &Bytes) -> Result<Cursor<'_>, BoltError> {
        let mut header = value.get(..BUCKET_BYTES).ok_or(BoltError::Format("a bucket is cut short"))?;
        match header.get_u64_le() {
            0 => self.cursor(Page::parse(0, value.slice(BUCKET_BYTES..))?),
            root => self.cursor(self.page(root)?),
        }
    }

    fn cursor(&self, root: Page) -> Result<Cursor<'_>, BoltError> {
        Ok(Cursor { reader: self, path: vec![(root, 0)], last: None, visited: 1 })
    }

    fn page(&self, id: u64) -> Result<Page, BoltError> {
        let damaged = |reason| BoltError::Page { page: id, reason };
        if id < 2 || id >= self.meta.end {
            return Err(damaged("its number is out of range"));
        }
        let size = u64::from(self.meta.page_bytes);
        let mut first = vec![0; size as usize];
        self.file.read_exact_at(&mut first, id * size)?;
        let overflow = u64::from((&first[12..16]).get_u32_le());
        if overflow > 0 {
            let bytes = (overflow + 1) * size;
            if id + overflow >= self.meta.end || bytes > MAX_SPAN_BYTES {
                return Err(damaged("it is too long"));
            }
            first.resize(bytes as usize, 0);
            self.file.read_exact_at(&mut first[size as usize..], (id + 1) * size)?;
        }
        Page::parse(id, first.into())
    }
}

/// The valid meta page of the newest transaction. The second one stands one page behind the
/// first, whose size only a valid first one tells.
fn find_meta(file: &File, length: u64) -> Result<MetaPage, BoltError> {
    let read = |position: u64| -> Result<Option<MetaPage>, BoltError> {
        let mut bytes = [0; HEADER_BYTES + META_BYTES];
        if position + bytes.len() as u64 > length {
            return Ok(None);
        }
        file.read_exact_at(&mut bytes, position)?;
        let flags = (&bytes[8..10]).get_u16_le();
        Ok(MetaPage::decode(&bytes[HEADER_BYTES..]).filter(|_| flags & META != 0))
    };
    let first = read(0)?;
    let mut second = None;
    match first {
        Some(meta) => second = read(u64::from(meta.page_bytes))?,
        None => {
            let mut size = MIN_PAGE_BYTES;
            while size <= MAX_PAGE_BYTES && second.is_none() {
                second = read(size as u64)?.filter(|meta| meta.page_bytes as usize == size);
                size *= 2;
            }
        }
    }
    let newest = first.into_iter().chain(second).max_by_key(|meta| meta.transaction);
    newest.ok_or(BoltError::Format("neither of its meta pages is valid"))
}

/// Walks the keys of one bucket.
pub(crate) struct Cursor<'a> {
    reader: &'a Reader,
    /// From the root down, and the element of each page that comes next.
    path: Vec<(Page, usize)>,
    last: Option<Bytes>,
    visited: u64,
}

impl Cursor<'_> {
    /// How many pages were read; one with overflow counts as one.
    pub(crate) fn visited(&self) -> u64 {
        self.visited
    }

    /// The next key, in order.
    pub(crate) fn next(&mut self) -> Result<Option<Item>, BoltError> {
        loop {
            let depth = self.path.len();
            let Some((page, next)) = self.path.last_mut() else { return Ok(None) };
            if *next >= page.count {
                self.path.pop();
                continue;
            }
            let number = *next;
            *next += 1;
            if page.is_leaf {
                let (id, item) = (page.id, page.item(number)?);
                if self.last.as_ref().is_some_and(|last| *last >= item.key) {
                    return Err(BoltError::Page { page: id, reason: "its keys are out of order" });
                }
                self.last = Some(item.key.clone());
                return Ok(Some(item));
            }
            let (id, child) = (page.id, page.child(number)?);
            self.visited += 1;
            // A page that is reached twice would make the walk longer than the file.
            if depth >= MAX_DEPTH || self.visited > self.reader.meta.end {
                return Err(BoltError::Page { page: id, reason: "it leads in a circle" });
            }
            let child = self.reader.page(child)?;
            self.path.push((child, 0));
        }
    }
}

struct Page {
    id: u64,
    is_leaf: bool,
    count: usize,
    bytes: Bytes,
}

impl Page {
    /// `id` is 0 inside of a value.
    fn parse(id: u64, bytes: Bytes) -> Result<Page, BoltError> {
        let damaged = |reason| BoltError::Page { page: id, reason };
        let Some(mut header) = bytes.get(..HEADER_BYTES) else { return Err(damaged("it is cut short")) };
        let (own, flags, count) = (header.get_u64_le(), header.get_u16_le(), usize::from(header.get_u16_le()));
        if id != 0 && own != id {
            return Err(damaged("it bears another number"));
        }
        let is_leaf = match flags {
            LEAF => true,
            BRANCH => false,
            _ => return Err(damaged("it is neither a branch nor a leaf")),
        };
        if HEADER_BYTES + count * ELEMENT_BYTES > bytes.len() {
            return Err(damaged("it has more elements than room"));
        }
        Ok(Page { id, is_leaf, count, bytes })
    }

    fn element(&self, number: usize) -> &[u8] {
        &self.bytes[HEADER_BYTES + number * ELEMENT_BYTES..][..ELEMENT_BYTES]
    }

    fn child(&self, number: usize) -> Result<u64, BoltError> {
        let mut element = self.element(number);
        element.advance(8);
        Ok(element.get_u64_le())
    }

    fn item(&self, number: usize) -> Result<Item, BoltError> {
        let mut element = self.element(number);
        let flags = element.get_u32_le();
        let (position, key, value) =
            (element.get_u32_le() as usize, element.get_u32_le() as usize, element.get_u32_le() as usize);
        // Counted from the element. No sum of a few u32 overflows 64 bits.
        let start = HEADER_BYTES + number * ELEMENT_BYTES + position;
        let (middle, end) = (start + key, start + key + value);
        if position < ELEMENT_BYTES || end > self.bytes.len() {
            return Err(BoltError::Page { page: self.id, reason: "an element lies outside of it" });
        }
        Ok(Item {
            key: self.bytes.slice(start..middle),
            value: self.bytes.slice(middle..end),
            is_bucket: flags & NESTED != 0,
        })
    }
}
