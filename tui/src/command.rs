//! Commands in words: what one types after `:` is what one types after `elab` in a shell, and each action
//! of a key is shown in these words.

use std::fmt::Write;

use lab_protocol::command::DiskFault;
use lab_protocol::{Command, LinkFault};
use scenarios::scenario::{library, units};

/// The words that complete a command line, by what comes before them.
const WORDS: &[(&str, &[&str])] = &[
    (
        "",
        &[
            "host", "vm", "template", "link", "sr", "ha", "mark", "run", "export", "import",
            "down", "view", "quit", "help",
        ],
    ),
    ("host", &["power-on", "power-off", "pull", "freeze", "thaw"]),
    (
        "vm",
        &[
            "start",
            "stop",
            "migrate",
            "cancel",
            "suspend",
            "resume",
            "snapshot",
            "checkpoint",
            "revert",
            "clone",
            "delete-snapshot",
        ],
    ),
    ("link", &["set", "heal"]),
    ("template", &["create", "delete"]),
    (
        "sr",
        &["pause", "resume", "kill", "start", "fault", "coalesce"],
    ),
    ("ha", &["enable"]),
    (
        "view",
        &[
            "overview",
            "session",
            "migration",
            "network",
            "storage",
            "events",
            "runs",
        ],
    ),
];

/// What was typed after `:`.
#[derive(Clone, Debug, PartialEq)]
pub enum Typed {
    /// For the lab.
    Lab(Command),
    /// Run this program anew with these words.
    Program(Vec<String>),
    /// Show a view, by its name.
    View(String),
    /// Leave.
    Quit,
    /// Show the keys.
    Help,
}

/// Reads a command line.
///
/// # Errors
/// A sentence that says what is wrong and what would be right.
pub fn parse(line: &str) -> Result<Typed, String> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let owned = |word: &str| word.to_owned();
    let command = match words.as_slice() {
        ["quit" | "q"] => return Ok(Typed::Quit),
        ["help"] => return Ok(Typed::Help),
        ["view", name] => {
            let names = choices("view");
            return if names.contains(name) {
                Ok(Typed::View(owned(name)))
            } else {
                Err(format!("there is no view \"{name}\": {}", names.join(", ")))
            };
        }
        ["run", _, ..]
        | ["import", _, ..]
        | ["export", _, _, ..]
        | ["vm", "snapshot" | "checkpoint", _, ..]
        | ["template", "create", _, "--from", _, ..]
        | ["template", "delete", _]
        | ["vm", "revert" | "clone" | "delete-snapshot", _, _, ..] => {
            return Ok(Typed::Program(
                words.iter().map(|word| owned(word)).collect(),
            ));
        }
        ["export", ..] => return Err("as in export session session.xva".into()),
        ["ha", "enable"] => Command::HaEnable { failures: 1 },
        ["ha", "enable", "--failures", number] => Command::HaEnable {
            failures: number
                .parse()
                .map_err(|_| format!("--failures {number}: give a number of hosts"))?,
        },
        ["down"] => Command::Down,
        ["host", "power-on", host] => Command::HostPowerOn { host: owned(host) },
        ["host", "power-off", host] => Command::HostPowerOff { host: owned(host) },
        ["host", "pull", host] => Command::HostPull { host: owned(host) },
        ["host", "freeze", host] => Command::HostFreeze { host: owned(host) },
        ["host", "thaw", host] => Command::HostThaw { host: owned(host) },
        ["vm", "start", vm, "--host", host] => Command::VmStart {
            vm: owned(vm),
            host: owned(host),
        },
        ["vm", "stop", vm] => Command::VmShutdown { vm: owned(vm) },
        ["vm", "stop", vm, "--force"] => Command::VmDestroy { vm: owned(vm) },
        ["vm", "migrate", vm, to] => migrate(vm, to, false),
        ["vm", "migrate", vm, to, "--verify"] => migrate(vm, to, true),
        ["vm", "cancel", vm] => Command::VmMigrateCancel { vm: owned(vm) },
        ["vm", "suspend", vm] => Command::VmSuspend { vm: owned(vm) },
        ["vm", "resume", vm, on @ ..] => Command::VmResume {
            vm: owned(vm),
            host: match on {
                [] => None,
                ["--on", host] => Some(owned(host)),
                _ => return Err("as in vm resume session --on h2".into()),
            },
        },
        ["link", "heal", link] => Command::LinkHeal { link: owned(link) },
        ["link", "set", link, faults @ ..] => Command::LinkSet {
            link: owned(link),
            fault: parse_fault(faults)?,
        },
        ["sr", "pause"] => Command::StoragePause,
        ["sr", "resume"] => Command::StorageResume,
        ["sr", "kill"] => Command::StorageKill,
        ["sr", "start"] => Command::StorageStart,
        ["sr", "coalesce"] => Command::StorageCoalesce,
        ["sr", "fault", fault] => Command::StorageFault {
            fault: fault.parse()?,
        },
        ["mark", text @ ..] if !text.is_empty() => Command::Mark {
            text: text.join(" "),
        },
        _ => return Err(usage(&words)),
    };
    Ok(Typed::Lab(command))
}

/// A migration. Made from its written form, so that test-only fields of the command, which people cannot type, take their defaults.
#[must_use]
pub fn migrate(vm: &str, to: &str, verify: bool) -> Command {
    let written = serde_json::json!({
        "command": "vm-migrate", "vm": vm, "to": to, "verify": verify,
    });
    serde_json::from_value(written).expect("the fields are those of the command")
}

/// Adds what a command needs beside what people type: which lab, and that its progress be told.
pub fn complete_program(words: &mut Vec<String>, lab: &str) {
    let (Some("export" | "import" | "vm" | "template"), false) = (
        words.first().map(String::as_str),
        words
            .iter()
            .any(|word| word.starts_with("--name") || word.starts_with("--sr")),
    ) else {
        return;
    };
    words.extend(["--name".into(), lab.into()]);
}

/// What a disk's fault does, in words.
#[must_use]
pub fn disk_fault_words(fault: DiskFault) -> &'static str {
    match fault {
        DiskFault::EioRead => "reading fails",
        DiskFault::EioWrite => "writing fails",
        DiskFault::EioFsync => "syncing fails",
        DiskFault::Full => "nothing can be added",
        DiskFault::Clear => "it is well again",
    }
}

fn usage(words: &[&str]) -> String {
    let Some(first) = words.first() else {
        return "type a command; Tab shows which there are".into();
    };
    let next = choices(first);
    match (next.is_empty(), words.get(1)) {
        (true, _) if choices("").contains(first) => format!("\"{first}\" needs more, or less"),
        (true, _) => format!(
            "there is no command \"{first}\": {}",
            choices("").join(", ")
        ),
        (false, Some(second)) if next.contains(second) => format!(
            "{first} {second}: {}",
            match (*first, *second) {
                ("host", _) => "give the name of a host, as in host pull h1",
                ("vm", "start") => "as in vm start session --host h1",
                ("vm", "migrate") => "as in vm migrate session h2",
                ("template", "create") => "as in template create small --from session",
                ("template", _) => "give the name of a template",
                ("vm", "clone") => "as in vm clone session other",
                ("vm", "revert" | "delete-snapshot") => "give a VM and the name of its snapshot",
                ("vm", _) => "give the name of a VM",
                ("link", "heal") => "give a link, as in link heal h1:mgmt",
                ("sr", "fault") => "as in sr fault eio-read",
                ("link", _) => "as in link set h1:mgmt --delay 20ms --loss 0.01",
                _ => "takes no argument",
            }
        ),
        (false, _) => format!("{first} is followed by {}", next.join(", ")),
    }
}

fn choices(before: &str) -> &'static [&'static str] {
    WORDS
        .iter()
        .find(|(words, _)| *words == before)
        .map_or(&[], |(_, next)| next)
}

/// What could stand in place of the last, unfinished word of a line. `hosts`, `vms` are names in the lab.
#[must_use]
pub fn complete(line: &str, hosts: &[&str], vms: &[&str]) -> Vec<String> {
    let mut words: Vec<&str> = line.split_whitespace().collect();
    let unfinished = if line.is_empty() || line.ends_with(' ') {
        ""
    } else {
        words.pop().unwrap_or("")
    };
    let links = || -> Vec<String> {
        hosts
            .iter()
            .flat_map(|host| ["mgmt", "storage", "session"].map(|net| format!("{host}:{net}")))
            .collect()
    };
    let names = |names: &[&str]| -> Vec<String> { names.iter().map(|n| (*n).to_owned()).collect() };
    let candidates: Vec<String> = match words.as_slice() {
        [] => names(choices("")),
        ["run"] => library::ALL.iter().map(|one| one.name.to_owned()).collect(),
        ["export"] => names(vms),
        [first] => names(choices(first)),
        ["ha", "enable"] => names(&["--failures"]),
        ["sr", "fault"] => names(&DiskFault::ALL.map(DiskFault::name)),
        ["host", _]
        | ["vm", "migrate", _]
        | ["vm", "start", _, "--host"]
        | ["vm", "resume", _, "--on"] => names(hosts),
        ["vm", "resume", _] => names(&["--on"]),
        ["template", "create", _] => names(&["--from"]),
        ["template", "create", _, "--from"] => names(vms),
        ["template", _] => Vec::new(),
        ["vm", "start", _] => names(&["--host"]),
        ["vm", "stop", _] => names(&["--force"]),
        ["vm", "migrate", _, _] => names(&["--verify"]),
        ["vm", _] => names(vms),
        ["link", _] => links(),
        ["link", "set", ..] => names(&[
            "--cut",
            "--delay",
            "--jitter",
            "--loss",
            "--duplicate",
            "--corrupt",
            "--reorder",
            "--rate",
        ]),
        _ => Vec::new(),
    };
    candidates
        .into_iter()
        .filter(|word| word.starts_with(unfinished))
        .collect()
}

/// A command in the words of the shell, without `elab`.
#[must_use]
pub fn words(command: &Command) -> String {
    match command {
        Command::Status => "status".into(),
        Command::Down => "down".into(),
        Command::HostPowerOn { host } => format!("host power-on {host}"),
        Command::HostPowerOff { host } => format!("host power-off {host}"),
        Command::HostPull { host } => format!("host pull {host}"),
        Command::HostFreeze { host } => format!("host freeze {host}"),
        Command::HostThaw { host } => format!("host thaw {host}"),
        Command::VmStart { vm, host } => format!("vm start {vm} --host {host}"),
        Command::VmShutdown { vm } => format!("vm stop {vm}"),
        Command::VmDestroy { vm } => format!("vm stop {vm} --force"),
        Command::VmMigrate { vm, to, verify, .. } => {
            format!(
                "vm migrate {vm} {to}{}",
                if *verify { " --verify" } else { "" }
            )
        }
        Command::VmMigrateCancel { vm } => format!("vm cancel {vm}"),
        Command::VmSuspend { vm } => format!("vm suspend {vm}"),
        Command::VmResume { vm, host: None } => format!("vm resume {vm}"),
        Command::VmResume {
            vm,
            host: Some(host),
        } => format!("vm resume {vm} --on {host}"),
        Command::LinkSet { link, fault } => format!("link set {link}{}", fault_words(fault)),
        Command::LinkHeal { link } => format!("link heal {link}"),
        Command::HaEnable { failures } => format!("ha enable --failures {failures}"),
        Command::StoragePause => "sr pause".into(),
        Command::StorageResume => "sr resume".into(),
        Command::StorageKill => "sr kill".into(),
        Command::StorageStart => "sr start".into(),
        Command::StorageCoalesce => "sr coalesce".into(),
        Command::StorageFault { fault } => format!("sr fault {}", fault.name()),
        Command::Mark { text } => format!("mark {text}"),
        // What has no words of its own is shown as it is sent.
        other => serde_json::to_string(other).unwrap_or_default(),
    }
}

fn fault_words(fault: &LinkFault) -> String {
    let mut out = String::new();
    if fault.cut {
        out.push_str(" --cut");
    }
    // Writing to a string cannot fail.
    for (name, us) in [("delay", fault.delay_us), ("jitter", fault.jitter_us)] {
        if us > 0 {
            let _ = if us % 1000 == 0 {
                write!(out, " --{name} {}ms", us / 1000)
            } else {
                write!(out, " --{name} {us}us")
            };
        }
    }
    for (name, share) in [
        ("loss", fault.loss),
        ("duplicate", fault.duplicate),
        ("corrupt", fault.corrupt),
        ("reorder", fault.reorder),
    ] {
        if share > 0.0 {
            let _ = write!(out, " --{name} {share}");
        }
    }
    if fault.rate_bps > 0 {
        let _ = write!(out, " --rate {}kbit", fault.rate_bps as f64 / 1e3);
    }
    out
}

fn parse_fault(words: &[&str]) -> Result<LinkFault, String> {
    let mut fault = LinkFault::default();
    let mut words = words.iter();
    if words.len() == 0 {
        return Err("link set needs a fault, as --cut or --delay 20ms".into());
    }
    while let Some(option) = words.next() {
        if *option == "--cut" {
            fault.cut = true;
            continue;
        }
        let value = words
            .next()
            .ok_or_else(|| format!("{option} needs a value"))?;
        let read = match *option {
            "--delay" => time_us(value).map(|us| fault.delay_us = us),
            "--jitter" => time_us(value).map(|us| fault.jitter_us = us),
            "--loss" => units::probability(value).map(|share| fault.loss = share),
            "--duplicate" => units::probability(value).map(|share| fault.duplicate = share),
            "--corrupt" => units::probability(value).map(|share| fault.corrupt = share),
            "--reorder" => units::probability(value).map(|share| fault.reorder = share),
            "--rate" => units::rate(value).map(|bps| fault.rate_bps = bps),
            _ => return Err(format!("there is no fault \"{option}\"; Tab shows them")),
        };
        read.map_err(|why| format!("{option} {value}: {why}"))?;
    }
    fault.check()?;
    Ok(fault)
}

fn time_us(text: &str) -> Result<u64, String> {
    let us = units::time(text)?.as_micros();
    u64::try_from(us).map_err(|_| "too long".into())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    fn name() -> impl Strategy<Value = String> {
        "[a-z][a-z0-9-]{0,7}"
    }

    fn fault() -> impl Strategy<Value = LinkFault> {
        (
            any::<bool>(),
            0..60_000_000u64,
            0..1000u64,
            0..100u32,
            1..9_000_000u64,
        )
            .prop_map(|(cut, delay_us, jitter_us, loss, kbit)| LinkFault {
                cut,
                delay_us,
                jitter_us,
                loss: f64::from(loss) / 100.0,
                rate_bps: kbit * 1000,
                ..LinkFault::default()
            })
    }

    fn commands() -> impl Strategy<Value = Command> {
        prop_oneof![
            name().prop_map(|host| Command::HostPull { host }),
            name().prop_map(|host| Command::HostThaw { host }),
            (name(), name()).prop_map(|(vm, host)| Command::VmStart { vm, host }),
            name().prop_map(|vm| Command::VmDestroy { vm }),
            name().prop_map(|vm| Command::VmSuspend { vm }),
            (name(), proptest::option::of(name()))
                .prop_map(|(vm, host)| Command::VmResume { vm, host }),
            (name(), name(), any::<bool>()).prop_map(|(vm, to, verify)| migrate(&vm, &to, verify)),
            (name(), fault()).prop_map(|(link, fault)| Command::LinkSet { link, fault }),
            (0..5usize).prop_map(|at| Command::StorageFault {
                fault: DiskFault::ALL[at]
            }),
            name().prop_map(|link| Command::LinkHeal { link }),
            Just(Command::StorageCoalesce),
            any::<u8>().prop_map(|failures| Command::HaEnable { failures }),
            "[a-z]+( [a-z]+){0,3}".prop_map(|text| Command::Mark { text }),
        ]
    }

    proptest! {
        #[test]
        fn what_is_shown_can_be_typed(command in commands()) {
            prop_assert_eq!(parse(&words(&command)), Ok(Typed::Lab(command)));
        }

        #[test]
        fn no_line_panics(line in ".{0,60}") {
            let _ = parse(&line);
            let _ = complete(&line, &["h1"], &["session"]);
        }
    }

    #[rstest]
    #[case("", "Tab shows")]
    #[case("hots pull h1", "no command \"hots\"")]
    #[case("host", "followed by power-on")]
    #[case("host pull", "name of a host")]
    #[case("vm migrate session", "as in vm migrate session h2")]
    #[case("link set h1:mgmt", "needs a fault")]
    #[case("link set h1:mgmt --delay 20", "--delay 20: give a number with a unit")]
    #[case("link set h1:mgmt --loss 2", "--loss 2: a share from 0 to 1")]
    #[case("sr fault", "sr fault eio-read")]
    #[case("template create small", "--from session")]
    #[case("sr fault wet", "eio-fsync")]
    #[case("export session", "session.xva")]
    #[case("view moon", "overview")]
    fn a_wrong_line_says_what_would_be_right(#[case] line: &str, #[case] says: &str) {
        let error = parse(line).unwrap_err();
        assert!(error.contains(says), "{error}");
    }

    #[rstest]
    #[case("export session s.xva", "export session s.xva --name demo")]
    #[case("vm clone session other", "vm clone session other --name demo")]
    #[case("import s.xva --sr /sr", "import s.xva --sr /sr")]
    #[case("template delete small", "template delete small --name demo")]
    #[case("run cut-while-moving", "run cut-while-moving")]
    fn what_runs_beside_the_screen_is_about_this_lab(#[case] line: &str, #[case] run: &str) {
        let Ok(Typed::Program(mut words)) = parse(line) else {
            panic!("{line}")
        };
        complete_program(&mut words, "demo");
        assert_eq!(words.join(" "), run);
    }

    #[test]
    fn the_last_word_is_completed() {
        let complete = |line| complete(line, &["h1", "h2"], &["session"]);
        assert_eq!(complete("ho"), ["host"]);
        assert_eq!(complete("host p"), ["power-on", "power-off", "pull"]);
        assert_eq!(complete("vm migrate "), ["session"]);
        assert_eq!(complete("vm migrate session "), ["h1", "h2"]);
        assert_eq!(complete("link heal h2:m"), ["h2:mgmt"]);
    }
}
