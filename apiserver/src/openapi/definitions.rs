//! The schemas of all types, as the build script left them.

use std::ops::Range;

/// One line for each type, its name, a tab and its schema as JSON; zstd.
static COMPRESSED: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/definitions.zst"));

/// The unpacked text with an index: about 1 MB, so it is dropped after use.
pub(super) struct Definitions {
    text: String,
    /// In the order of the names, which begin each range's line.
    lines: Vec<(Range<usize>, Range<usize>)>,
}

/// Unpacks the schemas: a few milliseconds.
pub(super) fn load() -> Definitions {
    let bytes = zstd::decode_all(COMPRESSED).expect("the build script wrote a zstd stream");
    let text = String::from_utf8(bytes).expect("the build script wrote UTF-8");
    let mut lines = Vec::new();
    let mut start = 0;
    for line in text.split_inclusive('\n') {
        let tab = line.find('\t').expect("the build script wrote a tab into each line");
        lines.push((start..start + tab, start + tab + 1..start + line.len() - 1));
        start += line.len();
    }
    Definitions { text, lines }
}

impl Definitions {
    /// The name and the schema of a type.
    pub(super) fn entry(&self, name: &str) -> Option<(&str, &str)> {
        let index = self.lines.binary_search_by(|(own, _)| self.text[own.clone()].cmp(name)).ok()?;
        let (own, schema) = &self.lines[index];
        Some((&self.text[own.clone()], &self.text[schema.clone()]))
    }
}
