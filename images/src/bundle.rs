//! Images beside a program: what is built here is put into a folder that goes with it, to machines that build nothing.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::guest::{self, SessionGuest};
use crate::{hypervisor, iso};

/// The folder's name beside the program.
pub const FOLDER: &str = "images";
const ISO: &str = "hypervisor.iso";
const HYPERVISOR: &str = "hypervisor.elf";
const TEST_GUESTS: &str = "test-guests.elf";
const GUEST: &str = "guest";

/// Images that came with a program.
#[derive(Clone, Debug)]
pub struct Bundle {
    folder: PathBuf,
}

impl Bundle {
    /// Those beside the program that runs; `None` when it is not from a bundle.
    #[must_use]
    pub fn beside_this_program() -> Option<Self> {
        let program = std::env::current_exe().ok()?;
        Self::beside(&program)
    }

    fn beside(program: &Path) -> Option<Self> {
        let folder = program.parent()?.join(FOLDER);
        folder.join(ISO).is_file().then_some(Self { folder })
    }

    /// The bootable hypervisor image.
    #[must_use]
    pub fn iso(&self) -> PathBuf {
        self.folder.join(ISO)
    }

    /// The same for QEMU's own loader.
    #[must_use]
    pub fn hypervisor(&self) -> PathBuf {
        self.folder.join(HYPERVISOR)
    }

    /// The kernel of the test guests.
    #[must_use]
    pub fn test_guests(&self) -> PathBuf {
        self.folder.join(TEST_GUESTS)
    }

    /// The session guest, verified.
    ///
    /// # Errors
    /// When it is not as it was built.
    pub fn guest(&self) -> Result<SessionGuest> {
        guest::open(&self.folder.join(GUEST)).context("the bundle is damaged, unpack it again")
    }
}

/// Builds all images, or finds them in `cache`, and copies them below `to`, the folder of a program.
///
/// # Errors
/// When something does not build, or the disk is full.
pub fn write(cache: &Path, to: &Path, progress: &dyn Fn(&str)) -> Result<()> {
    let folder = to.join(FOLDER);
    let guest_folder = folder.join(GUEST);
    fs::create_dir_all(&guest_folder)
        .with_context(|| format!("cannot create {}", guest_folder.display()))?;
    progress("hypervisor image");
    let hypervisor = hypervisor::build()?;
    let contents = iso::Contents {
        hypervisor: hypervisor.clone(),
        ..Default::default()
    };
    let iso = iso::build(&contents, cache)?;
    let test_guests = hypervisor::build_test_guests()?;
    let built = guest::build(cache, progress)?;
    let built = built.kernel.parent().context("a guest has a folder")?;
    let mut files = vec![
        (iso, folder.join(ISO)),
        (hypervisor, folder.join(HYPERVISOR)),
        (test_guests, folder.join(TEST_GUESTS)),
    ];
    for entry in fs::read_dir(built).with_context(|| format!("cannot read {}", built.display()))? {
        let entry = entry?;
        files.push((entry.path(), guest_folder.join(entry.file_name())));
    }
    for (from, to) in files {
        fs::copy(&from, &to).with_context(|| format!("cannot copy {}", from.display()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_without_images_beside_it_is_from_no_bundle() {
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("elab");
        assert!(Bundle::beside(&program).is_none());
        fs::create_dir_all(folder.path().join("images/guest")).unwrap();
        fs::write(folder.path().join("images/hypervisor.iso"), "").unwrap();
        let bundle = Bundle::beside(&program).unwrap();
        assert_eq!(bundle.iso(), folder.path().join("images/hypervisor.iso"));
        // A guest without its manifest could be anything.
        let error = format!("{:#}", bundle.guest().unwrap_err());
        assert!(error.contains("unpack it again"), "{error}");
    }
}
