//! Endpoints on a real switch, against a small peer with an echo server: connections, forwards, probes.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

use elab::endpoint::probe::ProbeConfig;
use elab::endpoint::{Endpoint, EndpointConfig};
use elab::journal::{Journal, JournalWriter};
use lab_protocol::{Event, LinkFault, ProbeKind, Record};
use smoltcp::iface::{Config, Interface, SocketSet};
use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::{tcp, udp};
use smoltcp::time::Instant;
use smoltcp::wire::{EthernetAddress, IpCidr, Ipv4Cidr};
use switch::framing::{Decoder, encode};
use switch::{Direction, LabClock, NetworkConfig, Switch, SwitchConfig};

const PEER: Ipv4Addr = Ipv4Addr::new(198, 18, 2, 101);
const ECHO: u16 = 7;
const PATIENCE: Duration = Duration::from_secs(10);

/// A guest that echoes TCP and UDP on port 7.
struct Peer {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

struct Card {
    stream: UnixStream,
    decoder: Decoder,
}

struct Frame(Vec<u8>);
struct Room<'a>(&'a mut UnixStream);

impl RxToken for Frame {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

impl TxToken for Room<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut frame = vec![0; len];
        let result = f(&mut frame);
        let mut bytes = Vec::new();
        encode(&frame, &mut bytes);
        // The switch is gone at the end of a test.
        let _ = self.0.write_all(&bytes);
        result
    }
}

impl Device for Card {
    type RxToken<'a> = Frame;
    type TxToken<'a> = Room<'a>;
    fn receive(&mut self, _: Instant) -> Option<(Frame, Room<'_>)> {
        let frame = self.decoder.next_frame().ok()??.to_vec();
        Some((Frame(frame), Room(&mut self.stream)))
    }
    fn transmit(&mut self, _: Instant) -> Option<Room<'_>> {
        Some(Room(&mut self.stream))
    }
    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = 1514;
        capabilities
    }
}

impl Peer {
    fn start(stream: UnixStream) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopping = Arc::clone(&stop);
        let thread = std::thread::spawn(move || serve(stream, &stopping));
        Self {
            stop,
            thread: Some(thread),
        }
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap();
    }
}

fn serve(stream: UnixStream, stop: &AtomicBool) {
    let clock = LabClock::start();
    let now = || Instant::from_micros(i64::try_from(clock.now_ns() / 1000).unwrap());
    stream.set_nonblocking(false).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_millis(2)))
        .unwrap();
    let mut card = Card {
        stream,
        decoder: Decoder::default(),
    };
    let config = Config::new(EthernetAddress([2, 0xe1, 0xab, 0x10, 0, 1]).into());
    let mut interface = Interface::new(config, &mut card, now());
    interface.update_ip_addrs(|addresses| {
        addresses
            .push(IpCidr::Ipv4(Ipv4Cidr::new(PEER, 24)))
            .unwrap()
    });
    let mut sockets = SocketSet::new(Vec::new());
    let listening = || {
        let buffer = || tcp::SocketBuffer::new(vec![0; 65_536]);
        let mut socket = tcp::Socket::new(buffer(), buffer());
        socket.set_nagle_enabled(false);
        socket.set_ack_delay(None);
        socket.listen(ECHO).unwrap();
        socket
    };
    // smoltcp has no backlog: one socket for each connection at a time.
    let tcp: Vec<_> = (0..4).map(|_| sockets.add(listening())).collect();
    let buffer = || udp::PacketBuffer::new(vec![udp::PacketMetadata::EMPTY; 64], vec![0; 4096]);
    let mut datagrams = udp::Socket::new(buffer(), buffer());
    datagrams.bind(ECHO).unwrap();
    let udp = sockets.add(datagrams);
    while !stop.load(Ordering::Relaxed) {
        // A timeout is a turn without frames.
        let _ = card.decoder.read_from(&mut card.stream);
        interface.poll(now(), &mut card, &mut sockets);
        for handle in &tcp {
            let socket = sockets.get_mut::<tcp::Socket>(*handle);
            while socket.can_recv() && socket.can_send() {
                let mut bytes = vec![0; socket.send_capacity() - socket.send_queue()];
                let count = socket.recv_slice(&mut bytes).unwrap();
                socket.send_slice(&bytes[..count]).unwrap();
            }
            if socket.state() == tcp::State::CloseWait {
                socket.close();
            }
            if !socket.is_open() {
                socket.listen(ECHO).unwrap();
            }
        }
        let socket = sockets.get_mut::<udp::Socket>(udp);
        while let Ok((data, from)) = socket.recv() {
            let data = data.to_vec();
            socket.send_slice(&data, from.endpoint).unwrap();
        }
        interface.poll(now(), &mut card, &mut sockets);
    }
}

struct Bench {
    endpoint: Endpoint,
    _peer: Peer,
    switch: Switch,
    journal: JournalWriter,
    folder: tempfile::TempDir,
}

fn bench() -> Bench {
    let folder = tempfile::tempdir().unwrap();
    let (journal, writer) = Journal::create(&folder.path().join("events.jsonl")).unwrap();
    let clock = LabClock::start();
    let config = SwitchConfig {
        networks: vec![NetworkConfig {
            name: "session".into(),
            mtu: 1500,
        }],
        seed: 1,
        clock,
        prepare_thread: || {},
    };
    let switch = Switch::start(config, mpsc::channel().0).unwrap();
    let peer = Peer::start(switch.endpoint("session", "guest").unwrap());
    let endpoint = Endpoint::start(EndpointConfig {
        name: "client".into(),
        mac: [2, 0xe1, 0xab, 2, 0xff, 1],
        address: Ipv4Addr::new(198, 18, 2, 1),
        prefix: 24,
        mtu: 1500,
        stream: switch.endpoint("session", "client").unwrap(),
        clock,
        journal,
    })
    .unwrap();
    Bench {
        endpoint,
        _peer: peer,
        switch,
        journal: writer,
        folder,
    }
}

impl Bench {
    /// Ends the log and gives the samples of a probe: answers, duplicates, worst lateness.
    fn samples(self, kind: ProbeKind) -> (Vec<Option<u64>>, u64) {
        self.journal.finish().unwrap();
        let text = std::fs::read_to_string(self.folder.path().join("events.jsonl")).unwrap();
        let mut answers = Vec::new();
        let mut twice = 0;
        for line in text.lines() {
            let record: Record = serde_json::from_str(line).unwrap();
            if let Event::ProbeSamples {
                probe,
                first,
                answers_ns,
                duplicated,
                ..
            } = record.event
                && probe == kind
            {
                assert_eq!(first, answers.len() as u64, "stretches follow one another");
                answers.extend(answers_ns);
                twice += duplicated;
            }
        }
        (answers, twice)
    }
}

fn exchange(stream: &mut (impl Read + Write), message: &[u8]) {
    stream.write_all(message).unwrap();
    let mut answer = vec![0; message.len()];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(answer, message);
}

#[test]
fn a_connection_carries_bytes_both_ways_and_ends() {
    let bench = bench();
    let mut stream = bench
        .endpoint
        .connect(SocketAddrV4::new(PEER, ECHO))
        .unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    exchange(&mut stream, b"key");
    // More than all buffers on the way hold: the writer must be held up, and nothing lost.
    let much: Vec<u8> = (0..3_000_000u32).map(|n| (n % 251) as u8).collect();
    let mut writer = stream.try_clone().unwrap();
    let sent = much.clone();
    let writing = std::thread::spawn(move || writer.write_all(&sent).unwrap());
    let mut got = vec![0; much.len()];
    stream.read_exact(&mut got).unwrap();
    writing.join().unwrap();
    assert!(got == much);
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(stream.read(&mut [0]).unwrap(), 0, "the peer closes in turn");
}

#[test]
fn who_refuses_or_is_not_there_is_reported() {
    let bench = bench();
    let error = bench
        .endpoint
        .connect(SocketAddrV4::new(PEER, 9))
        .unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused);
    let nobody = Ipv4Addr::new(198, 18, 2, 200);
    let error = bench
        .endpoint
        .connect(SocketAddrV4::new(nobody, ECHO))
        .unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::TimedOut);
}

#[test]
fn a_forward_carries_connections_from_loopback() {
    let bench = bench();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    bench
        .endpoint
        .forward(listener, SocketAddrV4::new(PEER, ECHO))
        .unwrap();
    let mut streams: Vec<_> = (0..3)
        .map(|_| TcpStream::connect(("127.0.0.1", port)).unwrap())
        .collect();
    for (number, stream) in streams.iter_mut().enumerate() {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        exchange(stream, format!("hello {number}").as_bytes());
    }
}

fn probe(bench: &Bench, kind: ProbeKind, time: Duration) {
    let config = ProbeConfig {
        kind,
        to: SocketAddrV4::new(PEER, ECHO),
        interval_ns: 2_000_000,
    };
    let probe = bench.endpoint.start_probe(config).unwrap();
    std::thread::sleep(time);
    bench.endpoint.stop_probe(probe).unwrap();
}

#[test]
fn probes_are_answered() {
    for kind in [ProbeKind::Udp, ProbeKind::Tcp] {
        let bench = bench();
        // The first exchange resolves the address, which is not what is measured here.
        bench
            .endpoint
            .connect(SocketAddrV4::new(PEER, ECHO))
            .unwrap();
        probe(&bench, kind, Duration::from_millis(400));
        let (answers, twice) = bench.samples(kind);
        assert!(answers.len() > 100, "{kind:?}: {}", answers.len());
        let lost = answers.iter().filter(|answer| answer.is_none()).count();
        assert_eq!((lost, twice), (0, 0), "{kind:?}");
    }
}

#[test]
fn a_tcp_probe_begins_when_its_connection_is_open() {
    let bench = bench();
    // The connection takes as long as many requests.
    let delay = LinkFault {
        delay_us: 50_000,
        ..LinkFault::default()
    };
    bench
        .switch
        .set_fault("session", "guest", Direction::Sending, delay)
        .unwrap();
    probe(&bench, ProbeKind::Tcp, Duration::from_millis(300));
    let (answers, _) = bench.samples(ProbeKind::Tcp);
    assert!(answers.len() > 50, "{}", answers.len());
    let lost = answers.iter().filter(|answer| answer.is_none()).count();
    assert_eq!(lost, 0, "of {}", answers.len());
}

#[test]
fn a_tcp_probe_that_finds_nobody_says_so_instead_of_measuring() {
    let bench = bench();
    let start = |to, port| {
        bench
            .endpoint
            .start_probe(ProbeConfig {
                kind: ProbeKind::Tcp,
                to: SocketAddrV4::new(to, port),
                interval_ns: 2_000_000,
            })
            .unwrap_err()
    };
    let refused = start(PEER, 9);
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
    assert!(refused.to_string().contains("198.18.2.101:9"), "{refused}");
    let silent = start(Ipv4Addr::new(198, 18, 2, 200), ECHO);
    assert_eq!(silent.kind(), std::io::ErrorKind::TimedOut);
    assert!(bench.samples(ProbeKind::Tcp).0.is_empty());
}

#[test]
fn a_cut_shows_as_lost_requests_and_a_doubling_link_as_duplicates() {
    let bench = bench();
    bench
        .endpoint
        .connect(SocketAddrV4::new(PEER, ECHO))
        .unwrap();
    let set = |fault| {
        bench
            .switch
            .set_fault("session", "guest", Direction::Sending, fault)
            .unwrap()
    };
    set(LinkFault {
        duplicate: 1.0,
        ..LinkFault::default()
    });
    let config = ProbeConfig {
        kind: ProbeKind::Udp,
        to: SocketAddrV4::new(PEER, ECHO),
        interval_ns: 2_000_000,
    };
    let probe = bench.endpoint.start_probe(config).unwrap();
    std::thread::sleep(Duration::from_millis(200));
    set(LinkFault {
        cut: true,
        ..LinkFault::default()
    });
    std::thread::sleep(Duration::from_millis(200));
    set(LinkFault::default());
    std::thread::sleep(Duration::from_millis(200));
    bench.endpoint.stop_probe(probe).unwrap();
    let (answers, twice) = bench.samples(ProbeKind::Udp);
    let lost = answers.iter().filter(|answer| answer.is_none()).count();
    assert!(lost >= 20, "{lost} of {} lost", answers.len());
    assert!(twice >= 20, "{twice} answered twice");
    assert!(
        answers.last().unwrap().is_some(),
        "the healed link carries answers again"
    );
}
