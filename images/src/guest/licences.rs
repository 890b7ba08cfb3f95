//! The licences of the guest's packages, which go wherever the guest goes. The guest itself has no room for them.

use std::fmt::Write;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

/// Where packages have their licences, each in a folder of its name (Debian Policy 12.5).
const DOC: &str = "usr/share/doc";
/// Texts that those refer to; this machine has them when the guest's packages do not.
const COMMON: &str = "usr/share/common-licenses";

/// Writes the copyright files of all packages below `root`, and the licences they refer to, into one file.
pub fn write(root: &Path, to: &Path) -> Result<()> {
    let mut out = String::from(
        "Licences of the packages that the session guest is made of. Their names, versions and hashes are in manifest.json;\n\
         their sources are those of the distribution.\n",
    );
    for name in names(&root.join(DOC))? {
        let folder = root.join(DOC).join(&name);
        // Packages made of one source share a folder by a link.
        if let Ok(other) = fs::read_link(&folder) {
            section(&mut out, &name, &format!("as {}\n", other.display()));
        } else if let Ok(text) = fs::read(folder.join("copyright")) {
            section(&mut out, &name, &String::from_utf8_lossy(&text));
        }
    }
    let common = [root, Path::new("/")].map(|root| root.join(COMMON));
    if let Some(common) = common.iter().find(|folder| folder.is_dir()) {
        for name in names(common)? {
            let file = common.join(&name);
            if !file.is_symlink() {
                let text =
                    fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?;
                section(&mut out, &name, &String::from_utf8_lossy(&text));
            }
        }
    }
    fs::write(to, out).with_context(|| format!("cannot write {}", to.display()))
}

fn names(folder: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in
        fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?
    {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

fn section(out: &mut String, name: &str, text: &str) {
    // Writing to a string cannot fail.
    let _ = write!(out, "\n==== {name} ====\n\n{text}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_package_has_its_licence_and_shared_ones_are_named() {
        let root = tempfile::tempdir().unwrap();
        let doc = root.path().join(DOC);
        fs::create_dir_all(doc.join("dash")).unwrap();
        fs::write(doc.join("dash/copyright"), "BSD\n").unwrap();
        std::os::unix::fs::symlink("dash", doc.join("sh")).unwrap();
        fs::create_dir_all(root.path().join(COMMON)).unwrap();
        fs::write(root.path().join(COMMON).join("GPL-2"), "the GPL\n").unwrap();
        let to = root.path().join("licences.txt");
        write(root.path(), &to).unwrap();
        let text = fs::read_to_string(to).unwrap();
        for part in [
            "==== dash ====\n\nBSD",
            "==== sh ====\n\nas dash",
            "==== GPL-2 ====\n\nthe GPL",
        ] {
            assert!(text.contains(part), "{text}");
        }
    }
}
