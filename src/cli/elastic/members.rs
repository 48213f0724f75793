//! The list of a cluster's members: the lines of a host file, or the pods of a StatefulSet by the DNS of its Service.
//!
//! ```text
//!   host file ───────────────┐
//!                            ├─▶ read every second ─▶ the last valid list, with its first member
//!   NAME ─ addresses ─┐      │
//!   SET-0.NAME, … ────┴──────┘
//! ```
//!
//! DNS has no order and no names of its own: the addresses of NAME say how many pods there are, and the names of the
//! ordinals, which a StatefulSet never changes, say which.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use headwater_dataflows::SHARDS;

use crate::cli::command::RunArgs;
use crate::cli::hosts::{self, ProcessName, Service};

/// The interval between two looks at the list.
const INTERVAL: Duration = Duration::from_secs(1);

/// A list of members that can be read again and again.
pub trait MemberList: Send {
    /// Reads the addresses of all members, in their order.
    ///
    /// # Errors
    /// If there is no valid list: the reason.
    fn read(&mut self) -> Result<Vec<String>, String>;
}

/// A file with one `host:port` per line.
pub struct HostFile(pub PathBuf);

impl MemberList for HostFile {
    fn read(&mut self) -> Result<Vec<String>, String> {
        let HostFile(path) = self;
        let hosts = hosts::hosts(path).map_err(|error| format!("{:#}", anyhow::Error::from(error)))?;
        let mut seen = BTreeSet::new();
        if let Some(twice) = hosts.iter().find(|&host| !seen.insert(host)) {
            return Err(format!("{} has {twice} twice", path.display()));
        }
        match hosts.is_empty() {
            true => Err(format!("{} has no host", path.display())),
            false => Ok(hosts),
        }
    }
}

/// Looks up the addresses of names.
pub trait Resolver: Send {
    /// Returns the addresses of a name.
    ///
    /// # Errors
    /// If it has none, or cannot be looked up.
    fn addresses(&self, name: &str) -> io::Result<BTreeSet<IpAddr>>;
}

/// The resolver of the operating system.
pub struct SystemResolver;

impl Resolver for SystemResolver {
    fn addresses(&self, name: &str) -> io::Result<BTreeSet<IpAddr>> {
        Ok((name, 0).to_socket_addrs()?.map(|address| address.ip()).collect())
    }
}

/// The pods of a StatefulSet, by the headless Service that governs it.
pub struct Pods<R> {
    set: String,
    service: Service,
    resolver: R,
    /// The addresses of the Service that the last list was made of, and that list.
    last: (BTreeSet<IpAddr>, Vec<String>),
}

impl<R: Resolver> Pods<R> {
    /// Returns the list of the pods of a StatefulSet with this name.
    pub fn new(set: &str, service: &Service, resolver: R) -> Pods<R> {
        Pods { set: set.to_owned(), service: service.clone(), resolver, last: Default::default() }
    }
}

/// Returns the address of a pod.
fn pod(set: &str, ordinal: usize, Service { name, port }: &Service) -> String {
    format!("{set}-{ordinal}.{name}:{port}")
}

impl<R: Resolver> MemberList for Pods<R> {
    fn read(&mut self) -> Result<Vec<String>, String> {
        let Pods { set, service, resolver, last } = self;
        let addresses = resolver.addresses(&service.name);
        let addresses = addresses.map_err(|error| format!("cannot look up {}: {error}", service.name))?;
        if addresses == last.0 {
            return Ok(last.1.clone());
        }
        let (mut missing, mut members) = (addresses.clone(), Vec::new());
        for ordinal in 0..SHARDS as usize {
            if missing.is_empty() {
                break;
            }
            // A pod that is being replaced has no address. Another one has, or the list is not complete.
            let of_pod = resolver.addresses(&format!("{set}-{ordinal}.{}", service.name)).unwrap_or_default();
            if !of_pod.is_disjoint(&missing) {
                missing.retain(|address| !of_pod.contains(address));
                members.push(pod(set, ordinal, service));
            }
        }
        if let Some(address) = missing.first() {
            return Err(format!("the address {address} of {} belongs to no pod {set}-N", service.name));
        }
        *last = (addresses, members.clone());
        Ok(members)
    }
}

/// The identity of this process in the list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Own {
    /// A line of the host file, by its number from 0, until it is known by its address.
    Line(usize),
    /// A line of the host file.
    Address(String),
    /// A pod.
    Pod {
        /// Its address.
        address: String,
        /// True for the pod with the ordinal 0.
        is_first: bool,
    },
}

impl Own {
    /// Returns the address of this process, if the list has it.
    pub fn address(&self, list: &[String]) -> Option<String> {
        match self {
            Own::Line(line) => list.get(*line).cloned(),
            Own::Address(address) | Own::Pod { address, .. } => Some(address.clone()),
        }
    }

    /// Keeps the address of a line of the first list that has it. Lines before it may be removed later.
    pub fn remember(&mut self, list: &[String]) {
        if let (Own::Line(_), Some(address)) = (&self, self.address(list)) {
            *self = Own::Address(address);
        }
    }

    /// Returns true if this process decides about the members.
    pub fn leads(&self, list: &[String]) -> bool {
        match self {
            Own::Line(_) => false,
            Own::Address(address) => list.first() == Some(address),
            Own::Pod { is_first, .. } => *is_first,
        }
    }

    /// Returns true if this process is not a member. A pod exists as long as it runs, whatever DNS says.
    pub fn is_removed_from(&self, list: &[String]) -> bool {
        match self {
            Own::Line(line) => list.len() <= *line,
            Own::Address(address) => !list.contains(address),
            Own::Pod { .. } => false,
        }
    }
}

/// The list that the arguments name, and how this process finds itself in it.
pub fn of_args(args: &RunArgs) -> Option<(Box<dyn MemberList>, Own)> {
    match (&args.peers, &args.hostfile, &args.process) {
        (Some(service), _, ProcessName::Pod { set, ordinal }) => {
            let own = Own::Pod { address: pod(set, *ordinal, service), is_first: *ordinal == 0 };
            Some((Box::new(Pods::new(set, service, SystemResolver)), own))
        }
        (None, Some(file), process) => {
            let own = match process {
                ProcessName::Address(address) => Own::Address(address.clone()),
                ProcessName::Index(line) | ProcessName::Pod { ordinal: line, .. } => Own::Line(*line),
            };
            Some((Box::new(HostFile(file.clone())), own))
        }
        _ => None,
    }
}

/// The newest valid list.
#[derive(Clone, Debug)]
pub struct Listed {
    /// The addresses. Empty until the list was read.
    pub members: Vec<String>,
    /// The time since which they are these.
    pub since: Instant,
    /// The reason why the list cannot be read now, if it cannot.
    pub error: Option<String>,
}

impl Listed {
    /// Takes a list that was read. A list that cannot be read leaves the last one in force.
    fn take(&mut self, read: Result<Vec<String>, String>) {
        match read {
            Ok(members) => {
                if self.error.take().is_some() {
                    tracing::info!(members = members.len(), "the list of members can be read again");
                }
                if members != self.members {
                    *self = Listed { members, since: Instant::now(), error: None };
                }
            }
            Err(error) if self.error.as_ref() == Some(&error) => {}
            Err(error) => {
                tracing::warn!(
                    members = self.members.len(),
                    "cannot read the list of members, so it stays as it is: {error}"
                );
                self.error = Some(error);
            }
        }
    }
}

/// A thread that reads the list every second, as long as the process runs. A look-up in DNS can take many seconds.
#[derive(Clone)]
pub struct ListWatcher(Arc<Mutex<Listed>>);

impl ListWatcher {
    /// Starts the thread.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn start(mut list: Box<dyn MemberList>) -> io::Result<ListWatcher> {
        let listed = Listed { members: Vec::new(), since: Instant::now(), error: None };
        let newest = Arc::new(Mutex::new(listed));
        let of_thread = Arc::clone(&newest);
        std::thread::Builder::new().name("members".to_owned()).spawn(move || {
            loop {
                let read = list.read();
                of_thread.lock().expect("no thread panics while it holds the lock").take(read);
                std::thread::sleep(INTERVAL);
            }
        })?;
        Ok(ListWatcher(newest))
    }

    /// Returns the newest valid list.
    pub fn newest(&self) -> Listed {
        self.0.lock().expect("no thread panics while it holds the lock").clone()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    /// Names with their addresses, of which none has another address.
    #[derive(Default)]
    struct Names(BTreeMap<String, BTreeSet<IpAddr>>);

    impl Names {
        fn of(names: &[(&str, &[u8])]) -> Names {
            let address = |&last: &u8| IpAddr::from([10, 0, 0, last]);
            let names =
                names.iter().map(|(name, last)| ((*name).to_owned(), last.iter().map(address).collect()));
            Names(names.collect())
        }
    }

    impl Resolver for Names {
        fn addresses(&self, name: &str) -> io::Result<BTreeSet<IpAddr>> {
            self.0.get(name).cloned().ok_or_else(|| io::Error::other("Temporary failure in name resolution"))
        }
    }

    fn pods(names: &[(&str, &[u8])]) -> Pods<Names> {
        let service = Service { name: "peers".to_owned(), port: 2101 };
        Pods::new("headwater", &service, Names::of(names))
    }

    #[test]
    fn pods_are_listed_by_their_ordinals() {
        let mut list = pods(&[("peers", &[9, 3]), ("headwater-0.peers", &[9]), ("headwater-1.peers", &[3])]);
        let two = ["headwater-0.peers:2101", "headwater-1.peers:2101"].map(str::to_owned).to_vec();
        assert_eq!(list.read(), Ok(two.clone()));
        list.resolver = Names::of(&[("peers", &[9, 3])]);
        assert_eq!(list.read(), Ok(two), "the same addresses are of the same pods");
        list.resolver =
            Names::of(&[("peers", &[9, 4]), ("headwater-0.peers", &[9]), ("headwater-2.peers", &[4])]);
        let gap = ["headwater-0.peers:2101", "headwater-2.peers:2101"].map(str::to_owned).to_vec();
        assert_eq!(list.read(), Ok(gap), "the pod 1 is being replaced");
    }

    #[test]
    fn incomplete_dns_is_no_list() {
        let error = pods(&[]).read().expect_err("no Service");
        assert_eq!(error, "cannot look up peers: Temporary failure in name resolution");
        let error = pods(&[("peers", &[9, 3]), ("headwater-0.peers", &[9])]).read().expect_err("no pod");
        assert_eq!(error, "the address 10.0.0.3 of peers belongs to no pod headwater-N");
    }

    #[test]
    fn the_system_resolves_a_local_name() {
        let addresses = SystemResolver.addresses("localhost").expect("every machine has it");
        assert!(addresses.iter().all(IpAddr::is_loopback) && !addresses.is_empty(), "{addresses:?}");
        assert!(SystemResolver.addresses("nobody.invalid").is_err());
    }

    #[test]
    fn a_broken_host_file_leaves_the_last_list() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("hosts");
        let mut list = HostFile(file.clone());
        let mut listed = Listed { members: Vec::new(), since: Instant::now(), error: None };
        let write = |text: &str| std::fs::write(&file, text).expect("written");
        write("a:1\nb:1\n");
        listed.take(list.read());
        assert_eq!(listed.members, ["a:1", "b:1"]);
        let since = listed.since;
        for (text, reason) in [
            ("a:1\nb\n", "line 2: expected host:port"),
            ("a:1\na:1\n", "has a:1 twice"),
            ("\n", "has no host"),
            ("", "has no host"),
        ] {
            write(text);
            listed.take(list.read());
            assert!(listed.error.as_ref().is_some_and(|error| error.contains(reason)), "{listed:?}");
            assert_eq!(
                (&listed.members[..], listed.since),
                (&["a:1".to_owned(), "b:1".to_owned()][..], since)
            );
        }
        std::fs::remove_file(&file).expect("removed");
        listed.take(list.read());
        assert!(listed.error.as_ref().is_some_and(|error| error.contains("cannot read")), "{listed:?}");
        write("a:1\nb:1\nc:1\n");
        listed.take(list.read());
        assert_eq!((listed.members.len(), &listed.error), (3, &None));
        assert!(listed.since > since);
    }

    #[test]
    fn a_process_keeps_its_address_when_its_line_moves() {
        let list = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        let mut own = Own::Line(2);
        own.remember(&list("a:1 b:1"));
        assert!(own.is_removed_from(&list("a:1 b:1")) && own.address(&list("a:1 b:1")).is_none());
        own.remember(&list("a:1 b:1 c:1"));
        assert_eq!(own, Own::Address("c:1".to_owned()));
        assert!(!own.is_removed_from(&list("a:1 c:1")) && own.is_removed_from(&list("a:1 b:1 d:1")));
        assert!(own.leads(&list("c:1 d:1")) && !own.leads(&list("a:1 c:1")));
        let pod = Own::Pod { address: "headwater-1.peers:2101".to_owned(), is_first: false };
        assert!(!pod.is_removed_from(&[]) && !pod.leads(&list("headwater-1.peers:2101")));
    }
}
