//! What is in a repository, and what is wrong with it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use ::statefile::NAME as STATEFILE;
use vhd::{Batmap, DiskKind, Footer, MAX_CHAIN, SECTOR, Uuid};

use super::{
    chain,
    image::{Layer, SrError, at},
    journal, merge, statefile,
    store::Store,
    vdi::uuid_of,
};

/// How names end that say nothing of how disks hang together: records of machines, of snapshots of them, and of where the memory
/// of suspended ones is; and second names of disks whose machines go on from a checkpoint when their host fails.
const RECORDS: [&str; 4] = [".vm", ".snapshot", ".suspended", ".vhd.kept"];

/// A disk of the repository.
#[derive(Clone, Debug)]
pub struct Disk {
    /// Its footer.
    pub footer: Footer,
    /// The file and identity of its parent.
    pub parent: Option<(String, Uuid)>,
}

/// Something that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the sentences below say what each is")]
pub enum Problem {
    Unknown { name: String },
    Leftover { name: String },
    Journal { name: String },
    Duplicate { name: String, of: String },
    Damaged { name: String, why: String },
    Footer { name: String, which: &'static str },
    BeyondEnd { name: String, block: u32 },
    MissingParent { name: String, parent: String },
    WrongParent { name: String, parent: String },
    Merging { name: String, parent: String },
    Merged { name: String },
    Chain { name: String },
    VisibleParent { name: String },
    Garbage { name: String },
    Batmap { name: String, why: String },
    NotFull { name: String, block: u32 },
    Statefile { why: String },
    Heartbeat { index: u32, why: String },
}

impl Problem {
    /// It can be repaired without a decision by people, since no data that anybody can see depends on it.
    pub fn is_repairable(&self) -> bool {
        match self {
            Self::Leftover { .. }
            | Self::Journal { .. }
            | Self::Duplicate { .. }
            | Self::Footer { .. }
            | Self::VisibleParent { .. }
            | Self::Merging { .. }
            | Self::Batmap { .. }
            | Self::Garbage { .. } => true,
            Self::Unknown { .. }
            | Self::Damaged { .. }
            | Self::BeyondEnd { .. }
            | Self::MissingParent { .. }
            | Self::WrongParent { .. }
            | Self::Chain { .. }
            | Self::Merged { .. }
            | Self::NotFull { .. }
            | Self::Statefile { .. }
            | Self::Heartbeat { .. } => false,
        }
    }

    /// Nothing is wrong with any disk: somebody put a file here, or space can be reclaimed.
    pub fn is_harmless(&self) -> bool {
        matches!(
            self,
            Self::Unknown { .. }
                | Self::Garbage { .. }
                | Self::Merged { .. }
                | Self::Leftover { .. }
                | Self::Heartbeat { .. }
        )
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown { name } => write!(f, "{name}: not a file of a repository"),
            Self::Leftover { name } => write!(
                f,
                "{name}: left over from an operation that was interrupted"
            ),
            Self::Journal { name } => write!(
                f,
                "{name}: a change that was interrupted and must be completed"
            ),
            Self::Duplicate { name, of } => write!(
                f,
                "{name}: another name of {of}, from an interrupted snapshot"
            ),
            Self::Damaged { name, why } => {
                write!(f, "{name}: damaged: {why}; restore it from a backup")
            }
            Self::Footer { name, which } => write!(
                f,
                "{name}: the footer at the {which} is damaged, its copy is good"
            ),
            Self::BeyondEnd { name, block } => {
                write!(
                    f,
                    "{name}: block {block} lies beyond the end of the file; its data is lost"
                )
            }
            Self::MissingParent { name, parent } => {
                write!(f, "{name}: its parent {parent} is missing")
            }
            Self::WrongParent { name, parent } => {
                write!(
                    f,
                    "{name}: its parent {parent} is not the disk that it was made from"
                )
            }
            Self::Merging { name, parent } => write!(
                f,
                "{name}: was merged into {parent}, which is to take its name"
            ),
            Self::Merged { name } => write!(
                f,
                "{name}: kept for hosts that had it open when it was merged; coalescing removes it when no host has a disk open"
            ),
            Self::Chain { name } => write!(
                f,
                "{name}: its chain of parents is a circle or longer than {MAX_CHAIN}"
            ),
            Self::VisibleParent { name } => {
                write!(f, "{name}: has children but is not marked as a base copy")
            }
            Self::Garbage { name } => write!(
                f,
                "{name}: a base copy without children; its space can be reclaimed"
            ),
            Self::Batmap { name, why } => write!(f, "{name}: {why}; the bitmaps say the same"),
            Self::NotFull { name, block } => write!(
                f,
                "{name}: the batmap says that block {block} is full, and its bitmap that it is not; one is wrong"
            ),
            Self::Statefile { why } => write!(
                f,
                "{STATEFILE}: {why}; disable availability, remove the file and run 'nfs-sr sr statefile --create'"
            ),
            Self::Heartbeat { index, why } => write!(
                f,
                "{STATEFILE}: slot of host {index}: {why}; the host's next heartbeat mends it"
            ),
        }
    }
}

/// All disks of a repository and how they hang together.
#[derive(Clone, Debug, Default)]
pub struct Survey {
    /// By file name.
    pub disks: BTreeMap<String, Disk>,
    /// What was found wrong.
    pub problems: Vec<Problem>,
}

impl Survey {
    /// Looks at every file.
    pub fn take<S: Store>(store: &S) -> Result<Self, SrError> {
        let mut survey = Self::default();
        let mut names = at("the repository", store.list())?;
        names.sort();
        for name in names {
            match () {
                () if uuid_of(&name).is_some() => survey.look_at(store, name)?,
                () if journal::subject(&name).is_some() => {
                    survey.problems.push(Problem::Journal { name })
                }
                () if name.ends_with(".vhd.new") || name == "statefile.new" => {
                    survey.problems.push(Problem::Leftover { name })
                }
                // XenServer's, and what says nothing of how disks hang together.
                () if name == "filelog.txt" || RECORDS.iter().any(|end| name.ends_with(end)) => {}
                () if name.ends_with(merge::MERGED) => {
                    survey.problems.push(Problem::Merged { name })
                }
                () if name == STATEFILE => survey.look_at_statefile(store)?,
                () => survey.problems.push(Problem::Unknown { name }),
            }
        }
        survey.find_duplicates(store)?;
        survey.look_at_chains();
        Ok(survey)
    }

    /// Files whose parent is `name`.
    pub fn children(&self, name: &str) -> Vec<&str> {
        let is_child = |disk: &Disk| {
            disk.parent
                .as_ref()
                .is_some_and(|(parent, _)| parent == name)
        };
        self.disks
            .iter()
            .filter(|(_, disk)| is_child(disk))
            .map(|(name, _)| name.as_str())
            .collect()
    }

    /// The file and all its descendants have this property.
    pub fn all_below(&self, name: &str, property: &dyn Fn(&str) -> bool) -> bool {
        let mut open = vec![name];
        let mut seen = 0;
        while let Some(name) = open.pop() {
            seen += 1;
            // More than there are: a circle, best left alone.
            if seen > self.disks.len() || !property(name) {
                return false;
            }
            open.extend(self.children(name));
        }
        true
    }

    /// Disks that were merged into their parents, which are to take their names.
    pub fn half_merged(&self) -> impl Iterator<Item = (&str, &str)> {
        self.problems.iter().filter_map(|problem| match problem {
            Problem::Merging { name, parent } => Some((name.as_str(), parent.as_str())),
            _ => None,
        })
    }

    /// Old files of disks that were merged.
    pub fn merged(&self) -> impl Iterator<Item = &str> {
        self.problems.iter().filter_map(|problem| match problem {
            Problem::Merged { name } => Some(name.as_str()),
            _ => None,
        })
    }

    /// There are files that cannot be read: whether something is needed is not known.
    pub fn is_uncertain(&self) -> bool {
        let damaged = |problem: &Problem| matches!(problem, Problem::Damaged { .. });
        self.problems.iter().any(damaged)
    }

    fn look_at<S: Store>(&mut self, store: &S, name: String) -> Result<(), SrError> {
        let mut layer = match Layer::open(store, &name) {
            Ok(layer) => layer,
            Err(error @ SrError::Io { .. }) => return Err(error),
            Err(error) => {
                self.problems.push(Problem::Damaged {
                    name,
                    why: error.to_string(),
                });
                return Ok(());
            }
        };
        let footer = layer.disk.footer();
        let length = at(&name, store.length(&name))?;
        let mut check = |which, offset| {
            let mut bytes = [0; SECTOR as usize];
            at(&name, store.read(&name, offset, &mut bytes))?;
            if Footer::parse(&bytes).as_ref() != Ok(footer) {
                self.problems.push(Problem::Footer {
                    name: name.clone(),
                    which,
                });
            }
            Ok::<(), SrError>(())
        };
        check(
            "end",
            length.saturating_sub(SECTOR).max(layer.disk.footer_at()),
        )?;
        if footer.kind != DiskKind::Fixed {
            check("start", 0)?;
        }
        if let (Some(bat), Some(header)) = (layer.disk.bat(), layer.disk.header()) {
            let size = u64::from(header.bitmap_size()) + u64::from(header.block_size);
            for (block, sector) in bat.allocated() {
                if u64::from(sector) * SECTOR + size > length {
                    self.problems.push(Problem::BeyondEnd {
                        name: name.clone(),
                        block,
                    });
                }
            }
        }
        self.look_at_batmap(store, &mut layer)?;
        let footer = layer.disk.footer();
        let identity = layer.disk.header().map(|header| header.parent);
        let parent = layer.parent_name().map(str::to_owned).zip(identity);
        self.disks.insert(
            name,
            Disk {
                footer: footer.clone(),
                parent,
            },
        );
        Ok(())
    }

    fn look_at_batmap<S: Store>(&mut self, store: &S, layer: &mut Layer) -> Result<(), SrError> {
        let Some(header) = layer.disk.header() else {
            return Ok(());
        };
        let name = layer.name.clone();
        match layer.disk.batmap() {
            Some(batmap) => {
                let full: Vec<u32> = batmap.full().collect();
                for block in full {
                    if !layer.is_full(store, block)? {
                        let name = name.clone();
                        self.problems.push(Problem::NotFull { name, block });
                    }
                }
            }
            None => {
                let offset = Batmap::offset(header);
                let mut bytes = vec![0; Batmap::file_size(header.bat_entries) as usize];
                at(&name, store.read(&name, offset, &mut bytes))?;
                if let Err(error) = Batmap::parse(&bytes, offset) {
                    let why = error.to_string();
                    self.problems.push(Problem::Batmap { name, why });
                }
            }
        }
        Ok(())
    }

    fn look_at_statefile<S: Store>(&mut self, store: &S) -> Result<(), SrError> {
        if let Some(why) = statefile::fault(store)? {
            self.problems.push(Problem::Statefile { why });
            return Ok(());
        }
        for heartbeat in statefile::heartbeats(store)? {
            if let Err(bad) = heartbeat.last {
                self.problems.push(Problem::Heartbeat {
                    index: heartbeat.index,
                    why: bad.to_string(),
                });
            }
        }
        Ok(())
    }

    /// Two names of one file: a snapshot that came no further than that. Its `.new` file names the base copy that was to be.
    fn find_duplicates<S: Store>(&mut self, store: &S) -> Result<(), SrError> {
        let mut bases = BTreeSet::new();
        for problem in &self.problems {
            if let Problem::Leftover { name } = problem
                && let Ok(layer) = Layer::open(store, name)
            {
                bases.extend(layer.parent_name().map(str::to_owned));
            }
        }
        for base in bases.iter().filter(|base| self.disks.contains_key(*base)) {
            for of in self.disks.keys().filter(|of| *of != base) {
                if at(base, store.same(base, of))? {
                    self.problems.push(Problem::Duplicate {
                        name: base.clone(),
                        of: of.clone(),
                    });
                }
            }
        }
        Ok(())
    }

    fn look_at_chains(&mut self) {
        let mut problems = Vec::new();
        for (name, disk) in &self.disks {
            let name = name.clone();
            if let Some((parent, identity)) = &disk.parent {
                match self.disks.get(parent) {
                    None => problems.push(Problem::MissingParent {
                        name: name.clone(),
                        parent: parent.clone(),
                    }),
                    Some(found) if found.footer.uuid == disk.footer.uuid => {
                        problems.push(Problem::Merging {
                            name: name.clone(),
                            parent: parent.clone(),
                        });
                    }
                    Some(found) if found.footer.uuid != *identity => {
                        problems.push(Problem::WrongParent {
                            name: name.clone(),
                            parent: parent.clone(),
                        });
                    }
                    Some(_) => {}
                }
            }
            if self.depth(&name) > MAX_CHAIN {
                problems.push(Problem::Chain { name: name.clone() });
            }
            match (disk.footer.hidden, self.children(&name).is_empty()) {
                (false, false) => problems.push(Problem::VisibleParent { name }),
                (true, true) => problems.push(Problem::Garbage { name }),
                _ => {}
            }
        }
        self.problems.extend(problems);
    }

    fn depth(&self, name: &str) -> usize {
        let parent = |name: &&str| Some(self.disks.get(*name)?.parent.as_ref()?.0.as_str());
        std::iter::successors(Some(name), parent)
            .take(MAX_CHAIN + 1)
            .count()
    }
}

/// Repairs what can be repaired. Gives what is still wrong.
pub fn repair<S: Store>(store: &S) -> Result<Vec<Problem>, SrError> {
    journal::redo_all(store)?;
    let mut problems = Survey::take(store)?.problems;
    // What is left over tells about duplicates, so it goes last.
    problems.sort_by_key(|problem| matches!(problem, Problem::Leftover { .. }));
    for problem in problems {
        match &problem {
            Problem::Leftover { name } | Problem::Duplicate { name, .. } => {
                at(name, store.remove(name))?;
                at(name, store.sync_names())?;
            }
            Problem::Footer { name, .. } => {
                let mut layer = Layer::open(store, name)?;
                let footer = layer.disk.footer().clone();
                at(name, store.set_length(name, layer.disk.footer_at()))?;
                layer.write_footer(store, footer)?;
            }
            Problem::Batmap { name, .. } => {
                let layer = Layer::open(store, name)?;
                if let Some(header) = layer.disk.header() {
                    let offset = Batmap::offset(header);
                    let empty = Batmap::empty(header.bat_entries).encode(offset);
                    journal::write(store, name, &[(offset, empty)])?;
                }
            }
            Problem::VisibleParent { name } => chain::hide(store, name, true)?,
            Problem::Merging { name, parent } => merge::take_place(store, parent, name)?,
            Problem::Garbage { name } => {
                // Only a whole survey without damage tells for sure that nobody needs it.
                let survey = Survey::take(store)?;
                if !survey.is_uncertain() && survey.children(name).is_empty() {
                    at(name, store.remove(name))?;
                    at(name, store.sync_names())?;
                }
            }
            _ => {}
        }
    }
    Ok(Survey::take(store)?.problems)
}
