//! Reading an OVA in one pass.

use std::{
    collections::BTreeMap,
    io::{self, BufRead, Read},
};

use sha1::Sha1;
use sha2::{Digest, Sha256};

use super::ovf::{self, Described};
use crate::{
    archive::{Member, Members},
    compress,
    error::{Error, at, damaged},
    vm::{Archive, Piece, Vm},
    vmdk,
};

const MAX_TEXT: u64 = 4 << 20;

type Input<'a> = Members<Box<dyn Read + 'a>>;

/// Reads an archive.
pub struct Reader<'a> {
    state: State<'a>,
    ovf: Described,
    /// Digests of the members so far, SHA-1 and SHA-256.
    found: BTreeMap<String, (String, String)>,
    /// What the manifest says.
    expected: BTreeMap<String, String>,
}

enum State<'a> {
    Between(Input<'a>),
    Disk {
        index: usize,
        name: String,
        image: Box<vmdk::Reader<Digesting<Input<'a>>>>,
    },
    Ended,
}

impl<'a> Reader<'a> {
    /// Reads the description.
    ///
    /// # Errors
    /// When the input is no OVA, or its description damaged.
    pub fn new(input: impl BufRead + 'a) -> Result<Self, Error> {
        let mut members = Members::new(at("the archive", compress::reader(input))?);
        let Some(member) = members
            .next()?
            .filter(|member| member.name.ends_with(".ovf"))
        else {
            return damaged(
                "the archive",
                "its first member is not an .ovf: it is no OVA",
            );
        };
        let text = members.text(&member, MAX_TEXT)?;
        let ovf = ovf::read(&member.name, &text)?;
        let mut this = Self {
            state: State::Between(members),
            ovf,
            found: BTreeMap::new(),
            expected: BTreeMap::new(),
        };
        this.found.insert(member.name, digests(text.as_bytes()));
        Ok(this)
    }

    fn manifest(&mut self, member: &Member, text: &str) -> Result<(), Error> {
        for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
            // Some writers have spaces here and there.
            let parts = line.split_once('(').and_then(|(kind, rest)| {
                let (name, digest) = rest.rsplit_once(')')?;
                Some((
                    kind.trim(),
                    (name, digest.trim_start().strip_prefix('=')?.trim()),
                ))
            });
            let (name, digest) = match parts {
                Some(("SHA1" | "SHA256", (name, digest))) => (name, digest),
                Some((kind, _)) => {
                    return crate::error::unsupported(
                        &*member.name,
                        format!("it has digests of {kind}"),
                    );
                }
                None => {
                    return damaged(
                        &*member.name,
                        format!("the line {line:?} is not of the form SHA256(name)= digest"),
                    );
                }
            };
            self.expected
                .insert(name.to_owned(), digest.to_ascii_lowercase());
        }
        Ok(())
    }

    /// Goes on to the next disk; false at the end.
    fn next_disk(&mut self) -> Result<bool, Error> {
        let State::Between(mut members) = std::mem::replace(&mut self.state, State::Ended) else {
            return Ok(false);
        };
        while let Some(member) = members.next()? {
            if let Some(index) = self
                .ovf
                .files
                .iter()
                .position(|file| file.as_ref() == Some(&member.name))
            {
                if self.found.contains_key(&member.name) {
                    return damaged(member.name, "it is in the archive twice");
                }
                let input = Digesting {
                    input: members,
                    sha1: Sha1::new(),
                    sha256: Sha256::new(),
                };
                let image = vmdk::Reader::new(input, &member.name)?;
                if image.size() > self.ovf.vm.disks[index].size {
                    return damaged(
                        member.name,
                        format!(
                            "it has {} bytes, the description says {}",
                            image.size(),
                            self.ovf.vm.disks[index].size
                        ),
                    );
                }
                self.state = State::Disk {
                    index,
                    name: member.name,
                    image: Box::new(image),
                };
                return Ok(true);
            }
            if member.name.ends_with(".mf") {
                let text = members.text(&member, MAX_TEXT)?;
                self.manifest(&member, &text)?;
            }
            // Others: certificates, translations. They are passed over.
        }
        self.verify()?;
        Ok(false)
    }

    fn verify(&self) -> Result<(), Error> {
        for file in self.ovf.files.iter().flatten() {
            if !self.found.contains_key(file) {
                return damaged(
                    &**file,
                    "the description names it, but it is not in the archive",
                );
            }
        }
        for (name, (sha1, sha256)) in &self.found {
            let Some(expected) = self.expected.get(name) else {
                continue;
            };
            let found = if expected.len() == 40 { sha1 } else { sha256 };
            if expected != found {
                return Err(Error::Checksum {
                    place: name.clone(),
                    expected: expected.clone(),
                    found: found.clone(),
                });
            }
        }
        Ok(())
    }

    fn end_disk(&mut self) -> Result<(), Error> {
        let State::Disk { name, image, .. } = std::mem::replace(&mut self.state, State::Ended)
        else {
            return Ok(());
        };
        let mut rest = image.into_inner();
        at(&name, io::copy(&mut rest, &mut io::sink()))?;
        let digests = (hex(&rest.sha1.finalize()), hex(&rest.sha256.finalize()));
        self.found.insert(name, digests);
        self.state = State::Between(rest.input);
        Ok(())
    }
}

impl Archive for Reader<'_> {
    fn vm(&self) -> &Vm {
        &self.ovf.vm
    }

    fn next_piece(&mut self) -> Result<Option<Piece<'_>>, Error> {
        loop {
            let more = match &mut self.state {
                State::Disk { image, .. } => image.advance()?,
                _ => match self.next_disk()? {
                    true => continue,
                    false => return Ok(None),
                },
            };
            if more {
                break;
            }
            self.end_disk()?;
        }
        let State::Disk { index, image, .. } = &self.state else {
            return Ok(None);
        };
        let (offset, data) = image.current();
        Ok(Some(Piece {
            disk: *index,
            offset,
            data,
        }))
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn digests(data: &[u8]) -> (String, String) {
    (hex(&Sha1::digest(data)), hex(&Sha256::digest(data)))
}

/// Digests what is read.
struct Digesting<R> {
    input: R,
    sha1: Sha1,
    sha256: Sha256,
}

impl<R: Read> Read for Digesting<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.input.read(buffer)?;
        self.sha1.update(&buffer[..n]);
        self.sha256.update(&buffer[..n]);
        Ok(n)
    }
}
