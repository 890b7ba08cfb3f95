//! What a built guest consists of, with the hash of every file and of every package it was made of.

use std::fs::{self, File};
use std::io::Read;
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::packages::Package;

const FILE: &str = "manifest.json";

/// The manifest of a folder.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    packages: Vec<Entry>,
    files: Vec<Entry>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    name: String,
    sha256: String,
}

impl Manifest {
    /// Of all files in `folder`, made of `packages`.
    pub fn of(folder: &Path, packages: &[Package]) -> Result<Self> {
        let mut files = Vec::new();
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            files.push(Entry {
                name,
                sha256: hash_file(&entry.path())?,
            });
        }
        files.sort_by(|a, b| a.name.cmp(&b.name));
        let packages = packages
            .iter()
            .map(|package| Entry {
                name: package.file.clone(),
                sha256: package.sha256.clone(),
            })
            .collect();
        Ok(Self { packages, files })
    }

    /// Writes it into `folder`.
    pub fn write(&self, folder: &Path) -> Result<()> {
        let path = folder.join(FILE);
        fs::write(&path, serde_json::to_string_pretty(self)?)
            .with_context(|| format!("cannot write {}", path.display()))
    }

    /// Reads it from `folder`.
    pub fn read(folder: &Path) -> Result<Self> {
        let path = folder.join(FILE);
        let text =
            fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        serde_json::from_str(&text).with_context(|| format!("{} is damaged", path.display()))
    }

    /// Are the files of `folder` those that were built?
    pub fn verify(&self, folder: &Path) -> Result<()> {
        for Entry { name, sha256 } in &self.files {
            if hash_file(&folder.join(name))? != *sha256 {
                bail!("{} is not as it was built", folder.join(name).display());
            }
        }
        Ok(())
    }
}

fn hash_file(path: &Path) -> Result<String> {
    let mut file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        let read = file
            .read(&mut buffer)
            .with_context(|| format!("cannot read {}", path.display()))?;
        if read == 0 {
            return Ok(hex(&hash.finalize()));
        }
        hash.update(&buffer[..read]);
    }
}

/// Bytes as hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_file_fails_verification() {
        let folder = tempfile::tempdir().expect("a folder");
        fs::write(folder.path().join("a"), "one").expect("file");
        Manifest::of(folder.path(), &[])
            .expect("made")
            .write(folder.path())
            .expect("written");
        let manifest = Manifest::read(folder.path()).expect("read");
        manifest.verify(folder.path()).expect("unchanged");
        fs::write(folder.path().join("a"), "two").expect("file");
        let error = manifest.verify(folder.path()).expect_err("changed");
        assert!(error.to_string().contains("/a is not"), "{error}");
        fs::remove_file(folder.path().join("a")).expect("removed");
        assert!(manifest.verify(folder.path()).is_err());
    }
}
