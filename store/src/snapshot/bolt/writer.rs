//! Writes a file whose keys arrive in order, keeping one page of each level in memory.

use std::fs::File;
use std::io::{BufWriter, Seek, SeekFrom, Write};

use bytes::{BufMut, Bytes};

use super::{
    BRANCH, BUCKET_BYTES, BoltError, ELEMENT_BYTES, FREELIST, HEADER_BYTES, LEAF, MAX_KEY_BYTES, META, META_BYTES,
    MetaPage, NESTED, PAGE_BYTES,
};

/// bbolt keeps a bucket inside its parent up to this size.
const MAX_INLINE_BYTES: usize = PAGE_BYTES / 4;

/// bbolt may merge a page with its neighbour below the same parent: a parent of one would
/// stop it. So every page but a root has at least two elements.
const MIN_ELEMENTS: usize = 2;

const BUFFER_BYTES: usize = 1 << 20;

/// A file in the making.
pub(crate) struct Writer {
    pages: Pages,
    buckets: Tree,
    open: Option<(Bytes, Tree)>,
}

impl Writer {
    /// Begins a database in `file`, which is empty.
    pub(crate) fn new(file: File) -> Result<Writer, BoltError> {
        let mut file = BufWriter::with_capacity(BUFFER_BYTES, file);
        // The two meta pages come last: they say where the root is.
        file.write_all(&[0; 2 * PAGE_BYTES])?;
        Ok(Writer { pages: Pages { file, next: 2 }, buckets: Tree::default(), open: None })
    }

    /// Ends the bucket before and begins another, whose name is greater.
    pub(crate) fn bucket(&mut self, name: &[u8]) -> Result<(), BoltError> {
        self.end_bucket()?;
        self.open = Some((Bytes::copy_from_slice(name), Tree::default()));
        Ok(())
    }

    /// Adds to the bucket begun last; keys must come in order, none twice.
    pub(crate) fn put(&mut self, key: &[u8], value: &[u8]) -> Result<(), BoltError> {
        let Some((_, tree)) = &mut self.open else { return Err(BoltError::Format("a key outside of all buckets")) };
        tree.put(&mut self.pages, 0, Bytes::copy_from_slice(key), Bytes::copy_from_slice(value))
    }

    fn end_bucket(&mut self) -> Result<(), BoltError> {
        let Some((name, tree)) = self.open.take() else { return Ok(()) };
        let value = tree.into_bucket(&mut self.pages)?;
        self.buckets.put(&mut self.pages, NESTED, name, value.into())
    }

    /// Completes the file; returns it and its size. It is not synced.
    pub(crate) fn finish(mut self) -> Result<(File, u64), BoltError> {
        self.end_bucket()?;
        let root = self.buckets.into_root(&mut self.pages)?;
        let freelist = self.pages.write(FREELIST, &[])?;
        let Pages { mut file, next: end } = self.pages;
        file.seek(SeekFrom::Start(0))?;
        for number in [0u64, 1] {
            let meta = MetaPage { page_bytes: PAGE_BYTES as u32, root, freelist, end, transaction: number };
            let mut page = Vec::with_capacity(PAGE_BYTES);
            put_header(&mut page, number, META, 0, 0);
            page.put_slice(&meta.encode());
            debug_assert_eq!(page.len(), HEADER_BYTES + META_BYTES);
            page.resize(PAGE_BYTES, 0);
            file.write_all(&page)?;
        }
        let file = file.into_inner().map_err(|error| error.into_error())?;
        Ok((file, end * PAGE_BYTES as u64))
    }
}

fn put_header(page: &mut Vec<u8>, id: u64, flags: u16, count: u16, overflow: u32) {
    page.put_u64_le(id);
    page.put_u16_le(flags);
    page.put_u16_le(count);
    page.put_u32_le(overflow);
}

struct Pages {
    file: BufWriter<File>,
    next: u64,
}

impl Pages {
    /// Appends a page, as many times the page size as it needs; returns its id.
    fn write(&mut self, flags: u16, elements: &[Element]) -> Result<u64, BoltError> {
        let size = HEADER_BYTES + elements.iter().map(Element::size).sum::<usize>();
        let spans = size.div_ceil(PAGE_BYTES);
        let too_large = || BoltError::Format("a value is too large for a page");
        let overflow = u32::try_from(spans - 1).map_err(|_| too_large())?;
        let mut page = Vec::with_capacity(spans * PAGE_BYTES);
        let id = self.next;
        encode(&mut page, id, flags, overflow, elements)?;
        page.resize(spans * PAGE_BYTES, 0);
        self.file.write_all(&page)?;
        self.next += spans as u64;
        Ok(id)
    }
}

fn encode(page: &mut Vec<u8>, id: u64, flags: u16, overflow: u32, elements: &[Element]) -> Result<(), BoltError> {
    let too_large = |_| BoltError::Format("a page holds too much");
    put_header(page, id, flags, u16::try_from(elements.len()).map_err(too_large)?, overflow);
    // Counted from the element that says it.
    let mut position = elements.len() * ELEMENT_BYTES;
    for element in elements {
        let at = u32::try_from(position).map_err(too_large)?;
        let key = element.key.len() as u32;
        match &element.content {
            Content::Value { flags, value } => {
                page.put_u32_le(*flags);
                page.put_u32_le(at);
                page.put_u32_le(key);
                page.put_u32_le(u32::try_from(value.len()).map_err(too_large)?);
            }
            Content::Page(id) => {
                page.put_u32_le(at);
                page.put_u32_le(key);
                page.put_u64_le(*id);
            }
        }
        position = position + element.size() - 2 * ELEMENT_BYTES;
    }
    for element in elements {
        page.put_slice(&element.key);
        if let Content::Value { value, .. } = &element.content {
            page.put_slice(value);
        }
    }
    Ok(())
}

struct Element {
    key: Bytes,
    content: Content,
}

enum Content {
    Value {
        flags: u32,
        value: Bytes,
    },
    /// The page whose first key this is.
    Page(u64),
}

impl Element {
    fn size(&self) -> usize {
        let value = match &self.content {
            Content::Value { value, .. } => value.len(),
            Content::Page(_) => 0,
        };
        ELEMENT_BYTES + self.key.len() + value
    }
}

/// The page being filled on each level of a tree, leaves first.
#[derive(Default)]
struct Tree {
    levels: Vec<Level>,
    last: Option<Bytes>,
}

#[derive(Default)]
struct Level {
    elements: Vec<Element>,
    bytes: usize,
}

impl Tree {
    fn put(&mut self, pages: &mut Pages, flags: u32, key: Bytes, value: Bytes) -> Result<(), BoltError> {
        if key.is_empty() || key.len() > MAX_KEY_BYTES {
            return Err(BoltError::Format("a key is empty or too long"));
        }
        if self.last.as_ref().is_some_and(|last| *last >= key) {
            return Err(BoltError::Format("keys come out of order"));
        }
        self.last = Some(key.clone());
        self.push(pages, 0, Element { key, content: Content::Value { flags, value } })
    }

    /// Adds an element to a level, and writes a page of it when it has one too many.
    fn push(&mut self, pages: &mut Pages, level: usize, element: Element) -> Result<(), BoltError> {
        if self.levels.len() == level {
            self.levels.push(Level::default());
        }
        let Level { elements, bytes } = &mut self.levels[level];
        *bytes += element.size();
        elements.push(element);
        if HEADER_BYTES + *bytes <= PAGE_BYTES || elements.len() < 2 * MIN_ELEMENTS {
            return Ok(());
        }
        // What stays is enough for a page of its own, should nothing more come.
        let kept = elements.split_off(elements.len() - MIN_ELEMENTS);
        let full = std::mem::replace(elements, kept);
        *bytes = elements.iter().map(Element::size).sum();
        self.write(pages, level, &full)
    }

    /// Writes a page of a level and tells the level above.
    fn write(&mut self, pages: &mut Pages, level: usize, elements: &[Element]) -> Result<(), BoltError> {
        let Some(first) = elements.first() else { return Ok(()) };
        let key = first.key.clone();
        let id = pages.write(if level == 0 { LEAF } else { BRANCH }, elements)?;
        self.push(pages, level + 1, Element { key, content: Content::Page(id) })
    }

    /// Writes what is left, lowest level first; returns the root.
    fn into_root(mut self, pages: &mut Pages) -> Result<u64, BoltError> {
        let mut level = 0;
        loop {
            let Some(current) = self.levels.get_mut(level) else { return pages.write(LEAF, &[]) };
            let elements = std::mem::take(&mut current.elements);
            if level + 1 == self.levels.len() {
                return pages.write(if level == 0 { LEAF } else { BRANCH }, &elements);
            }
            self.write(pages, level, &elements)?;
            level += 1;
        }
    }

    /// The value of the tree's element in its parent.
    fn into_bucket(mut self, pages: &mut Pages) -> Result<Vec<u8>, BoltError> {
        let mut value = Vec::with_capacity(BUCKET_BYTES);
        let bytes = self.levels.first().map_or(0, |level| level.bytes);
        if self.levels.len() <= 1 && HEADER_BYTES + bytes <= MAX_INLINE_BYTES {
            value.put_slice(&[0; BUCKET_BYTES]);
            let elements = self.levels.pop().unwrap_or_default().elements;
            encode(&mut value, 0, LEAF, 0, &elements)?;
        } else {
            value.put_u64_le(self.into_root(pages)?);
            value.put_u64_le(0);
        }
        Ok(value)
    }
}
