//! Machines out of one repository and into another.

use std::{
    fs,
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use formats::{
    compress::Compression,
    vm::{Disk, Nic, Vm},
    xva::Checksum,
};
use nfs_sr::sr::{
    self, check,
    image::Image,
    store::{Directory, Store},
    vdi,
};
use proptest::prelude::*;
use transfer::progress::Estimate;
use transfer::{
    As, Export, Format, Identity, Options, check as dry_run, export_as, find, import, import_image,
    is_image, machines,
};
use vhd::{DiskKind, Uuid};

/// An export with one repository.
struct Pool {
    _folder: tempfile::TempDir,
    repository: PathBuf,
}

impl Pool {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("folder");
        let repository = sr::create(folder.path(), vdi::new_uuid()).expect("repository");
        Self {
            _folder: folder,
            repository,
        }
    }

    fn store(&self) -> Directory {
        Directory::new(&self.repository)
    }

    /// A machine with a disk of `size` bytes, whose MiB named in `filled` hold random data.
    fn machine(&self, size: u64, filled: &[u64]) -> Vm {
        let (store, uuid) = (self.store(), vdi::new_uuid());
        vdi::create(&store, uuid, size, DiskKind::Dynamic).expect("created");
        let mut image = Image::open(&store, &vdi::file_name(uuid)).expect("open");
        let mut rng = fastrand::Rng::with_seed(size);
        let mut data = vec![0; 1 << 20];
        for at in filled {
            rng.fill(&mut data);
            image.write(at << 20, &data).expect("written");
        }
        let vm = Vm {
            uuid: vdi::new_uuid().to_string(),
            name: "session".into(),
            memory: 256 << 20,
            vcpus: 1,
            weight: 256,
            disks: vec![Disk {
                uuid: uuid.to_string(),
                name: "root".into(),
                size,
            }],
            nics: vec![Nic {
                mac: "02:e1:ab:10:00:01".into(),
                network: "session".into(),
                model: String::new(),
            }],
            ..Vm::default()
        };
        let text = serde_json::to_vec(&vm).expect("plain data");
        fs::write(self.repository.join(format!("{}.vm", vm.uuid)), text).expect("written");
        vm
    }

    fn contents(&self, disk: &str) -> Vec<u8> {
        let store = self.store();
        let uuid: Uuid = disk.parse().expect("a UUID");
        let mut image = Image::open(&store, &vdi::file_name(uuid)).expect("open");
        let mut bytes = vec![0; image.size() as usize];
        image.read(0, &mut bytes).expect("read");
        bytes
    }

    fn names(&self) -> Vec<String> {
        let mut names = self.store().list().expect("listed");
        names.sort();
        names
    }

    fn export(
        &self,
        what: &str,
        target: &Path,
        options: Options,
    ) -> Result<transfer::Exported, transfer::Error> {
        let what = find(&self.repository, what)?;
        let export = Export {
            repository: &self.repository,
            what: &what,
            target,
            options,
        };
        export.run(&mut |_| {})
    }
}

const NEW: As = As {
    identity: Identity::New,
    name: None,
};
const SAME: As = As {
    identity: Identity::Same,
    name: None,
};
const MIB: u64 = 1 << 20;

#[test]
fn a_machine_moves_to_another_repository() {
    let (a, b) = (Pool::new(), Pool::new());
    let vm = a.machine(64 * MIB, &[0, 5, 6, 63]);
    let target = a.repository.with_extension("xva");
    let options = Options {
        checksum: Checksum::Sha1,
        compression: Compression::Zstd,
    };
    let exported = a.export("session", &target, options).expect("exported");
    assert_eq!(exported.resumed, 0);
    let before = b.names();
    let planned = dry_run(&target, &b.repository, &NEW, &mut |_| {}).expect("sound");
    assert_eq!(
        (planned.vm.name.as_str(), planned.size, planned.data),
        ("session", 64 * MIB, 4 * MIB)
    );
    assert_eq!(b.names(), before, "a dry run writes nothing");
    let new = import(&target, &b.repository, &NEW, &mut |_| {})
        .expect("imported")
        .vm;
    assert!(
        new.uuid != vm.uuid
            && new.disks[0].uuid != vm.disks[0].uuid
            && new.nics[0].mac != vm.nics[0].mac
    );
    assert!(b.contents(&new.disks[0].uuid) == a.contents(&vm.disks[0].uuid));
    let same = import(&target, &b.repository, &SAME, &mut |_| {})
        .expect("imported")
        .vm;
    assert_eq!(same, vm);
    assert!(b.contents(&vm.disks[0].uuid) == a.contents(&vm.disks[0].uuid));
    let error = import(&target, &b.repository, &SAME, &mut |_| {}).expect_err("there already");
    assert!(
        error.to_string().contains("is in the repository already"),
        "{error}"
    );
    assert_eq!(machines(&b.repository).expect("records").len(), 2);
    let problems = check::Survey::take(&b.store()).expect("survey").problems;
    assert!(problems.is_empty(), "{problems:?}");
}

#[test]
fn what_is_damaged_leaves_nothing() {
    let (a, b) = (Pool::new(), Pool::new());
    a.machine(8 * MIB, &[0, 3, 7]);
    let target = a.repository.with_extension("xva");
    a.export("session", &target, Options::default())
        .expect("exported");
    let mut bytes = fs::read(&target).expect("read");
    let name = b"Ref:1000/00000003";
    let at = bytes
        .windows(name.len())
        .position(|some| some == name)
        .expect("the chunk");
    bytes[at + 512 + 1000] ^= 0x10;
    fs::write(&target, bytes).expect("written");
    let before = b.names();
    for result in [
        import(&target, &b.repository, &NEW, &mut |_| {}).map(drop),
        dry_run(&target, &b.repository, &NEW, &mut |_| {}).map(drop),
    ] {
        let error = result.expect_err("damaged").to_string();
        assert!(
            error.starts_with("Ref:1000/00000003: the data has "),
            "{error}"
        );
    }
    assert_eq!(b.names(), before);
}

#[test]
fn who_cannot_be_found_is_told_who_can() {
    let pool = Pool::new();
    pool.machine(2 * MIB, &[]);
    let error = find(&pool.repository, "sesion")
        .expect_err("no such machine")
        .to_string();
    assert!(
        error.starts_with("there is no machine and no disk \"sesion\"")
            && error.ends_with("which has session"),
        "{error}"
    );
    let vm = &machines(&pool.repository).expect("records")[0];
    let found = find(&pool.repository, &vm.disks[0].uuid).expect("a disk without its machine");
    assert_eq!(found.files, [format!("{}.vhd", vm.disks[0].uuid)]);
}

/// The same bytes after each format, and `qemu-img` agrees.
#[test]
fn a_disk_is_the_same_in_every_format() {
    let pool = Pool::new();
    let vm = pool.machine(40 * MIB, &[0, 7, 39]);
    let before = pool.contents(&vm.disks[0].uuid);
    let what = find(&pool.repository, "session").expect("a machine");
    let folder = tempfile::tempdir().expect("folder");
    let raw = folder.path().join("disk.raw");
    for (format, name, theirs) in [
        (Format::Raw, "disk.raw", "raw"),
        (Format::Vhd, "disk.vhd", "vpc"),
        (Format::Vmdk, "disk.vmdk", "vmdk"),
        (Format::Qcow2, "disk.qcow2", "qcow2"),
    ] {
        let target = folder.path().join(name);
        export_as(&pool.repository, &what, &target, format, &mut |_| {}).expect("exported");
        let output = Command::new("qemu-img")
            .args(["compare", "-f", theirs, "-F", "raw"])
            .args([&target, &raw])
            .output()
            .expect("qemu-img is needed: run cargo xtask setup");
        assert!(
            output.status.success(),
            "{format:?}: {}",
            String::from_utf8_lossy(&output.stdout)
        );
        assert!(is_image(&target).expect("read"));
        let (uuid, size) = import_image(&target, &pool.repository, &mut |_| {}).expect("imported");
        assert_eq!(size, 40 * MIB, "{format:?}");
        assert!(pool.contents(&uuid.to_string()) == before, "{format:?}");
        let error = export_as(&pool.repository, &what, &target, format, &mut |_| {})
            .expect_err("there already");
        assert!(error.to_string().contains("exists already"), "{error}");
    }
    let target = folder.path().join("machine.ova");
    export_as(&pool.repository, &what, &target, Format::Ova, &mut |_| {}).expect("exported");
    assert!(!is_image(&target).expect("read"));
    let new = import(&target, &pool.repository, &NEW, &mut |_| {})
        .expect("imported")
        .vm;
    assert!(pool.contents(&new.disks[0].uuid) == before);
}

/// What the tests below kill: this program again, doing one thing.
const CHILD: &str = "TRANSFER_TEST_CHILD";

#[test]
#[ignore = "run by other tests, as a process of its own"]
fn child() {
    let Ok(task) = std::env::var(CHILD) else {
        return;
    };
    let words: Vec<_> = task.split('\n').collect();
    let (repository, file) = (Path::new(words[1]), Path::new(words[2]));
    match words[0] {
        "export" => {
            let what = find(repository, "session").expect("a machine");
            let options = Options {
                checksum: Checksum::Sha1,
                compression: Compression::Gzip,
            };
            let export = Export {
                repository,
                what: &what,
                target: file,
                options,
            };
            export.run(&mut |_| {}).expect("exported");
        }
        "import" => {
            import(file, repository, &NEW, &mut |_| {}).expect("imported");
        }
        "check" => {
            dry_run(file, repository, &NEW, &mut |_| {}).expect("sound");
        }
        other => panic!("{other}"),
    }
    if std::env::var_os("TRANSFER_TEST_PEAK").is_some() {
        let status = fs::read_to_string("/proc/self/status").expect("proc");
        let peak = status
            .lines()
            .find(|line| line.starts_with("VmHWM"))
            .expect("a peak");
        println!("{peak}");
    }
}

fn run_child(task: &str, repository: &Path, file: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().expect("this program"));
    command
        .args(["--exact", "child", "--ignored", "--nocapture"])
        .env(
            CHILD,
            format!("{task}\n{}\n{}", repository.display(), file.display()),
        )
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// Killed at points all over, an export goes on, and an import leaves nothing.
#[test]
fn kills_leave_nothing_or_what_can_be_gone_on_with() {
    let (a, b) = (Pool::new(), Pool::new());
    let filled: Vec<u64> = (0..40).collect();
    let vm = a.machine(48 * MIB, &filled);
    let target = a.repository.with_extension("xva");
    let mut killed = 0;
    // Later and later, so that one of them is through at last whatever else this machine does.
    for turn in 1..60 {
        let mut child = run_child("export", &a.repository, &target)
            .spawn()
            .expect("spawned");
        std::thread::sleep(Duration::from_millis(10 * turn * turn));
        child.kill().expect("killed or ended");
        let status = child.wait().expect("waited");
        if status.success() {
            break;
        }
        assert_eq!(status.signal(), Some(9), "it failed by itself");
        killed += 1;
        assert!(
            !target.exists(),
            "the archive has its name before it is whole"
        );
    }
    assert!(killed > 0 && target.exists(), "{killed} kills");
    let before = b.names();
    let mut killed = 0;
    for turn in 1..60 {
        let mut child = run_child("import", &b.repository, &target)
            .spawn()
            .expect("spawned");
        std::thread::sleep(Duration::from_millis(5 * turn * turn));
        child.kill().expect("killed or ended");
        if child.wait().expect("waited").success() {
            break;
        }
        killed += 1;
        let problems = check::Survey::take(&b.store()).expect("survey").problems;
        assert!(problems.is_empty(), "{problems:?}");
        let all = machines(&b.repository).expect("records");
        assert!(b.names() == before || all.len() == 1, "{:?}", b.names());
    }
    assert!(killed > 0, "no import was killed");
    let new = &machines(&b.repository).expect("records")[0];
    assert!(b.contents(&new.disks[0].uuid) == a.contents(&vm.disks[0].uuid));
}

/// An export that is interrupted after a checkpoint does not begin anew; one of a disk that has changed does.
#[test]
fn an_export_goes_on_where_it_was() {
    let pool = Pool::new();
    let filled: Vec<u64> = (0..40).collect();
    let vm = pool.machine(48 * MIB, &filled);
    let target = pool.repository.with_extension("xva");
    let what = find(&pool.repository, "session").expect("a machine");
    let interrupted = |target: &Path| {
        let export = Export {
            repository: &pool.repository,
            what: &what,
            target,
            options: Options::default(),
        };
        // Time passes, so that there are checkpoints; then the process is gone in the middle.
        let mut calls = 0;
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            export.run(&mut |_| {
                calls += 1;
                std::thread::sleep(Duration::from_millis(2100));
                assert!(calls < 3, "interrupted");
            })
        }));
        assert!(outcome.is_err());
    };
    interrupted(&target);
    let exported = pool
        .export("session", &target, Options::default())
        .expect("exported");
    assert!(exported.resumed > 0, "{exported:?}");
    let check = dry_run(&target, &pool.repository, &NEW, &mut |_| {}).expect("sound");
    assert_eq!(check.data, 40 * MIB);
    // Another time, and the disk changes meanwhile.
    let other = pool.repository.with_extension("other.xva");
    interrupted(&other);
    let store = pool.store();
    let uuid: Uuid = vm.disks[0].uuid.parse().expect("a UUID");
    let mut image = Image::open(&store, &vdi::file_name(uuid)).expect("open");
    image.write(0, &[7; 512]).expect("written");
    let exported = pool
        .export("session", &other, Options::default())
        .expect("exported");
    assert_eq!(exported.resumed, 0);
}

/// As with an archive, whatever the format keeps in memory: what is interrupted again and again becomes the file that it would
/// have become at once.
#[test]
fn images_go_on_where_they_were() {
    let pool = Pool::new();
    let filled: Vec<u64> = (0..40).collect();
    pool.machine(48 * MIB, &filled);
    let what = find(&pool.repository, "session").expect("a machine");
    for format in [
        Format::Raw,
        Format::Vhd,
        Format::Vmdk,
        Format::Qcow2,
        Format::Ova,
    ] {
        let folder = tempfile::tempdir().expect("folder");
        let target = |name: &str| folder.path().join(name).join("disk");
        for name in ["whole", "parts"] {
            fs::create_dir(folder.path().join(name)).expect("folder");
        }
        let whole = export_as(
            &pool.repository,
            &what,
            &target("whole"),
            format,
            &mut |_| {},
        );
        assert_eq!(whole.expect("exported").resumed, 0);
        let interrupted = |last: u32| {
            let mut calls = 0;
            let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                let target = target("parts");
                export_as(&pool.repository, &what, &target, format, &mut |_| {
                    calls += 1;
                    if calls == last - 1 {
                        std::thread::sleep(Duration::from_millis(2100));
                    }
                    assert!(calls < last + 2, "interrupted");
                })
            }));
            assert!(outcome.is_err(), "{format:?}");
        };
        interrupted(5);
        interrupted(17);
        let target = target("parts");
        assert!(!target.exists());
        let rest = export_as(&pool.repository, &what, &target, format, &mut |_| {});
        let rest = rest.expect("exported");
        assert_eq!(rest.resumed, 20 * MIB, "{format:?}");
        let [whole, parts] =
            ["whole", "parts"].map(|name| fs::read(folder.path().join(name).join("disk")));
        let (mut whole, mut parts) = (whole.expect("read"), parts.expect("read"));
        if format == Format::Vhd {
            // Each has its own identity and time, and sums over them.
            for bytes in [&mut whole, &mut parts] {
                let end = bytes.len() - 512;
                bytes[end..].fill(0);
                bytes[..512].fill(0);
            }
        }
        assert!(whole == parts, "{format:?}");
        let left = fs::read_dir(folder.path().join("parts")).expect("read");
        assert_eq!(left.count(), 1, "{format:?}");
    }
}

proptest! {
    /// The time left never grows, whatever the speed does, and is nothing at the end.
    #[test]
    fn time_left_never_runs_backwards(steps in prop::collection::vec((0..1000u64, 0..5000u64), 1..100), begun in 0..5000u64) {
        let total = begun + steps.iter().map(|(bytes, _)| bytes).sum::<u64>();
        let mut estimate = Estimate::new(total, begun);
        let (mut done, mut elapsed, mut before) = (begun, 0, None);
        for (bytes, ms) in steps {
            (done, elapsed) = (done + bytes, elapsed + ms);
            let now = estimate.advance(done, Duration::from_millis(elapsed)).left;
            prop_assert!(before.is_none() || now <= before, "{before:?} {now:?}");
            before = now;
        }
        prop_assert_eq!(before, Some(Duration::ZERO));
    }
}

/// Memory does not grow with the disk: a disk of 1 TiB, nearly all of it empty.
#[test]
fn a_tebibyte_takes_little_memory() {
    const LIMIT_KIB: u64 = 64 << 10;
    let pool = Pool::new();
    pool.machine(1 << 40, &[0, 1, 77_777, 500_000, (1 << 20) - 1]);
    let target = pool.repository.with_extension("xva");
    for task in ["export", "check", "import"] {
        let output = run_child(task, &pool.repository, &target)
            .env("TRANSFER_TEST_PEAK", "1")
            .output()
            .expect("ran");
        let (out, errors) = (
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr),
        );
        assert!(output.status.success(), "{task}: {errors}");
        let peak = out
            .lines()
            .find_map(|line| line.split_once("VmHWM:"))
            .expect("a peak")
            .1;
        let peak: u64 = peak
            .trim()
            .trim_end_matches(" kB")
            .parse()
            .expect("a number");
        println!("{task}: {peak} KiB");
        assert!(peak <= LIMIT_KIB, "{task} took {peak} KiB");
    }
    assert!(target.metadata().expect("an archive").len() < 8 * MIB);
}
