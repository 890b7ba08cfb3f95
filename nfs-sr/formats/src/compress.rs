//! Compression of a whole archive. It is written in pieces that each can be decompressed alone (RFC 1952 section 2.2 and RFC 8878
//! section 3.1 let a file have several), so an export that was interrupted can go on behind the last of them.

use std::io::{self, BufRead, Read, Write};

use flate2::{bufread::MultiGzDecoder, write::GzEncoder};

/// How an archive is compressed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Compression {
    /// Not at all.
    #[default]
    None,
    /// RFC 1952.
    Gzip,
    /// RFC 8878.
    Zstd,
}

/// What costs less time than a disk takes to read.
const ZSTD_LEVEL: i32 = 1;

/// Reads a stream whose first bytes say how it is compressed.
///
/// # Errors
/// When it cannot be read.
pub fn reader<'a>(mut input: impl BufRead + 'a) -> io::Result<Box<dyn Read + 'a>> {
    Ok(match input.fill_buf()? {
        [0x1f, 0x8b, ..] => Box::new(MultiGzDecoder::new(input)),
        // The decoder's own limit of the window bounds its memory at 128 MiB; archives of machines have 8 at most.
        [0x28, 0xb5, 0x2f, 0xfd, ..] => {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(input)?;
            decoder.window_log_max(WINDOW_LOG_MAX)?;
            Box::new(decoder)
        }
        _ => Box::new(input),
    })
}

/// 8 MiB, the least that RFC 8878 section 3.1.1.1.2 recommends decoders to support.
const WINDOW_LOG_MAX: u32 = 23;

/// Compresses what is written.
pub struct Compressor<W: Write> {
    how: Compression,
    state: State<W>,
}

enum State<W: Write> {
    Idle(W),
    Gzip(GzEncoder<W>),
    Zstd(zstd::stream::write::Encoder<'static, W>),
    /// Between two states, and for good after an error.
    Broken,
}

impl<W: Write> Compressor<W> {
    /// Writes to `out`.
    pub fn new(out: W, how: Compression) -> Self {
        Self {
            how,
            state: State::Idle(out),
        }
    }

    /// Ends a piece: everything so far can be decompressed, and something else may follow.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn boundary(&mut self) -> io::Result<&mut W> {
        let out = match std::mem::replace(&mut self.state, State::Broken) {
            State::Idle(out) => out,
            State::Gzip(encoder) => encoder.finish()?,
            State::Zstd(encoder) => encoder.finish()?,
            State::Broken => return Err(broken()),
        };
        self.state = State::Idle(out);
        match &mut self.state {
            State::Idle(out) => Ok(out),
            _ => unreachable!("set above"),
        }
    }

    /// Ends the last piece.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn finish(mut self) -> io::Result<W> {
        self.boundary()?.flush()?;
        match self.state {
            State::Idle(out) => Ok(out),
            _ => Err(broken()),
        }
    }

    fn started(&mut self) -> io::Result<&mut dyn Write> {
        if let (State::Idle(_), false) = (&self.state, self.how == Compression::None) {
            let State::Idle(out) = std::mem::replace(&mut self.state, State::Broken) else {
                return Err(broken());
            };
            self.state = match self.how {
                Compression::Zstd => {
                    State::Zstd(zstd::stream::write::Encoder::new(out, ZSTD_LEVEL)?)
                }
                Compression::Gzip | Compression::None => {
                    State::Gzip(GzEncoder::new(out, flate2::Compression::fast()))
                }
            };
        }
        match &mut self.state {
            State::Idle(out) => Ok(out),
            State::Gzip(out) => Ok(out),
            State::Zstd(out) => Ok(out),
            State::Broken => Err(broken()),
        }
    }
}

fn broken() -> io::Error {
    io::Error::other("an earlier write failed")
}

impl<W: Write> Write for Compressor<W> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.started()?.write(data)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.started()?.flush()
    }
}
