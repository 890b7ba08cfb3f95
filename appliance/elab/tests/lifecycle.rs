//! Labs with hosts that are no hypervisors: what starts and what is left of it, however the lab ends.
//!
//! Labs that are ended by signals are in `signals.rs`.

mod stand_in;

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::Command;

use elab::client::Client;
use elab::lab::{HostSpec, Lab, Launcher};
use lab_protocol::{Command as LabCommand, Event, LinkFault, Record};

use stand_in::{PATIENCE, Sleeper, config, eventually, power_on, processes, runs};

/// A host that ends at once.
struct Mayfly;

impl Launcher for Mayfly {
    fn command(&self, _: &HostSpec, _: &Path) -> std::io::Result<Command> {
        let mut command = Command::new("sh");
        command.args(["-c", "echo no such machine >&2; exit 7"]);
        Ok(command)
    }
}

fn records(base: &Path) -> Vec<Record> {
    let text = std::fs::read_to_string(base.join("test/events.jsonl")).unwrap();
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

#[test]
fn hosts_go_on_and_off_freeze_and_thaw() {
    let base = tempfile::tempdir().unwrap();
    let lab = Lab::start(config(base.path(), Box::new(Sleeper))).unwrap();
    lab.execute(&power_on("h1")).unwrap();
    let error = lab.execute(&power_on("h1")).unwrap_err().to_string();
    assert_eq!(error, "h1 has power already");
    let error = lab.execute(&power_on("h9")).unwrap_err().to_string();
    assert_eq!(error, "there is no host \"h9\"; the hosts are h1, h2");
    let [pid] = processes(base.path())[..] else {
        panic!("one process is expected")
    };
    let state = || {
        std::fs::read_to_string(format!("/proc/{pid}/stat"))
            .unwrap()
            .split(' ')
            .nth(2)
            .unwrap()
            .to_owned()
    };
    lab.execute(&LabCommand::HostFreeze { host: "h1".into() })
        .unwrap();
    eventually("the host is frozen", || state() == "T");
    lab.execute(&LabCommand::HostThaw { host: "h1".into() })
        .unwrap();
    eventually("the host goes on", || state() == "S");
    let error = lab
        .execute(&LabCommand::HostPowerOff { host: "h1".into() })
        .unwrap_err()
        .to_string();
    assert!(error.contains("does not answer yet"), "{error}");
    lab.execute(&LabCommand::HostPull { host: "h1".into() })
        .unwrap();
    assert!(!runs(pid));
    let error = lab
        .execute(&LabCommand::HostPull { host: "h1".into() })
        .unwrap_err()
        .to_string();
    assert_eq!(error, "h1 is off");
    lab.execute(&power_on("h1")).unwrap();
    lab.stop("test").unwrap();
    let powers: Vec<_> = records(base.path())
        .into_iter()
        .filter_map(|record| match record.event {
            Event::HostPower { state, .. } => Some(state),
            _ => None,
        })
        .collect();
    assert_eq!(
        powers,
        ["power-on", "frozen", "thawed", "pulled", "power-on"]
    );
}

#[test]
fn the_next_lab_has_the_folder_while_somebody_can_still_stop_the_last_one() {
    let base = tempfile::tempdir().unwrap();
    let lab = Lab::start(config(base.path(), Box::new(Sleeper))).unwrap();
    let stopper = lab.stopper();
    assert!(Lab::start(config(base.path(), Box::new(Sleeper))).is_err());
    lab.stop("the test is over").unwrap();
    let next = Lab::start(config(base.path(), Box::new(Sleeper))).unwrap();
    stopper.stop();
    next.execute(&power_on("h1")).unwrap();
    next.stop("the test is over").unwrap();
}

#[test]
fn the_log_begins_and_ends_and_has_no_holes() {
    let base = tempfile::tempdir().unwrap();
    let lab = Lab::start(config(base.path(), Box::new(Sleeper))).unwrap();
    lab.execute(&LabCommand::Mark {
        text: "here".into(),
    })
    .unwrap();
    lab.stop("test").unwrap();
    let records = records(base.path());
    assert!(matches!(
        records.first().unwrap().event,
        Event::LabStarted { .. }
    ));
    assert_eq!(
        records.last().unwrap().event,
        Event::LabStopped {
            reason: "test".into()
        }
    );
    assert!(records.iter().any(|record| record.event
        == Event::Mark {
            text: "here".into()
        }));
    assert!(
        records
            .iter()
            .zip(0..)
            .all(|(record, seq)| record.seq == seq)
    );
}

#[test]
fn a_host_that_dies_is_reported_with_what_it_said() {
    let base = tempfile::tempdir().unwrap();
    let lab = Lab::start(config(base.path(), Box::new(Mayfly))).unwrap();
    let error = lab.power_on_all(PATIENCE).unwrap_err().to_string();
    assert!(
        error.contains("exit status: 7") && error.contains("no such machine"),
        "{error}"
    );
}

#[test]
fn links_are_set_listed_and_healed_over_the_socket() {
    let base = tempfile::tempdir().unwrap();
    let lab = Lab::start(config(base.path(), Box::new(Sleeper))).unwrap();
    let mut client = Client::connect(base.path(), "test").unwrap();
    let fault = LinkFault {
        delay_us: 1000,
        ..LinkFault::default()
    };
    let set = |link: &str, fault: &LinkFault| LabCommand::LinkSet {
        link: link.into(),
        fault: fault.clone(),
    };
    client.execute(&set("h1:mgmt>", &fault)).unwrap();
    client
        .execute(&set(
            "h2:session",
            &LinkFault {
                cut: true,
                ..LinkFault::default()
            },
        ))
        .unwrap();
    let links = |client: &mut Client| -> Vec<String> {
        let status = client.execute(&LabCommand::Status).unwrap();
        let links = status["links"].as_array().unwrap();
        links
            .iter()
            .map(|link| link["link"].as_str().unwrap().to_owned())
            .collect()
    };
    assert_eq!(
        links(&mut client),
        ["h1:mgmt>", "h2:session>", "h2:session<"]
    );
    client
        .execute(&LabCommand::LinkHeal {
            link: "h2:session".into(),
        })
        .unwrap();
    assert_eq!(links(&mut client), ["h1:mgmt>"]);
    for (link, words) in [
        ("h1:wan>", "no network"),
        ("h7:mgmt>", "no port"),
        ("h1", "is no link"),
    ] {
        let error = client.execute(&set(link, &fault)).unwrap_err().to_string();
        assert!(error.contains(words), "{link}: {error}");
    }
    let nonsense = LinkFault {
        loss: 7.0,
        ..LinkFault::default()
    };
    let error = client
        .execute(&set("h1:mgmt>", &nonsense))
        .unwrap_err()
        .to_string();
    assert!(error.contains("0 to 1"), "{error}");
    assert_eq!(
        links(&mut client),
        ["h1:mgmt>"],
        "a refused fault changes nothing"
    );
    let error = Client::connect(base.path(), "tset")
        .unwrap_err()
        .to_string();
    assert!(error.ends_with("; running are: --name test"), "{error}");
    lab.stop("test").unwrap();
    assert!(Client::connect(base.path(), "test").is_err());
}

#[test]
fn nonsense_on_the_socket_is_answered_and_the_connection_lives() {
    use std::io::Write;
    let base = tempfile::tempdir().unwrap();
    let _lab = Lab::start(config(base.path(), Box::new(Sleeper))).unwrap();
    let stream =
        std::os::unix::net::UnixStream::connect(base.path().join("test/lab.sock")).unwrap();
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut ask = |line: &str| {
        (&stream).write_all(line.as_bytes()).unwrap();
        let mut answer = String::new();
        reader.read_line(&mut answer).unwrap();
        answer
    };
    assert!(ask("hello\n").contains("this is no command"));
    assert!(ask("{\"command\":\"vm-start\",\"vm\":\"x\"}\n").contains("missing field `host`"));
    assert!(ask("{\"command\":\"status\"}\n").contains("\"result\":\"ok\""));
    assert!(ask(&format!("{}\n", "x".repeat(70_000))).contains("this is no command"));
}
