//! Processes that join, strangers at the port, processes that do not fit, and lost processes, over real sockets.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;
use std::thread;
use std::time::{Duration, Instant};

use headwater_sinks::Secret;
use timely::dataflow::operators::vec::{Broadcast, ToStream};
use timely::dataflow::operators::{Inspect, Probe};

use super::handshake::{Handshake, HandshakeError};
use super::transport::split;
use super::*;

const SECRET: &str = "a secret of a test";

/// The time without a sign of life after which a process is lost, on a machine that does other work, too.
const TIMEOUT: Duration = Duration::from_secs(2);

/// Returns addresses of free ports.
fn addresses(processes: usize) -> Vec<String> {
    // All listeners stay open until every port is chosen, so that the ports differ.
    let free: Vec<_> =
        (0..processes).map(|_| TcpListener::bind("127.0.0.1:0").expect("a free port")).collect();
    free.iter().map(|free| free.local_addr().expect("bound").to_string()).collect()
}

fn settings(addresses: &[String], process: usize) -> ClusterSettings {
    let config = ClusterConfig { secret: Some(Secret::from(SECRET)), heartbeat_timeout: TIMEOUT, tls: None };
    let results = ("test", "settings".to_owned());
    ClusterSettings::new(&config, results, addresses, (process, 1)).expect("no TLS")
}

fn first(data: &str) -> Option<ClusterStart> {
    Some(ClusterStart { generation: Some(7), data: data.as_bytes().to_vec() })
}

fn join(settings: &ClusterSettings) -> Cluster {
    let start = if settings.process == 0 { first("start") } else { None };
    Cluster::join(settings, start, &Arc::default()).expect("joined")
}

/// Starts all processes as threads.
fn join_all(addresses: &[String]) -> Vec<Cluster> {
    let join = |process| {
        let settings = settings(addresses, process);
        thread::spawn(move || join(&settings))
    };
    let joining: Vec<_> = (0..addresses.len()).map(join).collect();
    joining.into_iter().map(|thread| thread.join().expect("no panic")).collect()
}

/// Connects to a port as soon as something listens there.
fn connect(address: &str) -> TcpStream {
    loop {
        match TcpStream::connect(address) {
            Ok(stream) => return stream,
            Err(_) => thread::sleep(Duration::from_millis(10)),
        }
    }
}

/// Waits until a process is lost.
fn lost(cluster: &Cluster) -> PeerLost {
    let until = Instant::now() + Duration::from_secs(20);
    loop {
        match cluster.check() {
            Err(lost) => return lost,
            Ok(()) => assert!(Instant::now() < until, "nothing was lost"),
        }
        thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn processes_join_despite_strangers_at_the_port() {
    let addresses = addresses(2);
    let waiting = {
        let settings = settings(&addresses, 0);
        thread::spawn(move || join(&settings))
    };
    let open: Vec<_> = [
        &b""[..],
        b"hw-",
        b"hw-join1\0\0\0\0\0\0\0\x02\0\0\0\x01",
        b"GET / HTTP/1.1\r\n\r\n",
        &[0x16, 3, 1, 9],
    ]
    .into_iter()
    .chain(std::iter::once(&[0xa5; 8000][..]))
    .map(|bytes| {
        let mut stream = connect(&addresses[0]);
        stream.write_all(bytes).expect("sent");
        stream
    })
    .collect();
    for _ in 0..100 {
        drop(connect(&addresses[0]));
    }
    let address = addresses[0].clone();
    thread::spawn(move || {
        let mut slow = connect(&address);
        while slow.write_all(b"h").is_ok() {
            thread::sleep(Duration::from_millis(300));
        }
    });
    let begun = Instant::now();
    let second = join(&settings(&addresses, 1));
    assert!(begun.elapsed() < Duration::from_secs(3), "strangers delay no process");
    assert_eq!(second.start, b"start");
    let first = waiting.join().expect("no panic");
    drop(open);
    assert_eq!((first.check(), second.check()), (Ok(()), Ok(())));
}

/// Performs the handshake of two processes with these identities and secrets, and returns both outcomes.
fn shake(
    connects: (&Identity, Option<&str>),
    accepts: (&Identity, Option<&str>),
) -> [Result<Identity, HandshakeError>; 2] {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("bound").to_string();
    let until = Instant::now() + Duration::from_secs(10);
    let secret = |secret: Option<&str>| secret.map(Secret::from);
    thread::scope(|scope| {
        let accepting = scope.spawn(move || {
            let (mut read, mut write) =
                split(listener.accept().expect("accepted").0, None).expect("a handle");
            let mut handshake = Handshake { read: &mut read, write: &mut write, until };
            handshake.accept(accepts.0, secret(accepts.1).as_ref(), |_| Ok(()))
        });
        let (mut read, mut write) = split(connect(&address), None).expect("a handle");
        let mut handshake = Handshake { read: &mut read, write: &mut write, until };
        let connected = handshake.connect(connects.0, secret(connects.1).as_ref(), |_| Ok(()));
        [connected, accepting.join().expect("no panic")]
    })
}

fn identity(process: usize) -> Identity {
    settings(&["127.0.0.1:1".to_owned(), "127.0.0.1:2".to_owned()], process).identity(None)
}

#[test]
fn processes_that_do_not_fit_are_refused_with_a_reason_in_both() {
    let other = "another secret of a test";
    let (zero, one) = (identity(0), identity(1));
    let [connected, accepted] = shake((&one, Some(SECRET)), (&zero, Some(SECRET)));
    assert_eq!((connected.expect("fits"), accepted.expect("fits")), (zero.clone(), one.clone()));
    let [connected, accepted] = shake((&one, None), (&zero, None));
    assert!(connected.is_ok() && accepted.is_ok(), "loopback needs no secret");

    let changed = |change: fn(&mut Identity)| {
        let mut identity = identity(1);
        change(&mut identity);
        identity
    };
    let cases = [
        (changed(|_| {}), Some(other), "does not know the secret of process 0"),
        (changed(|_| {}), None, "process 0 has one secret, and the other end none"),
        (changed(|it| it.pipeline = "b".into()), Some(SECRET), "has the pipeline"),
        (changed(|it| it.processes = 3), Some(SECRET), "process 1 has 3 processes of 1 workers"),
        (changed(|it| it.workers = 2), Some(SECRET), "2 processes of 2 workers"),
        (changed(|it| it.binary = "0".repeat(64)), Some(SECRET), "with the same program"),
        (changed(|it| it.config = "0".repeat(64)), Some(SECRET), "with the same configuration"),
    ];
    for (one, secret, reason) in cases {
        let [connected, accepted] = shake((&one, secret), (&zero, Some(SECRET)));
        let Err(HandshakeError::Refused(refused)) = accepted else { panic!("{reason}: {accepted:?}") };
        assert!(refused.contains(reason), "{refused}");
        let Err(HandshakeError::RefusedByPeer(learned)) = connected else {
            panic!("{reason}: {connected:?}")
        };
        // Without a secret, the process that connects notices the difference as well.
        assert_eq!(learned, refused);
    }
    let [connected, accepted] = shake((&one, Some(SECRET)), (&zero, None));
    assert!(matches!(connected, Err(HandshakeError::RefusedByPeer(_))), "{connected:?}");
    assert!(matches!(accepted, Err(HandshakeError::Refused(_))), "{accepted:?}");
}

#[test]
fn a_recorded_handshake_cannot_be_used_again() {
    let addresses = addresses(2);
    let (members, log) = (settings(&addresses, 0), channel());
    let waiting = thread::spawn(move || join(&members));
    // Between the processes is one that records what the second one sends.
    let between = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let of_second = vec![between.local_addr().expect("bound").to_string(), addresses[1].clone()];
    let address = addresses[0].clone();
    thread::spawn(move || {
        let mut client = between.accept().expect("accepted").0;
        let mut server = connect(&address);
        let (mut to, mut from) =
            (client.try_clone().expect("a handle"), server.try_clone().expect("a handle"));
        thread::spawn(move || std::io::copy(&mut from, &mut to));
        let mut buffer = [0; 4096];
        while let Ok(read @ 1..) = client.read(&mut buffer) {
            // The receiver has what it needs after a while.
            let _ = log.0.send(buffer[..read].to_vec());
            if server.write_all(&buffer[..read]).is_err() {
                break;
            }
        }
    });
    let second = join(&settings(&of_second, 1));
    let first = waiting.join().expect("no panic");
    drop((second, first));
    let recorded: Vec<u8> = log.1.try_iter().flatten().collect();

    let waiting = {
        let settings = settings(&addresses, 0);
        thread::spawn(move || join(&settings))
    };
    let mut replayed = connect(&addresses[0]);
    replayed.write_all(&recorded).expect("sent");
    let mut answer = Vec::new();
    // The connection may be reset, since not all was read.
    let _ = replayed.read_to_end(&mut answer);
    let answer = String::from_utf8_lossy(&answer).into_owned();
    assert!(answer.contains("does not know the secret of process 0"), "{answer}");
    drop((join(&settings(&addresses, 1)), waiting.join().expect("no panic")));
}

#[test]
fn a_second_process_of_an_index_does_not_join() {
    let addresses = addresses(3);
    let first = settings(&addresses, 0);
    let waiting = thread::spawn(move || join(&first));
    let one = settings(&addresses, 1);
    let joining = thread::spawn(move || join(&one));
    let attempt = |expected: &str| {
        // The same index on another host.
        let two = super::tests::addresses(1).remove(0);
        let settings = settings(&[addresses[0].clone(), two, addresses[2].clone()], 1);
        let members = Arc::new(Members::new(settings.clone(), settings.identity(None), Arc::default()));
        let connecting = Arc::clone(&members);
        thread::spawn(move || join::connect_to(&connecting, 0));
        let until = Instant::now() + Duration::from_secs(20);
        while !members.reason(0).is_some_and(|reason| reason.contains(expected)) {
            assert!(Instant::now() < until, "{:?}", members.reason(0));
            thread::sleep(Duration::from_millis(10));
        }
        members.end(None);
    };
    thread::sleep(Duration::from_millis(500));
    attempt("process 1 has already joined: is it started twice?");
    let third = join(&settings(&addresses, 2));
    let clusters = [waiting.join().expect("no panic"), joining.join().expect("no panic"), third];
    attempt("the run of generation 7 has not ended yet in process 0");
    assert!(clusters.iter().all(|cluster| cluster.check().is_ok()));
}

#[test]
fn an_old_generation_is_refused() {
    let settings = settings(&addresses(2), 1);
    let members = Members::new(settings.clone(), settings.identity(None), Arc::default());
    let leader = |generation| Identity { generation: Some(generation), ..identity(0) };
    assert_eq!(members.admit(&leader(8)), Ok(()));
    assert_eq!(members.admit(&leader(7)), Err("generation 7 is over: generation 8 has started".to_owned()));
    assert_eq!(members.admit(&leader(8)), Ok(()));
}

#[test]
fn a_process_that_goes_before_the_start_is_waited_for() {
    let addresses = addresses(3);
    let first = settings(&addresses, 0);
    let waiting = thread::spawn(move || join(&first));
    let gone = settings(&addresses, 1);
    let members = Arc::new(Members::new(gone.clone(), gone.identity(None), Arc::default()));
    let connecting = Arc::clone(&members);
    thread::spawn(move || join::connect_to(&connecting, 0));
    while members.missing_processes().any(|process| process == 0) {
        thread::sleep(Duration::from_millis(10));
    }
    members.end(None);
    let one = settings(&addresses, 1);
    let joining = thread::spawn(move || join(&one));
    let third = join(&settings(&addresses, 2));
    assert_eq!(third.start, b"start");
    drop((third, joining.join().expect("no panic"), waiting.join().expect("no panic")));
}

#[test]
fn a_process_whose_start_fails_ends_the_others() {
    let mut clusters = join_all(&addresses(3));
    drop(clusters.remove(1));
    for cluster in &clusters {
        let PeerLost { process, noticed, .. } = lost(cluster);
        assert_eq!(process, 1);
        assert!(matches!(&noticed, Noticed::Ended(reason) if reason.contains("cannot start")), "{noticed}");
        assert!(cluster.prepare().is_err());
    }
}

/// A connection that can be held in one direction.
fn one_way(address: String) -> (String, Arc<AtomicBool>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let own = listener.local_addr().expect("bound").to_string();
    let is_held = Arc::new(AtomicBool::new(false));
    let held = Arc::clone(&is_held);
    thread::spawn(move || {
        for client in listener.incoming().map_while(Result::ok) {
            let Ok(server) = TcpStream::connect(&address) else { continue };
            let clone = |stream: &TcpStream| stream.try_clone().expect("a handle");
            for (mut from, mut to, held) in
                [(clone(&client), clone(&server), None), (server, client, Some(Arc::clone(&held)))]
            {
                thread::spawn(move || {
                    let mut buffer = [0; 4096];
                    while let Ok(read @ 1..) = from.read(&mut buffer) {
                        while held.as_ref().is_some_and(|held| held.load(Ordering::Relaxed)) {
                            thread::sleep(Duration::from_millis(5));
                        }
                        if to.write_all(&buffer[..read]).is_err() {
                            break;
                        }
                    }
                    let _ = to.shutdown(Shutdown::Write);
                });
            }
        }
    });
    (own, is_held)
}

#[test]
fn a_cut_in_one_direction_is_noticed_by_both_ends() {
    let addresses = addresses(2);
    let (between, is_held) = one_way(addresses[0].clone());
    let first = settings(&addresses, 0);
    let waiting = thread::spawn(move || join(&first));
    let second = join(&settings(&[between, addresses[1].clone()], 1));
    let first = waiting.join().expect("no panic");
    thread::sleep(Duration::from_secs(1));
    assert_eq!((first.check(), second.check()), (Ok(()), Ok(())), "heartbeats arrive without data");
    is_held.store(true, Ordering::Relaxed);
    assert_eq!(lost(&second).noticed, Noticed::Silent(TIMEOUT));
    let noticed = lost(&first).noticed;
    assert!(matches!(noticed, Noticed::Closed(_)), "{noticed}");
}

/// Runs a dataflow that broadcasts numbers, until all have arrived, a process is lost, or the run fails. Returns how many arrived.
fn broadcast(cluster: &Cluster, numbers: u64, is_endless: bool, fails: &Arc<AtomicBool>) -> usize {
    let is_lost = Arc::clone(fails);
    let prepared = cluster.prepare().expect("all are prepared");
    let flag = Arc::clone(&is_lost);
    cluster.on_loss(move |_| flag.store(true, Ordering::Relaxed));
    let failed = Arc::clone(&is_lost);
    let failure = move || {
        // The threads that send have ended by then, unless they wait.
        thread::sleep(Duration::from_millis(100));
        failed.load(Ordering::Relaxed).then(|| "the run has failed".to_owned())
    };
    let guards = prepared.execute(timely::WorkerConfig::default(), failure, move |worker| {
        let (sender, received) = channel();
        let mut input = timely::dataflow::operators::vec::input::Handle::<u64, u64>::new();
        let probe = worker.dataflow::<u64, _, _>(|scope| {
            use timely::dataflow::operators::vec::Input;
            let store = move |number: &u64| sender.send(*number).expect("the receiver is alive");
            let sent = (0..numbers).to_stream(scope);
            scope.input_from(&mut input).broadcast().probe();
            let (probe, _) = sent.broadcast().inspect(store).probe();
            probe
        });
        let mut input = is_endless.then_some(input);
        while (input.is_some() || !probe.done()) && !is_lost.load(Ordering::Relaxed) {
            worker.step_or_park(Some(Duration::from_millis(1)));
        }
        drop(input.take());
        if is_lost.load(Ordering::Relaxed) {
            worker.installed_dataflows().into_iter().for_each(|dataflow| worker.drop_dataflow(dataflow));
        }
        received.try_iter().count()
    });
    guards.expect("started").join().into_iter().map(|count| count.expect("no panic")).sum()
}

#[test]
fn a_dataflow_runs_and_ends_in_order() {
    let clusters = join_all(&addresses(3));
    let numbers = 200_000;
    let counts: Vec<_> = thread::scope(|scope| {
        let running: Vec<_> = clusters
            .iter()
            .map(|cluster| scope.spawn(|| broadcast(cluster, numbers, false, &Arc::default())))
            .collect();
        running.into_iter().map(|thread| thread.join().expect("no panic")).collect()
    });
    assert_eq!(counts, vec![3 * numbers as usize; 3]);
    assert!(clusters.iter().all(|cluster| cluster.check().is_ok()));
}

#[test]
fn a_lost_process_ends_a_dataflow_without_a_panic() {
    let clusters = join_all(&addresses(3));
    thread::scope(|scope| {
        let running: Vec<_> = clusters
            .iter()
            .map(|cluster| scope.spawn(|| broadcast(cluster, 10_000, true, &Arc::default())))
            .collect();
        thread::sleep(Duration::from_millis(300));
        // As if the operating system closed its connections.
        clusters[1].members.close_all();
        for thread in running {
            thread.join().expect("no panic");
        }
    });
    for (process, cluster) in clusters.iter().enumerate() {
        assert_eq!(lost(cluster).process == 1, process != 1, "{:?}", cluster.check());
    }
}

#[test]
fn a_process_whose_run_fails_ends_that_of_the_others() {
    let clusters = join_all(&addresses(2));
    let fails = Arc::new(AtomicBool::new(false));
    thread::scope(|scope| {
        let other = scope.spawn(|| broadcast(&clusters[0], 10_000, true, &Arc::default()));
        let failing = scope.spawn(|| broadcast(&clusters[1], 10_000, true, &fails));
        thread::sleep(Duration::from_millis(300));
        fails.store(true, Ordering::Relaxed);
        failing.join().expect("no panic");
        other.join().expect("no panic");
    });
    let noticed = lost(&clusters[0]).noticed;
    assert_eq!(noticed, Noticed::Ended("the run has failed".to_owned()));
}
