//! What the kernel knows of this process.

use metrics::gauge;

/// The kernel's ticks in a second as it tells them to processes: 100 on every machine
/// that Linux runs servers on.
const TICKS_PER_SECOND: f64 = 100.0;

#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Process {
    cpu_seconds: f64,
    started_after_boot_seconds: f64,
}

/// The CPU time of this process so far, user and system, in seconds.
pub fn process_cpu_seconds() -> Option<f64> {
    stat(&std::fs::read_to_string("/proc/self/stat").ok()?).map(|process| process.cpu_seconds)
}

/// Sets the gauges of this process from `/proc`; what cannot be read stays as it was.
pub(crate) fn measure_process() {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    if let Some(process) = stat(&read("/proc/self/stat")) {
        // A gauge, because counters are whole numbers here.
        gauge!("process_cpu_seconds_total").set(process.cpu_seconds);
        if let Some(boot) = line(&read("/proc/stat"), "btime") {
            gauge!("process_start_time_seconds").set(boot + process.started_after_boot_seconds);
        }
    }
    let status = read("/proc/self/status");
    for (name, gauge) in
        [("VmRSS:", gauge!("process_resident_memory_bytes")), ("VmSize:", gauge!("process_virtual_memory_bytes"))]
    {
        if let Some(kib) = line(&status, name) {
            gauge.set(kib * 1024.0);
        }
    }
    if let Ok(open) = std::fs::read_dir("/proc/self/fd") {
        // One of them is the folder itself.
        #[expect(clippy::cast_precision_loss, reason = "gauges are floats")]
        gauge!("process_open_fds").set(open.count().saturating_sub(1) as f64);
    }
    if let Some(most) = line(&read("/proc/self/limits"), "Max open files") {
        gauge!("process_max_fds").set(most);
    }
}

/// The first number of the line that begins with `name`.
fn line(text: &str, name: &str) -> Option<f64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(name))?;
    rest.split_whitespace().next()?.parse().ok()
}

/// proc(5), `/proc/pid/stat`: the name in brackets may hold anything, brackets too.
fn stat(text: &str) -> Option<Process> {
    let (_, rest) = text.rsplit_once(')')?;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    // Counted from 1 in the manual, and the first two are before the bracket's end.
    let field = |number: usize| fields.get(number - 3)?.parse::<f64>().ok();
    Some(Process {
        cpu_seconds: (field(14)? + field(15)?) / TICKS_PER_SECOND,
        started_after_boot_seconds: field(22)? / TICKS_PER_SECOND,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proc_is_read_as_the_manual_says() {
        let text = "42 (a) b) S 1 42 42 0 -1 4194560 100 0 0 0 150 50 0 0 20 0 9 0 12345 1000 200 18446744073709551615";
        assert_eq!(stat(text), Some(Process { cpu_seconds: 2.0, started_after_boot_seconds: 123.45 }));
        assert_eq!(stat("42 (a) S 1"), None);
        assert_eq!(stat(""), None);
        assert_eq!(line("VmSize:\t  90 kB\nVmRSS:\t   12 kB\n", "VmRSS:"), Some(12.0));
        assert_eq!(
            line("Max open files            1024                 4096                 files\n", "Max open files"),
            Some(1024.0)
        );
        assert_eq!(
            line("Max open files            unlimited            unlimited            files\n", "Max open files"),
            None
        );
    }
}
