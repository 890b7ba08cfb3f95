//! Many clients, and clients that mean no good: memory stays bounded, and others are served.

mod support;

use std::{
    io::{Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    os::fd::OwnedFd,
    time::Duration,
};

use nfs_sr::client::Client;
use nfs3::{
    Stability,
    nfs::{Read, ReadArgs},
    rpc::{self, Credentials},
};
use support::{Calls, program::Program};

#[test]
fn a_hundred_clients_take_little_memory() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let program = Program::start(dir.path(), &[]);
    let mut clients: Vec<_> = (0..100)
        .map(|_| Client::new(support::connect(program.address)))
        .collect();
    let root = clients[0].root();
    let file = clients[0].create(root, "disk").expect("created");
    let data = vec![7; 128 << 10];
    for i in 0..64 {
        clients[0]
            .write(file, i << 17, &data, Stability::Unstable)
            .expect("written");
    }
    for _ in 0..3 {
        for client in &mut clients {
            for i in 0..8 {
                client
                    .send::<Read>(&ReadArgs {
                        file,
                        offset: i << 17,
                        count: 128 << 10,
                    })
                    .expect("sent");
            }
        }
        for client in &mut clients {
            for _ in 0..8 {
                let record = client.receive().expect("a reply");
                record.results::<Read>().expect("a reply").expect("read");
            }
        }
    }
    let peak = program.peak_mib();
    assert!(peak <= 64, "{peak} MiB");
}

/// Calls for far more data than the client ever takes.
#[test]
fn a_client_that_does_not_read_is_not_served_into_memory() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let program = Program::start(dir.path(), &[]);
    let mut client = Client::new(support::connect(program.address));
    let root = client.root();
    let file = client.create(root, "disk").expect("created");
    for i in 0..4 {
        client
            .write(file, i << 20, &vec![1; 1 << 20], Stability::Unstable)
            .expect("written");
    }
    let mut slow = TcpStream::connect(program.address).expect("the server listens");
    slow.set_write_timeout(Some(Duration::from_millis(300)))
        .expect("a TCP socket");
    for xid in 0..20_000 {
        let call = rpc::call::<Read>(
            xid,
            &Credentials::None,
            &ReadArgs {
                file,
                offset: 0,
                count: 1 << 20,
            },
        );
        if slow.write_all(&call).is_err() {
            break;
        }
    }
    client.read(file, 0, 4096).expect("others are served");
    let peak = program.peak_mib();
    assert!(peak <= 32, "{peak} MiB");
    // It has lost nothing: whoever reads late gets all of it.
    let mut chunk = vec![0; 1 << 20];
    let mut taken = 0;
    while taken < 20 << 20 {
        taken += slow.read(&mut chunk).expect("replies");
    }
}

/// Connections that send the beginning of a call and no more.
const HALF_OPEN: u32 = 10_000;

/// Raises the limit of open files as far as is needed and allowed.
fn allow_descriptors(needed: u64) {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let set = |current, maximum| {
        let limit = Rlimit { current, maximum };
        setrlimit(Resource::Nofile, limit).is_ok()
    };
    let enough = |limit: Option<u64>| limit.is_none_or(|limit| limit >= needed);
    let raised = match (enough(limit.current), enough(limit.maximum)) {
        (true, _) => true,
        (false, true) => set(limit.maximum, limit.maximum),
        // For the superuser only.
        (false, false) => set(Some(needed), Some(needed)),
    };
    assert!(
        raised,
        "this test needs {needed} open files; raise the hard limit (ulimit -Hn {needed})"
    );
}

/// From an address of the loopback network, so that ports do not run out.
fn connect_from(source: Ipv4Addr, to: SocketAddr) -> OwnedFd {
    use rustix::net::{AddressFamily, SocketType, bind, connect, socket};
    let socket = socket(AddressFamily::INET, SocketType::STREAM, None).expect("a socket");
    bind(&socket, &SocketAddr::from((source, 0))).expect("loopback has all of 127.0.0.0/8");
    connect(&socket, &to).expect("the server listens");
    socket
}

#[test]
fn half_open_connections_do_not_keep_others_out() {
    allow_descriptors(u64::from(HALF_OPEN) + 500);
    let dir = tempfile::tempdir().expect("temporary directory");
    let program = Program::start(dir.path(), &[]);
    let mut honest = Client::new(support::connect(program.address));
    let root = honest.root();
    let mut open = Vec::new();
    for i in 0..HALF_OPEN {
        let source = Ipv4Addr::new(127, 0, 1, (i % 20) as u8 + 1);
        let stream = connect_from(source, program.address);
        // The mark of a long record, and no more of it. The server may have closed it by then.
        let _ = rustix::io::write(&stream, &[0x80, 0x10, 0, 0, i as u8]);
        open.push(stream);
        if i % 1000 == 0 {
            honest
                .read(root, 0, 1)
                .expect_err("a directory, but an answer");
        }
    }
    assert_eq!(open.len(), HALF_OPEN as usize);
    honest
        .create(root, "a")
        .expect("an open connection is served");
    let mut late = Client::new(support::connect(program.address));
    assert_eq!(late.root(), root, "and so is a new one");
    let peak = program.peak_mib();
    println!("{HALF_OPEN} half-open connections: {peak} MiB at most");
    assert!(peak <= 64, "{peak} MiB");
}
