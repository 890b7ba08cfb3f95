//! Ctrl-C and SIGTERM: the first ends the lab in order, the second at once.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

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
    before_exit: Option<Action>,
}

impl Interrupts {
    /// Takes SIGINT, SIGTERM and SIGHUP from now on. While there is nothing to end in order, they end the program.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn take() -> Result<Self> {
        let mut signals = SigSet::empty();
        for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
            signals.add(signal);
        }
        signals.thread_block().context("cannot block signals")?;
        let interrupts = Self(Arc::default());
        let shared = interrupts.clone();
        std::thread::Builder::new()
            .name("signals".into())
            .spawn(move || {
                while signals.wait().is_ok() {
                    let (action, before_exit) = {
                        let mut pending = shared.lock();
                        pending.came = true;
                        match pending.action.take() {
                            Some(action) => (Some(action), None),
                            None => (None, pending.before_exit.take()),
                        }
                    };
                    if let Some(action) = action {
                        action();
                        continue;
                    }
                    if let Some(before_exit) = before_exit {
                        before_exit();
                    }
                    // Children go with us by their parent-death signal.
                    std::process::exit(EXIT_CODE.into());
                }
            })
            .context("cannot start a thread")?;
        Ok(interrupts)
    }

    /// What the next signal shall do instead of ending the program.
    pub fn on_interrupt(&self, action: impl FnOnce() + Send + 'static) {
        self.lock().action = Some(Box::new(action));
    }

    /// What is done before a signal ends the program at once; it must come to its end.
    pub fn before_exit(&self, action: impl FnOnce() + Send + 'static) {
        self.lock().before_exit = Some(Box::new(action));
    }

    /// Whether a signal has come.
    #[must_use]
    pub fn came(&self) -> bool {
        self.lock().came
    }

    fn lock(&self) -> MutexGuard<'_, Pending> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
