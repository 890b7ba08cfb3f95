//! Puts a lab together from what this machine and the images offer.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use host_protocol::{DiskConfig, VmConfig};
use images::bundle::Bundle;
use images::guest::SessionGuest;
use images::standalone::Host;

use crate::accelerator::Accelerator;
use crate::cli::CannotRun;
use crate::entropy;
use crate::lab::{LabConfig, MachineFacts, StorageProgram};
use crate::network::{PREFIX, SESSION, guest_mac};
use crate::qemu::{Boot, Qemu};
use crate::run_folder::{self, RUNS};

/// QEMU's program.
pub const QEMU: &str = "qemu-system-x86_64";
/// Where images are kept, below the working folder.
pub const IMAGES: &str = ".elab/images";
/// Name of the one guest of a lab that is not told otherwise.
pub const GUEST: &str = "session";
/// A nested guest that works at all is through in a second; in five where KVM itself is emulated.
pub(crate) const NESTED_LIMIT_S: u32 = 7;
const GUEST_MEMORY_MIB: u32 = 256;

/// What the lab runs.
#[derive(Clone, Debug)]
pub struct Artifacts {
    /// What hosts boot.
    pub boot: Boot,
    /// What the first host boots instead, if that is another version.
    pub first: Option<Boot>,
    /// The session guest.
    pub guest: SessionGuest,
}

/// Choices of whoever starts a lab.
#[derive(Clone, Debug)]
pub struct Choices {
    /// Name of the lab.
    pub name: String,
    /// Number of hosts.
    pub hosts: u8,
    /// RAM of each host.
    pub host_memory_mib: u32,
    /// Boot by QEMU's loader.
    pub fast_boot: bool,
    /// Boot this instead of what is built here.
    pub image: Option<PathBuf>,
    /// Boot the first host from this, of another version.
    pub first_image: Option<PathBuf>,
    /// Seed of link faults.
    pub seed: u64,
    /// Capture the hosts' ports.
    pub capture: bool,
    /// The guests, whose addresses follow from their order.
    pub guests: Vec<GuestChoice>,
}

/// A guest of a lab.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuestChoice {
    /// Its name.
    pub name: String,
    /// Its RAM.
    pub memory_mib: u32,
}

impl Default for GuestChoice {
    fn default() -> Self {
        Self {
            name: GUEST.into(),
            memory_mib: GUEST_MEMORY_MIB,
        }
    }
}

/// Builds or finds what a lab runs; `progress` is told what happens.
///
/// # Errors
/// When a tool is missing or something does not build.
pub fn artifacts(choices: &Choices, progress: &dyn Fn(&str)) -> Result<Artifacts> {
    let absolute = |path: &Path| {
        path.canonicalize()
            .with_context(|| format!("cannot find {}", path.display()))
    };
    let file = match (&choices.image, Bundle::beside_this_program()) {
        (Some(image), _) => absolute(image)?,
        (None, Some(bundle)) if choices.fast_boot => bundle.hypervisor(),
        (None, Some(bundle)) => bundle.iso(),
        (None, None) => {
            progress("building the hypervisor image");
            let hypervisor = images::hypervisor::build()?;
            if choices.fast_boot {
                absolute(&hypervisor)?
            } else {
                let contents = images::iso::Contents {
                    hypervisor,
                    ..Default::default()
                };
                absolute(&images::iso::build(&contents, cache()?)?)?
            }
        }
    };
    let boot = |file| match choices.fast_boot {
        true => Boot::Kernel(file),
        false => Boot::Iso(file),
    };
    let first = choices.first_image.as_deref().map(absolute).transpose()?;
    let guest = match Bundle::beside_this_program() {
        Some(bundle) => bundle.guest()?,
        None => images::guest::build(cache()?, progress)?,
    };
    Ok(Artifacts {
        boot: boot(file),
        first: first.map(boot),
        guest,
    })
}

/// Where images are kept that are built here.
fn cache() -> Result<&'static Path> {
    let cache = Path::new(IMAGES);
    std::fs::create_dir_all(cache).with_context(|| format!("cannot make {}", cache.display()))?;
    Ok(cache)
}

/// The configuration of a lab. Its storage repository is made anew: each run begins with the same disk.
///
/// # Errors
/// When QEMU is missing, or the disk is full.
pub fn lab_config(
    choices: &Choices,
    artifacts: &Artifacts,
    accelerator: &Accelerator,
) -> Result<LabConfig> {
    let base = PathBuf::from(RUNS);
    let folder = base.join(&choices.name);
    if folder.exists() && run_folder::is_running(&folder)? {
        bail!(
            "lab \"{0}\" is running; end it with `elab down --name {0}`, or choose another --name",
            choices.name
        );
    }
    std::fs::create_dir_all(&folder)
        .with_context(|| format!("cannot make {}", folder.display()))?;
    let (export, vms) = storage_repository(&folder, &artifacts.guest, &choices.guests)?;
    Ok(LabConfig {
        name: choices.name.clone(),
        base,
        hosts: choices.hosts,
        host_memory_mib: choices.host_memory_mib,
        launcher: Box::new(Qemu {
            program: QEMU.into(),
            boot: artifacts.boot.clone(),
            first: artifacts.first.clone(),
            accelerator: accelerator.clone(),
        }),
        storage: Some(StorageProgram {
            program: std::env::current_exe().context("cannot find this program's own file")?,
            arguments: vec!["storage-server".into()],
            export,
        }),
        vms,
        seed: choices.seed,
        capture: choices.capture,
        facts: MachineFacts {
            accelerator: accelerator.name().into(),
            qemu: qemu_version()?,
            cpu: cpu_model(),
        },
    })
}

/// Lays out the repository that the storage server exports, and the VMs whose disks are in it.
fn storage_repository(
    folder: &Path,
    guest: &SessionGuest,
    choices: &[GuestChoice],
) -> Result<(PathBuf, Vec<VmConfig>)> {
    let export = folder.join("export");
    if export.exists() {
        std::fs::remove_dir_all(&export)
            .with_context(|| format!("cannot delete {}", export.display()))?;
    }
    std::fs::create_dir_all(&export)
        .with_context(|| format!("cannot make {}", export.display()))?;
    let export = export
        .canonicalize()
        .with_context(|| format!("cannot find {}", export.display()))?;
    let vms = (1..).zip(choices).map(|(number, choice)| {
        let exported = images::guest::export(guest, &export, &choice.name, &disk_uuid(number))?;
        let address = format!("{}/{PREFIX}", SESSION.guest_address(number));
        Ok(VmConfig {
            id: entropy::bytes().context("cannot make an identity")?,
            name: choice.name.clone(),
            memory_mib: choice.memory_mib,
            vcpus: 1,
            weight: 256,
            kernel: exported.kernel,
            initrd: Some(exported.initrd),
            cmdline: guest.command_line(&choice.name, &address, None),
            disks: vec![DiskConfig {
                path: exported.disk,
                read_only: false,
            }],
            nics: vec![guest_mac(number)],
        })
    });
    let vms = vms.collect::<Result<_>>()?;
    Ok((export, vms))
}

/// The identity of a guest's disk: the last digits are the guest's number, from 1.
fn disk_uuid(guest: u8) -> String {
    let (kept, _) = images::guest::VDI_UUID.split_at(images::guest::VDI_UUID.len() - 2);
    format!("{kept}{guest:02x}")
}

/// Where a guest's disk lies below a lab's folder.
#[must_use]
pub fn disk_file(folder: &Path, guest: u8) -> PathBuf {
    folder
        .join("export")
        .join(images::guest::SR_UUID)
        .join(format!("{}.vhd", disk_uuid(guest)))
}

/// Chooses the accelerator; `progress` is told when that takes a moment.
pub fn choose_accelerator(progress: &dyn Fn(&str)) -> Accelerator {
    Accelerator::choose(|| {
        progress("trying a nested guest under KVM");
        let host = match Bundle::beside_this_program() {
            Some(bundle) => Host::new(bundle.hypervisor(), bundle.test_guests()),
            None => Host::with_test_guests().map_err(|error| format!("{error:#}"))?,
        };
        let host = Host {
            kvm: true,
            limit_s: NESTED_LIMIT_S,
            ..host
        };
        // Any test guest will do: that one came to its end is the proof.
        host.run("guest memory=8 -- test=cpuid")
            .map(drop)
            .map_err(|error| format!("{error:#}"))
    })
}

/// The first line of QEMU's version.
///
/// # Errors
/// When QEMU is not installed.
pub fn qemu_version() -> Result<String> {
    let output = Command::new(QEMU).arg("--version").output().map_err(|error| {
        CannotRun(format!(
            "{QEMU} cannot be run ({error}); install it: sudo apt-get install -y qemu-system-x86"
        ))
    })?;
    let text = String::from_utf8_lossy(&output.stdout);
    let first = text.lines().next().unwrap_or_default();
    Ok(first
        .trim_start_matches("QEMU emulator version ")
        .to_owned())
}

/// The CPU's name for itself.
#[must_use]
pub fn cpu_model() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = info
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(':'))
        .map(|(_, name)| name.trim().to_owned());
    name.unwrap_or_else(|| "unknown".into())
}
