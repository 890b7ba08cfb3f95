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
        "{:<12} {:<10} {:<8} {:>6} {:>7}\n",
        "VM", "STATE", "HOST", "VCPUS", "MiB"
    );
    for vm in list(vms) {
        let _ = write!(
            out,
            "{:<12} {:<10} {:<8} {:>6} {:>7}",
            text(&vm["name"]),
            text(&vm["state"]),
            text(&vm["host"]),
            vm["vcpus"].to_string(),
            vm["memory_mib"].to_string(),
        );
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

    #[test]
    fn a_status_shows_what_matters() {
        let shown = status(&json!({
            "name": "lab", "uptime_ns": 61_500_000_000u64, "accelerator": "tcg", "storage": "on", "folder": "/x",
            "hosts": [
                {"name": "h1", "power": "on", "reachable": true, "memory_total": 768 << 20, "memory_free": 500 << 20, "storage_up": true},
                {"name": "h2", "power": "off", "reachable": false},
            ],
            "vms": [{"name": "session", "state": "running", "host": "h1", "memory_mib": 256, "vcpus": 1, "migrating_to": "h2"}],
            "links": [{"link": "h1:mgmt>", "fault": {"cut": true}, "words": "cut"}],
        }));
        for wanted in [
            "lab lab, up 61 s, tcg, storage on",
            "h1       on       answers               500 / 768 reached",
            "h2       off      silent                    - / - -",
            "session      running    h1            1     256  moving to h2",
            "h1:mgmt>         cut",
        ] {
            assert!(shown.contains(wanted), "{wanted:?} is not in:\n{shown}");
        }
    }
}
