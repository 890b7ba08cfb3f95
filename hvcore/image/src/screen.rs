//! The PC's text screen, for the last words of a host that cannot go on.
//!
//! Under UEFI there is no text mode: the bytes then land in unused video memory, and the serial port
//! has to do.

use core::fmt::{self, Write};

const COLUMNS: usize = 80;
const ROWS: usize = 25;
/// Colour text mode's memory: a character and its attribute in each cell.
const CELLS: *mut u16 = 0xb8000 as *mut u16;
/// White on red.
const ATTRIBUTE: u16 = 0x4f00;

struct Screen {
    cell: usize,
}

impl Screen {
    fn put(&mut self, character: u8) {
        if self.cell < COLUMNS * ROWS {
            // SAFETY: inside the video memory window, which is never anything else.
            unsafe {
                CELLS
                    .add(self.cell)
                    .write_volatile(ATTRIBUTE | u16::from(character))
            };
            self.cell += 1;
        }
    }
}

impl Write for Screen {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            match byte {
                b'\n' => {
                    let end = (self.cell / COLUMNS + 1) * COLUMNS;
                    while self.cell < end.min(COLUMNS * ROWS) {
                        self.put(b' ');
                    }
                }
                b' '..=b'~' => self.put(byte),
                _ => self.put(b'?'),
            }
        }
        Ok(())
    }
}

/// Shows text from the top of the screen.
pub fn show(text: fmt::Arguments<'_>) {
    // Writing to video memory cannot fail.
    let _ = writeln!(Screen { cell: 0 }, "{text}");
}
