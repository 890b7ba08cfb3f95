//! NFS over frames, as the hypervisor hosts of a lab use it.

mod support;

use std::{
    io::{BufRead, BufReader},
    os::unix::net::UnixListener,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use nfs_sr::client::Client;
use nfs3::{Stability, nfs::Read};
use smoltcp::wire::Ipv4Address;
use support::{Calls, ethernet::EthernetStream};

const SERVER: Ipv4Address = Ipv4Address::new(198, 18, 1, 1);

#[test]
fn a_host_reads_and_writes_over_frames() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let export = dir.path().join("export");
    std::fs::create_dir(&export).expect("new directory");
    let socket = dir.path().join("switch");
    let switch = UnixListener::bind(&socket).expect("bind");
    let mut server = Command::new(env!("CARGO_BIN_EXE_nfs-sr"))
        .arg("serve")
        .arg(&export)
        .args([
            "--no-tcp",
            "--mac",
            "02:e1:ab:01:ff:01",
            "--address",
            "198.18.1.1/24",
            "--switch",
        ])
        .arg(&socket)
        .stdout(Stdio::piped())
        .spawn()
        .expect("start");
    let (port, _) = switch.accept().expect("the server connects");
    let mut lines = BufReader::new(server.stdout.take().expect("piped")).lines();
    let ready = lines.next().expect("a line").expect("UTF-8");
    assert!(
        ready.contains("\"kind\":\"ready\"") && ready.contains("198.18.1.1/24"),
        "{ready}"
    );

    let mut client = Client::new(EthernetStream::connect(port, 11, SERVER).expect("connect"));
    let root = client.root();
    let file = client.create(root, "disk").expect("created");
    // As long as a record may be, so that windows fill and frames are cut everywhere.
    let data: Vec<u8> = (0..1 << 20)
        .map(|i: u32| (i * 7 + (i >> 9)) as u8)
        .collect();
    for piece in 0..4 {
        let ok = client
            .write(file, piece << 20, &data, Stability::Unstable)
            .expect("written");
        assert_eq!(ok.count, 1 << 20);
    }
    client.commit(file).expect("committed");
    assert!(client.read(file, 2 << 20, 1 << 20).expect("read") == data);

    // Many small calls under way at once; replies may come in any order.
    let calls: Vec<u32> = (0..200u64)
        .map(|i| {
            let args = nfs3::nfs::ReadArgs {
                file,
                offset: i * 4096,
                count: 4096,
            };
            client.send::<Read>(&args).expect("sent")
        })
        .collect();
    for _ in &calls {
        let record = client.receive().expect("reply");
        let i = calls
            .iter()
            .position(|xid| *xid == record.xid())
            .expect("ours");
        let read = record.results::<Read>().expect("a reply").expect("read");
        assert!(read.data.0 == &data[i * 4096 % data.len()..][..4096]);
    }

    // A round trip takes no timer of TCP: none of ours is below a millisecond, and delayed ACKs take 10.
    let mut times: Vec<Duration> = (0..50)
        .map(|_| {
            let begun = Instant::now();
            client.read(file, 0, 4096).expect("read");
            begun.elapsed()
        })
        .collect();
    // A timer would show in each of them, a busy machine in some.
    times.sort();
    assert!(times[25] < Duration::from_millis(8), "{times:?}");
    server.kill().expect("kill");
    server.wait().expect("reaped");
}
