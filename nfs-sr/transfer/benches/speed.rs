//! How fast machines go out of a repository and into one, in turns with `cat` of the same disk on the same file system, and
//! how long a snapshot or clone takes by size.

use std::{
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use formats::vm::{Disk, Vm};
use nfs_sr::sr::{self, chain, image::Image, store::Directory, vdi};
use transfer::{As, Export, Options, find, import, record};
use vhd::{DiskKind, Uuid};

const MIB: u64 = 1 << 20;
const SIZE: u64 = 512 * MIB;
const TURNS: usize = 5;

fn disk(repository: &Path, size: u64, filled: u64) -> Uuid {
    let (store, uuid) = (Directory::new(repository), vdi::new_uuid());
    vdi::create(&store, uuid, size, DiskKind::Dynamic).expect("created");
    let mut image = Image::open(&store, &vdi::file_name(uuid)).expect("open");
    let mut rng = fastrand::Rng::with_seed(1);
    let mut data = vec![0; MIB as usize];
    for at in 0..filled / MIB {
        rng.fill(&mut data);
        image.write(at * MIB, &data).expect("written");
    }
    uuid
}

fn median(mut times: Vec<Duration>) -> f64 {
    times.sort_unstable();
    times[times.len() / 2].as_secs_f64()
}

fn main() {
    let folder = tempfile::tempdir().expect("folder");
    let a = sr::create(folder.path(), vdi::new_uuid()).expect("repository");
    let b = sr::create(folder.path(), vdi::new_uuid()).expect("repository");
    let uuid = disk(&a, SIZE, SIZE);
    let vm = Vm {
        uuid: vdi::new_uuid().to_string(),
        name: "bench".into(),
        disks: vec![Disk {
            uuid: uuid.to_string(),
            name: "root".into(),
            size: SIZE,
        }],
        ..Vm::default()
    };
    record(&a, &vm).expect("recorded");
    let what = find(&a, "bench").expect("found");
    let (mut cat, mut out, mut into) = (Vec::new(), Vec::new(), Vec::new());
    for turn in 0..TURNS {
        let copy = folder.path().join("copy");
        let begun = Instant::now();
        let script = format!(
            "cat '{}' > '{}' && sync '{1}'",
            a.join(vdi::file_name(uuid)).display(),
            copy.display()
        );
        assert!(
            Command::new("sh")
                .args(["-c", &script])
                .status()
                .expect("a shell")
                .success()
        );
        cat.push(begun.elapsed());
        std::fs::remove_file(&copy).expect("removed");
        let target = folder.path().join(format!("{turn}.xva"));
        let begun = Instant::now();
        let export = Export {
            repository: &a,
            what: &what,
            target: &target,
            options: Options::default(),
        };
        export.run(&mut |_| {}).expect("exported");
        out.push(begun.elapsed());
        let begun = Instant::now();
        let new = import(&target, &b, &As::default(), &mut |_| {}).expect("imported");
        into.push(begun.elapsed());
        std::fs::remove_file(&target).expect("removed");
        std::fs::remove_file(b.join(format!("{}.vhd", new.vm.disks[0].uuid))).expect("removed");
    }
    println!(
        "{} MiB of random data, medians of {TURNS}, everything synced:",
        SIZE / MIB
    );
    let cat = median(cat);
    for (name, times) in [
        ("export, verified", median(out)),
        ("import, verified", median(into)),
        ("cat", cat),
    ] {
        println!(
            "  {name:<17} {:>7.1} MB/s  {:>5.1} % of cat",
            SIZE as f64 / 1e6 / times,
            100.0 * cat / times
        );
    }
    for (name, size) in [("1 GiB", 1 << 30), ("1 TiB", 1 << 40)] {
        let uuid = disk(&a, size, 64 * MIB);
        let store = Directory::new(&a);
        let times = (0..TURNS).map(|_| {
            let begun = Instant::now();
            chain::snapshot(&store, uuid, vdi::new_uuid()).expect("cloned");
            begun.elapsed()
        });
        println!("clone of {name}: {:.1} ms", 1e3 * median(times.collect()));
    }
}
