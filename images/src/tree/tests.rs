use super::*;

/// A tree with the names of a Debian's files, whose initrd holds these modules.
fn tree(folder: &Path, versions: &[&str], modules: &[&str]) -> Tree {
    let root = folder.join("root");
    fs::create_dir_all(root.join("boot")).expect("boot");
    fs::create_dir_all(root.join("etc")).expect("etc");
    for version in versions {
        let mut kernel = vec![0; 0x300];
        kernel[0x202..0x206].copy_from_slice(b"HdrS");
        fs::write(root.join(format!("boot/vmlinuz-{version}")), kernel).expect("kernel");
        let initrd = root.join(format!("boot/initrd.img-{version}"));
        fs::write(initrd, initrd::tests::archive(modules)).expect("initrd");
    }
    Tree {
        root,
        owners: folder.join("owners"),
    }
}

const WHOLE: [&str; 4] = [
    "a/virtio_pci.ko",
    "a/virtio-blk.ko.xz",
    "ext4.ko.zst",
    "virtio_net.ko",
];

#[test]
fn the_newest_kernel_with_an_initrd_starts_and_the_root_keeps_its_uuid() {
    let folder = tempfile::tempdir().expect("folder");
    let tree = tree(folder.path(), &["6.9.0-3-amd64", "6.10.0-1-amd64"], &WHOLE);
    fs::write(tree.root.join("boot/vmlinuz-7.0"), "has no initrd").expect("written");
    let fstab = "# root\nUUID=0A1B2C3D-0000-4000-8000-000000000001 / ext4 defaults 0 1\n\
                 UUID=AAAA-BBBB /boot/efi vfat umask=0077 0 1\ntmpfs /tmp tmpfs\n";
    fs::write(tree.root.join("etc/fstab"), fstab).expect("written");
    let boot = tree.boot().expect("it boots");
    assert_eq!(boot.version, "6.10.0-1-amd64");
    assert!(boot.initrd.ends_with("boot/initrd.img-6.10.0-1-amd64"));
    let line = "root=UUID=0a1b2c3d-0000-4000-8000-000000000001 ro console=ttyS0";
    assert_eq!(boot.command_line, line);
    assert_eq!(boot.notes.len(), 1, "{:?}", boot.notes);
    assert!(boot.notes[0].contains("/boot/efi"));
}

#[test]
fn a_driver_may_be_built_into_the_kernel_and_one_that_is_nowhere_is_named() {
    let folder = tempfile::tempdir().expect("folder");
    let tree = tree(folder.path(), &["6.1"], &["ext4.ko", "virtio_pci.ko"]);
    let error = tree.boot().expect_err("no virtio_blk").to_string();
    assert!(
        error.contains("virtio_blk") && !error.contains("virtio_pci"),
        "{error}"
    );
    assert!(error.contains("update-initramfs"), "{error}");
    let modules = tree.root.join("usr/lib/modules/6.1");
    fs::create_dir_all(&modules).expect("folder");
    fs::write(
        modules.join("modules.builtin"),
        "kernel/drivers/block/virtio_blk.ko\n",
    )
    .expect("written");
    tree.boot().expect("it has all");
}

#[test]
fn what_is_no_root_tree_is_refused_and_links_out_of_it_are_not_followed() {
    let folder = tempfile::tempdir().expect("folder");
    let tree = tree(folder.path(), &[], &WHOLE);
    let error = tree.boot().expect_err("no kernel").to_string();
    assert!(error.contains("no kernel"), "{error}");
    std::os::unix::fs::symlink("/etc/passwd", tree.root.join("boot/vmlinuz-6.1")).expect("link");
    assert!(tree.boot().is_err());
    fs::remove_dir_all(tree.root.join("boot")).expect("removed");
    std::os::unix::fs::symlink("/boot", tree.root.join("boot")).expect("link");
    assert!(tree.boot().is_err());
}

#[test]
fn an_archive_becomes_a_disk_with_its_owners() {
    let folder = tempfile::tempdir().expect("folder");
    let source = tree(&folder.path().join("source"), &["6.1"], &WHOLE).root;
    let archive = folder.path().join("tree.tar.gz");
    let sh = Shell::new().expect("shell");
    cmd!(
        sh,
        "tar -C {source} --owner=1234 --group=77 -czf {archive} ."
    )
    .quiet()
    .run()
    .expect("tar");
    let tree = Tree::unpack(&archive, folder.path()).expect("unpacked");
    let boot = tree.boot().expect("it boots");
    let image = folder.path().join("disk.raw");
    tree.write_disk(&boot, Some(64 << 20), &image)
        .expect("a disk");
    let path = std::env::var("PATH").unwrap_or_default();
    let _path = sh.push_env("PATH", format!("{path}:/usr/sbin:/sbin"));
    let stat = cmd!(sh, "debugfs -R 'stat /boot/vmlinuz-6.1' {image}")
        .quiet()
        .ignore_stderr()
        .read()
        .expect("debugfs");
    let words: Vec<&str> = stat.split_whitespace().collect();
    assert!(
        words.windows(2).any(|pair| pair == ["User:", "1234"]),
        "{stat}"
    );
    let head = cmd!(sh, "dumpe2fs -h {image}")
        .quiet()
        .ignore_stderr()
        .read()
        .expect("dumpe2fs");
    assert!(head.contains(&boot.uuid), "{head}");
}
