//! Writing an OVA to a file.

use std::{
    fs::File,
    io::{self, Write},
    os::unix::fs::FileExt,
};

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
    /// Name, size and digest of each disk so far.
    disks: Vec<(String, u64, String)>,
    position: u64,
}

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
            disks: Vec::new(),
            position: 0,
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
        this.position = room(this.ovf_size) + room(this.mf_size);
        Ok(this)
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

    /// Writes the next disk. `each` is told how far on the disk it is.
    ///
    /// # Errors
    /// When the disk cannot be read, or the archive not be written.
    pub fn disk(
        &mut self,
        source: &mut dyn Source,
        each: &mut dyn FnMut(u64),
    ) -> Result<(), Error> {
        let name = self.disk_name(self.disks.len());
        let begin = self.position + BLOCK;
        let out = Digesting {
            file: &self.file,
            position: begin,
            digest: Sha256::new(),
        };
        let size = source.size();
        let mut image =
            vmdk::Writer::new(io::BufWriter::with_capacity(crate::UNIT, out), &name, size)?;
        disk::pieces(source, 0..size, crate::UNIT, &mut |offset, data| {
            each(offset);
            disk::Sink::write(&mut image, offset, data)
        })?;
        let out = image
            .finish()?
            .into_inner()
            .map_err(io::IntoInnerError::into_error);
        let out = at(&name, out)?;
        let (end, digest) = (out.position, hex(&out.digest.finalize()));
        let header = archive::header(&name, end - begin)?;
        at(&name, self.file.write_all_at(&header, self.position))?;
        self.position = end + archive::padding(end - begin) as u64;
        self.disks.push((name, end - begin, digest));
        Ok(())
    }

    /// Ends the archive.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn finish(self) -> Result<(), Error> {
        let files: Vec<_> = self
            .disks
            .iter()
            .map(|(name, size, _)| (name.clone(), *size))
            .collect();
        let mut ovf = ovf::write(&self.vm, &files);
        let mut mf = self.manifest(
            &hex(&Sha256::digest(pad(&mut ovf, self.ovf_size))),
            self.disks
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
        at(place, self.file.write_all_at(&end, self.position))?;
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
