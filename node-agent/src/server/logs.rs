//! Logs as the runtime writes them: `TIME STREAM TAG TEXT`, one line each.

use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use tokio::io::{AsyncReadExt, AsyncSeekExt};
use tokio::sync::mpsc;

const BLOCK_BYTES: usize = 64 * 1024;
/// `logs -f` shows a line that long after it was written, at most.
const FOLLOW_PAUSE: Duration = Duration::from_millis(100);
/// A line that never ends is given up as a line at this length; the runtime cuts at 16 KiB.
const MAX_LINE_BYTES: usize = 1 << 20;

/// What a client wants to see. Source: API reference, PodLogOptions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    pub follow: bool,
    pub previous: bool,
    pub timestamps: bool,
    pub tail_lines: Option<u64>,
    pub since: Option<Timestamp>,
    pub limit_bytes: Option<u64>,
    /// `Stdout` or `Stderr`; both without.
    pub stream: Option<String>,
}

impl Options {
    /// Reads a query string's pairs.
    ///
    /// # Errors
    /// The parameter that does not parse.
    pub fn parse(pairs: &[(String, String)], now: Timestamp) -> Result<Self, String> {
        let mut options = Self::default();
        for (key, value) in pairs {
            let wrong = || format!("invalid value {value:?} of the parameter {key}");
            let flag = || match value.as_str() {
                "" | "0" | "false" => Ok(false),
                "1" | "true" => Ok(true),
                _ => Err(wrong()),
            };
            let number = || value.parse::<u64>().map_err(|_| wrong());
            match key.as_str() {
                "follow" => options.follow = flag()?,
                "previous" => options.previous = flag()?,
                "timestamps" => options.timestamps = flag()?,
                "tailLines" => options.tail_lines = Some(number()?),
                "limitBytes" => options.limit_bytes = Some(number()?),
                "sinceSeconds" => options.since = now.checked_sub(Duration::from_secs(number()?)).ok(),
                "sinceTime" => options.since = Some(value.parse().map_err(|_| wrong())?),
                "stream" if value != "All" => options.stream = Some(value.clone()),
                _ => {}
            }
        }
        Ok(options)
    }
}

/// One line of the runtime's log.
#[derive(Debug, PartialEq, Eq)]
struct Entry<'a> {
    time: &'a str,
    stream: &'a str,
    /// The text goes on in the next entry.
    partial: bool,
    text: &'a [u8],
}

/// `None` when the bytes are no log line. Source: CRI's log format.
fn parse(line: &[u8]) -> Option<Entry<'_>> {
    let mut parts = line.splitn(4, |byte| *byte == b' ');
    let time = std::str::from_utf8(parts.next()?).ok()?;
    let stream = std::str::from_utf8(parts.next()?).ok()?;
    let tags = parts.next()?;
    let text = parts.next()?;
    if !matches!(stream, "stdout" | "stderr") {
        return None;
    }
    Some(Entry { time, stream, partial: tags.split(|byte| *byte == b':').next() == Some(b"P"), text })
}

/// Turns the runtime's lines into what the client sees.
struct Filter {
    options: Options,
    /// The next entry continues a line.
    inside_line: bool,
    sent: u64,
}

impl Filter {
    fn new(options: Options) -> Self {
        Self { options, inside_line: false, sent: 0 }
    }

    fn is_full(&self) -> bool {
        self.options.limit_bytes.is_some_and(|limit| self.sent >= limit)
    }

    /// Appends what the client sees of one line to `out`.
    fn push(&mut self, line: &[u8], out: &mut Vec<u8>) {
        let Some(entry) = parse(line) else { return };
        if self.options.stream.as_ref().is_some_and(|stream| !stream.eq_ignore_ascii_case(entry.stream)) {
            return;
        }
        if let Some(since) = self.options.since
            && entry.time.parse::<Timestamp>().is_ok_and(|time| time < since)
        {
            return;
        }
        let before = out.len();
        if self.options.timestamps && !self.inside_line {
            out.extend_from_slice(entry.time.as_bytes());
            out.push(b' ');
        }
        out.extend_from_slice(entry.text);
        if !entry.partial {
            out.push(b'\n');
        }
        self.inside_line = entry.partial;
        if let Some(limit) = self.options.limit_bytes {
            let room = usize::try_from(limit - self.sent.min(limit)).unwrap_or(usize::MAX);
            out.truncate(before.saturating_add(room));
        }
        self.sent += (out.len() - before) as u64;
    }
}

/// Where the last `lines` lines of a file begin.
fn tail_offset(file: &mut (impl Read + Seek), lines: u64) -> std::io::Result<u64> {
    let length = file.seek(SeekFrom::End(0))?;
    if lines == 0 {
        return Ok(length);
    }
    let mut position = length;
    let mut found = 0;
    let mut block = vec![0; BLOCK_BYTES];
    while position > 0 {
        let size = position.min(BLOCK_BYTES as u64);
        position -= size;
        let block = &mut block[..usize::try_from(size).unwrap_or(BLOCK_BYTES)];
        file.seek(SeekFrom::Start(position))?;
        file.read_exact(block)?;
        for (index, byte) in block.iter().enumerate().rev() {
            let at = position + index as u64;
            if *byte == b'\n' && at + 1 != length {
                found += 1;
                if found == lines {
                    return Ok(at + 1);
                }
            }
        }
    }
    Ok(0)
}

/// The end of a log as text, for a termination message.
pub fn tail(path: &Path, limit: usize) -> String {
    let read = || -> std::io::Result<Vec<u8>> {
        let mut file = std::fs::File::open(path)?;
        let start = file.metadata()?.len().saturating_sub(4 * limit as u64);
        file.seek(SeekFrom::Start(start))?;
        let mut bytes = Vec::new();
        file.take(4 * limit as u64).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let mut filter = Filter::new(Options::default());
    let mut out = Vec::new();
    for line in read().unwrap_or_default().split(|byte| *byte == b'\n') {
        filter.push(line, &mut out);
    }
    let cut = out.len().saturating_sub(limit);
    String::from_utf8_lossy(&out[cut..]).into_owned()
}

/// Sends a log to `out` until its end, or with `follow` until the container has ended and
/// everything was sent, or until nobody listens.
///
/// # Errors
/// When the file cannot be read.
pub async fn send<F, R>(path: PathBuf, options: Options, out: mpsc::Sender<Bytes>, is_running: F) -> std::io::Result<()>
where
    F: Fn() -> R,
    R: Future<Output = bool>,
{
    let start = match options.tail_lines {
        Some(lines) => {
            let path = path.clone();
            let find = move || tail_offset(&mut std::fs::File::open(path)?, lines);
            tokio::task::spawn_blocking(find).await.map_err(std::io::Error::other)??
        }
        None => 0,
    };
    let mut file = tokio::fs::File::open(&path).await?;
    file.seek(SeekFrom::Start(start)).await?;
    let follow = options.follow;
    let mut filter = Filter::new(options);
    let mut pending = Vec::new();
    let mut block = vec![0; BLOCK_BYTES];
    let mut idle = 0_u32;
    // At the end of a container one more look finds what was written last.
    let mut last_look = !follow;
    loop {
        let count = file.read(&mut block).await?;
        if count == 0 {
            if last_look {
                return Ok(());
            }
            // Asking the runtime costs more than looking at the file.
            if idle % 5 == 4 && !is_running().await {
                last_look = true;
                continue;
            }
            idle += 1;
            tokio::select! {
                () = out.closed() => return Ok(()),
                () = tokio::time::sleep(FOLLOW_PAUSE) => {}
            }
            continue;
        }
        idle = 0;
        pending.extend_from_slice(&block[..count]);
        let mut text = Vec::new();
        let mut done = 0;
        while let Some(length) = pending[done..].iter().position(|byte| *byte == b'\n') {
            filter.push(&pending[done..done + length], &mut text);
            done += length + 1;
        }
        pending.drain(..done);
        if pending.len() > MAX_LINE_BYTES {
            pending.clear();
        }
        if !text.is_empty() && out.send(text.into()).await.is_err() {
            return Ok(());
        }
        if filter.is_full() {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "2026-01-01T00:00:01.5Z stdout F one\n\
        2026-01-01T00:00:02Z stderr P tw\n\
        2026-01-01T00:00:02Z stderr F o\n\
        broken\n\
        2026-01-01T00:00:03Z stdout F \n\
        2026-01-01T00:00:04Z stdout F four words here\n";

    #[track_caller]
    fn check(options: Options, expected: &str) {
        let mut filter = Filter::new(options);
        let mut out = Vec::new();
        for line in LOG.lines() {
            filter.push(line.as_bytes(), &mut out);
        }
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }

    #[test]
    fn options_choose_what_is_seen() {
        check(Options::default(), "one\ntwo\n\nfour words here\n");
        check(Options { stream: Some("Stderr".to_owned()), ..Options::default() }, "two\n");
        check(Options { limit_bytes: Some(5), ..Options::default() }, "one\nt");
        check(
            Options { since: Some("2026-01-01T00:00:03Z".parse().unwrap()), ..Options::default() },
            "\nfour words here\n",
        );
        check(
            Options { timestamps: true, ..Options::default() },
            "2026-01-01T00:00:01.5Z one\n2026-01-01T00:00:02Z two\n2026-01-01T00:00:03Z \n2026-01-01T00:00:04Z four words here\n",
        );
    }

    #[test]
    fn the_tail_begins_at_a_line() {
        let mut file = std::io::Cursor::new(b"a\nbb\nccc\n");
        for (lines, expected) in [(0, 9), (1, 5), (2, 2), (3, 0), (9, 0)] {
            assert_eq!(tail_offset(&mut file, lines).unwrap(), expected, "{lines}");
        }
        assert_eq!(tail_offset(&mut std::io::Cursor::new(b""), 3).unwrap(), 0);
        let long = "x".repeat(BLOCK_BYTES + 10);
        let mut file = std::io::Cursor::new(format!("a\n{long}\n"));
        assert_eq!(tail_offset(&mut file, 1).unwrap(), 2);
    }

    #[test]
    fn parameters_are_read() {
        let now = Timestamp::from_second(1000).unwrap();
        let pair = |key: &str, value: &str| vec![(key.to_owned(), value.to_owned())];
        assert!(Options::parse(&pair("follow", "true"), now).unwrap().follow);
        assert_eq!(
            Options::parse(&pair("sinceSeconds", "10"), now).unwrap().since,
            Some(Timestamp::from_second(990).unwrap())
        );
        assert!(Options::parse(&pair("tailLines", "-1"), now).is_err());
        assert!(Options::parse(&pair("follow", "maybe"), now).is_err());
        assert_eq!(Options::parse(&pair("unknown", "x"), now).unwrap(), Options::default());
    }

    #[tokio::test]
    async fn following_ends_with_the_container() {
        use std::io::Write;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("0.log");
        let mut file = std::fs::File::create(&path).unwrap();
        writeln!(file, "2026-01-01T00:00:01Z stdout F one").unwrap();
        let (sender, mut lines) = mpsc::channel(16);
        let running = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(true));
        let seen = running.clone();
        let options = Options { follow: true, ..Options::default() };
        let task = tokio::spawn(send(path, options, sender, move || {
            let running = seen.load(std::sync::atomic::Ordering::SeqCst);
            async move { running }
        }));
        assert_eq!(lines.recv().await.unwrap(), "one\n");
        writeln!(file, "2026-01-01T00:00:02Z stdout F two").unwrap();
        assert_eq!(lines.recv().await.unwrap(), "two\n");
        running.store(false, std::sync::atomic::Ordering::SeqCst);
        writeln!(file, "2026-01-01T00:00:03Z stdout F three").unwrap();
        assert_eq!(lines.recv().await.unwrap(), "three\n");
        assert!(lines.recv().await.is_none());
        task.await.unwrap().unwrap();
    }
}
