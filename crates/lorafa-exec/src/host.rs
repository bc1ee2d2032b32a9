//! What Linux says about the processor and its memory.

use std::fs;
use std::path::Path;

fn read(path: impl AsRef<Path>) -> Result<String, String> {
    let path = path.as_ref();
    fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))
}

/// The number after a key of a file of `key: value kB` or `key value` lines.
fn number(text: &str, key: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(key))?;
    let mut words = line.trim_start_matches(':').split_whitespace();
    let number: u64 = words.next()?.parse().ok()?;
    match words.next() {
        Some("kB") => number.checked_mul(1024),
        _ => Some(number),
    }
}

fn entry(path: &str, key: &str) -> Result<u64, String> {
    number(&read(path)?, key).ok_or_else(|| format!("{path} has no {key}"))
}

/// Free and total bytes.
pub(crate) fn memory() -> Result<(u64, u64), String> {
    let mut free = entry("/proc/meminfo", "MemAvailable:")?;
    let mut total = entry("/proc/meminfo", "MemTotal:")?;
    for (room, limit) in groups(&read("/proc/self/cgroup").unwrap_or_default()) {
        free = free.min(room);
        total = total.min(limit);
    }
    Ok((free, total))
}

/// What a kind of control groups calls things.
struct Files {
    root: &'static str,
    limit: &'static str,
    usage: &'static str,
    /// In `memory.stat`: files that were read and could be forgotten, which count as used.
    cache: &'static str,
}

const V1: Files = Files {
    root: "/sys/fs/cgroup/memory",
    limit: "memory.limit_in_bytes",
    usage: "memory.usage_in_bytes",
    cache: "total_inactive_file ",
};

const V2: Files = Files {
    root: "/sys/fs/cgroup",
    limit: "memory.max",
    usage: "memory.current",
    cache: "inactive_file ",
};

/// What is left and allowed in each control group that the process is in, as `/proc/self/cgroup` lists them. Groups
/// that cannot be seen from here, as in a container, have no say, but the container's own is seen as the root.
fn groups(list: &str) -> Vec<(u64, u64)> {
    let mut found = Vec::new();
    for line in list.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else {
            continue;
        };
        let files = match controllers {
            "" => &V2,
            _ if controllers.split(',').any(|name| name == "memory") => &V1,
            _ => continue,
        };
        let relative = Path::new(path.trim_start_matches('/'));
        for group in relative.ancestors() {
            found.extend(group_memory(files, &Path::new(files.root).join(group)));
        }
    }
    found
}

fn group_memory(files: &Files, group: &Path) -> Option<(u64, u64)> {
    let number_in = |name| read(group.join(name)).ok()?.trim().parse::<u64>().ok();
    // `max` is no number, and no limit.
    let limit = number_in(files.limit)?;
    let used = number_in(files.usage)?;
    let stat = read(group.join("memory.stat")).unwrap_or_default();
    let cache = number(&stat, files.cache).unwrap_or(0);
    Some((limit.saturating_sub(used.saturating_sub(cache)), limit))
}

/// The most resident bytes of the process.
pub(crate) fn peak() -> Result<u64, String> {
    entry("/proc/self/status", "VmHWM:")
}

/// The processor's name and how many threads it runs for this process.
pub(crate) fn processor() -> Option<String> {
    let text = read("/proc/cpuinfo").ok()?;
    let name = text
        .lines()
        .find_map(|line| line.strip_prefix("model name"))?;
    let name = name.trim_start_matches([' ', '\t', ':']).trim();
    let threads = std::thread::available_parallelism().ok()?;
    Some(format!("{name}, {threads} threads"))
}
