//! What the kernel says of this machine.

use std::path::Path;

/// One look at the machine.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Machine {
    pub cpus: u32,
    pub memory_bytes: i64,
    pub storage_bytes: i64,
    /// As Go names it: `amd64`, `arm64`.
    pub architecture: String,
    pub kernel_version: String,
    pub os_image: String,
    pub machine_id: String,
    pub system_uuid: String,
    pub boot_id: String,
    pub memory_pressure: bool,
    pub disk_pressure: bool,
    pub pid_pressure: bool,
}

/// Upstream's eviction thresholds: 100 MiB of memory, 10 % of the disk, 5 % of its inodes.
const MIN_MEMORY_BYTES: i64 = 100 << 20;
const MIN_DISK_PERCENT: u64 = 10;
const MIN_INODES_PERCENT: u64 = 5;

fn read(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default().trim().to_owned()
}

/// A line `NAME:  123 kB` of meminfo, in bytes.
fn meminfo(text: &str, name: &str) -> Option<i64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    Some(line.split_whitespace().next()?.parse::<i64>().ok()?.saturating_mul(1024))
}

/// The name in an os-release file.
fn pretty_name(text: &str) -> Option<String> {
    let value = text.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="))?;
    Some(value.trim_matches(['"', '\'']).to_owned())
}

/// Looks; `data_dir` is on the disk that pods fill.
pub fn look(data_dir: &Path) -> Machine {
    let memory = read("/proc/meminfo");
    let disk = nix::sys::statvfs::statvfs(data_dir).ok();
    let disk_pressure = disk.as_ref().is_some_and(|disk| {
        disk.blocks_available().saturating_mul(100) < disk.blocks().saturating_mul(MIN_DISK_PERCENT)
            || disk.files_available().saturating_mul(100) < disk.files().saturating_mul(MIN_INODES_PERCENT)
    });
    Machine {
        cpus: std::thread::available_parallelism().map_or(1, |count| u32::try_from(count.get()).unwrap_or(1)),
        memory_bytes: meminfo(&memory, "MemTotal").unwrap_or(0),
        storage_bytes: disk
            .map_or(0, |disk| i64::try_from(disk.blocks().saturating_mul(disk.fragment_size())).unwrap_or(i64::MAX)),
        architecture: match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        }
        .to_owned(),
        kernel_version: read("/proc/sys/kernel/osrelease"),
        os_image: pretty_name(&read("/etc/os-release")).unwrap_or_else(|| "Linux".to_owned()),
        machine_id: read("/etc/machine-id"),
        system_uuid: read("/sys/class/dmi/id/product_uuid"),
        boot_id: read("/proc/sys/kernel/random/boot_id"),
        memory_pressure: meminfo(&memory, "MemAvailable").is_some_and(|available| available < MIN_MEMORY_BYTES),
        disk_pressure,
        pid_pressure: false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_files_are_read() {
        let text = "MemTotal:       24684084 kB\nMemAvailable:    123 kB\nHugePages_Total:       0\n";
        assert_eq!(meminfo(text, "MemTotal"), Some(24_684_084 * 1024));
        assert_eq!(meminfo(text, "Mem"), None);
        assert_eq!(
            pretty_name("ID=debian\nPRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\n").unwrap(),
            "Debian GNU/Linux 12 (bookworm)"
        );
        let machine = look(Path::new("/"));
        assert!(machine.cpus > 0 && machine.memory_bytes > 0 && machine.storage_bytes > 0);
    }
}
