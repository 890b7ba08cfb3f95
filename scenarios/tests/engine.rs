//! The engine on a lab that is none: what it does, in which order, and how it ends.

use std::io;
use std::path::Path;
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use lab_protocol::command::DiskFault;
use lab_protocol::{Command, Event, Phase, ProbeKind, Record, Role, SCHEMA};
use scenarios::engine::{Drive, Ended, Engine, Lab};
use scenarios::scenario;
use scenarios::session::{Access, Stream};
use serde_json::{Value, json};

type Subscriber = Box<dyn FnMut(&Record) + Send>;

/// A lab that keeps a log, moves guests in no time, and says so.
#[derive(Default)]
struct Fake {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    records: Vec<Record>,
    subscribers: Vec<Subscriber>,
    commands: Vec<Command>,
    host: String,
    /// A migration waits for this before it ends.
    gate: Option<Receiver<()>>,
}

impl Fake {
    fn say(&self, event: Event) {
        Lab::record(self, "lab", event);
    }

    fn commands(&self) -> Vec<String> {
        let state = self.state.lock().unwrap();
        let name = |command: &Command| {
            let value = serde_json::to_value(command).unwrap();
            let target = ["vm", "host", "link"]
                .iter()
                .find_map(|key| value[key].as_str().map(str::to_owned));
            format!(
                "{} {}",
                value["command"].as_str().unwrap(),
                target.unwrap_or_default()
            )
            .trim()
            .to_owned()
        };
        state
            .commands
            .iter()
            .filter(|command| !matches!(command, Command::Status))
            .map(name)
            .collect()
    }

    fn steps(&self) -> Vec<String> {
        let state = self.state.lock().unwrap();
        state
            .records
            .iter()
            .filter_map(|record| match &record.event {
                Event::Step { step, state, .. } => Some(format!("{step} {state}")),
                _ => None,
            })
            .collect()
    }
}

fn phase(phase: Phase) -> Event {
    Event::MigrationPhase {
        vm: "session".into(),
        migration: 1,
        host: "h1".into(),
        role: Role::Source,
        phase,
        detail: String::new(),
    }
}

impl Lab for Fake {
    fn execute(&self, command: &Command) -> Result<Value, String> {
        let gate = {
            let mut state = self.state.lock().unwrap();
            state.commands.push(command.clone());
            if matches!(command, Command::Status) {
                return Ok(json!({ "vms": [{ "name": "session", "host": state.host }] }));
            }
            state.gate.take()
        };
        match command {
            Command::VmMigrate { to, .. } => {
                self.say(phase(Phase::PreCopy));
                if let Some(gate) = gate {
                    gate.recv_timeout(Duration::from_secs(10))
                        .map_err(|_| "nobody opened the gate")?;
                }
                if to == "h9" {
                    return Err("h9 says no".into());
                }
                self.state.lock().unwrap().host.clone_from(to);
                let ended = Event::MigrationEnded {
                    vm: "session".into(),
                    migration: 1,
                    error: String::new(),
                };
                self.say(ended);
            }
            Command::Mark { text } => self.say(Event::Mark { text: text.clone() }),
            _ => {}
        }
        Ok(Value::Null)
    }

    fn subscribe(&self, hear: Subscriber) {
        self.state.lock().unwrap().subscribers.push(hear);
    }

    fn record(&self, source: &str, event: Event) {
        let mut state = self.state.lock().unwrap();
        let record = Record {
            schema: SCHEMA,
            seq: state.records.len() as u64,
            t_ns: state.records.len() as u64,
            error_ns: 0,
            source: source.into(),
            event,
        };
        for subscriber in &mut state.subscribers {
            subscriber(&record);
        }
        state.records.push(record);
    }

    fn now_ns(&self) -> u64 {
        0
    }

    fn connect(&self, _: &str, _: u16) -> io::Result<Stream> {
        Err(io::ErrorKind::ConnectionRefused.into())
    }

    fn access(&self, _: &str) -> Result<Access, String> {
        Err("there is no guest".into())
    }

    fn start_probe(&self, _: &str, _: ProbeKind, _: Duration) -> io::Result<u64> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn stop_probe(&self, _: u64) -> io::Result<()> {
        Ok(())
    }

    fn folder(&self) -> &Path {
        Path::new("/nonexistent")
    }
}

fn lab() -> Arc<Fake> {
    let fake = Fake::default();
    fake.state.lock().unwrap().host = "h1".into();
    Arc::new(fake)
}

fn engine(lab: &Arc<Fake>, steps: &str) -> Engine {
    let text =
        format!("name = \"test\"\nwhy = \"A test.\"\n[[guests]]\nname = \"session\"\n{steps}");
    let scenario = scenario::parse("test", &text)
        .unwrap_or_else(|error| panic!("{error}"))
        .remove(0)
        .scenario;
    let drive = Drive {
        factor: 1.0,
        seed: 1,
        before_step: None,
        breakpoints: Vec::new(),
        at_break: None,
        progress: Box::new(|_| {}),
    };
    Engine::new(Arc::clone(lab) as Arc<dyn Lab>, Arc::new(scenario), drive)
}

fn run(lab: &Arc<Fake>, steps: &str) -> Ended {
    engine(lab, steps).run()
}

#[test]
fn steps_are_done_in_order_and_said_in_the_log() {
    let lab = lab();
    let ended = run(
        &lab,
        r#"
        [[steps]]
        wait = "1ms"
        [[steps]]
        migrate = { guest = "session", times = 2, pause = "1ms" }
        [[steps]]
        after = "1ms"
        link = { link = "h1:mgmt", cut = true, for = "1ms" }
        "#,
    );
    assert_eq!(ended, Ended::Completed);
    assert_eq!(
        lab.commands(),
        [
            "vm-migrate session",
            "vm-migrate session",
            "link-set h1:mgmt",
            "link-heal h1:mgmt"
        ]
    );
    assert_eq!(
        lab.steps(),
        [
            "1 started",
            "1 done",
            "2 started",
            "2 done",
            "3 started",
            "3 done"
        ]
    );
    // There and back again.
    assert_eq!(lab.state.lock().unwrap().host, "h1");
}

#[test]
fn a_step_begins_at_its_event_while_another_is_under_way() {
    let lab = lab();
    let (open, gate) = mpsc::channel();
    lab.state.lock().unwrap().gate = Some(gate);
    let engine = engine(
        &lab,
        r#"
        [[steps]]
        migrate = { guest = "session" }
        background = true
        [[steps]]
        when = { event = "migration-phase", phase = "pre-copy", role = "source" }
        link = { link = "h1:mgmt", cut = true }
        "#,
    );
    let watched = Arc::clone(&lab);
    lab.subscribe(Box::new(move |record| {
        let _ = &watched;
        // The migration goes on only when the link has been cut.
        if matches!(&record.event, Event::Step { step: 2, state, .. } if state == "done") {
            let _ = open.send(());
        }
    }));
    assert_eq!(engine.run(), Ended::Completed);
    assert_eq!(lab.commands(), ["vm-migrate session", "link-set h1:mgmt"]);
    assert_eq!(
        lab.steps(),
        ["1 started", "2 waiting", "2 started", "2 done", "1 done"]
    );
}

#[test]
fn an_event_that_has_passed_before_the_step_before_began_does_not_count() {
    let lab = lab();
    lab.say(Event::Mark {
        text: "early".into(),
    });
    let ended = run(
        &lab,
        r#"
        [[steps]]
        mark = "now"
        [[steps]]
        when = { event = "mark", text = "early" }
        within = "50ms"
        mark = "never"
        "#,
    );
    assert!(matches!(ended, Ended::Missed(_)), "{ended:?}");
    assert_eq!(lab.steps().last().unwrap(), "2 missed");
}

#[test]
fn a_step_that_fails_ends_the_run_and_says_why() {
    let lab = lab();
    let pool = "[pool]\nhosts = 9\n";
    let steps =
        "[[steps]]\nmigrate = { guest = \"session\", to = \"h9\" }\n[[steps]]\nwait = \"1ms\"\n";
    let Ended::Failed(why) = run(&lab, &format!("{pool}{steps}")) else {
        panic!("it must fail")
    };
    assert!(why.contains("h9 says no"), "{why}");
    assert_eq!(lab.steps(), ["1 started", "1 failed"]);
}

#[test]
fn a_migration_that_shall_stay_may_not_move() {
    let stayed = "[[steps]]\nmigrate = { guest = \"session\", outcome = \"stayed\" }\n";
    assert!(
        matches!(run(&lab(), stayed), Ended::Failed(why) if why.contains("should have stayed"))
    );
    let refused = "[pool]\nhosts = 9\n[[steps]]\nmigrate = { guest = \"session\", to = \"h9\", outcome = \"stayed\" }\n";
    assert_eq!(run(&lab(), refused), Ended::Completed);
}

#[test]
fn a_disk_of_the_storage_server_fails_for_as_long_as_the_step_says() {
    let lab = lab();
    let steps = "[[steps]]\nstorage = { fault = \"full\", for = \"5ms\" }\n[[steps]]\nstorage = { fault = \"eio-read\" }\n";
    assert_eq!(run(&lab, steps), Ended::Completed);
    let told: Vec<_> = lab.state.lock().unwrap().commands.clone();
    let fault = |fault| Command::StorageFault { fault };
    let expected = [DiskFault::Full, DiskFault::Clear, DiskFault::EioRead];
    assert_eq!(told, expected.map(fault));
}

#[test]
fn what_is_not_done_in_time_fails() {
    let lab = lab();
    let (_open, gate) = mpsc::channel();
    lab.state.lock().unwrap().gate = Some(gate);
    let ended = run(
        &lab,
        "[[steps]]\nmigrate = { guest = \"session\" }\nwithin = \"50ms\"\n",
    );
    assert!(matches!(ended, Ended::Failed(why) if why.contains("not done in time")));
}

#[test]
fn an_interrupted_run_ends_at_once() {
    let lab = lab();
    let engine = engine(&lab, "[[steps]]\nwait = \"1000s\"\n");
    let interrupter = engine.interrupter();
    let thread = std::thread::spawn(move || engine.run());
    interrupter.interrupt();
    assert_eq!(thread.join().unwrap(), Ended::Interrupted);
}

#[test]
fn a_run_stops_at_its_breakpoints_and_before_each_step_if_asked() {
    let lab = lab();
    let text = "name = \"test\"\nwhy = \"A test.\"\n[[guests]]\nname = \"session\"\n[[steps]]\nmigrate = { guest = \"session\" }\n[[steps]]\nmark = \"over\"\n";
    let scenario = scenario::parse("test", text).unwrap().remove(0).scenario;
    let (told, heard) = mpsc::channel();
    let at_break = told.clone();
    let drive = Drive {
        factor: 1.0,
        seed: 1,
        before_step: Some(Box::new(move |name: &str| {
            told.send(name.to_owned()).unwrap()
        })),
        breakpoints: vec![
            scenario::pattern("event = \"migration-phase\"\nphase = \"pre-copy\"").unwrap(),
        ],
        at_break: Some(Box::new(move |record: &Record| {
            at_break.send(format!("{:?}", record.source)).unwrap();
        })),
        progress: Box::new(|_| {}),
    };
    let ended = Engine::new(Arc::clone(&lab) as Arc<dyn Lab>, Arc::new(scenario), drive).run();
    assert_eq!(ended, Ended::Completed);
    let heard: Vec<_> = heard.iter().collect();
    assert_eq!(
        heard,
        [
            "step 1: migrate session to other",
            "\"lab\"",
            "step 2: mark \"over\""
        ]
    );
}
