//! What a user does whose session is dead: connect, and if nothing answers at once, connect again.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc;
use std::time::Duration;

use lab_protocol::Event;

use super::{Lab, SOURCE};
use crate::session::{Reconnect, Stream};

const SSH_PORT: u16 = 22;
/// A user's client waits so long for a connection before it tries anew: a guest that boots answers no earlier attempt.
const ATTEMPT: Duration = Duration::from_millis(250);
/// It rests so long between two.
const REST: Duration = Duration::from_millis(50);

/// Connects to a guest's SSH server again and again. A health check beside it was left out: many a second keep an emulated guest
/// from its work, and its SSH server shuts out who never logs in.
pub(super) fn reconnect(lab: Arc<dyn Lab>, guest: String) -> Reconnect {
    Box::new(move |finishing| {
        while !finishing.load(Ordering::Relaxed) {
            match attempt(&lab, &guest) {
                Some(stream) => {
                    lab.record(
                        SOURCE,
                        Event::Health {
                            vm: guest.clone(),
                            healthy: true,
                            detail: "its user can connect again".into(),
                        },
                    );
                    return Some(stream);
                }
                None => std::thread::sleep(REST),
            }
        }
        None
    })
}

/// One attempt. The lab's own patience is longer, so the connection is opened on a thread that nobody waits for longer.
fn attempt(lab: &Arc<dyn Lab>, guest: &str) -> Option<Stream> {
    let (answer, result) = mpsc::channel();
    let (lab, guest) = (Arc::clone(lab), guest.to_owned());
    std::thread::Builder::new()
        .name("reconnect".into())
        .spawn(move || {
            // Whoever asked may have given up.
            let _ = answer.send(lab.connect(&guest, SSH_PORT));
        })
        .ok()?;
    result.recv_timeout(ATTEMPT).ok()?.ok()
}
