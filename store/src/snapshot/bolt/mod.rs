//! The file of etcd's backend, bbolt: pages that form one B+tree per bucket.
//!
//! Read and written front to back, by whoever owns the file alone; nothing is changed in
//! place. Bytes of a file are never trusted: what does not fit is an error that names the
//! page. Only this folder knows the format (bbolt's `page.go`, `meta.go`, `bucket.go`).

mod reader;
#[cfg(test)]
mod tests;
mod writer;

use std::io;

use bytes::{Buf, BufMut};

pub(crate) use reader::{Cursor, Item, Reader};
pub(crate) use writer::Writer;

/// Of the files written here; those read may have others.
pub(crate) const PAGE_BYTES: usize = 4096;

/// The page sizes that bbolt looks for.
const MIN_PAGE_BYTES: usize = 1 << 10;
const MAX_PAGE_BYTES: usize = 64 << 10;

/// Before the elements of a page: id u64, flags u16, count u16, overflow u32.
const HEADER_BYTES: usize = 16;
/// Of a branch: position u32, key length u32, page u64.
/// Of a leaf: flags u32, position u32, key length u32, value length u32.
const ELEMENT_BYTES: usize = 16;
/// The value of a bucket's element: its root page u64 and a sequence u64. With 0 as its root the one
/// page of the bucket follows.
const BUCKET_BYTES: usize = 16;
/// magic u32, version u32, page size u32, flags u32, root u64, sequence u64, freelist u64,
/// end u64, transaction u64, checksum u64.
const META_BYTES: usize = 64;

const BRANCH: u16 = 0x01;
const LEAF: u16 = 0x02;
const META: u16 = 0x04;
const FREELIST: u16 = 0x10;

/// The flag of a leaf's element that is a bucket.
const NESTED: u32 = 0x01;

const MAGIC: u32 = 0xED0C_DAED;
const VERSION: u32 = 2;

/// bbolt's limit.
const MAX_KEY_BYTES: usize = 32 << 10;

/// Why a file of etcd's backend cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum BoltError {
    /// The system refused.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// It is no such file, or none that can be read.
    #[error("it is not a database of etcd: {0}")]
    Format(&'static str),
    /// The file ends too early.
    #[error("it is cut short: {found} bytes of {expected}")]
    Short {
        /// The bytes its header speaks of.
        expected: u64,
        /// The bytes there are.
        found: u64,
    },
    /// A page is not what it should be.
    #[error("page {page} is damaged: {reason}")]
    Page {
        /// Which one.
        page: u64,
        /// What is wrong.
        reason: &'static str,
    },
}

/// One of the two pages that say where everything begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct MetaPage {
    page_bytes: u32,
    /// The page of the bucket that holds the buckets.
    root: u64,
    freelist: u64,
    /// The first page behind all others.
    end: u64,
    transaction: u64,
}

impl MetaPage {
    fn encode(&self) -> [u8; META_BYTES] {
        let mut bytes = [0; META_BYTES];
        let mut rest = &mut bytes[..];
        for number in [MAGIC, VERSION, self.page_bytes, 0] {
            rest.put_u32_le(number);
        }
        for number in [self.root, 0, self.freelist, self.end, self.transaction] {
            rest.put_u64_le(number);
        }
        let checksum = fnv64a(&bytes[..META_BYTES - 8]);
        bytes[META_BYTES - 8..].copy_from_slice(&checksum.to_le_bytes());
        bytes
    }

    /// Reads what follows the header of a meta page; `None` when its checksum or a constant is wrong.
    fn decode(bytes: &[u8]) -> Option<MetaPage> {
        let mut bytes = bytes.get(..META_BYTES)?;
        let sum = fnv64a(&bytes[..META_BYTES - 8]);
        let (magic, version, page_bytes) = (bytes.get_u32_le(), bytes.get_u32_le(), bytes.get_u32_le());
        bytes.advance(4);
        let root = bytes.get_u64_le();
        bytes.advance(8);
        let (freelist, end, transaction) = (bytes.get_u64_le(), bytes.get_u64_le(), bytes.get_u64_le());
        let good = magic == MAGIC && version == VERSION && bytes.get_u64_le() == sum;
        good.then_some(MetaPage { page_bytes, root, freelist, end, transaction })
    }
}

fn fnv64a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}
