//! Debian packages by `apt` itself, in a private state: the machine's sources, keys and proxies are used, its
//! installed packages are neither read nor changed, and no root is needed. `apt` verifies every hash.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};
use xshell::{Shell, cmd};

use super::manifest::hex;

/// Programs the build needs, and the package that has each.
pub const TOOLS: &[(&str, &str)] = &[
    ("apt-get", "apt"),
    ("dpkg-deb", "dpkg"),
    ("fakeroot", "fakeroot"),
    ("mke2fs", "e2fsprogs"),
    ("tar", "tar"),
    ("xz", "xz-utils"),
    ("zstd", "zstd"),
];

/// The machine's distribution, whose packages the guest is made of.
pub struct Distribution {
    /// For people and for the hash of the recipe.
    pub name: String,
    /// The kernel made for virtual machines.
    pub kernel: &'static str,
}

impl Distribution {
    /// Reads `/etc/os-release`.
    pub fn of_this_machine() -> Result<Self> {
        let text = fs::read_to_string("/etc/os-release").context("cannot read /etc/os-release")?;
        Self::from_os_release(&text)
    }

    /// From the text of an os-release file.
    pub fn from_os_release(text: &str) -> Result<Self> {
        let value = |key: &str| {
            text.lines()
                .find_map(|line| line.strip_prefix(key)?.strip_prefix('='))
                .map(|value| value.trim_matches('"'))
        };
        let id = value("ID").unwrap_or("unknown");
        let kernel = match id {
            "debian" => "linux-image-cloud-amd64",
            "ubuntu" => "linux-image-virtual",
            other => bail!(
                "the session guest is built from this machine's packages, and it runs {other}: use Debian 12 or \
                 newer, or Ubuntu 22.04 or newer"
            ),
        };
        let release = value("VERSION_CODENAME")
            .or(value("VERSION_ID"))
            .unwrap_or("unknown");
        Ok(Self {
            name: format!("{id} {release}"),
            kernel,
        })
    }
}

/// A downloaded package.
pub struct Package {
    /// File name as `apt` gives it: name, version and architecture.
    pub file: String,
    /// Where it is.
    pub path: PathBuf,
    /// SHA-256 of the file.
    pub sha256: String,
}

/// Fails with the one line to run when programs are missing.
pub fn require_tools() -> Result<()> {
    let missing: Vec<&str> = TOOLS
        .iter()
        .filter(|(program, _)| !in_path(program))
        .map(|(_, package)| *package)
        .collect();
    if !missing.is_empty() {
        bail!(
            "programs are missing; run: sudo apt-get install -y {}",
            missing.join(" ")
        );
    }
    Ok(())
}

fn in_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    // mke2fs lives where a user's PATH may not look.
    std::env::split_paths(&path)
        .chain([PathBuf::from("/usr/sbin"), PathBuf::from("/sbin")])
        .any(|folder| folder.join(program).is_file())
}

/// Downloads `names` and all they depend on.
pub fn download(sh: &Shell, state: &Path, names: &[&str]) -> Result<Vec<Package>> {
    let archives = state.join("cache/archives");
    fs::create_dir_all(state.join("lists/partial"))?;
    fs::create_dir_all(archives.join("partial"))?;
    fs::create_dir_all(state.join("log"))?;
    // An empty status file: to apt, nothing is installed, so the whole closure is fetched.
    fs::write(state.join("status"), "")?;
    let configuration = state.join("apt.conf");
    let dir = state.display();
    fs::write(
        &configuration,
        format!(
            "Dir::State \"{dir}/\";\nDir::State::lists \"{dir}/lists/\";\nDir::State::status \"{dir}/status\";\n\
             Dir::Cache \"{dir}/cache/\";\nDir::Cache::archives \"{dir}/cache/archives/\";\nDir::Log \"{dir}/log/\";\n\
             APT::Architecture \"amd64\";\nAPT::Architectures {{ \"amd64\"; }};\nAPT::Sandbox::User \"root\";\n\
             APT::Install-Recommends \"false\";\nAPT::Install-Suggests \"false\";\n\
             Acquire::Retries \"3\";\nAcquire::Languages \"none\";\nDebug::NoLocking \"true\";\n"
        ),
    )?;
    let _configured = sh.push_env("APT_CONFIG", &configuration);
    let _language = sh.push_env("LC_ALL", "C");
    let apt = |arguments: &[&str]| -> Result<()> {
        let output = cmd!(sh, "apt-get -qq {arguments...}")
            .ignore_status()
            .quiet()
            .output()?;
        if !output.status.success() {
            bail!(
                "apt-get {} failed:\n{}",
                arguments.join(" "),
                String::from_utf8_lossy(&output.stderr).trim()
            );
        }
        Ok(())
    };
    apt(&["update"]).context("cannot fetch the package lists")?;
    let mut install = vec!["install", "--yes", "--download-only"];
    install.extend(names);
    apt(&install).context("cannot fetch the guest's packages")?;

    let mut packages = Vec::new();
    for entry in fs::read_dir(&archives)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "deb") {
            let file = path
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            let sha256 = hex(&Sha256::digest(fs::read(&path)?));
            packages.push(Package { file, path, sha256 });
        }
    }
    packages.sort_by(|a, b| a.file.cmp(&b.file));
    if packages.is_empty() {
        bail!("apt-get fetched no package into {}", archives.display());
    }
    Ok(packages)
}

/// Unpacks one package below `root`, running none of its scripts.
pub fn unpack(package: &Package, root: &Path) -> Result<()> {
    let mut reader = Command::new("dpkg-deb")
        .arg("--fsys-tarfile")
        .arg(&package.path)
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot run dpkg-deb")?;
    let archive = reader.stdout.take().context("dpkg-deb gives no output")?;
    // Packages older than the merged /usr have files in /bin and /lib: those are links here, and stay.
    let unpacked = Command::new("tar")
        .args([
            "--extract",
            "--keep-directory-symlink",
            "--no-same-owner",
            "--directory",
        ])
        .arg(root)
        .stdin(archive)
        .status()
        .context("cannot run tar")?;
    if !reader.wait()?.success() || !unpacked.success() {
        bail!("cannot unpack {}", package.path.display());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::Distribution;

    #[test]
    fn debian_and_ubuntu_are_known_and_others_are_refused() {
        let debian = Distribution::from_os_release(
            "NAME=\"Debian\"\nVERSION_CODENAME=bookworm\nID=debian\n",
        );
        assert_eq!(debian.expect("known").kernel, "linux-image-cloud-amd64");
        let ubuntu = Distribution::from_os_release("ID=\"ubuntu\"\nVERSION_ID=\"22.04\"\n");
        assert_eq!(ubuntu.expect("known").name, "ubuntu 22.04");
        let error = Distribution::from_os_release("ID=fedora\n")
            .err()
            .expect("refused");
        assert!(error.to_string().contains("fedora"), "{error}");
    }
}
