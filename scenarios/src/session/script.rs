//! What is typed: the library as keys of `sc`, each with the screen that is its echo.
//!
//! Cursor moves use `sc`'s letters and not the arrow keys, whose escape sequences a terminal may split.

use std::collections::VecDeque;

use super::library::{LIBRARY, Movie};
use super::sheet::{Address, Cell, Sheet};

/// Rows of a sheet: as many as stay on a screen of 24 lines.
pub const MAX_ROWS: u8 = 20;

/// Title, director, year, rating.
const COLUMNS: u8 = 4;

/// What the screen shows once a key has arrived.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Echo {
    /// The first screen line, without trailing spaces.
    pub line: String,
    /// Where the cursor stands in it; `None` when nothing is being typed. It tells a typed space.
    pub column: Option<u16>,
    /// The second screen line, where it matters.
    pub message: Option<String>,
}

/// A key, and what comes of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key {
    /// Bytes that the terminal sends.
    pub byte: u8,
    /// For people.
    pub name: String,
    /// What shows that it has arrived.
    pub echo: Echo,
    /// Keys of one entry share a number: the moves to a cell, its text, and Enter. The echo of a later key of an
    /// entry shows that the earlier ones arrived.
    pub entry: u32,
    /// With the last key of a document: its file name and contents.
    pub document: Option<Document>,
}

/// A saved document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Document {
    /// In the session's folder.
    pub file: String,
    /// What must be in it.
    pub contents: String,
}

/// Gives keys without end: rows of the library, saved after every so many.
#[derive(Debug)]
pub struct Script {
    rows: u8,
    sheet: Sheet,
    movies: usize,
    documents: u32,
    entry: u32,
    keys: VecDeque<Key>,
    stage: Stage,
    finishing: bool,
}

/// What the queued keys complete.
#[derive(Clone, Copy, Debug)]
enum Stage {
    Start,
    Row,
    Document,
}

impl Script {
    /// Documents of `rows` rows.
    #[must_use]
    pub fn new(rows: u8) -> Self {
        Self {
            rows: rows.clamp(1, MAX_ROWS),
            sheet: Sheet::default(),
            movies: 0,
            documents: 0,
            entry: 0,
            keys: VecDeque::new(),
            stage: Stage::Start,
            finishing: false,
        }
    }

    /// Ends the script with the row that is being typed: it is saved, and no further one begun.
    pub fn finish(&mut self) {
        self.finishing = true;
    }

    /// The next key, `None` when the script has ended.
    pub fn next_key(&mut self) -> Option<Key> {
        if self.keys.is_empty() {
            self.stage = match self.stage {
                Stage::Start => {
                    self.type_row();
                    Stage::Row
                }
                Stage::Row if self.finishing || self.sheet.cursor.row + 1 == self.rows => {
                    self.save();
                    Stage::Document
                }
                Stage::Row => {
                    self.move_by('j', 1, 0);
                    for _ in 1..COLUMNS {
                        self.move_by('h', 0, -1);
                    }
                    self.type_row();
                    Stage::Row
                }
                Stage::Document if self.finishing => return None,
                Stage::Document => {
                    self.go_to_start();
                    self.type_row();
                    Stage::Row
                }
            };
        }
        self.keys.pop_front()
    }

    fn type_row(&mut self) {
        let Movie {
            title,
            director,
            year,
            rating_tenths,
        } = LIBRARY[self.movies % LIBRARY.len()];
        self.movies += 1;
        let points = rating_tenths / 10;
        let rating = match rating_tenths % 10 {
            0 => format!("{points}"),
            tenths => format!("{points}.{tenths}"),
        };
        self.type_cell(Cell::Label(title.to_owned()));
        self.move_by('l', 0, 1);
        self.type_cell(Cell::Label(director.to_owned()));
        self.move_by('l', 0, 1);
        self.type_cell(Cell::Number(year.to_string()));
        self.move_by('l', 0, 1);
        self.type_cell(Cell::Number(rating));
    }

    fn type_cell(&mut self, cell: Cell) {
        let address = self.sheet.cursor;
        let (command, prompt, text) = match &cell {
            Cell::Label(text) => ('<', format!("i> leftstring {address} = \""), text.clone()),
            Cell::Number(number) => ('=', format!("i> let {address} = "), number.clone()),
        };
        self.type_line(command, &prompt, &text);
        self.sheet.set(cell);
        let line = self.sheet.status_line();
        self.push(
            b'\r',
            "Enter",
            Echo {
                line,
                column: None,
                message: None,
            },
        );
        self.entry += 1;
    }

    /// A command key and the text it asks for.
    fn type_line(&mut self, command: char, prompt: &str, text: &str) {
        let echo = |typed: usize| {
            let line = format!("{prompt}{}", &text[..typed]);
            Echo {
                column: u16::try_from(line.len()).ok(),
                line: line.trim_end().to_owned(),
                message: None,
            }
        };
        self.push(command as u8, &command.to_string(), echo(0));
        for (index, typed) in text.bytes().enumerate() {
            self.push(typed, &char::from(typed).to_string(), echo(index + 1));
        }
    }

    fn move_by(&mut self, key: char, rows: i8, columns: i8) {
        let Address { row, column } = self.sheet.cursor;
        self.sheet.cursor = Address {
            row: row.saturating_add_signed(rows),
            column: column.saturating_add_signed(columns),
        };
        let line = self.sheet.status_line();
        self.push(
            key as u8,
            &key.to_string(),
            Echo {
                line,
                column: None,
                message: None,
            },
        );
    }

    fn go_to_start(&mut self) {
        self.type_line('g', "i> goto [v] ", "A0");
        self.sheet.cursor = Address::default();
        let line = self.sheet.status_line();
        self.push(
            b'\r',
            "Enter",
            Echo {
                line,
                column: None,
                message: None,
            },
        );
        self.entry += 1;
    }

    fn save(&mut self) {
        self.documents += 1;
        let file = format!("movies-{}.sc", self.documents);
        self.type_line('P', "i> put [\"dest\" range] \"", &file);
        let echo = Echo {
            line: self.sheet.status_line(),
            column: None,
            message: Some(format!("File \"{file}\" written")),
        };
        self.push(b'\r', "Enter", echo);
        self.entry += 1;
        if let Some(last) = self.keys.back_mut() {
            last.document = Some(Document {
                file,
                contents: self.sheet.file(),
            });
        }
    }

    fn push(&mut self, byte: u8, name: &str, echo: Echo) {
        let key = Key {
            byte,
            name: name.to_owned(),
            echo,
            entry: self.entry,
            document: None,
        };
        self.keys.push_back(key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(keys: &[Key]) -> String {
        keys.iter().map(|key| char::from(key.byte)).collect()
    }

    #[test]
    fn a_document_is_rows_and_a_save() {
        let mut script = Script::new(2);
        let mut keys = Vec::new();
        while keys.last().is_none_or(|key: &Key| key.document.is_none()) {
            keys.push(script.next_key().expect("endless"));
        }
        assert_eq!(
            text(&keys),
            "<A Trip to the Moon\rl<Georges Melies\rl=1902\rl=8.1\rjhhh<Sherlock Jr.\rl<Buster Keaton\rl=1924\rl=8.2\r\
             Pmovies-1.sc\r"
        );
        let document = keys
            .last()
            .and_then(|key| key.document.as_ref())
            .expect("saved");
        assert!(
            document
                .contents
                .ends_with("let C1 = 1924\nlet D1 = 8.2\ngoto D1 A0\n"),
            "{}",
            document.contents
        );
        let next: Vec<Key> = (0..5).map_while(|_| script.next_key()).collect();
        assert_eq!(text(&next), "gA0\r<");
    }

    #[test]
    fn finishing_completes_the_row_and_saves_it() {
        let mut script = Script::new(20);
        for _ in 0..7 {
            script.next_key().expect("endless");
        }
        script.finish();
        let rest: Vec<Key> = std::iter::from_fn(|| script.next_key()).collect();
        assert!(
            text(&rest).ends_with("=8.1\rPmovies-1.sc\r"),
            "{}",
            text(&rest)
        );
        assert!(rest.last().expect("keys").document.is_some());
        assert_eq!(script.next_key(), None);
    }

    #[test]
    fn a_typed_space_moves_the_cursor() {
        let mut script = Script::new(1);
        let keys: Vec<Key> = (0..3).map_while(|_| script.next_key()).collect();
        assert_eq!(keys[2].byte, b' ');
        assert_eq!(keys[2].echo.line, keys[1].echo.line);
        assert_eq!(keys[1].echo.column, Some(21));
        assert_eq!(keys[2].echo.column, Some(22));
    }
}
