//! A cluster on hosts with addresses of their own, which are network namespaces of Linux behind a bridge: the same results as on
//! loopback, also after hosts are killed, stopped, and cut off from the others.

use std::fs::File;
use std::net::TcpListener;
use std::os::fd::AsFd;
use std::process::Command;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::cluster::Cluster;
use crate::common::succeed;
use crate::kafka::lock_output_topics;
use crate::live::Process;
use crate::lost_peers::{expect_loss, wait_for_results};
use crate::proxy::Proxy;
use crate::services::Services;

/// The number of hosts.
pub const HOSTS: usize = 3;

/// An address of Ethernet that no host has.
const NOBODY: &str = "02:00:00:00:00:99";

/// Hosts behind a bridge. Each reaches the services of the tests at the usual addresses, by proxies on its own loopback, so that
/// a cut between hosts does not cut them off from the services.
pub struct Hosts {
    switch: String,
}

fn ip(arguments: &str) {
    succeed(Command::new("ip").args(arguments.split(' ')));
}

impl Hosts {
    /// Creates the hosts. Returns `None` where this user can't create network namespaces.
    fn create() -> Option<Hosts> {
        let switch = format!("headwater-{}", std::process::id());
        let added = Command::new("ip").args(["netns", "add", &switch]).output();
        if !added.is_ok_and(|added| added.status.success()) {
            return None;
        }
        let hosts = Hosts { switch };
        let (switch, services) = (&hosts.switch, Services::shared().addresses());
        ip(&format!("-n {switch} link add bridge type bridge"));
        ip(&format!("-n {switch} link set bridge up"));
        for nth in 0..HOSTS {
            let name = hosts.name(nth);
            ip(&format!("netns add {name}"));
            ip(&format!("-n {switch} link add port{nth} type veth peer name eth0 netns {name}"));
            ip(&format!("-n {switch} link set port{nth} master bridge up"));
            ip(&format!("-n {name} addr add {}/24 dev eth0", address(nth)));
            ip(&format!("-n {name} link set eth0 up"));
            ip(&format!("-n {name} link set lo up"));
            for service in &services {
                Proxy::on(hosts.listen(nth, service)).forward_to(service);
            }
        }
        Some(hosts)
    }

    fn name(&self, nth: usize) -> String {
        format!("{}-{nth}", self.switch)
    }

    /// Listens on an address of a host.
    fn listen(&self, nth: usize, address: &str) -> TcpListener {
        let namespace = File::open(format!("/run/netns/{}", self.name(nth))).expect("a namespace");
        let listen = || {
            // Only this thread moves; its socket stays behind in the namespace.
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).expect("moved");
            TcpListener::bind(address).expect("the port is free on a new host")
        };
        std::thread::scope(|scope| scope.spawn(listen).join().expect("listening"))
    }

    /// Returns the command that runs another one on a host, as a member of a cluster with a secret.
    pub fn command(&self, nth: usize, command: &Command) -> Command {
        let mut on_host = Command::new("ip");
        on_host.env("HEADWATER__CLUSTER__SECRET", "correct-horse-battery-staple");
        on_host.args(["netns", "exec", &self.name(nth)]).arg(command.get_program()).args(command.get_args());
        on_host
    }

    /// Injects a fault into a host or its process.
    fn inject(&self, fault: Fault, nth: usize, process: &mut Process) {
        match fault {
            Fault::Kill => process.kill(),
            Fault::Stop => process.signal("STOP"),
            Fault::Cut => ip(&format!("-n {} link set port{nth} down", self.switch)),
            Fault::OneWay => {
                for other in (0..HOSTS).filter(|other| *other != nth) {
                    let neighbour = format!("neigh replace {} lladdr {NOBODY} dev eth0", address(other));
                    ip(&format!("-n {} {neighbour} nud permanent", self.name(nth)));
                }
            }
        }
    }

    /// Ends a fault. A process that was stopped goes on.
    fn restore(&self, fault: Fault, nth: usize, process: &Process) {
        match fault {
            Fault::Kill => {}
            Fault::Stop => process.signal("CONT"),
            Fault::Cut => ip(&format!("-n {} link set port{nth} up", self.switch)),
            Fault::OneWay => ip(&format!("-n {} neigh flush dev eth0 nud permanent", self.name(nth))),
        }
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        for name in (0..HOSTS).map(|nth| self.name(nth)).chain([self.switch.clone()]) {
            // It may not have been created.
            let _ = Command::new("ip").args(["netns", "del", &name]).output();
        }
    }
}

/// Returns the address of a host, which the others reach.
pub fn address(nth: usize) -> String {
    format!("10.77.0.{}", nth + 1)
}

/// A fault of a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    Kill,
    /// The process stands still and goes on later.
    Stop,
    /// Nothing reaches the host, and nothing leaves it.
    Cut,
    /// Nothing that the host sends reaches the others.
    OneWay,
}

const FAULTS: [Fault; 4] = [Fault::Kill, Fault::Stop, Fault::Cut, Fault::OneWay];

#[test]
fn lost_hosts_lose_and_repeat_nothing() {
    let Some(hosts) = Hosts::create() else {
        return println!("not tested: this user can't create network namespaces");
    };
    let _lock = lock_output_topics();
    let cluster = Cluster::new("hosts", 200_000);
    // Each fault on one host, or on each of them.
    let is_long = std::env::var_os("HEADWATER_TEST_LONG").is_some();
    let each = if is_long { 0..HOSTS * FAULTS.len() } else { 0..FAULTS.len() };
    for (fault, nth) in each.map(|round| (FAULTS[round % FAULTS.len()], round % HOSTS)) {
        let mut running = cluster.start_on(&hosts);
        wait_for_results(&cluster, &mut running);
        hosts.inject(fault, nth, &mut running[nth]);
        let ends = |at: usize| at != nth || matches!(fault, Fault::Cut | Fault::OneWay);
        for (_, process) in running.iter_mut().enumerate().filter(|(at, _)| ends(*at)) {
            expect_loss(process, "lost process ");
        }
        hosts.restore(fault, nth, &running[nth]);
        if fault == Fault::Stop {
            // It wakes up alone.
            assert_eq!(running[nth].wait().code(), Some(1), "{}", running[nth].log());
        }
    }
    cluster.start_on(&hosts).iter_mut().for_each(Process::expect_success);
    cluster.judge();
}
