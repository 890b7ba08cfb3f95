//! Disks of the storage repositories: what each is for, what it takes, and who holds it.

use lab_protocol::event::DiskUse;

use super::{Lab, Lease};

/// A repository as it was told last.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Repository {
    /// Bytes that the file system below has left.
    pub free_bytes: u64,
    /// Its files.
    pub disks: Vec<DiskUse>,
}

impl Repository {
    /// The disks that somebody can use: base copies are parts of them.
    pub fn visible(&self) -> impl Iterator<Item = &DiskUse> {
        self.disks.iter().filter(|disk| !disk.base)
    }

    /// Bytes of all its files.
    #[must_use]
    pub fn used_bytes(&self) -> u64 {
        self.disks.iter().map(|disk| disk.used_bytes).sum()
    }

    /// Bytes that guests see.
    #[must_use]
    pub fn virtual_bytes(&self) -> u64 {
        self.visible().map(|disk| disk.virtual_bytes).sum()
    }

    /// Files of the longest chain.
    #[must_use]
    pub fn longest_chain(&self) -> u32 {
        self.disks.iter().map(|disk| disk.depth).max().unwrap_or(0)
    }
}

/// A disk, or something else that is leased.
#[derive(Clone, Copy, Debug)]
pub struct Disk<'a> {
    /// Its path below the export.
    pub path: &'a str,
    /// What it takes, if the lab has told.
    pub usage: Option<&'a DiskUse>,
    /// Who holds it, if anybody ever has.
    pub lease: Option<&'a Lease>,
}

impl<'a> Disk<'a> {
    /// Its name without directory and ending.
    #[must_use]
    pub fn name(&self) -> &'a str {
        let file = self.path.rsplit('/').next().unwrap_or(self.path);
        file.strip_suffix(".vhd").unwrap_or(file)
    }

    /// What it is for.
    #[must_use]
    pub fn of(&self) -> &'a str {
        match self.usage {
            Some(usage) if !usage.of.is_empty() => &usage.of,
            Some(usage) if usage.base => "base copy",
            Some(_) => "nobody",
            // The lease by which hosts agree who decides has this name.
            None if self.name() == "pool" => "the pool's hosts",
            None => "",
        }
    }
}

impl Lab {
    /// All disks and leases: VMs' disks first, what is nobody's last.
    #[must_use]
    pub fn disks(&self) -> Vec<Disk<'_>> {
        let known = || self.repositories.values().flat_map(|one| &one.disks);
        let mut disks: Vec<Disk<'_>> = known()
            .map(|usage| Disk {
                path: &usage.path,
                usage: Some(usage),
                lease: self.leases.get(&usage.path),
            })
            .collect();
        let has_file = |path: &str| known().any(|usage| usage.path == path);
        // The lease of a disk that was removed is of no interest; before anything was told, all are.
        let of_no_disk = self.leases.iter().filter(|(path, _)| {
            !has_file(path) && (self.repositories.is_empty() || !path.ends_with(".vhd"))
        });
        disks.extend(of_no_disk.map(|(path, lease)| Disk {
            path,
            usage: None,
            lease: Some(lease),
        }));
        disks.sort_by_key(|disk| {
            let base = disk.usage.is_some_and(|usage| usage.base);
            let of_machine = disk.usage.is_some_and(|usage| !usage.of.is_empty());
            (
                base,
                !of_machine,
                disk.of().to_owned(),
                disk.path.to_owned(),
            )
        });
        disks
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease() -> Lease {
        Lease {
            epoch: 1,
            owner: "h1".into(),
            change: "acquired".into(),
            t_ns: 0,
        }
    }

    fn file(path: &str, of: &str, base: bool) -> DiskUse {
        DiskUse {
            path: path.into(),
            of: of.into(),
            virtual_bytes: 100,
            used_bytes: 10,
            depth: 2,
            base,
        }
    }

    #[test]
    fn a_vm_that_was_never_started_is_known_by_its_disk() {
        let mut lab = Lab::default();
        let mut told = |of: &[&str]| {
            lab.apply(&lab_protocol::Record {
                schema: lab_protocol::SCHEMA,
                seq: 0,
                t_ns: 0,
                error_ns: 0,
                source: "lab".into(),
                event: lab_protocol::Event::RepositoryUse {
                    repository: "sr".into(),
                    free_bytes: 0,
                    disks: of.iter().map(|of| file("sr/a.vhd", of, false)).collect(),
                },
            });
            lab.vms.keys().cloned().collect::<Vec<_>>()
        };
        let all = ["g1", "g1@before", "g1 memory", "g1@before memory", "g2", ""];
        assert_eq!(told(&all), ["g1", "g2"]);
        assert_eq!(told(&["g1"]), ["g1"], "the other was removed");
        assert_eq!(lab.vms["g1"].word(), "off");
    }

    #[test]
    fn a_removed_disk_is_gone_though_it_was_leased() {
        let mut lab = Lab::default();
        for path in ["sr/pool", "sr/a.vhd", "sr/gone.vhd"] {
            lab.leases.insert(path.into(), lease());
        }
        assert_eq!(lab.disks().len(), 3, "nothing was told of files");
        let repository = Repository {
            free_bytes: 5,
            disks: vec![file("sr/b.vhd", "", true), file("sr/a.vhd", "g1", false)],
        };
        assert_eq!(
            (repository.virtual_bytes(), repository.used_bytes()),
            (100, 20)
        );
        lab.repositories.insert("sr".into(), repository);
        let shown: Vec<_> = lab
            .disks()
            .iter()
            .map(|disk| (disk.name(), disk.of()))
            .collect();
        assert_eq!(
            shown,
            [
                ("a", "g1"),
                ("pool", "the pool's hosts"),
                ("b", "base copy")
            ]
        );
    }
}
