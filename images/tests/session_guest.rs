//! The session guest boots and holds what a session needs.

use std::path::Path;

use images::guest::{PlainQemu, build};

#[test]
fn it_boots_to_a_session_that_works() {
    let cache = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.elab/images");
    let guest = build(&cache, &|line| eprintln!("{line}")).expect("the guest builds");
    let qemu = PlainQemu::boot(&guest).expect("the guest boots");
    eprintln!(
        "session ready after {:.2} s",
        qemu.boot_time().as_secs_f64()
    );

    let check = |command: &str, expected: &str| {
        let output = qemu.ssh(command).expect("ssh runs");
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(
            output.status.success() && text.contains(expected),
            "{command}: {}\n{text}\n{}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
    };
    check("cat /proc/mounts", "/dev/vda / ext4 rw");
    check("echo 'let A0 = 6*7' >/tmp/sheet && sc -W% /tmp/sheet", "42");
    check(
        "elab-disk write /root/records 1 5 && elab-disk check /root/records 5",
        "ok",
    );
    check("timeout 2 elab-dirty 8 2; echo ended by $?", "ended by 124");
    check("printf hello | timeout 2 nc 127.0.0.1 7", "hello");
    // inetd answers no datagram from a loopback address.
    let udp_echo = "perl -MIO::Socket::INET -e '$s = IO::Socket::INET->new(Proto => q(udp), PeerAddr => q(10.0.2.15:7)); \
                    $s->send(q(hello)); alarm 5; $s->recv($_, 9); print'";
    check(udp_echo, "hello");
}
