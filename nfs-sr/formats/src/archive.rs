//! Members of a tar archive, read and written in order (POSIX.1-2017, `pax`, "ustar Interchange Format").
//!
//! The crate `tar` knows the headers. Its own iterator was left out: it borrows the archive for each member, and it
//! reads long names of any length into memory.

use std::io::{self, Read, Write};

use tar::{EntryType, Header};

use crate::error::{Error, at, damaged, unsupported};

const BLOCK: usize = 512;
/// Longest extended header that is looked at.
const MAX_EXTENDED: u64 = 64 << 10;

/// A member's header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Member {
    pub name: String,
    pub size: u64,
}

/// Reads an archive.
pub(crate) struct Members<R> {
    input: R,
    /// Of the member that is being read.
    left: u64,
    padding: u64,
    /// Members so far, for messages.
    count: u64,
}

impl<R: Read> Members<R> {
    pub fn new(input: R) -> Self {
        Self {
            input,
            left: 0,
            padding: 0,
            count: 0,
        }
    }

    /// The next member, or the end of the archive. What was not read of the last one is skipped.
    pub fn next(&mut self) -> Result<Option<Member>, Error> {
        let mut extended = Extended::default();
        loop {
            let Some(header) = self.header()? else {
                return Ok(None);
            };
            let place = format!("member {} of the archive", self.count);
            let size = match extended.size.take() {
                Some(size) => size,
                None => header
                    .entry_size()
                    .or_else(|error| damaged(&*place, format!("its size is no number: {error}")))?,
            };
            self.left = size;
            self.padding = size.next_multiple_of(BLOCK as u64) - size;
            match header.entry_type() {
                EntryType::XHeader => extended.read_pax(&self.extended_data(&place)?, &place)?,
                EntryType::GNULongName => {
                    let data = self.extended_data(&place)?;
                    let end = data.iter().position(|byte| *byte == 0);
                    extended.name = Some(data[..end.unwrap_or(data.len())].to_vec());
                }
                // Comments of whoever made the archive.
                EntryType::XGlobalHeader => drop(self.extended_data(&place)?),
                kind => {
                    let name = extended
                        .name
                        .take()
                        .unwrap_or_else(|| header.path_bytes().into_owned());
                    let name = check_name(&name, &place)?;
                    if !matches!(kind, EntryType::Regular | EntryType::Continuous) {
                        return damaged(
                            format!("member '{name}'"),
                            "it is not a plain file; no archive of a machine holds links, folders or devices",
                        );
                    }
                    return Ok(Some(Member { name, size }));
                }
            }
        }
    }

    fn header(&mut self) -> Result<Option<Header>, Error> {
        self.skip()?;
        let place = format!("header of member {} of the archive", self.count + 1);
        let mut block = [0; BLOCK];
        at(&place, self.input.read_exact(&mut block))?;
        if block == [0; BLOCK] {
            // Two of them end an archive; nothing may follow the first.
            at("end of the archive", self.input.read_exact(&mut block))?;
            if block != [0; BLOCK] {
                return damaged("end of the archive", "there is something behind it");
            }
            return Ok(None);
        }
        self.count += 1;
        let header = Header::from_byte_slice(&block).clone();
        let sum = |range: &[u8]| range.iter().map(|byte| u32::from(*byte)).sum::<u32>();
        // The field itself counts as spaces.
        let found = sum(&block[..148]) + 8 * u32::from(b' ') + sum(&block[156..]);
        match header.cksum() {
            Ok(expected) if expected == found => Ok(Some(header)),
            _ => damaged(
                place,
                "its checksum is wrong: the archive is damaged here, or before here by bytes that are missing",
            ),
        }
    }

    fn extended_data(&mut self, place: &str) -> Result<Vec<u8>, Error> {
        if self.left > MAX_EXTENDED {
            return damaged(
                place,
                format!(
                    "its extended header has {} bytes, which cannot be",
                    self.left
                ),
            );
        }
        let mut data = vec![0; self.left as usize];
        self.read_exact(&mut data, place)?;
        Ok(data)
    }

    /// Reads all of a member whose size the caller has looked at.
    pub fn read_exact(&mut self, buffer: &mut [u8], place: &str) -> Result<(), Error> {
        if buffer.len() as u64 > self.left {
            return damaged(place, "it is too short");
        }
        at(place, self.input.read_exact(buffer))?;
        self.left -= buffer.len() as u64;
        Ok(())
    }

    /// Reads what a member holds as text of at most `limit` bytes.
    pub fn text(&mut self, member: &Member, limit: u64) -> Result<String, Error> {
        if member.size > limit {
            return damaged(
                &*member.name,
                format!(
                    "it has {} bytes; {limit} are the most it may have",
                    member.size
                ),
            );
        }
        let mut bytes = vec![0; member.size as usize];
        self.read_exact(&mut bytes, &member.name)?;
        String::from_utf8(bytes).or_else(|_| damaged(&*member.name, "it is not UTF-8"))
    }

    fn skip(&mut self) -> Result<(), Error> {
        let rest = std::mem::take(&mut self.left) + std::mem::take(&mut self.padding);
        let place = format!("data of member {} of the archive", self.count);
        let skipped = io::copy(&mut self.input.by_ref().take(rest), &mut io::sink());
        match at(&place, skipped)? {
            all if all == rest => Ok(()),
            _ => Err(Error::CutOff { place }),
        }
    }
}

/// The data of the member.
impl<R: Read> Read for Members<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = self.left.min(buffer.len() as u64) as usize;
        let n = self.input.read(&mut buffer[..most])?;
        if n == 0 && most > 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.left -= n as u64;
        Ok(n)
    }
}

/// What precedes a member whose header has no room for it.
#[derive(Default)]
struct Extended {
    name: Option<Vec<u8>>,
    size: Option<u64>,
}

impl Extended {
    /// Records of the form `<length> <key>=<value>\n`.
    fn read_pax(&mut self, data: &[u8], place: &str) -> Result<(), Error> {
        for record in tar::PaxExtensions::new(data) {
            let bad = |_| damaged(place, "its extended header is not well formed");
            let record = record.or_else(bad)?;
            match record.key_bytes() {
                b"path" => self.name = Some(record.value_bytes().to_vec()),
                b"size" => {
                    let size = record.value().ok().and_then(|text| text.parse().ok());
                    if size.is_none() {
                        return damaged(place, "its extended header has a size that is no number");
                    }
                    self.size = size;
                }
                b"GNU.sparse.major" | b"GNU.sparse.map" => {
                    return unsupported(place, "it is a sparse member of GNU tar");
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// Names are only compared, never opened; but an archive with such names was made to do harm.
fn check_name(name: &[u8], place: &str) -> Result<String, Error> {
    let Ok(name) = std::str::from_utf8(name) else {
        return damaged(place, "its name is not UTF-8");
    };
    let name = name.strip_prefix("./").unwrap_or(name);
    let odd = name.is_empty()
        || name.starts_with('/')
        || name.contains(['\\', '\0'])
        || name.split('/').any(|part| part == "..");
    if odd {
        return damaged(place, format!("its name {name:?} leads out of the archive"));
    }
    Ok(name.to_owned())
}

/// The header of a member.
pub(crate) fn header(name: &str, size: u64) -> Result<[u8; BLOCK], Error> {
    let mut header = Header::new_ustar();
    if size >= 1 << 33 {
        // Eleven octal digits do not hold it; readers of such archives know GNU's binary form.
        header = Header::new_gnu();
    }
    at(name, header.set_path(name))?;
    header.set_size(size);
    header.set_mode(0o644);
    header.set_mtime(0);
    header.set_entry_type(EntryType::Regular);
    header.set_cksum();
    Ok(*header.as_bytes())
}

/// Writes a whole member.
pub(crate) fn write_member(out: &mut impl Write, name: &str, data: &[u8]) -> Result<(), Error> {
    let header = header(name, data.len() as u64)?;
    let padding = padding(data.len() as u64);
    let written = out
        .write_all(&header)
        .and_then(|()| out.write_all(data))
        .and_then(|()| out.write_all(&[0; BLOCK][..padding]));
    at(name, written)
}

/// Zeros between the data of a member and the next header.
pub(crate) fn padding(size: u64) -> usize {
    (size.next_multiple_of(BLOCK as u64) - size) as usize
}

/// Writes the end of an archive.
pub(crate) fn write_end(out: &mut impl Write) -> Result<(), Error> {
    at("end of the archive", out.write_all(&[0; 2 * BLOCK]))
}
