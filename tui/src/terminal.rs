//! The terminal: taken over and always given back, by dropping and by a panic's hook before its message is printed; what is
//! typed; and whether it is still there.

use std::io::{self, Stdout};
use std::mem::ManuallyDrop;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::time::Duration;

use crossterm::cursor::Show;
use crossterm::event::{
    self, DisableMouseCapture, EnableMouseCapture, Event, KeyEventKind, MouseButton, MouseEventKind,
};
use crossterm::execute;
use crossterm::terminal::{
    EnterAlternateScreen, LeaveAlternateScreen, disable_raw_mode, enable_raw_mode,
};
use ratatui::Terminal;
use ratatui::backend::CrosstermBackend;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::app::Input;

/// Reads keys, the mouse and changes of size from now on, in a thread of its own. Who draws never calls crossterm for input:
/// when the terminal hangs up while crossterm reads, it reads its end again and again and never returns.
///
/// # Errors
/// When no thread can be started.
pub fn read_input(inputs: Sender<Input>) -> io::Result<()> {
    std::thread::Builder::new()
        .name("keys".into())
        .spawn(move || {
            while let Ok(event) = event::read() {
                let Some(input) = input(event) else { continue };
                if inputs.send(input).is_err() {
                    return;
                }
            }
        })?;
    Ok(())
}

fn input(event: Event) -> Option<Input> {
    match event {
        Event::Key(key) if key.kind != KeyEventKind::Release => Some(Input::Key(key)),
        Event::Mouse(mouse) => match mouse.kind {
            MouseEventKind::Down(MouseButton::Left) => Some(Input::Click {
                x: mouse.column,
                y: mouse.row,
            }),
            MouseEventKind::ScrollDown => Some(Input::Scroll(3)),
            MouseEventKind::ScrollUp => Some(Input::Scroll(-3)),
            _ => None,
        },
        // The next frame has the new size.
        Event::Resize(..) => Some(Input::Tick),
        _ => None,
    }
}

/// Whether nobody can see the terminal any more: it has hung up.
///
/// # Errors
/// When the system refuses.
pub fn is_gone() -> io::Result<bool> {
    let stdout = io::stdout();
    // Hanging up is told in any case.
    let mut fds = [PollFd::new(&stdout, PollFlags::empty())];
    match poll(&mut fds, Some(&Timespec::default())) {
        Err(rustix::io::Errno::INTR) => Ok(false),
        Err(error) => Err(error.into()),
        Ok(_) => Ok(fds[0].revents().intersects(PollFlags::HUP | PollFlags::ERR)),
    }
}

/// Whether the terminal is ours, so that it is given back once.
static TAKEN: AtomicBool = AtomicBool::new(false);

/// A terminal that is ours while this lives.
pub struct Screen {
    /// Draws. Never dropped: it would show the cursor, as we do, and panic over a terminal that is gone.
    pub terminal: ManuallyDrop<Terminal<CrosstermBackend<Stdout>>>,
}

impl Screen {
    /// Takes the terminal.
    ///
    /// # Errors
    /// When standard output is none, or refuses.
    pub fn take(mouse: bool) -> io::Result<Self> {
        let hook = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            give_back();
            hook(info);
        }));
        enable_raw_mode()?;
        TAKEN.store(true, Ordering::SeqCst);
        execute!(io::stdout(), EnterAlternateScreen)?;
        if mouse {
            execute!(io::stdout(), EnableMouseCapture)?;
        }
        let terminal = Terminal::new(CrosstermBackend::new(io::stdout()))?;
        Ok(Self {
            terminal: ManuallyDrop::new(terminal),
        })
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        give_back();
    }
}

/// Mouse first, or its reports would be printed by the shell. A terminal that is gone needs nothing, so errors are left.
/// Under one lock, so that whoever comes second finds it done and not half done.
fn give_back() {
    let mut out = io::stdout().lock();
    if !TAKEN.swap(false, Ordering::SeqCst) {
        return;
    }
    let _ = execute!(out, DisableMouseCapture, LeaveAlternateScreen, Show);
    let _ = disable_raw_mode();
}

/// So long a terminal may take to take what gives it back. One that nobody reads never does.
const PATIENCE: Duration = Duration::from_secs(1);

/// Gives the terminal back for a program that ends at once, from any thread. Nothing is drawn any more after this.
pub fn give_back_for_good() {
    let (given, done) = channel();
    let thread = std::thread::Builder::new().spawn(move || {
        // Whoever is drawing waits for this until the program has ended.
        let _held = io::stdout().lock();
        give_back();
        let _ = given.send(());
        loop {
            std::thread::park();
        }
    });
    if thread.is_ok() {
        let _ = done.recv_timeout(PATIENCE);
    }
}
