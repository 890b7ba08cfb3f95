//! Guests that end or begin anew by themselves, as a lab reports it.

use elab::assembly::GUEST;
use lab_protocol::Event;

use crate::log::assert_never_two_copies;
use crate::real_lab::{PATIENCE, RealLab};

#[test]
fn a_guest_that_reboots_crashes_and_powers_off_is_reported_so() {
    let lab = RealLab::start("test-endings");
    lab.run("elab-disk write /root/kept 0 20 && sync");
    for (command, wanted) in [
        ("reboot -f", "the guest asked for it"),
        // A kernel that panics resets the machine (`panic=-1`).
        ("echo c >/proc/sysrq-trigger", "the guest asked for it"),
        (
            "echo triple >/sys/kernel/reboot/type; reboot -f",
            "triple fault",
        ),
    ] {
        let (before, console) = (lab.log().records().len(), lab.console_length());
        lab.run(&after_the_session(command));
        let rebooted = |event: &Event| matches!(event, Event::VmRebooted { vm, host, .. } if vm == GUEST && host == "h1");
        let record = lab.log().wait(before, PATIENCE, rebooted, || false);
        let Some(Event::VmRebooted { cause, .. }) = record.map(|record| record.event) else {
            panic!("no reboot is reported after: {command}")
        };
        assert_eq!(cause, wanted, "{command}");
        lab.wait_for_console(console);
        assert_eq!(lab.guest_host().as_deref(), Some("h1"));
        assert_eq!(lab.run("elab-disk check /root/kept 20"), "ok\n");
    }

    let before = lab.log().records().len();
    lab.run(&after_the_session("poweroff -f"));
    let stopped = |event: &Event| matches!(event, Event::VmStopped { vm, .. } if vm == GUEST);
    let record = lab.log().wait(before, PATIENCE, stopped, || false);
    let Some(Event::VmStopped { reason, .. }) = record.map(|record| record.event) else {
        panic!("no end is reported")
    };
    assert_eq!(reason, "the guest powered itself off");
    assert_eq!(lab.guest_host(), None);

    // Its disk is free: it starts elsewhere.
    let console = lab.console_length();
    lab.start_guest("h2").unwrap();
    lab.wait_for_console(console);
    assert_eq!(lab.run("elab-disk check /root/kept 20"), "ok\n");
    assert_never_two_copies(&lab.log().records());
    lab.stop();
}

/// The command that runs another when the session it came by is over: the guest ends by that.
fn after_the_session(command: &str) -> String {
    format!("(sleep 1; {command}) </dev/null >/dev/null 2>&1 &")
}
