//! What Linux knows of processes: CPU time and memory of a service and all that it started, and facts of the machine.
//!
//! Text of /proc in, numbers out; a process that is gone counts nothing. Invariant: CPU time only grows, even over
//! restarts: the last time seen of an ended process still counts.

use std::collections::{HashMap, HashSet};
use std::fs;

use serde::{Deserialize, Serialize};

/// Clock ticks a second in /proc; the same on every Linux.
const TICKS: f64 = 100.0;
/// Shorter spans say more about the clock than about the load.
const SPAN_SECONDS_MIN: f64 = 0.5;
/// A socket that listens, in /proc/net/tcp.
const LISTEN: &str = "0A";

/// Which processes are looked at.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Whose {
    /// One process.
    Process(u32),
    /// Whatever listens on this port of this machine, and all that it started. The port stays over restarts.
    Port(u16),
}

/// CPU and memory at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Usage {
    /// User and system time since the first look, in seconds.
    pub(crate) cpu_seconds: f64,
    /// Resident memory, in MB. Memory that processes share counts for each.
    pub(crate) rss_mb: f64,
}

impl Usage {
    /// Cores used in the `seconds` since `before`. None if the service was down at `before`: it is found only once it
    /// listens, and then brings the CPU time of its whole start. None if the two are less than [`SPAN_SECONDS_MIN`]
    /// apart.
    pub(crate) fn cores_since(self, before: Self, seconds: f64) -> Option<f64> {
        let is_known = before.rss_mb > 0.0 && seconds >= SPAN_SECONDS_MIN;
        is_known.then(|| (self.cpu_seconds - before.cpu_seconds) / seconds)
    }
}

/// Looks at the same service again and again.
#[derive(Debug)]
pub(crate) struct Watched {
    whose: Whose,
    /// The first process, found by its port, as long as it lives.
    root: Option<u32>,
    /// Seconds seen of each process at the last look.
    seen: HashMap<u32, f64>,
    cpu_seconds: f64,
    /// Whether it was ever found. The files of another user's processes cannot be read.
    is_found: bool,
}

impl Watched {
    /// Nothing was seen yet: the first look is where CPU time starts.
    pub(crate) fn new(whose: Whose) -> Self {
        let mut watched = Self {
            whose,
            root: None,
            seen: HashMap::new(),
            cpu_seconds: 0.0,
            is_found: false,
        };
        watched.look();
        watched.cpu_seconds = 0.0;
        watched
    }

    /// CPU since the first look, and memory now; no memory while it is down. None until it was found.
    pub(crate) fn look(&mut self) -> Option<Usage> {
        let mut rss_mb = 0.0;
        let mut seen = HashMap::new();
        for pid in self.pids() {
            let Some(seconds) = cpu_seconds(pid) else {
                continue;
            };
            self.cpu_seconds += (seconds - self.seen.get(&pid).unwrap_or(&0.0)).max(0.0);
            rss_mb += rss(pid).unwrap_or(0.0);
            seen.insert(pid, seconds);
        }
        self.is_found |= !seen.is_empty();
        self.seen = seen;
        self.is_found.then_some(Usage {
            cpu_seconds: self.cpu_seconds,
            rss_mb,
        })
    }

    fn pids(&mut self) -> Vec<u32> {
        match self.whose {
            Whose::Process(pid) => vec![pid],
            Whose::Port(port) => {
                if self.root.is_none_or(|pid| stat(pid).is_none()) {
                    self.root = listener(port);
                }
                self.root
                    .map(|root| family(root, &parents()))
                    .unwrap_or_default()
            }
        }
    }
}

/// `root` and all that it started, and what those started.
fn family(root: u32, parents: &HashMap<u32, u32>) -> Vec<u32> {
    let mut family = vec![root];
    let mut next = 0;
    while let Some(&parent) = family.get(next) {
        family.extend(
            parents
                .iter()
                .filter(|(pid, of)| **of == parent && **pid != root)
                .map(|(pid, _)| *pid),
        );
        next += 1;
    }
    family
}

/// The parent of every process.
fn parents() -> HashMap<u32, u32> {
    pids().filter_map(|pid| Some((pid, stat(pid)?.1))).collect()
}

fn pids() -> impl Iterator<Item = u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// The process that listens on a TCP port here, if it may be seen.
fn listener(port: u16) -> Option<u32> {
    let tables = ["/proc/net/tcp", "/proc/net/tcp6"]
        .map(|path| fs::read_to_string(path).unwrap_or_default());
    let inodes: HashSet<String> = tables
        .iter()
        .flat_map(|table| listening(table, port))
        .map(|inode| format!("socket:[{inode}]"))
        .collect();
    pids().find(|pid| {
        let files = fs::read_dir(format!("/proc/{pid}/fd"))
            .into_iter()
            .flatten()
            .flatten();
        let mut targets = files.filter_map(|file| fs::read_link(file.path()).ok());
        targets.any(|target| {
            target
                .to_str()
                .is_some_and(|target| inodes.contains(target))
        })
    })
}

/// The inodes of the sockets that listen on `port`.
fn listening(table: &str, port: u16) -> Vec<u64> {
    let inode = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let (_, local) = fields.get(1)?.rsplit_once(':')?;
        let listens = u16::from_str_radix(local, 16) == Ok(port) && *fields.get(3)? == LISTEN;
        listens.then(|| fields.get(9)?.parse().ok())?
    };
    table.lines().skip(1).filter_map(inode).collect()
}

/// CPU seconds and parent of a process.
fn stat(pid: u32) -> Option<(f64, u32)> {
    parse_stat(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

fn cpu_seconds(pid: u32) -> Option<f64> {
    stat(pid).map(|(seconds, _)| seconds)
}

/// The name of a process may hold spaces and brackets: what counts comes after the last of them.
fn parse_stat(stat: &str) -> Option<(f64, u32)> {
    let fields: Vec<&str> = stat.rsplit_once(") ")?.1.split(' ').collect();
    let ticks = |index: usize| fields.get(index)?.parse::<f64>().ok();
    Some((
        (ticks(11)? + ticks(12)?) / TICKS,
        fields.get(1)?.parse().ok()?,
    ))
}

fn rss(pid: u32) -> Option<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(line.split_whitespace().next()?.parse::<f64>().ok()? * 1024.0 / 1e6)
}

/// Cores of this machine.
pub(crate) fn cores() -> u64 {
    std::thread::available_parallelism().map_or(1, |cores| cores.get() as u64)
}

/// This machine in a line: processor, memory, kernel.
pub(crate) fn machine() -> String {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let value = |text: &str, name: &str| {
        let line = text.lines().find(|line| line.starts_with(name))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    };
    let model = value(&read("/proc/cpuinfo"), "model name").unwrap_or_else(|| "CPU".to_owned());
    let memory = value(&read("/proc/meminfo"), "MemTotal");
    let kib = memory.and_then(|text| text.split(' ').next()?.parse::<f64>().ok());
    let (cores, gb) = (cores(), kib.unwrap_or(0.0) * 1024.0 / 1e9);
    format!(
        "{cores} × {model}, {gb:.0} GB, Linux {}",
        read("/proc/sys/kernel/osrelease").trim()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: a process called "a) b (c" is read right.
    #[test]
    fn stat_is_read_after_the_name() {
        let stat = "7 (a) b (c) S 3 7 7 0 -1 4194560 1 2 3 4 150 50 0 0 20 0 1 0 99 1 1";
        assert_eq!(parse_stat(stat), Some((2.0, 3)));
        assert_eq!(parse_stat("7 (gone"), None);
    }

    /// Goal: a start that took longer than a second does not look like more cores than the machine has.
    #[test]
    fn a_start_is_no_busiest_second() {
        let usage = |cpu_seconds, rss_mb| Usage {
            cpu_seconds,
            rss_mb,
        };
        let down = usage(1.0, 0.0);
        assert_eq!(usage(8.0, 90.0).cores_since(down, 1.0), None);
        assert_eq!(
            usage(8.5, 90.0).cores_since(usage(8.0, 90.0), 1.0),
            Some(0.5)
        );
        // Two looks a moment apart.
        assert_eq!(usage(8.51, 90.0).cores_since(usage(8.5, 90.0), 0.002), None);
    }

    /// Goal: children and grandchildren are in the family, strangers are not.
    #[test]
    fn a_family_is_whole() {
        let parents = HashMap::from([(1, 0), (10, 1), (11, 10), (12, 11), (20, 1)]);
        let mut family = family(10, &parents);
        family.sort_unstable();
        assert_eq!(family, [10, 11, 12]);
    }

    /// Goal: the process that listens is found by its port, and its CPU time grows.
    #[test]
    fn a_listener_is_found() {
        let socket = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let port = socket.local_addr().unwrap().port();
        assert_eq!(listener(port), Some(std::process::id()));
        let mut watched = Watched::new(Whose::Port(port));
        let mut sum = 0_u64;
        let mut usage = watched.look().unwrap();
        for round in 0..1_000_u64 {
            sum = (0..1_000_000).fold(sum, |sum, n| {
                std::hint::black_box(sum.rotate_left(3) ^ n ^ round)
            });
            usage = watched.look().unwrap();
            if usage.cpu_seconds > 0.0 {
                break;
            }
        }
        assert!(
            usage.cpu_seconds > 0.0 && usage.rss_mb > 1.0,
            "{usage:?} {sum}"
        );
    }

    /// Goal: what cannot be seen is unknown, not idle; what was seen and ended is down.
    #[test]
    fn what_is_not_found_is_unknown() {
        let mut child = std::process::Command::new("sleep")
            .arg("60")
            .spawn()
            .unwrap();
        let mut watched = Watched::new(Whose::Process(child.id()));
        assert!(watched.look().unwrap().rss_mb > 0.0);
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(watched.look().unwrap().rss_mb.abs() < f64::EPSILON);
        assert_eq!(Watched::new(Whose::Process(child.id())).look(), None);
        let port = std::net::TcpListener::bind(("127.0.0.1", 0))
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        assert_eq!(Watched::new(Whose::Port(port)).look(), None);
    }

    /// Goal: only sockets that listen on exactly this port count.
    #[test]
    fn sockets_are_told_apart() {
        let table = "  sl  local_address rem_address   st\n\
            0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000  0  0 4711 1\n\
            1: 0100007F:1F90 0100007F:9999 01 00000000:00000000 00:00000000 00000000  0  0 4712 1\n\
            2: 0100007F:1F91 00000000:0000 0A 00000000:00000000 00:00000000 00000000  0  0 4713 1\n";
        assert_eq!(listening(table, 8080), [4711]);
    }
}
