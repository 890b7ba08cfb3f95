//! Machines and disks for tests.
#![allow(dead_code, reason = "each test uses some of it")]

use std::ops::Range;

use formats::{
    Error,
    compress::Compression,
    disk::Source,
    vm::{Archive, Disk, Nic, Vm},
    xva::{Checksum, Start, Writer},
};
use sha1::{Digest, Sha1};

/// A disk in memory.
#[derive(Clone)]
pub struct Memory(pub Vec<u8>);

impl Memory {
    pub fn random(seed: u64, size: u64) -> Self {
        let mut bytes = vec![0; size as usize];
        fastrand::Rng::with_seed(seed).fill(&mut bytes);
        Self(bytes)
    }
}

impl Source for Memory {
    fn size(&self) -> u64 {
        self.0.len() as u64
    }

    fn next_data(&mut self, from: u64) -> Result<Option<Range<u64>>, Error> {
        Ok((from < self.size()).then(|| from..self.size()))
    }

    fn read(&mut self, offset: u64, buffer: &mut [u8]) -> Result<(), Error> {
        let from = offset as usize;
        buffer.copy_from_slice(&self.0[from..from + buffer.len()]);
        Ok(())
    }
}

/// A machine with these disks.
pub fn machine(disks: &[Memory]) -> Vm {
    let disk = |(n, disk): (usize, &Memory)| Disk {
        uuid: format!("6f6b1ab4-5a0e-4ee2-8c0a-1f3f1c3c2c{n:02x}"),
        name: format!("disk {n}"),
        size: disk.size(),
    };
    Vm {
        uuid: "0f6b1ab4-5a0e-4ee2-8c0a-1f3f1c3c2c11".into(),
        name: "session".into(),
        description: "of a test".into(),
        memory: 256 << 20,
        vcpus: 2,
        weight: 512,
        template: true,
        start_on_boot: true,
        disks: disks.iter().enumerate().map(disk).collect(),
        nics: vec![Nic {
            mac: "02:e1:ab:10:00:01".into(),
            network: "session".into(),
            model: String::new(),
        }],
        ..Vm::default()
    }
}

/// An archive of a machine.
pub fn xva(vm: &Vm, disks: &[Memory], checksum: Checksum, compression: Compression) -> Vec<u8> {
    let mut writer =
        Writer::new(Vec::new(), vm, checksum, compression, Start::Beginning).expect("begun");
    for (n, disk) in disks.iter().enumerate() {
        let chunks = Writer::<Vec<u8>>::chunks(disk.size());
        writer
            .write(n, &mut disk.clone(), 0..chunks)
            .expect("written");
    }
    writer.finish().expect("ended")
}

/// Everything that an archive holds.
pub fn contents(archive: &mut dyn Archive) -> Result<Vec<Vec<u8>>, Error> {
    let sizes = archive.vm().disks.iter().map(|disk| disk.size as usize);
    let mut disks: Vec<Vec<u8>> = sizes.map(|size| vec![0; size]).collect();
    while let Some(piece) = archive.next_piece()? {
        let from = piece.offset as usize;
        disks[piece.disk][from..from + piece.data.len()].copy_from_slice(piece.data);
    }
    Ok(disks)
}

/// An archive as another program might write it, member by member.
pub struct Others(tar::Builder<Vec<u8>>);

impl Others {
    /// Begins with the description that we write.
    pub fn new(vm: &Vm) -> Self {
        let writer = Writer::new(
            Vec::new(),
            vm,
            Checksum::Xxhash,
            Compression::None,
            Start::Beginning,
        );
        let mut ours = tar::Archive::new(&*writer.expect("begun").finish().expect("ended").leak());
        let mut xml = Vec::new();
        let mut entry = ours
            .entries()
            .expect("members")
            .next()
            .expect("one")
            .expect("sound");
        std::io::Read::read_to_end(&mut entry, &mut xml).expect("read");
        let mut this = Self::empty();
        this.member("ova.xml", &xml);
        this
    }

    /// Begins with nothing.
    pub fn empty() -> Self {
        Self(tar::Builder::new(Vec::new()))
    }

    pub fn member(&mut self, name: &str, data: &[u8]) {
        let mut header = tar::Header::new_ustar();
        header.set_size(data.len() as u64);
        // As it is, even where the crate would refuse.
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_cksum();
        self.0.append(&header, data).expect("memory takes it");
    }

    pub fn chunk(&mut self, name: &str, data: &[u8], checksum: Checksum) {
        self.member(name, data);
        let (extension, text) = match checksum {
            Checksum::Sha1 => {
                let digest = Sha1::digest(data);
                let text = digest.iter().map(|byte| format!("{byte:02x}")).collect();
                ("checksum", text)
            }
            Checksum::Xxhash => {
                let digest = xxhash_rust::xxh64::xxh64(data, 0);
                ("xxhash", format!("{digest:016X}"))
            }
        };
        self.member(&format!("{name}.{extension}"), text.as_bytes());
    }

    pub fn finish(self) -> Vec<u8> {
        self.0.into_inner().expect("memory takes it")
    }
}
