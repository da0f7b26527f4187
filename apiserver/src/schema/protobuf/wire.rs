//! Protobuf's bytes: tags, varints, lengths.
//!
//! Source: the protobuf encoding guide. Input is untrusted: every length is checked.

/// Why bytes are not protobuf, or not what the table says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Malformed {
    #[error("unexpected end of data")]
    Truncated,
    #[error("a number longer than 64 bits")]
    Overflow,
    #[error("a field of an unknown or wrong wire type")]
    WireType,
    #[error("a text that is not UTF-8")]
    Utf8,
    #[error("messages nest too deeply")]
    Depth,
    #[error("embedded JSON does not parse")]
    Json,
    #[error("a time out of range")]
    Time,
}

/// A field's value, not yet interpreted.
#[derive(Clone, Copy)]
pub(super) enum Raw<'a> {
    Varint(u64),
    Fixed64(u64),
    Fixed32,
    Bytes(&'a [u8]),
}

impl<'a> Raw<'a> {
    pub(super) fn bytes(self) -> Result<&'a [u8], Malformed> {
        match self {
            Self::Bytes(bytes) => Ok(bytes),
            _ => Err(Malformed::WireType),
        }
    }

    pub(super) fn text(self) -> Result<&'a str, Malformed> {
        std::str::from_utf8(self.bytes()?).map_err(|_| Malformed::Utf8)
    }

    /// A signed number; protobuf writes negative ones as 64 bits.
    pub(super) fn integer(self) -> Result<i64, Malformed> {
        match self {
            Self::Varint(value) => Ok(value.cast_signed()),
            _ => Err(Malformed::WireType),
        }
    }

    pub(super) fn double(self) -> Result<f64, Malformed> {
        match self {
            Self::Fixed64(bits) => Ok(f64::from_bits(bits)),
            _ => Err(Malformed::WireType),
        }
    }
}

/// Reads the fields of one message in turn.
pub(super) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// The next field's number and value; `None` at the end.
    pub(super) fn field(&mut self) -> Result<Option<(u32, Raw<'a>)>, Malformed> {
        if self.rest.is_empty() {
            return Ok(None);
        }
        let key = self.varint()?;
        let tag = u32::try_from(key >> 3).map_err(|_| Malformed::Overflow)?;
        let value = match key & 7 {
            0 => Raw::Varint(self.varint()?),
            1 => Raw::Fixed64(u64::from_le_bytes(self.take(8)?.try_into().expect("eight bytes were taken"))),
            2 => {
                let length = usize::try_from(self.varint()?).map_err(|_| Malformed::Overflow)?;
                Raw::Bytes(self.take(length)?)
            }
            5 => {
                self.take(4)?;
                Raw::Fixed32
            }
            _ => return Err(Malformed::WireType),
        };
        Ok(Some((tag, value)))
    }

    /// The next number of a packed list; `None` at the end.
    pub(super) fn packed(&mut self) -> Result<Option<i64>, Malformed> {
        if self.rest.is_empty() { Ok(None) } else { Ok(Some(self.varint()?.cast_signed())) }
    }

    /// How many bytes are left.
    pub(super) fn rest(&self) -> usize {
        self.rest.len()
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], Malformed> {
        let (taken, rest) = self.rest.split_at_checked(length).ok_or(Malformed::Truncated)?;
        self.rest = rest;
        Ok(taken)
    }

    fn varint(&mut self) -> Result<u64, Malformed> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.take(1)?[0];
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && bits > 1 {
                return Err(Malformed::Overflow);
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(Malformed::Overflow)
    }
}

/// How many bytes a field takes whose value has `length` bytes; its number is less than 16.
pub(super) fn field_size(length: usize) -> usize {
    let mut size = 2;
    let mut rest = length >> 7;
    while rest > 0 {
        size += 1;
        rest >>= 7;
    }
    size + length
}

/// Writes the fields of one message.
#[derive(Default)]
pub(crate) struct Writer {
    out: Vec<u8>,
}

impl Writer {
    /// Goes on behind `out`.
    pub(super) fn behind(out: Vec<u8>) -> Self {
        Self { out }
    }

    /// Begins a field whose value are the next `length` bytes.
    pub(super) fn head(&mut self, tag: u32, length: usize) {
        self.varint(u64::from(tag) << 3 | 2);
        self.varint(length as u64);
    }

    /// Bytes that are encoded already.
    pub(super) fn raw(&mut self, bytes: &[u8]) {
        self.out.extend_from_slice(bytes);
    }

    pub(crate) fn integer(&mut self, tag: u32, value: i64) {
        self.varint(u64::from(tag) << 3);
        self.varint(value.cast_unsigned());
    }

    pub(super) fn double(&mut self, tag: u32, value: f64) {
        self.varint(u64::from(tag) << 3 | 1);
        self.out.extend_from_slice(&value.to_bits().to_le_bytes());
    }

    pub(crate) fn bytes(&mut self, tag: u32, value: &[u8]) {
        self.head(tag, value.len());
        self.raw(value);
    }

    pub(crate) fn message(&mut self, tag: u32, message: Self) {
        self.bytes(tag, &message.out);
    }

    pub(super) fn size(&self) -> usize {
        self.out.len()
    }

    pub(crate) fn into_bytes(self) -> Vec<u8> {
        self.out
    }

    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.out.push((value & 0x7f) as u8 | 0x80);
            value >>= 7;
        }
        self.out.push(value as u8);
    }
}
