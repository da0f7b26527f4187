//! etcd's clients up to 3.4 ask some members for their status under the whole URL that
//! they were given: `:authority: http://10.0.0.1:2379`. That is no authority, and an
//! HTTP/2 server resets such a request; etcd's does not look. So `://` becomes `x--` in
//! the first request of a connection, which makes a name that nobody looks at either.
//!
//! Always: no byte is added or taken, compressed or not. The table of header compression
//! then stays the same on both sides, and later requests refer to the mended entry.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// What an HTTP/2 connection begins with.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

const FRAME_HEADER_BYTES: usize = 9;

/// The type of a frame that begins a request. RFC 9113, 6.2.
const HEADERS: u8 = 1;

/// A literal value of `:authority`, kept in the table. RFC 7541, 6.2.1 and appendix A.
const LITERAL_AUTHORITY: u8 = 0x41;

/// `http://` and `https://`, and what they become: plain, and in the code of RFC 7541,
/// appendix B. The last byte counts under its mask only: the host begins within it.
const MENDS: &[Mend] = &[
    Mend { coded: false, from: b"http://", to: b"httpx--", mask: 0xff },
    Mend { coded: false, from: b"https://", to: b"httpsx--", mask: 0xff },
    Mend {
        coded: true,
        from: &[0x9d, 0x29, 0xae, 0xe3, 0x0c, 0x00],
        to: &[0x9d, 0x29, 0xaf, 0xca, 0xcb, 0x00],
        mask: 0x80,
    },
    Mend {
        coded: true,
        from: &[0x9d, 0x29, 0xad, 0x17, 0x18, 0x60],
        to: &[0x9d, 0x29, 0xad, 0x1e, 0x56, 0x58],
        mask: 0xfc,
    },
];

struct Mend {
    coded: bool,
    from: &'static [u8],
    to: &'static [u8],
    mask: u8,
}

/// A connection whose first request may name its authority by a URL.
pub(crate) struct Lenient<S> {
    stream: S,
    place: Place,
}

/// How far the beginning of a connection was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Preface {
        seen: usize,
    },
    FrameHeader {
        bytes: [u8; FRAME_HEADER_BYTES],
        seen: usize,
    },
    Payload {
        left: usize,
    },
    /// The next bytes are those of the first request.
    Request {
        length: usize,
    },
    /// The first request is through, or this is not HTTP/2.
    Done,
}

impl<S> Lenient<S> {
    pub(crate) fn new(stream: S) -> Self {
        Self { stream, place: Place::Preface { seen: 0 } }
    }
}

impl Place {
    /// Mends what was read now. A request that comes in pieces is left as it is.
    fn pass(&mut self, mut read: &mut [u8]) {
        while !read.is_empty() && *self != Place::Done {
            read = match *self {
                Place::Preface { seen } => {
                    let count = read.len().min(PREFACE.len() - seen);
                    let (preface, rest) = read.split_at_mut(count);
                    *self = match preface == &PREFACE[seen..seen + count] {
                        false => Place::Done,
                        true if seen + count == PREFACE.len() => Place::frame(),
                        true => Place::Preface { seen: seen + count },
                    };
                    rest
                }
                Place::FrameHeader { mut bytes, seen } => {
                    let count = read.len().min(bytes.len() - seen);
                    let (header, rest) = read.split_at_mut(count);
                    bytes[seen..seen + count].copy_from_slice(header);
                    *self = Place::FrameHeader { bytes, seen: seen + count };
                    if seen + count == bytes.len() {
                        let length = usize::from(bytes[0]) << 16 | usize::from(bytes[1]) << 8 | usize::from(bytes[2]);
                        *self = match (bytes[3], length) {
                            (HEADERS, length) => Place::Request { length },
                            (_, 0) => Place::frame(),
                            (_, left) => Place::Payload { left },
                        };
                    }
                    rest
                }
                Place::Request { length } => {
                    let end = read.len().min(length);
                    mend(&mut read[..end]);
                    *self = Place::Done;
                    return;
                }
                Place::Payload { left } => {
                    let count = read.len().min(left);
                    *self = if count == left { Place::frame() } else { Place::Payload { left: left - count } };
                    &mut read[count..]
                }
                Place::Done => return,
            };
        }
    }

    fn frame() -> Self {
        Place::FrameHeader { bytes: [0; FRAME_HEADER_BYTES], seen: 0 }
    }
}

/// Makes a name of the URL in a block of headers, if there is one.
fn mend(block: &mut [u8]) {
    for start in 0..block.len() {
        let Some((&[kind, length], value)) = block[start..].split_first_chunk_mut::<2>().map(|(a, b)| (&*a, b)) else {
            return;
        };
        let fits = |mend: &&Mend| {
            kind == LITERAL_AUTHORITY
                && (length & 0x80 != 0) == mend.coded
                && usize::from(length & 0x7f) >= mend.from.len()
                && mend.is_prefix_of(value)
        };
        if let Some(found) = MENDS.iter().find(fits) {
            let last = found.to.len() - 1;
            value[..last].copy_from_slice(&found.to[..last]);
            value[last] = (value[last] & !found.mask) | (found.to[last] & found.mask);
            return;
        }
    }
}

impl Mend {
    fn is_prefix_of(&self, value: &[u8]) -> bool {
        let last = self.from.len() - 1;
        value.len() > last
            && value[..last] == self.from[..last]
            && value[last] & self.mask == self.from[last] & self.mask
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Lenient<S> {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buffer.filled().len();
        let outcome = Pin::new(&mut this.stream).poll_read(context, buffer);
        this.place.pass(&mut buffer.filled_mut()[before..]);
        outcome
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Lenient<S> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(context, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(context)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(hex: &str) -> Vec<u8> {
        (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect()
    }

    /// A block as etcdctl 3.4 sends it, and where its authority differs once mended.
    const ETCDCTL: &str = "8386459760a924882d9dcb6571afa066a925a87510ac6e48d36a3f41909d29aee30c044eae05c0b86e34dbefbb\
                           5f8b1d75d0620d263d4c4d6564";
    const MENDED: &str = "8386459760a924882d9dcb6571afa066a925a87510ac6e48d36a3f41909d29afcacb044eae05c0b86e34dbefbb\
                          5f8b1d75d0620d263d4c4d6564";

    #[track_caller]
    fn check(before: &[u8], after: &[u8]) {
        let mut block = before.to_vec();
        mend(&mut block);
        assert_eq!(block, after);
    }

    #[test]
    fn a_url_becomes_a_name_of_the_same_length() {
        check(&bytes(ETCDCTL), &bytes(MENDED));
        check(b"\x82\x41\x15http://127.0.0.1:2379", b"\x82\x41\x15httpx--127.0.0.1:2379");
        check(b"\x41\x16https://127.0.0.1:2379", b"\x41\x16httpsx--127.0.0.1:2379");
        // "https://1" in the code: the host's first bits stay.
        check(&bytes("41879d29ad171860ff"), &bytes("41879d29ad1e5658ff"));
        check(&bytes("41879d29ad171863ff"), &bytes("41879d29ad1e565bff"));
    }

    #[test]
    fn what_is_an_authority_is_left_alone() {
        for block in
            [&b"\x41\x0e127.0.0.1:2379"[..], b"\x04\x15http://127.0.0.1:2379", b"\x41\x03http://", b"\x41", b""]
        {
            check(block, block);
        }
    }

    fn connection() -> Vec<u8> {
        let block = bytes(ETCDCTL);
        let length = u8::try_from(block.len()).unwrap();
        let settings = [0, 0, 6, 4, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6];
        let headers = [0, 0, length, HEADERS, 4, 0, 0, 0, 1];
        [PREFACE, &settings, &headers, &block, &headers, &block].concat()
    }

    #[test]
    fn only_the_first_request_is_looked_at_wherever_reads_end() {
        let whole = connection();
        let first = whole.len() - 2 * bytes(ETCDCTL).len() - FRAME_HEADER_BYTES;
        let mut expected = whole.clone();
        mend(&mut expected[first..first + bytes(ETCDCTL).len()]);
        assert_ne!(expected, whole);
        for cut in 0..=first {
            let mut read = whole.clone();
            let mut place = Place::Preface { seen: 0 };
            place.pass(&mut read[..cut]);
            place.pass(&mut read[cut..]);
            assert!(read == expected && place == Place::Done, "cut at {cut}");
        }
    }

    #[test]
    fn other_protocols_pass_untouched() {
        let mut read = b"GET /health HTTP/1.1\r\nhost: http://127.0.0.1\r\n\r\n".to_vec();
        let before = read.clone();
        let mut place = Place::Preface { seen: 0 };
        place.pass(&mut read);
        assert!(read == before && place == Place::Done);
    }
}
