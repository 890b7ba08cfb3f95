//! The switch with real sockets: peers connect, speak, stall, break the framing, go away and come back.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::mpsc::{self, Receiver};
use std::time::Duration;

use lab_protocol::LinkFault;
use switch::framing::{Decoder, encode};
use switch::{
    Direction, LabClock, NetworkConfig, Noticed, Switch, SwitchConfig, SwitchError, SwitchNotice,
};

const BROADCAST: [u8; 6] = [0xff; 6];
const A: [u8; 6] = [2, 0, 0, 0, 0, 0xa];
const B: [u8; 6] = [2, 0, 0, 0, 0, 0xb];
/// Nothing here takes long; a test that waits this long has failed.
const PATIENCE: Duration = Duration::from_secs(5);

struct Lab {
    switch: Switch,
    notices: Receiver<SwitchNotice>,
    folder: tempfile::TempDir,
}

fn lab() -> Lab {
    let (sender, notices) = mpsc::channel();
    let network = |name: &str, mtu| NetworkConfig {
        name: name.into(),
        mtu,
    };
    let config = SwitchConfig {
        networks: vec![network("mgmt", 9000), network("session", 1500)],
        seed: 1,
        clock: LabClock::start(),
        prepare_thread: || {},
    };
    Lab {
        switch: Switch::start(config, sender).unwrap(),
        notices,
        folder: tempfile::tempdir().unwrap(),
    }
}

impl Lab {
    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Waits until the switch has noticed what `wanted` accepts.
    fn wait(&self, wanted: impl Fn(&Noticed) -> bool) -> Noticed {
        loop {
            let notice = self
                .notices
                .recv_timeout(PATIENCE)
                .expect("the switch noticed it in time");
            if wanted(&notice.what) {
                return notice.what;
            }
        }
    }

    fn connect(&self, name: &str) -> Peer {
        let stream = UnixStream::connect(self.path(name)).unwrap();
        self.wait(|what| matches!(what, Noticed::Connected { .. }));
        Peer::new(stream)
    }
}

struct Peer {
    stream: UnixStream,
    decoder: Decoder,
}

impl Peer {
    fn new(stream: UnixStream) -> Self {
        stream.set_nonblocking(false).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Self {
            stream,
            decoder: Decoder::default(),
        }
    }

    fn send(&mut self, to: [u8; 6], from: [u8; 6], body: &[u8]) {
        let mut bytes = Vec::new();
        encode(&[&to[..], &from[..], &[8, 0], body].concat(), &mut bytes);
        self.stream.write_all(&bytes).unwrap();
    }

    fn receive(&mut self) -> Vec<u8> {
        loop {
            if let Some(frame) = self.decoder.next_frame().unwrap() {
                return frame[14..].to_vec();
            }
            assert!(
                self.decoder.read_from(&mut self.stream).unwrap() > 0,
                "closed"
            );
        }
    }
}

#[test]
fn frames_pass_between_a_socket_and_an_endpoint_on_one_network_only() {
    let lab = lab();
    lab.switch.listen("mgmt", "h1", &lab.path("h1")).unwrap();
    let mut host = lab.connect("h1");
    let mut near = Peer::new(lab.switch.endpoint("mgmt", "lab").unwrap());
    let mut far = Peer::new(lab.switch.endpoint("session", "client").unwrap());
    host.send(BROADCAST, A, b"hello");
    assert_eq!(near.receive(), b"hello");
    near.send(A, B, b"answer");
    assert_eq!(host.receive(), b"answer");
    far.stream
        .set_read_timeout(Some(Duration::from_millis(50)))
        .unwrap();
    assert!(far.stream.read(&mut [0]).is_err(), "networks are apart");
}

#[test]
fn a_peer_may_go_and_come_back() {
    let lab = lab();
    lab.switch.listen("mgmt", "h1", &lab.path("h1")).unwrap();
    let mut near = Peer::new(lab.switch.endpoint("mgmt", "lab").unwrap());
    let first = lab.connect("h1");
    drop(first);
    lab.wait(|what| matches!(what, Noticed::Disconnected { .. }));
    near.send(BROADCAST, B, b"to nobody");
    let mut second = lab.connect("h1");
    near.send(BROADCAST, B, b"to the new one");
    assert_eq!(second.receive(), b"to the new one");
}

#[test]
fn a_peer_without_framing_is_disconnected_and_harms_nobody() {
    let lab = lab();
    lab.switch.listen("mgmt", "h1", &lab.path("h1")).unwrap();
    lab.switch.listen("mgmt", "h2", &lab.path("h2")).unwrap();
    let mut broken = lab.connect("h1");
    let mut good = lab.connect("h2");
    let mut near = Peer::new(lab.switch.endpoint("mgmt", "lab").unwrap());
    broken.stream.write_all(b"GET / HTTP/1.0\r\n").unwrap();
    let Noticed::Disconnected { port, reason } =
        lab.wait(|what| matches!(what, Noticed::Disconnected { .. }))
    else {
        unreachable!()
    };
    assert_eq!(port, "h1");
    assert!(reason.contains("framing"), "{reason}");
    assert_eq!(broken.stream.read(&mut [0; 8]).unwrap(), 0);
    good.send(BROADCAST, A, b"still here");
    assert_eq!(near.receive(), b"still here");
}

#[test]
fn a_peer_that_does_not_read_loses_frames_and_holds_up_nobody() {
    let lab = lab();
    let _stalled = lab.switch.endpoint("mgmt", "stalled").unwrap();
    let mut a = Peer::new(lab.switch.endpoint("mgmt", "a").unwrap());
    let mut b = Peer::new(lab.switch.endpoint("mgmt", "b").unwrap());
    let body = [7; 8000];
    for _ in 0..4000 {
        a.send(BROADCAST, A, &body);
        assert_eq!(b.receive(), body);
    }
    let ports = lab.switch.ports().unwrap();
    let dropped = |name: &str| {
        ports
            .iter()
            .find(|port| port.port == name)
            .unwrap()
            .counters
            .dropped
    };
    assert!(dropped("stalled") > 0);
    assert_eq!(dropped("b"), 0);
}

#[test]
fn a_cut_and_a_delay_work_and_heal() {
    let lab = lab();
    let mut a = Peer::new(lab.switch.endpoint("mgmt", "a").unwrap());
    let mut b = Peer::new(lab.switch.endpoint("mgmt", "b").unwrap());
    let fault = LinkFault {
        cut: true,
        ..LinkFault::default()
    };
    lab.switch
        .set_fault("mgmt", "a", Direction::Sending, fault)
        .unwrap();
    assert_eq!(lab.switch.links().unwrap().len(), 1);
    a.send(BROADCAST, A, b"lost");
    b.send(BROADCAST, B, b"other way");
    assert_eq!(a.receive(), b"other way");
    let fault = LinkFault {
        delay_us: 30_000,
        ..LinkFault::default()
    };
    lab.switch
        .set_fault("mgmt", "a", Direction::Sending, fault)
        .unwrap();
    let sent = std::time::Instant::now();
    a.send(BROADCAST, A, b"late");
    assert_eq!(b.receive(), b"late");
    assert!(sent.elapsed() >= Duration::from_millis(30));
    lab.switch
        .set_fault("mgmt", "a", Direction::Sending, LinkFault::default())
        .unwrap();
    assert_eq!(lab.switch.links().unwrap(), []);
}

#[test]
fn a_move_is_noticed_with_names() {
    let lab = lab();
    let mut a = Peer::new(lab.switch.endpoint("session", "h1").unwrap());
    let mut b = Peer::new(lab.switch.endpoint("session", "h2").unwrap());
    let mut client = Peer::new(lab.switch.endpoint("session", "client").unwrap());
    a.send(BROADCAST, A, b"1");
    client.receive();
    b.send(BROADCAST, A, b"2");
    client.receive();
    let Noticed::Moved { mac, from, to } = lab.wait(|what| matches!(what, Noticed::Moved { .. }))
    else {
        unreachable!()
    };
    assert_eq!(
        (mac.to_string().as_str(), from.as_str(), to.as_str()),
        ("02:00:00:00:00:0a", "h1", "h2")
    );
}

#[test]
fn captures_hold_what_passed() {
    let lab = lab();
    let mut a = Peer::new(lab.switch.endpoint("mgmt", "a").unwrap());
    let mut b = Peer::new(lab.switch.endpoint("mgmt", "b").unwrap());
    let file = lab.path("a.pcapng");
    lab.switch.capture("mgmt", "a", Some(&file)).unwrap();
    a.send(BROADCAST, A, b"captured");
    b.receive();
    lab.switch.capture("mgmt", "a", None).unwrap();
    a.send(BROADCAST, A, b"too late");
    b.receive();
    let bytes = std::fs::read(file).unwrap();
    let holds = |text: &[u8]| bytes.windows(text.len()).any(|window| window == text);
    assert!(holds(b"captured") && !holds(b"too late"));
}

#[test]
fn wrong_names_and_faults_are_refused_in_words() {
    let lab = lab();
    let _a = lab.switch.endpoint("mgmt", "a").unwrap();
    let error = lab.switch.endpoint("mgmt", "a").unwrap_err();
    assert!(matches!(error, SwitchError::PortExists { .. }), "{error}");
    let error = lab.switch.endpoint("nowhere", "a").unwrap_err();
    assert_eq!(error.to_string(), "there is no network \"nowhere\"");
    let error = lab
        .switch
        .set_fault("mgmt", "z", Direction::Sending, LinkFault::default())
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        "there is no port \"z\" on network \"mgmt\""
    );
    let fault = LinkFault {
        loss: 1.5,
        ..LinkFault::default()
    };
    let error = lab
        .switch
        .set_fault("mgmt", "a", Direction::Sending, fault)
        .unwrap_err();
    assert!(error.to_string().contains("1.5"), "{error}");
}
