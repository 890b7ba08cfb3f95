//! The session's screen in a page: frames made here, so that the page needs no terminal of its own, and a player of some
//! lines. Without scripts the page shows the last screen.

use std::fmt::Write;

use lab_protocol::Record;
use serde_json::json;

use super::chart::escape;
use crate::evidence::cast::{Recording, markers};

/// The player in the page; one for each `figure.player`.
const SCRIPT: &str = include_str!("player.js");
/// Changes that follow one another within this are one frame: no screen shows more.
const FRAME_NS: u64 = 16_000_000;

/// A recording as a figure: screen, slider, markers.
pub(super) fn figure(recording: &Recording, records: &[Record]) -> String {
    let (Some((start, _)), Some((end, _))) = (recording.output.first(), recording.output.last())
    else {
        return String::new();
    };
    let frames = frames(recording, *start);
    let ms = |t_ns: u64| t_ns.saturating_sub(*start) / 1_000_000;
    let marks: Vec<_> = markers(records)
        .into_iter()
        .filter(|(t_ns, _)| (*start..=*end).contains(t_ns))
        .map(|(t_ns, text)| json!([ms(t_ns), text]))
        .collect();
    let data = json!({
        "rows": recording.rows,
        "end": ms(*end),
        "frames": frames.iter().map(|frame| json!([frame.ms, frame.rows])).collect::<Vec<_>>(),
        "marks": marks,
    });
    // Inside a script element only "</" can end it.
    let data = data.to_string().replace("</", "<\\/");
    let mut out = String::new();
    write!(
        out,
        r#"<figure class="player"><pre aria-label="the terminal of the session">{}</pre>
<div class="controls" hidden><button type="button">Play</button><input type="range" min="0" max="{}" value="0" aria-label="time in the session"><output>0.0 s</output><select aria-label="jump to"><option value="">jump to …</option></select></div>
<script type="application/json">{data}</script></figure>"#,
        escape(&last_screen(recording)),
        ms(*end),
    )
    .expect("a String takes any text");
    out
}

/// The player, once a page.
pub(super) fn script() -> String {
    format!("<script>{SCRIPT}</script>")
}

/// Rows that changed, by number, and when.
struct Frame {
    ms: u64,
    rows: Vec<(u16, String)>,
}

fn frames(recording: &Recording, start_ns: u64) -> Vec<Frame> {
    let mut parser = vt100::Parser::new(recording.rows, recording.columns, 0);
    let mut shown: Vec<String> = vec![String::new(); usize::from(recording.rows)];
    let mut frames: Vec<Frame> = Vec::new();
    for (index, (t_ns, text)) in recording.output.iter().enumerate() {
        parser.process(text.as_bytes());
        let next = recording.output.get(index + 1).map(|(next, _)| *next);
        if next.is_some_and(|next| next.saturating_sub(*t_ns) < FRAME_NS) {
            continue;
        }
        let mut rows = Vec::new();
        for ((number, now), before) in (0..)
            .zip(parser.screen().rows(0, recording.columns))
            .zip(&mut shown)
        {
            let now = now.trim_end();
            if now != before {
                now.clone_into(before);
                rows.push((number, now.to_owned()));
            }
        }
        if !rows.is_empty() {
            frames.push(Frame {
                ms: t_ns.saturating_sub(start_ns) / 1_000_000,
                rows,
            });
        }
    }
    frames
}

fn last_screen(recording: &Recording) -> String {
    let mut parser = vt100::Parser::new(recording.rows, recording.columns, 0);
    for (_, text) in &recording.output {
        parser.process(text.as_bytes());
    }
    let rows: Vec<String> = parser
        .screen()
        .rows(0, recording.columns)
        .map(|row| row.trim_end().to_owned())
        .collect();
    rows.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_hold_what_changed_and_no_more_than_a_screen_shows() {
        let recording = Recording {
            columns: 20,
            rows: 2,
            output: vec![
                (0, "one".into()),
                (1_000_000, " two".into()),
                (100_000_000, "\r\n</script>".into()),
                (200_000_000, "\x07".into()),
            ],
        };
        let frames = frames(&recording, 0);
        assert_eq!(frames.len(), 2);
        assert_eq!(frames[0].rows, [(0, "one two".to_owned())]);
        assert_eq!(
            (frames[1].ms, &frames[1].rows[..]),
            (100, &[(1, "</script>".to_owned())][..])
        );
        let page = figure(&recording, &[]);
        assert_eq!(page.matches("</script>").count(), 1, "{page}");
    }
}
