//! The machine that the program runs on, as far as it tells: processor, memory, NVIDIA's GPUs.
//!
//! Linux tells by files below `/proc` and `/sys`; elsewhere processor and memory stay unknown.

use serde::Serialize;
use std::{fs, io::ErrorKind, path::Path, process::Command, thread};

/// Processor and memory.
#[derive(Debug, Serialize)]
pub struct Machine {
    /// The processor's name, where it is known.
    pub processor: Option<String>,
    /// How many threads run at once.
    pub cores: usize,
    /// The widest vectors that the processor has of those that plugins may be built for: `avx512`,
    /// `avx2`, `neon` or `none`.
    pub simd: &'static str,
    /// The memory that this process may use, where it is known.
    pub memory: Option<Memory>,
}

/// An amount of memory, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Memory {
    /// All of it.
    pub total: u64,
    /// What is not in use at present.
    pub available: u64,
}

/// A GPU of NVIDIA's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Gpu {
    /// Its place in `nvidia-smi`'s list.
    pub index: usize,
    /// What it is called.
    pub name: String,
    /// Its own memory, where it has any.
    pub memory: Option<Memory>,
    /// Version of the driver.
    pub driver: String,
}

impl Machine {
    /// This machine.
    pub fn here() -> Self {
        Machine {
            processor: processor(Path::new("/")),
            cores: thread::available_parallelism().map_or(1, usize::from),
            simd: simd(),
            memory: memory(Path::new("/")),
        }
    }
}

#[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
fn simd() -> &'static str {
    use std::arch::is_x86_feature_detected as has;
    let v3 = has!("avx2") && has!("fma") && has!("bmi2") && has!("lzcnt");
    let v4 = has!("avx512f") && has!("avx512bw") && has!("avx512cd") && has!("avx512dq");
    match (v3, v3 && v4 && has!("avx512vl")) {
        (_, true) => "avx512",
        (true, _) => "avx2",
        _ => "none",
    }
}

#[cfg(not(any(target_arch = "x86", target_arch = "x86_64")))]
fn simd() -> &'static str {
    // Every processor of that architecture that Rust builds for has it.
    if cfg!(target_arch = "aarch64") {
        "neon"
    } else {
        "none"
    }
}

/// The value of a line `name: value`.
fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let mut lines = text.lines().filter_map(|line| line.split_once(':'));
    let line = lines.find(|(key, _)| key.trim() == name);
    line.map(|(_, value)| value.trim())
}

fn processor(root: &Path) -> Option<String> {
    let text = fs::read_to_string(root.join("proc/cpuinfo")).ok()?;
    field(&text, "model name").map(str::to_owned)
}

/// Lets [`peak_memory`] count anew from now on, where the system can.
pub fn forget_peak_memory() {
    // 5 is the number for the peak in `man proc_pid_clear_refs`.
    let _ = fs::write("/proc/self/clear_refs", "5");
}

/// The most memory that this process has held, in bytes; `None` where the system does not tell.
pub fn peak_memory() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

/// The machine's memory, or what a container or service manager leaves of it.
fn memory(root: &Path) -> Option<Memory> {
    let text = fs::read_to_string(root.join("proc/meminfo")).ok()?;
    let bytes = |name| {
        let kib = field(&text, name)?.strip_suffix("kB")?.trim();
        Some(kib.parse::<u64>().ok()? * 1024)
    };
    let mut memory = Memory {
        total: bytes("MemTotal")?,
        available: bytes("MemAvailable")?,
    };
    for limit in limits(root) {
        memory.total = memory.total.min(limit.total);
        memory.available = memory.available.min(limit.available);
    }
    Some(memory)
}

/// The limits of the control groups that this process is in, of both versions.
fn limits(root: &Path) -> Vec<Memory> {
    let groups = fs::read_to_string(root.join("proc/self/cgroup")).unwrap_or_default();
    let mut all = Vec::new();
    for line in groups.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else {
            continue;
        };
        let (base, names) = match controllers {
            "" => ("", ["memory.max", "memory.current", "inactive_file"]),
            list if list.split(',').any(|name| name == "memory") => (
                "memory",
                [
                    "memory.limit_in_bytes",
                    "memory.usage_in_bytes",
                    "total_inactive_file",
                ],
            ),
            _ => continue,
        };
        let base = root.join("sys/fs/cgroup").join(base);
        // A limit counts for all groups below; one that a container does not see is left out.
        for group in Path::new(path.trim_start_matches('/')).ancestors() {
            all.extend(limit(&base.join(group), names));
        }
    }
    all
}

fn limit(group: &Path, [most, used, cache]: [&str; 3]) -> Option<Memory> {
    let read = |name: &str| fs::read_to_string(group.join(name)).ok();
    let number = |name| read(name)?.trim().parse::<u64>().ok();
    let total = number(most)?;
    let stat = read("memory.stat").unwrap_or_default();
    let mut lines = stat.lines().filter_map(|line| line.split_once(' '));
    // Files that the kernel keeps at hand are given up before anything else.
    let cached = lines.find(|(key, _)| *key == cache);
    let cached = cached
        .and_then(|(_, bytes)| bytes.parse().ok())
        .unwrap_or(0);
    let used = number(used)?.saturating_sub(cached);
    Some(Memory {
        total,
        available: total.saturating_sub(used),
    })
}

/// Why no GPU could be listed.
#[derive(Debug, PartialEq, Eq)]
pub enum NoGpus {
    /// There is no `nvidia-smi`.
    NoTool,
    /// What `nvidia-smi` says instead.
    Says(String),
}

/// The GPUs that `nvidia-smi` lists.
pub fn gpus() -> Result<Vec<Gpu>, NoGpus> {
    let mut command = Command::new("nvidia-smi");
    command.args([
        "--query-gpu=index,name,memory.total,memory.free,driver_version",
        "--format=csv,noheader,nounits",
    ]);
    let output = command.output().map_err(|error| match error.kind() {
        ErrorKind::NotFound => NoGpus::NoTool,
        _ => NoGpus::Says(error.to_string()),
    })?;
    let text = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        let errors = String::from_utf8_lossy(&output.stderr);
        let mut lines = text.lines().chain(errors.lines()).map(str::trim);
        let first = lines.find(|line| !line.is_empty());
        return Err(NoGpus::Says(first.unwrap_or("nothing").to_owned()));
    }
    let all = text.lines().filter(|line| !line.trim().is_empty());
    let all = all.map(|line| gpu(line).ok_or_else(|| NoGpus::Says(line.trim().to_owned())));
    all.collect()
}

/// A line of `nvidia-smi`'s: place, name, MiB of memory, MiB of it that are free, driver.
fn gpu(line: &str) -> Option<Gpu> {
    let (index, rest) = line.split_once(',')?;
    let mut rest = rest.rsplitn(4, ',').map(str::trim);
    let (driver, free, total) = (rest.next()?, rest.next()?, rest.next()?);
    // GPUs that share the machine's memory have `[N/A]` there.
    let mib = |text: &str| Some(text.parse::<u64>().ok()? << 20);
    let memory = mib(total).zip(mib(free));
    Some(Gpu {
        index: index.trim().parse().ok()?,
        name: rest.next()?.to_owned(),
        memory: memory.map(|(total, available)| Memory { total, available }),
        driver: driver.to_owned(),
    })
}

/// The place in `nvidia-smi`'s list of the GPU that programs call number `index`, where
/// `CUDA_VISIBLE_DEVICES` is `visible`.
pub fn listed_at(index: usize, visible: Option<&str>) -> Option<usize> {
    let Some(visible) = visible.filter(|text| !text.trim().is_empty()) else {
        return Some(index);
    };
    visible.split(',').nth(index)?.trim().parse().ok()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// A folder with these files, to be taken for `/`.
    fn root(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = root.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        root
    }

    const MEMORY: (&str, &str) = (
        "proc/meminfo",
        "MemTotal:       1000 kB\nMemFree:  100 kB\nMemAvailable:    600 kB\n",
    );

    fn kib(memory: Option<Memory>) -> (u64, u64) {
        memory.map_or((0, 0), |m| (m.total / 1024, m.available / 1024))
    }

    #[test]
    fn memory_is_what_the_kernel_says() {
        assert_eq!(kib(memory(root(&[MEMORY]).path())), (1000, 600));
        assert_eq!(memory(root(&[]).path()), None);
        assert_eq!(
            memory(root(&[("proc/meminfo", "MemTotal: much\n")]).path()),
            None
        );
    }

    #[test]
    fn a_container_may_leave_less() {
        let second = root(&[
            MEMORY,
            ("proc/self/cgroup", "0::/box/inner\n"),
            ("sys/fs/cgroup/box/inner/memory.max", "max\n"),
            ("sys/fs/cgroup/box/memory.max", "819200\n"),
            ("sys/fs/cgroup/box/memory.current", "614400\n"),
            (
                "sys/fs/cgroup/box/memory.stat",
                "anon 1\ninactive_file 102400\n",
            ),
        ]);
        assert_eq!(kib(memory(second.path())), (800, 300));
        let first = root(&[
            MEMORY,
            ("proc/self/cgroup", "3:cpu:/x\n4:hugetlb,memory:/not/seen\n"),
            (
                "sys/fs/cgroup/memory/memory.limit_in_bytes",
                "9223372036854771712\n",
            ),
            ("sys/fs/cgroup/memory/memory.usage_in_bytes", "4096\n"),
        ]);
        assert_eq!(kib(memory(first.path())), (1000, 600));
    }

    #[test]
    fn the_processor_has_a_name_or_none() {
        let named = root(&[("proc/cpuinfo", "processor\t: 0\nmodel name\t: A: B\n")]);
        assert_eq!(processor(named.path()).as_deref(), Some("A: B"));
        let unnamed = root(&[("proc/cpuinfo", "processor\t: 0\nCPU part\t: 0xd0c\n")]);
        assert_eq!(processor(unnamed.path()), None);
        assert!(Machine::here().cores > 0);
    }

    #[test]
    fn a_gpu_is_a_line_of_figures() {
        let found = gpu("1, NVIDIA H100, 80GB, 81559, 81000, 550.54.15").unwrap();
        assert_eq!((found.index, found.name.as_str()), (1, "NVIDIA H100, 80GB"));
        assert_eq!(kib(found.memory), (81559 << 10, 81000 << 10));
        assert_eq!(found.driver, "550.54.15");
        assert_eq!(gpu("0, Small, [N/A], [N/A], 1").unwrap().memory, None);
        assert_eq!(gpu("No devices were found"), None);
    }

    #[test]
    fn visible_devices_are_counted_anew() {
        assert_eq!(listed_at(1, None), Some(1));
        assert_eq!(listed_at(1, Some("")), Some(1));
        assert_eq!(listed_at(0, Some("3,1")), Some(3));
        assert_eq!(listed_at(2, Some("3,1")), None);
    }
}
