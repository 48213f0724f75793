//! CPU time and memory use, as Linux reports them in `/proc`.

use std::fs;
use std::time::Duration;

/// The unit of `/proc/self/stat`: 10 ms on every architecture that Linux currently supports.
const TICK: Duration = Duration::from_millis(10);

/// Returns the CPU time of this process so far: user and system time, including ended threads, with a resolution of 10
/// ms. None without `/proc`.
pub fn process_cpu() -> Option<Duration> {
    stat_cpu(&fs::read_to_string("/proc/self/stat").ok()?)
}

/// Returns the busy time of all cores of the machine so far, for all processes; None without `/proc`.
pub fn machine_cpu() -> Option<Duration> {
    machine_busy(&fs::read_to_string("/proc/stat").ok()?)
}

/// Returns the CPU time of this thread so far, with a resolution of 1 ns; None if the kernel does not report it.
pub fn thread_cpu() -> Option<Duration> {
    let text = fs::read_to_string("/proc/thread-self/schedstat").ok()?;
    text.split_whitespace().next()?.parse().ok().map(Duration::from_nanos)
}

/// Returns the peak memory of this process since [`reset_peak`], in bytes; None without `/proc`.
pub fn peak_bytes() -> Option<u64> {
    kibibytes(&fs::read_to_string("/proc/self/status").ok()?, "VmHWM:")
}

/// Returns the resident memory of this process, in bytes; None without `/proc`.
pub fn resident_bytes() -> Option<u64> {
    kibibytes(&fs::read_to_string("/proc/self/status").ok()?, "VmRSS:")
}

/// Resets [`peak_bytes`]; returns true if the kernel supports it.
pub fn reset_peak() -> bool {
    fs::write("/proc/self/clear_refs", "5").is_ok()
}

/// Returns the sum of fields 14 and 15. The command name before them is in parentheses and may contain any characters.
fn stat_cpu(stat: &str) -> Option<Duration> {
    let (_, fields) = stat.rsplit_once(')')?;
    let mut ticks = fields.split_whitespace().skip(11).map(str::parse::<u32>);
    let (user, system) = (ticks.next()?.ok()?, ticks.next()?.ok()?);
    Some(TICK * user.checked_add(system)?)
}

/// Returns the sum of user, nice, system and interrupt time. The fields of idle and I/O wait time are skipped.
fn machine_busy(stat: &str) -> Option<Duration> {
    let line = stat.lines().find_map(|line| line.strip_prefix("cpu "))?;
    let ticks: Vec<u64> = line.split_whitespace().map_while(|field| field.parse().ok()).collect();
    let [user, nice, system, _idle, _waiting, irq, softirq, ..] = ticks[..] else { return None };
    Some(Duration::from_millis(10 * (user + nice + system + irq + softirq)))
}

fn kibibytes(status: &str, name: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn cpu_time_is_parsed_after_any_command_name() {
        let stat = "7 (a) R 9 (b) S 1 7 7 0 -1 4194304 100 0 0 0 250 50 0 0 20 0 4 0";
        assert_eq!(stat_cpu(stat), Some(Duration::from_secs(3)));
        assert_eq!(stat_cpu("7 (short) S 1"), None);
    }

    #[test]
    fn idle_and_wait_time_are_not_busy_time() {
        let stat = "cpu  100 20 30 9999 8888 4 6 777 0 0\ncpu0 1 1 1 1 1 1 1 1 0 0\n";
        assert_eq!(machine_busy(stat), Some(Duration::from_millis(1600)));
        assert_eq!(machine_busy("intr 1 2\n"), None);
    }

    #[test]
    fn memory_is_converted_from_kibibytes() {
        let status = "Name:\tx\nVmHWM:\t    2048 kB\nVmRSS:\t 1 kB\n";
        assert_eq!(kibibytes(status, "VmHWM:"), Some(2 << 20));
        assert_eq!(kibibytes(status, "VmRSS:"), Some(1 << 10));
        assert_eq!(kibibytes("Name:\tx\n", "VmRSS:"), None);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn only_busy_threads_use_cpu_time() {
        let before = thread_cpu().expect("CPU time is reported");
        std::thread::sleep(Duration::from_millis(50));
        let slept = thread_cpu().expect("CPU time is reported");
        assert!(slept - before < Duration::from_millis(25), "{:?}", slept - before);
        let started = Instant::now();
        while thread_cpu().expect("CPU time is reported") - slept < Duration::from_millis(20) {
            assert!(started.elapsed() < Duration::from_secs(30), "no CPU time is reported for a busy thread");
        }
    }
}
