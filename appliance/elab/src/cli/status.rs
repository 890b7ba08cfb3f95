//! Draws `elab status` and the lists.

use std::fmt::Write;

use serde_json::Value;

/// A lab's status for people.
pub(super) fn status(status: &Value) -> String {
    let mut out = String::new();
    let uptime = status["uptime_ns"].as_u64().unwrap_or(0) / 1_000_000_000;
    // Writing to a string cannot fail.
    let _ = writeln!(
        out,
        "lab {}, up {uptime} s, {}, storage {}\n{}\n",
        text(&status["name"]),
        text(&status["accelerator"]),
        text(&status["storage"]),
        text(&status["folder"]),
    );
    out.push_str(&hosts(&status["hosts"]));
    out.push('\n');
    out.push_str(&vms(&status["vms"]));
    let links = links(&status["links"]);
    if !links.is_empty() {
        let _ = write!(out, "\n{links}");
    }
    out
}

/// The hosts.
pub(super) fn hosts(hosts: &Value) -> String {
    let mut out = String::new();
    // Writing to a string cannot fail.
    let _ = writeln!(
        out,
        "{:<8} {:<8} {:<12} {:>18} STORAGE",
        "HOST", "POWER", "CONTROL", "FREE / MEMORY MiB"
    );
    for host in list(hosts) {
        let mib = |value: &Value| {
            value
                .as_u64()
                .map_or("-".into(), |bytes| (bytes >> 20).to_string())
        };
        let _ = writeln!(
            out,
            "{:<8} {:<8} {:<12} {:>18} {}",
            text(&host["name"]),
            text(&host["power"]),
            if host["reachable"] == true {
                "answers"
            } else {
                "silent"
            },
            format!(
                "{} / {}",
                mib(&host["memory_free"]),
                mib(&host["memory_total"])
            ),
            match host["storage_up"].as_bool() {
                Some(true) => "reached",
                Some(false) => "lost",
                None => "-",
            },
        );
        if let Some(ending) = host["died"].as_str() {
            let _ = writeln!(out, "         went off by itself: {ending}");
        }
    }
    out
}

/// The VMs.
pub(super) fn vms(vms: &Value) -> String {
    let mut out = format!(
        "{:<12} {:<10} {:<8} {:>6} {:>7} {:<11}\n",
        "VM", "STATE", "HOST", "VCPUS", "MiB", "PROTECTION"
    );
    for vm in list(vms) {
        let _ = write!(
            out,
            "{:<12} {:<10} {:<8} {:>6} {:>7} {:<11}",
            text(&vm["name"]),
            text(&vm["state"]),
            text(&vm["host"]),
            vm["vcpus"].to_string(),
            vm["memory_mib"].to_string(),
            text(&vm["protection"]),
        );
        if let Some(restart) = vm["restart"].as_str().filter(|words| !words.is_empty()) {
            let _ = write!(out, "  {restart}");
        }
        if let Some(to) = vm["migrating_to"].as_str() {
            let _ = write!(out, "  moving to {to}");
        }
        if let Some(reason) = vm["stopped"].as_str() {
            let _ = write!(out, "  {reason}");
        }
        out.push('\n');
    }
    out
}

const NO_POOL: &str = "no host says that it is in a pool; `elab ha enable` makes one\n";

/// The pool as each host sees it: one table as long as they agree.
pub(super) fn pool(views: &Value) -> String {
    let mut out = String::new();
    let mut shown: Vec<(String, Vec<&str>)> = Vec::new();
    for view in list(views) {
        let host = text(&view["host"]);
        // Writing to a string cannot fail.
        if let Some(error) = view["error"].as_str() {
            let _ = writeln!(out, "{host:<8} does not say: {error}");
            continue;
        }
        let _ = writeln!(
            out,
            "{host:<8} {:<8} guests {:<12} statefile {}",
            text(&view["standing"]),
            if view["guests_may_run"] == true {
                "may run"
            } else {
                "stand still"
            },
            if view["statefile_up"] == true {
                "answers"
            } else {
                "silent"
            },
        );
        let body = pool_body(view);
        match shown.iter_mut().find(|(other, _)| *other == body) {
            Some((_, hosts)) => hosts.push(host),
            None => shown.push((body, vec![host])),
        }
    }
    if shown.is_empty() {
        let _ = write!(out, "\n{NO_POOL}");
    }
    for (body, hosts) in shown {
        let _ = write!(out, "\nas {} see it: {body}", hosts.join(", "));
    }
    out
}

fn pool_body(view: &Value) -> String {
    let members = list(&view["hosts"]).iter();
    let members: Vec<_> = members.filter(|host| host["member"] == true).collect();
    let names: Vec<_> = members.iter().map(|host| text(&host["host"])).collect();
    let mut out = format!(
        "generation {}, {} decides; in the liveset: {}\n",
        view["generation"],
        text(&view["coordinator"]),
        names.join(", ")
    );
    for vm in list(&view["vms"]) {
        let _ = writeln!(
            out,
            "  {:<12} {:<28} protection: {}{}",
            text(&vm["vm"]),
            text(&vm["place"]),
            text(&vm["protection"]),
            match vm["restart"].as_str() {
                None | Some("") => String::new(),
                Some(words) => format!(", {words}"),
            }
        );
    }
    out
}

/// What would happen if hosts failed.
pub(super) fn plan(views: &Value) -> String {
    let member = |view: &&Value| view["standing"] == "member";
    let Some(view) = list(views).iter().find(member) else {
        return NO_POOL.into();
    };
    let mut out = format!("as {} sees it: {}\n", text(&view["host"]), borne(view));
    if let Some(shortage) = view["shortage"].as_str() {
        let _ = writeln!(out, "what is too much: {shortage}");
    }
    for case in list(&view["plan"]) {
        let _ = writeln!(out, "  {}", text(case));
    }
    out
}

/// How much the pool can bear.
fn borne(view: &Value) -> String {
    let members = list(&view["hosts"]).iter();
    if members.filter(|host| host["member"] == true).count() < 2 {
        return "it is alone: nobody is left who could restart a VM".into();
    }
    match view["tolerated_failures"].as_u64() {
        None | Some(0) => {
            "no promise holds: if a host fails, its VMs are restarted as far as there is room"
                .into()
        }
        Some(1) => "whichever host fails, every protected VM is restarted".into(),
        Some(failures) => {
            format!("whichever {failures} hosts fail together, every protected VM is restarted")
        }
    }
}

/// Snapshots of VMs.
pub(super) fn snapshots(known: &Value) -> String {
    let mut out = String::new();
    for one in list(known) {
        let kind = if one["memory"] == true {
            "disks and memory"
        } else {
            "disks"
        };
        let _ = writeln!(
            out,
            "{:<12} {:<20} {kind}",
            text(&one["vm"]),
            text(&one["snapshot"])
        );
    }
    if out.is_empty() {
        out.push_str("there are no snapshots; `elab vm snapshot VM` takes one\n");
    }
    out
}

/// Templates.
pub(super) fn templates(known: &Value) -> String {
    let mut out = String::new();
    for one in list(known) {
        let networks: Vec<_> = list(&one["networks"]).iter().map(text).collect();
        let boot = match one["start_on_boot"] == true {
            true => ", started on boot",
            false => "",
        };
        let _ = writeln!(
            out,
            "{:<20} {} MiB, {} vCPUs, weight {}, on {}, disks of {} MiB{boot}",
            text(&one["template"]),
            one["memory_mib"],
            one["vcpus"],
            one["weight"],
            networks.join(" and "),
            one["disk_bytes"].as_u64().unwrap_or_default() >> 20,
        );
    }
    if out.is_empty() {
        out.push_str("there are no templates; `elab template create NAME --from VM` makes one\n");
    }
    out
}

/// The links with a fault; empty when all are healthy.
pub(super) fn links(links: &Value) -> String {
    let mut out = String::new();
    for link in list(links) {
        let _ = writeln!(out, "{:<16} {}", text(&link["link"]), text(&link["words"]));
    }
    out
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or("-")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn view(host: &str, generation: u64) -> Value {
        json!({
            "host": host, "standing": "member", "guests_may_run": true, "statefile_up": true,
            "generation": generation, "coordinator": "h1",
            "hosts": [{"host": "h1", "member": true}, {"host": "h2", "member": false}, {"host": "h3", "member": true}],
            "vms": [{"vm": "session", "place": "running on h3", "protection": "restart", "restart": "order 2, delay 1.5 s"}],
            "tolerated_failures": 1,
            "shortage": "if h1 and h3 failed, VM session could not restart",
            "plan": ["if h1 fails: nothing has to move", "if h3 fails: session to h1"],
        })
    }

    #[test]
    fn hosts_that_agree_on_the_pool_share_a_table() {
        let frozen = json!({ "host": "h2", "error": "no answer in time" });
        let shown = pool(&json!([view("h1", 4), frozen.clone(), view("h3", 4)]));
        for wanted in [
            "h2       does not say: no answer in time",
            "h3       member   guests may run      statefile answers",
            "as h1, h3 see it: generation 4, h1 decides; in the liveset: h1, h3",
            "session      running on h3                protection: restart, order 2, delay 1.5 s",
        ] {
            assert!(shown.contains(wanted), "{wanted:?} is not in:\n{shown}");
        }
        let apart = pool(&json!([view("h1", 4), view("h3", 5)]));
        assert!(apart.contains("as h1 see it: generation 4"), "{apart}");
        assert!(apart.contains("as h3 see it: generation 5"), "{apart}");
    }

    #[test]
    fn a_plan_names_each_case_and_what_is_too_much() {
        let shown = plan(&json!([{ "host": "h2", "error": "off" }, view("h3", 4)]));
        for wanted in [
            "as h3 sees it: whichever host fails, every protected VM is restarted\n",
            "what is too much: if h1 and h3 failed, VM session could not restart\n",
            "  if h3 fails: session to h1",
        ] {
            assert!(shown.contains(wanted), "{wanted:?} is not in:\n{shown}");
        }
        let mut full = view("h1", 4);
        full["tolerated_failures"] = json!(0);
        assert!(plan(&json!([full])).starts_with("as h1 sees it: no promise holds"));
        let mut alone = view("h1", 4);
        alone["hosts"] = json!([{"host": "h1", "member": true}, {"host": "h2", "member": false}]);
        assert!(plan(&json!([alone])).starts_with("as h1 sees it: it is alone"));
        assert!(plan(&json!([])).contains("elab ha enable"));
    }

    #[test]
    fn a_status_shows_what_matters() {
        let shown = status(&json!({
            "name": "lab", "uptime_ns": 61_500_000_000u64, "accelerator": "tcg", "storage": "on", "folder": "/x",
            "hosts": [
                {"name": "h1", "power": "on", "reachable": true, "memory_total": 768 << 20, "memory_free": 500 << 20, "storage_up": true},
                {"name": "h2", "power": "off", "reachable": false},
            ],
            "vms": [{"name": "session", "state": "running", "host": "h1", "memory_mib": 256, "vcpus": 1, "migrating_to": "h2", "protection": "restart"}],
            "links": [{"link": "h1:mgmt>", "fault": {"cut": true}, "words": "cut"}],
        }));
        for wanted in [
            "lab lab, up 61 s, tcg, storage on",
            "h1       on       answers               500 / 768 reached",
            "h2       off      silent                    - / - -",
            "session      running    h1            1     256 restart      moving to h2",
            "h1:mgmt>         cut",
        ] {
            assert!(shown.contains(wanted), "{wanted:?} is not in:\n{shown}");
        }
    }
}
