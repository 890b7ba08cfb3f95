//! Many clients, and clients that mean no good: memory stays bounded, and others are served.

mod support;

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    time::{Duration, Instant},
};

use nfs_sr::client::Client;
use nfs3::{
    Stability,
    nfs::{Read, ReadArgs},
    rpc::{self, Credentials},
};
use support::{Calls, TestServer, program::Program};

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

#[test]
fn half_open_connections_do_not_keep_others_out() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let server = TestServer::start(dir.path());
    let mut honest = server.client();
    let root = honest.root();
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let raised = rustix::process::Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    rustix::process::setrlimit(rustix::process::Resource::Nofile, raised)
        .expect("up to the hard limit");
    let begun = Instant::now();
    let mut open = Vec::new();
    for i in 0..3_000u32 {
        let mut stream = TcpStream::connect(server.address).expect("the server listens");
        // The mark of a long record, and no more of it.
        let _ = stream.write_all(&[0x80, 0x10, 0, 0, i as u8]);
        open.push(stream);
        if open.len() > 1500 {
            open.drain(..500);
        }
    }
    assert!(begun.elapsed() < Duration::from_secs(60));
    honest
        .create(root, "a")
        .expect("an open connection is served");
    let mut late = server.client();
    assert_eq!(late.root(), root, "and so is a new one");
}
