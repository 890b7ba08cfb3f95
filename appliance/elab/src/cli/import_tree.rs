//! `elab import-tree`: a machine of metal becomes a VM.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use formats::vm::{DirectBoot, Disk, Nic, Vm};
use images::tree::{Boot, Tree};
use nfs_sr::sr::{chain, store::Directory, vdi};

use super::export::Place;

/// Arguments of `elab import-tree`.
#[derive(Clone, Debug, clap::Args)]
pub struct ImportTreeArguments {
    /// The root tree: a directory, or an archive that tar knows
    pub tree: PathBuf,
    /// Name of the VM
    pub vm_name: String,
    /// Where the VM shall be
    #[command(flatten)]
    pub place: Place,
    /// Size of its disk, in MiB; by default a quarter more than the tree has, and 256
    #[arg(long, value_name = "MIB", value_parser = clap::value_parser!(u64).range(16..=2_088_960))]
    pub size: Option<u64>,
    /// Memory of the VM, in MiB
    #[arg(long, value_name = "MIB", default_value_t = 512, value_parser = clap::value_parser!(u64).range(64..=1_048_576))]
    pub memory: u64,
    /// Say what would start it, and what it would miss; write nothing
    #[arg(long)]
    pub check: bool,
}

/// `elab import-tree`.
///
/// # Errors
/// When the tree would not boot on a virtual disk, or cannot be copied.
pub fn import_tree(arguments: &ImportTreeArguments) -> Result<ExitCode> {
    let repository = arguments.place.repository()?.canonicalize()?;
    let export = repository
        .parent()
        .context("a repository lies in an export")?;
    let name = &arguments.vm_name;
    let known = transfer::machines(&repository)?;
    if known.iter().any(|vm| vm.name == *name) {
        bail!("there is a VM \"{name}\" already; give another name");
    }
    let work = tempfile::tempdir().context("cannot make a folder for the tree; set TMPDIR")?;
    eprintln!("reading {}", arguments.tree.display());
    let tree = Tree::unpack(&arguments.tree, work.path())?;
    let boot = tree
        .boot()
        .with_context(|| format!("{} cannot become a VM", arguments.tree.display()))?;
    println!("kernel {}, root on {}", boot.version, boot.uuid);
    for note in &boot.notes {
        println!("note: {note}");
    }
    if arguments.check {
        return Ok(ExitCode::SUCCESS);
    }
    eprintln!("writing the disk");
    let raw = work.path().join("disk.raw");
    let size = tree.write_disk(&boot, arguments.size.map(|mib| mib << 20), &raw)?;
    let disk = vdi::new_uuid();
    let mut vm = Vm {
        uuid: vdi::new_uuid().to_string(),
        name: name.clone(),
        memory: arguments.memory << 20,
        vcpus: 1,
        weight: 256,
        disks: vec![Disk {
            uuid: disk.to_string(),
            name: "root".into(),
            size,
        }],
        nics: vec![Nic {
            mac: transfer::new_mac(),
            network: "session".into(),
            model: String::new(),
        }],
        ..Vm::default()
    };
    let folder = format!("boot/{}", vm.uuid);
    vm.direct_boot = Some(DirectBoot {
        kernel: format!("{folder}/vmlinuz"),
        initrd: format!("{folder}/initrd.img"),
        command_line: boot.command_line.clone(),
    });
    let store = Directory::new(&repository);
    // The record last: a VM that is known has its disk and its kernel.
    let created = copy_kernel(&boot, &export.join(&folder))
        .and_then(|()| Ok(vdi::import(&store, disk, &raw, None)?))
        .and_then(|()| Ok(transfer::record(&repository, &vm)?));
    if let Err(error) = created {
        // Of what was created; what there is not cannot be removed.
        let _ = fs::remove_dir_all(export.join(&folder));
        let _ = chain::delete(&store, disk);
        return Err(error.context(format!(
            "\"{name}\" was not created, and nothing is left of it"
        )));
    }
    println!("created VM \"{name}\" ({}), disk {disk}", vm.uuid);
    Ok(ExitCode::SUCCESS)
}

fn copy_kernel(boot: &Boot, folder: &Path) -> Result<()> {
    let failed = || format!("cannot write {}", folder.display());
    fs::create_dir_all(folder).with_context(failed)?;
    for (from, to) in [(&boot.kernel, "vmlinuz"), (&boot.initrd, "initrd.img")] {
        let to = folder.join(to);
        fs::copy(from, &to).with_context(failed)?;
        File::open(&to)
            .and_then(|file| file.sync_all())
            .with_context(failed)?;
    }
    Ok(())
}
