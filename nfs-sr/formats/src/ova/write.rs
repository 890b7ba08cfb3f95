//! Writing an OVA to a file.

use std::{
    fs::File,
    io::{self, Write},
    os::unix::fs::FileExt,
};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::ovf;
use crate::{
    archive,
    disk::{self, Source},
    error::{Error, at, damaged},
    vm::Vm,
    vmdk,
};

const BLOCK: u64 = 512;

/// Writes a machine's archive.
pub struct Writer {
    file: File,
    vm: Vm,
    /// What files are called.
    stem: String,
    ovf_size: usize,
    mf_size: usize,
    state: State,
}

/// How far an archive is written: what it takes to go on after an interruption.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// Name, size and digest of each disk so far.
    disks: Vec<(String, u64, String)>,
    /// Where the next member begins.
    position: u64,
    /// The disk that is being written, and where on it that goes on.
    image: Option<(vmdk::State, u64)>,
}

impl State {
    /// Disks that are written.
    #[must_use]
    pub fn done(&self) -> usize {
        self.disks.len()
    }

    /// Where on the next disk writing goes on.
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.image.as_ref().map_or(0, |(_, offset)| *offset)
    }

    /// Bytes of the file that count.
    #[must_use]
    pub fn length(&self) -> u64 {
        let begun = |(image, _): &(vmdk::State, u64)| BLOCK + image.length();
        self.position + self.image.as_ref().map_or(0, begun)
    }
}

/// Is told how far on a disk it is, and can have everything before that put on disk, to go on from there.
pub type Each<'a> =
    dyn FnMut(u64, &mut dyn FnMut() -> Result<State, Error>) -> Result<(), Error> + 'a;

impl Writer {
    /// Keeps room for the description and the manifest.
    ///
    /// # Errors
    /// When the machine cannot be described.
    pub fn new(file: File, vm: &Vm) -> Result<Self, Error> {
        let usual = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        let name: String = vm
            .name
            .chars()
            .map(|c| if usual(c) { c } else { '_' })
            .take(60)
            .collect();
        let stem = if name.starts_with('.') {
            format!("vm{name}")
        } else {
            name
        };
        let mut this = Self {
            file,
            vm: vm.clone(),
            stem,
            ovf_size: 0,
            mf_size: 0,
            state: State::default(),
        };
        let most: Vec<_> = (0..vm.disks.len())
            .map(|n| (this.disk_name(n), u64::MAX))
            .collect();
        this.ovf_size = ovf::write(vm, &most).len();
        this.mf_size = this
            .manifest("", most.iter().map(|(name, _)| (&**name, "")))
            .len()
            + 64 * (1 + most.len());
        let room = |size: usize| BLOCK + (size as u64).next_multiple_of(BLOCK);
        this.state.position = room(this.ovf_size) + room(this.mf_size);
        Ok(this)
    }

    /// Goes on with the archive of the same machine, in a file that has what it had in this state.
    ///
    /// # Errors
    /// When the machine cannot be described.
    pub fn resume(file: File, vm: &Vm, state: State) -> Result<Self, Error> {
        Ok(Self {
            state,
            ..Self::new(file, vm)?
        })
    }

    fn disk_name(&self, index: usize) -> String {
        format!("{}-disk{index}.vmdk", self.stem)
    }

    fn manifest<'a>(&self, ovf: &str, disks: impl Iterator<Item = (&'a str, &'a str)>) -> String {
        let mut text = format!("SHA256({}.ovf)= {ovf}\n", self.stem);
        for (name, digest) in disks {
            text += &format!("SHA256({name})= {digest}\n");
        }
        text
    }

    /// Writes the next disk, or the rest of it.
    ///
    /// # Errors
    /// When the disk cannot be read, or the archive not be written.
    pub fn disk(&mut self, source: &mut dyn Source, each: &mut Each<'_>) -> Result<(), Error> {
        let name = self.disk_name(self.state.disks.len());
        let begin = self.state.position + BLOCK;
        let size = source.size();
        let mut out = Digesting {
            file: &self.file,
            position: begin,
            digest: Sha256::new(),
        };
        let (mut image, from) = match self.state.image.take() {
            Some((image, from)) => {
                at(&name, out.skip(image.length()))?;
                let out = io::BufWriter::with_capacity(crate::UNIT, out);
                (vmdk::Writer::resume(out, &name, size, image), from)
            }
            None => {
                let out = io::BufWriter::with_capacity(crate::UNIT, out);
                (vmdk::Writer::new(out, &name, size)?, 0)
            }
        };
        let before = &self.state;
        disk::pieces(source, from..size, crate::UNIT, &mut |offset, data| {
            disk::Sink::write(&mut image, offset, data)?;
            let next = offset + data.len() as u64;
            each(next, &mut || {
                let (state, out) = image.state();
                at(&name, out.flush())?;
                at(&name, self.file.sync_data())?;
                Ok(State {
                    image: Some((state, next)),
                    ..before.clone()
                })
            })
        })?;
        let out = image
            .finish()?
            .into_inner()
            .map_err(io::IntoInnerError::into_error);
        let out = at(&name, out)?;
        let (end, digest) = (out.position, hex(&out.digest.finalize()));
        let header = archive::header(&name, end - begin)?;
        let place = self.state.position;
        at(&name, self.file.write_all_at(&header, place))?;
        self.state.position = end + archive::padding(end - begin) as u64;
        self.state.disks.push((name, end - begin, digest));
        Ok(())
    }

    /// Ends the archive.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn finish(self) -> Result<(), Error> {
        let files: Vec<_> = self
            .state
            .disks
            .iter()
            .map(|(name, size, _)| (name.clone(), *size))
            .collect();
        let mut ovf = ovf::write(&self.vm, &files);
        let mut mf = self.manifest(
            &hex(&Sha256::digest(pad(&mut ovf, self.ovf_size))),
            self.state
                .disks
                .iter()
                .map(|(name, _, digest)| (&**name, &**digest)),
        );
        pad(&mut mf, self.mf_size);
        if (ovf.len(), mf.len()) != (self.ovf_size, self.mf_size) {
            return damaged("the machine", "it has not as many disks as were written");
        }
        let mut front = Vec::new();
        archive::write_member(&mut front, &format!("{}.ovf", self.stem), ovf.as_bytes())?;
        archive::write_member(&mut front, &format!("{}.mf", self.stem), mf.as_bytes())?;
        let mut end = Vec::new();
        archive::write_end(&mut end)?;
        let place = "the archive";
        at(place, self.file.write_all_at(&end, self.state.position))?;
        at(place, self.file.write_all_at(&front, 0))?;
        at(place, self.file.sync_all())
    }
}

/// Fills a text up with line ends, which mean nothing at its end.
fn pad(text: &mut String, size: usize) -> &[u8] {
    while text.len() < size {
        text.push('\n');
    }
    text.as_bytes()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Writes at a place of a file, and digests what it writes.
struct Digesting<'a> {
    file: &'a File,
    position: u64,
    digest: Sha256,
}

impl Digesting<'_> {
    /// Goes over bytes that are there.
    fn skip(&mut self, length: u64) -> io::Result<()> {
        let end = self.position + length;
        let mut buffer = vec![0; crate::UNIT];
        while self.position < end {
            let n = (end - self.position).min(crate::UNIT as u64) as usize;
            self.file.read_exact_at(&mut buffer[..n], self.position)?;
            self.digest.update(&buffer[..n]);
            self.position += n as u64;
        }
        Ok(())
    }
}

impl Write for Digesting<'_> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.file.write_all_at(data, self.position)?;
        self.position += data.len() as u64;
        self.digest.update(data);
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
