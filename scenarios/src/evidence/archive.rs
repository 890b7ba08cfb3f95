//! A run as one file: its folder as a compressed tar, which any machine can open without this program.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Write};
use std::path::Path;

use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;

/// Disks stay at home: they are large, and the verdict on them is in the folder.
const LEFT_OUT: &str = "export";
/// What is unpacked is at most this.
const BYTES_MAX: u64 = 2 << 30;

/// Packs a run's folder.
///
/// # Errors
/// When files cannot be read or written.
pub fn pack(folder: &Path, file: &Path) -> io::Result<()> {
    let out = GzEncoder::new(BufWriter::new(File::create(file)?), Compression::default());
    let mut archive = tar::Builder::new(out);
    let mut names: Vec<_> = std::fs::read_dir(folder)?
        .map(|entry| entry.map(|entry| entry.file_name()))
        .collect::<io::Result<_>>()?;
    names.sort();
    for name in names.into_iter().filter(|name| name != LEFT_OUT) {
        let path = folder.join(&name);
        if path.is_dir() {
            archive.append_dir_all(&name, &path)?;
        } else {
            archive.append_path_with_name(&path, &name)?;
        }
    }
    archive.into_inner()?.finish()?.flush()
}

/// Unpacks what [`pack`] made into an empty folder. The file may come from anyone: nothing of it leads out of the folder, and its size
/// is bounded.
///
/// # Errors
/// When it is no such file, or cannot be written.
pub fn unpack(file: &Path, folder: &Path) -> io::Result<()> {
    let mut archive = tar::Archive::new(GzDecoder::new(BufReader::new(File::open(file)?)));
    let mut bytes = 0_u64;
    for entry in archive.entries()? {
        let mut entry = entry?;
        bytes = bytes.saturating_add(entry.size());
        if bytes > BYTES_MAX {
            return Err(io::Error::other("more than 2 GiB: no run is so large"));
        }
        let kind = entry.header().entry_type();
        let plain = kind.is_file() || kind.is_dir();
        // `unpack_in` refuses paths that lead out of the folder.
        if !plain || !entry.unpack_in(folder)? {
            let path = entry.path()?.display().to_string();
            return Err(io::Error::other(format!("\"{path}\" is no file of a run")));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_survives_the_journey_without_its_disks() {
        let from = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(from.path().join("samples")).unwrap();
        std::fs::create_dir_all(from.path().join("export/sr")).unwrap();
        std::fs::write(from.path().join("samples/udp.csv"), "1,2\n").unwrap();
        std::fs::write(from.path().join("events.jsonl"), "{}\n").unwrap();
        std::fs::write(from.path().join("export/sr/disk"), vec![0; 1000]).unwrap();
        let file = from.path().join("../run.tar.gz");
        pack(from.path(), &file).unwrap();
        let to = tempfile::tempdir().unwrap();
        unpack(&file, to.path()).unwrap();
        std::fs::remove_file(&file).unwrap();
        assert_eq!(
            std::fs::read_to_string(to.path().join("samples/udp.csv")).unwrap(),
            "1,2\n"
        );
        assert!(to.path().join("events.jsonl").exists());
        assert!(!to.path().join("export").exists());
    }

    #[test]
    fn what_leads_out_of_the_folder_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("evil.tar.gz");
        let out = GzEncoder::new(File::create(&file).unwrap(), Compression::fast());
        let mut archive = tar::Builder::new(out);
        let mut header = tar::Header::new_gnu();
        header.set_size(1);
        header.as_gnu_mut().unwrap().name[..9].copy_from_slice(b"../escape");
        header.set_cksum();
        archive.append(&header, &b"x"[..]).unwrap();
        archive.into_inner().unwrap().finish().unwrap();
        let inside = folder.path().join("inside");
        std::fs::create_dir(&inside).unwrap();
        assert!(unpack(&file, &inside).is_err());
        assert!(!folder.path().join("escape").exists());
        std::fs::write(&file, "no archive").unwrap();
        assert!(unpack(&file, &inside).is_err());
    }
}
