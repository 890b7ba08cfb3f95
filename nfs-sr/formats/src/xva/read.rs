//! Reading an XVA, by the rules of xapi's importer, and stricter where those let damage pass.

use std::io::{BufRead, Read};

use super::{Checksum, metadata};
use crate::{
    archive::{Member, Members},
    compress, disk,
    error::{Error, at, damaged},
    vm::{Archive, Piece, Vm},
};

/// Largest `ova.xml`.
const MAX_DESCRIPTION: u64 = 16 << 20;
/// Largest chunk; all known writers make them 1 MiB.
const MAX_CHUNK: u64 = 16 << 20;

/// Reads an archive.
pub struct Reader<'a> {
    members: Members<Box<dyn Read + 'a>>,
    vm: Vm,
    /// Reference and index of each disk, in the order of the archive.
    order: Vec<(String, usize)>,
    /// Which of `order` is being read.
    current: usize,
    /// Bytes of it so far.
    offset: u64,
    /// Number of its last chunk.
    last: Option<u64>,
    /// Length of the first chunk in the archive: what a chunk that was left out stands for.
    unit: Option<u64>,
    buffer: Vec<u8>,
}

impl<'a> Reader<'a> {
    /// Reads the description. Compression is recognised.
    ///
    /// # Errors
    /// When the input is no XVA, or its description damaged.
    pub fn new(input: impl BufRead + 'a) -> Result<Self, Error> {
        let mut members = Members::new(at("the archive", compress::reader(input))?);
        let first = members.next()?;
        let Some(member) = first.filter(|member| member.name == "ova.xml") else {
            return damaged(
                "the archive",
                "its first member is not ova.xml: it is no XVA",
            );
        };
        let text = members.text(&member, MAX_DESCRIPTION)?;
        let (vm, references) = metadata::read(&text)?;
        let mut order: Vec<(String, usize)> = references.into_iter().zip(0..).collect();
        order.sort();
        if order.windows(2).any(|pair| pair[0].0 == pair[1].0) {
            return damaged("ova.xml", "the machine has the same disk twice");
        }
        Ok(Self {
            members,
            vm,
            order,
            current: 0,
            offset: 0,
            last: None,
            unit: None,
            buffer: Vec::new(),
        })
    }

    /// Reads chunks up to the next that is not zeros. Gives the disk, the offset, and how much of the buffer it is.
    fn advance(&mut self) -> Result<Option<(usize, u64, usize)>, Error> {
        while let Some((reference, index)) = self.order.get(self.current).cloned() {
            let size = self.vm.disks[index].size;
            if self.offset >= size {
                self.current += 1;
                (self.offset, self.last) = (0, None);
                continue;
            }
            let Some(member) = self.members.next()? else {
                return damaged(
                    format!("disk {reference}"),
                    format!(
                        "the archive ends {} bytes before the disk does",
                        size - self.offset
                    ),
                );
            };
            self.place(&member, &reference, size)?;
            self.buffer.resize(member.size as usize, 0);
            self.members.read_exact(&mut self.buffer, &member.name)?;
            self.verify(&member)?;
            let offset = self.offset;
            self.offset += member.size;
            // Some writers fill the last chunk up.
            let length = member.size.min(size - offset) as usize;
            if !disk::is_zero(&self.buffer[length..]) {
                return damaged(&*member.name, "there is data behind the end of the disk");
            }
            if !disk::is_zero(&self.buffer[..length]) {
                return Ok(Some((index, offset, length)));
            }
        }
        match self.members.next()? {
            None => Ok(None),
            Some(member) => damaged(&*member.name, "it belongs to no disk of the machine"),
        }
    }

    /// Checks a chunk's name and adds what was left out before it.
    fn place(&mut self, member: &Member, reference: &str, size: u64) -> Result<(), Error> {
        let name = &*member.name;
        let number = name
            .strip_prefix(reference)
            .and_then(|rest| rest.strip_prefix('/'));
        let Some(digits) = number else {
            return damaged(
                name,
                format!("a chunk of the disk {reference} should be here"),
            );
        };
        let number = match digits.parse::<u64>() {
            Ok(number) if digits.len() == 8 && digits.bytes().all(|b| b.is_ascii_digit()) => number,
            _ => return damaged(name, "a chunk's name ends with eight digits"),
        };
        let next = self.last.map_or(0, |last| last + 1);
        if number < next {
            return damaged(
                name,
                "it comes after a chunk with a higher number, or twice",
            );
        }
        if member.size > MAX_CHUNK {
            return damaged(
                name,
                format!(
                    "it has {} bytes; {MAX_CHUNK} are the most a chunk may have",
                    member.size
                ),
            );
        }
        if self.last.is_none() && number != 0 {
            return damaged(
                name,
                format!("the first chunk of the disk {reference} is missing"),
            );
        }
        let unit = *self.unit.get_or_insert(member.size);
        self.offset = self
            .offset
            .saturating_add((number - next).saturating_mul(unit));
        self.last = Some(number);
        if self.offset >= size && member.size > 0 {
            return damaged(name, "it begins behind the end of the disk");
        }
        Ok(())
    }

    /// Reads the checksum that follows a chunk, and compares.
    fn verify(&mut self, chunk: &Member) -> Result<(), Error> {
        let member = self.members.next()?;
        let name = member.as_ref().map_or("", |member| &*member.name);
        let kind = name
            .strip_prefix(&*chunk.name)
            .and_then(|rest| rest.strip_prefix('.'))
            .and_then(|extension| {
                Checksum::ALL
                    .into_iter()
                    .find(|kind| kind.extension() == extension)
            });
        let (Some(kind), Some(member)) = (kind, &member) else {
            return damaged(&*chunk.name, "its checksum does not follow it");
        };
        let expected = self.members.text(member, kind.digits())?;
        let found = kind.of(&self.buffer);
        if !expected.eq_ignore_ascii_case(&found) {
            return Err(Error::Checksum {
                place: chunk.name.clone(),
                expected,
                found,
            });
        }
        Ok(())
    }
}

impl Archive for Reader<'_> {
    fn vm(&self) -> &Vm {
        &self.vm
    }

    fn next_piece(&mut self) -> Result<Option<Piece<'_>>, Error> {
        Ok(self.advance()?.map(|(disk, offset, length)| Piece {
            disk,
            offset,
            data: &self.buffer[..length],
        }))
    }
}
