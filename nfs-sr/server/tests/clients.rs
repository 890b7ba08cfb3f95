//! Other people's clients: libnfs (`nfs-ls`, `nfs-cp`, `nfs-cat`) and QEMU's `nfs://` driver.

mod support;

use std::{
    path::Path,
    process::{Command, Output},
};

use nfs_sr::sr::{
    store::Directory,
    vdi::{self, file_name, new_uuid},
};
use support::TestServer;

fn run(program: &str, package: &str, args: &[&str]) -> Output {
    Command::new(program)
        .args(args)
        .output()
        .unwrap_or_else(|error| panic!("{program} is needed (package {package}): {error}"))
}

fn url(server: &TestServer, path: &str) -> String {
    let port = server.address.port();
    format!("nfs://127.0.0.1/export/{path}?nfsport={port}&mountport={port}")
}

fn content(length: usize) -> Vec<u8> {
    (0..length)
        .map(|i| (i ^ (i >> 8) ^ (i >> 16)) as u8)
        .collect()
}

fn expect_success(output: &Output) {
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
fn libnfs_lists_and_copies() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let export = dir.path().join("export");
    std::fs::create_dir_all(export.join("sub")).expect("directories");
    let file = dir.path().join("file");
    std::fs::write(&file, content(3_000_001)).expect("write");
    let server = TestServer::start(&export);
    let local = file.to_str().expect("UTF-8");
    expect_success(&run(
        "nfs-cp",
        "libnfs-utils",
        &[local, &url(&server, "sub/copy")],
    ));
    assert!(std::fs::read(export.join("sub/copy")).expect("copied") == content(3_000_001));
    let listed = run("nfs-ls", "libnfs-utils", &[&url(&server, "sub")]);
    expect_success(&listed);
    let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
    assert!(
        listed.contains("3000001") && listed.contains("copy"),
        "{listed}"
    );
    let read = run("nfs-cat", "libnfs-utils", &[&url(&server, "sub/copy")]);
    expect_success(&read);
    assert!(read.stdout == content(3_000_001));
    assert!(
        !run("nfs-cat", "libnfs-utils", &[&url(&server, "sub/none")])
            .status
            .success()
    );
}

/// libnfs inside QEMU asks the port mapper on port 111, which belongs to the superuser: a network namespace of our own, in
/// which we are that, holds a server with its programs on port 111.
#[test]
fn qemu_reads_and_writes_a_disk_over_nfs() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let (export, raw) = (dir.path().join("export"), dir.path().join("raw"));
    std::fs::create_dir(&export).expect("directory");
    std::fs::write(&raw, content(5 << 20)).expect("write");
    let uuid = new_uuid();
    vdi::import(&Directory::new(&export), uuid, &raw, None).expect("imported");
    let script = format!(
        r#"set -e
        ip link set lo up
        "{server}" serve "{export}" --listen 127.0.0.1:111 > "{dir}/log" &
        for i in $(seq 100); do grep -q ready "{dir}/log" && break; sleep 0.05; done
        disk="nfs://127.0.0.1/export/{name}"
        qemu-img compare -f vpc -F raw "$disk" "{raw}"
        qemu-io -f vpc -c "write -P 0x5a 1M 64k" -c flush "$disk"
        qemu-io -f vpc -c "read -P 0x5a 1M 64k" "$disk"
        kill %1; wait %1"#,
        server = env!("CARGO_BIN_EXE_nfs-sr"),
        export = export.display(),
        dir = dir.path().display(),
        name = file_name(uuid),
        raw = raw.display(),
    );
    let output = run("unshare", "util-linux", &["-Urn", "bash", "-c", &script]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned()
        + &String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success() && text.contains("Images are identical"),
        "{text}"
    );
    let back = dir.path().join("back");
    vdi::export(&Directory::new(&export), &file_name(uuid), &back).expect("a good disk");
    let mut expected = content(5 << 20);
    expected[1 << 20..][..64 << 10].fill(0x5a);
    assert!(std::fs::read(Path::new(&back)).expect("read") == expected);
}
