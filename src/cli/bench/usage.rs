//! What a measurement takes of the machine, as Linux accounts for it under `/proc`.

use std::fs;
use std::time::Duration;

/// Hundredths of a second are the unit of `/proc/self/stat` on every architecture that Linux runs on today.
const TICK: Duration = Duration::from_millis(10);

/// The CPU time of this process so far, user and system, to 10 ms, ended threads included; none without `/proc`.
pub fn process_cpu() -> Option<Duration> {
    stat_cpu(&fs::read_to_string("/proc/self/stat").ok()?)
}

/// The time that all cores of the machine have been busy so far, with whatever process; none without `/proc`.
pub fn machine_cpu() -> Option<Duration> {
    machine_busy(&fs::read_to_string("/proc/stat").ok()?)
}

/// The CPU time of this thread so far, to the nanosecond; none where the kernel does not account for it.
pub fn thread_cpu() -> Option<Duration> {
    let text = fs::read_to_string("/proc/thread-self/schedstat").ok()?;
    text.split_whitespace().next()?.parse().ok().map(Duration::from_nanos)
}

/// The most memory that this process has had since [`reset_peak`], in bytes; none without `/proc`.
pub fn peak_bytes() -> Option<u64> {
    kibibytes(&fs::read_to_string("/proc/self/status").ok()?, "VmHWM:")
}

/// How much of this process is in memory now, in bytes; none without `/proc`.
pub fn resident_bytes() -> Option<u64> {
    kibibytes(&fs::read_to_string("/proc/self/status").ok()?, "VmRSS:")
}

/// Has [`peak_bytes`] begin again; says whether the kernel can.
pub fn reset_peak() -> bool {
    fs::write("/proc/self/clear_refs", "5").is_ok()
}

/// Fields 14 and 15; the command's name before them is in parentheses and may hold anything.
fn stat_cpu(stat: &str) -> Option<Duration> {
    let (_, fields) = stat.rsplit_once(')')?;
    let mut ticks = fields.split_whitespace().skip(11).map(str::parse::<u32>);
    let (user, system) = (ticks.next()?.ok()?, ticks.next()?.ok()?);
    Some(TICK * user.checked_add(system)?)
}

/// User, nice and system time, then, past idling and waiting, that of interrupts.
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
    fn a_command_named_like_a_stat_line_does_not_mislead() {
        let stat = "7 (a) R 9 (b) S 1 7 7 0 -1 4194304 100 0 0 0 250 50 0 0 20 0 4 0";
        assert_eq!(stat_cpu(stat), Some(Duration::from_secs(3)));
        assert_eq!(stat_cpu("7 (short) S 1"), None);
    }

    #[test]
    fn a_machine_that_idles_or_waits_is_not_busy() {
        let stat = "cpu  100 20 30 9999 8888 4 6 777 0 0\ncpu0 1 1 1 1 1 1 1 1 0 0\n";
        assert_eq!(machine_busy(stat), Some(Duration::from_millis(1600)));
        assert_eq!(machine_busy("intr 1 2\n"), None);
    }

    #[test]
    fn memory_is_read_in_kibibytes() {
        let status = "Name:\tx\nVmHWM:\t    2048 kB\nVmRSS:\t 1 kB\n";
        assert_eq!(kibibytes(status, "VmHWM:"), Some(2 << 20));
        assert_eq!(kibibytes(status, "VmRSS:"), Some(1 << 10));
        assert_eq!(kibibytes("Name:\tx\n", "VmRSS:"), None);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_busy_thread_is_charged_and_a_sleeping_one_is_not() {
        let before = thread_cpu().expect("accounted for");
        std::thread::sleep(Duration::from_millis(50));
        let slept = thread_cpu().expect("accounted for");
        assert!(slept - before < Duration::from_millis(25), "{:?}", slept - before);
        let begun = Instant::now();
        while thread_cpu().expect("accounted for") - slept < Duration::from_millis(20) {
            assert!(begun.elapsed() < Duration::from_secs(30), "a busy thread is charged nothing");
        }
    }
}
