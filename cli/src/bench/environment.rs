//! Where a benchmark ran: without it no figure means anything.

use serde::{Deserialize, Serialize};

use super::disk::DiskTimes;

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Environment {
    /// Of this program.
    pub(crate) quorate: String,
    /// It was not compiled for speed: a Quorate of the same file is slower than it can be.
    pub(crate) debug_build: bool,
    pub(crate) kernel: String,
    pub(crate) cpu: String,
    pub(crate) cpus: usize,
    pub(crate) memory_bytes: Option<u64>,
    /// The disk of the servers, where the benchmark knows it.
    pub(crate) disk: Option<DiskTimes>,
}

impl Environment {
    pub(crate) fn of_this_machine(disk: Option<DiskTimes>) -> Self {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let known =
            |text: Option<String>| text.filter(|text| !text.is_empty()).unwrap_or_else(|| "not known".to_owned());
        Self {
            quorate: env!("CARGO_PKG_VERSION").to_owned(),
            debug_build: cfg!(debug_assertions),
            kernel: known(Some(read("/proc/sys/kernel/osrelease").trim().to_owned())),
            cpu: known(cpu_model(&read("/proc/cpuinfo"))),
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
            memory_bytes: memory_bytes(&read("/proc/meminfo")),
            disk,
        }
    }

    /// What does not change from one run to the next.
    pub(crate) fn machine(&self) -> String {
        let memory = self
            .memory_bytes
            .map_or_else(|| "memory not known".to_owned(), |bytes| format!("{:.1} GiB", gibibytes(bytes)));
        format!("{} × {}, {memory}, Linux {}", self.cpus, self.cpu, self.kernel)
    }

    /// In one line, for people.
    pub(crate) fn line(&self) -> String {
        let disk = match self.disk {
            Some(DiskTimes { p50_ms, p99_ms, .. }) => format!("fdatasync p50 {p50_ms:.2} ms, p99 {p99_ms:.2} ms"),
            None => "the servers' disk is not known".to_owned(),
        };
        let debug = if self.debug_build { ", a DEBUG BUILD: not as fast as a release" } else { "" };
        format!("{}, {disk}, quorate {}{debug}", self.machine(), self.quorate)
    }
}

#[expect(clippy::cast_precision_loss, reason = "for people")]
fn gibibytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 30)
}

fn cpu_model(cpuinfo: &str) -> Option<String> {
    let named = |name: &str| {
        let line = cpuinfo.lines().find(|line| line.starts_with(name))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    };
    // ARM says no model, only who made it.
    named("model name").or_else(|| named("CPU implementer").map(|maker| format!("ARM, implementer {maker}")))
}

fn memory_bytes(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.split_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1 << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proc_is_read_as_the_manual_says() {
        let cpuinfo = "processor\t: 0\nmodel name\t: Some CPU @ 2.00GHz\n\nprocessor\t: 1\n";
        assert_eq!(cpu_model(cpuinfo).as_deref(), Some("Some CPU @ 2.00GHz"));
        assert_eq!(cpu_model("CPU implementer\t: 0x41\n").as_deref(), Some("ARM, implementer 0x41"));
        assert_eq!(cpu_model(""), None);
        assert_eq!(memory_bytes("MemTotal:       1024 kB\nMemFree: 1 kB\n"), Some(1 << 20));
        assert_eq!(memory_bytes("MemTotal: x"), None);
    }
}
