//! What the user and the probes saw: the document, each key, the connection, the answers, the disk.

use lab_protocol::{Event, ProbeKind};

use super::{Check, Evidence, session_of, typed_in};
use crate::measure::series::Series;

/// Every saved document is what was typed.
pub(super) fn document(evidence: &Evidence<'_>) -> Option<Check> {
    let mut compared = 0;
    let mut wrong = None;
    let mut guests = 0;
    for guest in typed_in(evidence.scenario) {
        guests += 1;
        let mut of_guest = 0;
        for record in session_of(evidence, guest) {
            if let Event::DocumentChecked { equal, detail, .. } = &record.event {
                of_guest += 1;
                if !equal {
                    wrong.get_or_insert_with(|| format!("in {guest}: {detail}"));
                }
            }
        }
        if of_guest == 0 {
            wrong.get_or_insert_with(|| format!("in {guest}: no document was compared"));
        }
        compared += of_guest;
    }
    (guests > 0).then(|| Check::new("document", wrong, format!("{compared} compared, all equal")))
}

/// No key is lost, doubled or out of order.
pub(super) fn keys(evidence: &Evidence<'_>) -> Option<Check> {
    let mut typed = 0;
    let mut lost_with_host = 0;
    let mut wrong = None;
    let mut guests = 0;
    for guest in typed_in(evidence.scenario) {
        guests += 1;
        let mut keys: Vec<(u32, u64, Option<u64>)> = session_of(evidence, guest)
            .filter_map(|record| match record.event {
                Event::Key {
                    index,
                    sent_ns,
                    echo_ns,
                    ..
                } => Some((index, sent_ns, echo_ns)),
                _ => None,
            })
            .collect();
        keys.sort_unstable();
        typed += keys.len();
        let reconnects = reconnects(evidence, guest);
        let last_opened = session_of(evidence, guest)
            .filter(|record| matches!(record.event, Event::SessionOpen { .. }))
            .map(|record| record.t_ns)
            .max();
        let unanswered: Vec<_> = keys.iter().filter(|(_, _, echo)| echo.is_none()).collect();
        // What was typed into a session that was lost since may be lost with it.
        let excused = |sent: u64| reconnects && last_opened.is_some_and(|opened| sent < opened);
        let lost = unanswered
            .iter()
            .filter(|(_, sent, _)| !excused(*sent))
            .count();
        lost_with_host += unanswered.len() - lost;
        let holes = keys.iter().zip(0..).any(|((index, _, _), at)| *index != at);
        let early = keys
            .iter()
            .any(|(_, sent, echo)| echo.is_some_and(|echo| echo < *sent));
        let crossed = keys.windows(2).any(
            |pair| matches!((pair[0].2, pair[1].2), (Some(first), Some(second)) if second < first),
        );
        let found = if keys.is_empty() {
            Some("no key was typed".to_owned())
        } else if lost > 0 {
            Some(format!("{lost} of {} keys lost", keys.len()))
        } else if holes {
            Some("a key is missing in the log, or is there twice".to_owned())
        } else if early {
            Some("a key was on the screen before it was sent".to_owned())
        } else if crossed {
            Some("a key was on the screen before the one typed earlier".to_owned())
        } else {
            None
        };
        if let Some(found) = found {
            wrong.get_or_insert_with(|| format!("in {guest}: {found}"));
        }
    }
    (guests > 0).then(|| {
        let looked_at = match lost_with_host {
            0 => format!("{typed} typed, all arrived in order"),
            lost => {
                format!("{typed} typed, {lost} lost with the session, the others arrived in order")
            }
        };
        Check::new("keys", wrong, looked_at)
    })
}

/// Whether whoever types in this guest connects anew when the session is lost.
fn reconnects(evidence: &Evidence<'_>, guest: &str) -> bool {
    let sessions = &evidence.scenario.sessions;
    let of_guest = |session: &&crate::scenario::file::Session| session.guest.get_ref() == guest;
    sessions
        .iter()
        .find(of_guest)
        .is_some_and(|session| session.reconnect)
}

/// One connection carries a session from the first key to the last.
pub(super) fn session(evidence: &Evidence<'_>) -> Option<Check> {
    let mut wrong = None;
    let mut sessions = 0;
    let mut anew = 0;
    for guest in typed_in(evidence.scenario) {
        sessions += 1;
        let opened = session_of(evidence, guest)
            .filter(|record| matches!(record.event, Event::SessionOpen { .. }))
            .count();
        let mut losses = session_of(evidence, guest).filter_map(|record| match &record.event {
            Event::SessionLost { reason, .. } => Some(reason.clone()),
            _ => None,
        });
        let lost = losses.next();
        if reconnects(evidence, guest) && opened == losses.count() + 1 + usize::from(lost.is_some())
        {
            anew += opened - 1;
            continue;
        }
        let found = match (opened, lost) {
            (_, Some(reason)) => Some(reason),
            (1, None) => None,
            (opened, None) => Some(format!("it was opened {opened} times")),
        };
        if let Some(found) = found {
            wrong.get_or_insert_with(|| format!("with {guest}: {found}"));
        }
    }
    let looked_at = match anew {
        0 => format!("{sessions} kept to the end"),
        anew => format!("{sessions}, lost and opened anew {anew} times as expected"),
    };
    (sessions > 0).then(|| Check::new("session", wrong, looked_at))
}

/// No answer of a probe is lost or doubled.
pub(super) fn probes(evidence: &Evidence<'_>) -> Option<Check> {
    let mut asked = 0;
    let mut wrong = Vec::new();
    for (kind, name) in [
        (ProbeKind::Udp, "UDP"),
        (ProbeKind::Tcp, "TCP"),
        (ProbeKind::Ping, "ping"),
    ] {
        let series = Series::of(evidence.records, kind);
        asked += series.samples.len();
        if series.lost() + series.duplicated > 0 {
            wrong.push(format!(
                "{name}: of {} requests {} have no answer and {} more than one",
                series.samples.len(),
                series.lost(),
                series.duplicated
            ));
        }
    }
    let wrong = (!wrong.is_empty()).then(|| wrong.join("; "));
    (asked > 0).then(|| {
        Check::new(
            "probes",
            wrong,
            format!("{asked} requests, each with one answer"),
        )
    })
}

/// What the guest's disk was said to hold, it holds.
pub(super) fn disk(evidence: &Evidence<'_>) -> Option<Check> {
    let mut expected = evidence
        .scenario
        .sessions
        .iter()
        .filter(|session| session.probes.disk_hz > 0)
        .map(|session| session.guest.get_ref().as_str())
        .peekable();
    expected.peek()?;
    let mut wrong = None;
    let mut compared = 0;
    for guest in expected {
        let found = evidence
            .records
            .iter()
            .find_map(|record| match &record.event {
                Event::DiskChecked {
                    vm,
                    equal,
                    records,
                    detail,
                } if vm == guest => Some((*equal, *records, detail.clone())),
                _ => None,
            });
        match found {
            Some((true, records, _)) => compared += records,
            Some((false, _, detail)) => {
                wrong.get_or_insert_with(|| format!("in {guest}: {detail}"));
            }
            None => {
                wrong.get_or_insert_with(|| format!("in {guest}: it was not compared"));
            }
        }
    }
    Some(Check::new(
        "disk",
        wrong,
        format!("{compared} records, each as it was written"),
    ))
}
