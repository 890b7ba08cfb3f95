//! Ctrl-C and SIGTERM: the first ends the lab in order, the second at once.

use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result};
use nix::sys::signal::{SigSet, Signal};

/// What a shell reports for a program that SIGINT ended.
pub const EXIT_CODE: u8 = 130;

type Action = Box<dyn FnOnce() + Send>;

/// Turns signals into calls. To be made before any other thread, for threads inherit who takes signals.
#[derive(Clone)]
pub struct Interrupts(Arc<Mutex<Pending>>);

#[derive(Default)]
struct Pending {
    came: bool,
    action: Option<Action>,
}

impl Interrupts {
    /// Takes SIGINT, SIGTERM and SIGHUP from now on.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn take() -> Result<Self> {
        let mut signals = SigSet::empty();
        for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
            signals.add(signal);
        }
        signals.thread_block().context("cannot block signals")?;
        let pending = Arc::new(Mutex::new(Pending::default()));
        let shared = Arc::clone(&pending);
        std::thread::Builder::new()
            .name("signals".into())
            .spawn(move || {
                while signals.wait().is_ok() {
                    let action = {
                        let mut pending = shared.lock().unwrap_or_else(PoisonError::into_inner);
                        if pending.came {
                            // Children go with us by their parent-death signal.
                            std::process::exit(EXIT_CODE.into());
                        }
                        pending.came = true;
                        pending.action.take()
                    };
                    if let Some(action) = action {
                        action();
                    }
                }
            })
            .context("cannot start a thread")?;
        Ok(Self(pending))
    }

    /// What the first signal shall do; at once, if it has come already.
    pub fn on_interrupt(&self, action: impl FnOnce() + Send + 'static) {
        let mut pending = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if pending.came {
            drop(pending);
            action();
        } else {
            pending.action = Some(Box::new(action));
        }
    }

    /// Whether a signal has come.
    #[must_use]
    pub fn came(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).came
    }
}
