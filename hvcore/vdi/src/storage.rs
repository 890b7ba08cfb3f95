//! One NFS connection of a host with all its disks.

use alloc::{
    collections::{BTreeMap, VecDeque},
    string::String,
};

use nfs_client::{Call, CallError, Client, ClientConfig, Reply};

use crate::{
    disk::{Context, Disk},
    error::{StateError, StorageError},
    file::{self, FileRead},
    opening::{self, Opening, Purpose},
    request::{Access, Completion, DiskId, Op, Token},
    state::DiskState,
    tag::{DiskJob, FileJob, OpenJob, Tag},
};

const NS_PER_MS: u64 = 1_000_000;

/// How a host uses its storage server.
#[derive(Clone, Debug)]
pub struct StorageConfig {
    /// The host's name: owner of its leases, machine name of its NFS calls.
    pub owner: String,
    /// Path of the export, such as `/export`.
    pub export: String,
    /// A random number, new at each boot: calls of an earlier boot must not be mistaken for ours.
    pub seed: u32,
    /// How long a lease lasts without renewal, in milliseconds; renewed after a third of it.
    pub lease_ttl_ms: u32,
    /// How long `read_file`, `open_disk` and `prepare_disk` may take in all, in milliseconds.
    pub open_timeout_ms: u32,
    /// Longest file that `read_file` reads.
    pub max_file: u64,
}

impl StorageConfig {
    /// The usual figures.
    #[must_use]
    pub fn new(owner: String, export: String, seed: u32) -> Self {
        Self {
            owner,
            export,
            seed,
            lease_ttl_ms: 10_000,
            open_timeout_ms: 30_000,
            max_file: 256 << 20,
        }
    }
}

/// One NFS connection of a host with all its disks.
///
/// The host's loop: when [`wants_connection`](Self::wants_connection) and there is none, connect; when it does not
/// and there is one, abort it. Report both by [`on_connected`](Self::on_connected) and
/// [`on_disconnected`](Self::on_disconnected). Pass what arrives to [`receive`](Self::receive), fill the socket's
/// send buffer by [`transmit`](Self::transmit), take every [`next_completion`](Self::next_completion), and call
/// [`on_time`](Self::on_time) at [`next_deadline_ns`](Self::next_deadline_ns).
#[derive(Debug)]
pub struct Storage {
    config: StorageConfig,
    client: Client<Tag>,
    files: BTreeMap<Token, (FileRead, u64)>,
    openings: BTreeMap<Token, (Opening, u64)>,
    disks: BTreeMap<DiskId, Disk>,
    next_token: u64,
    next_disk: u32,
    done: VecDeque<Completion>,
}

impl Storage {
    /// No connection and no disks yet.
    #[must_use]
    pub fn new(config: StorageConfig, now_ns: u64) -> Self {
        let client = Client::new(ClientConfig::new(config.owner.clone(), config.seed), now_ns);
        Self {
            config,
            client,
            files: BTreeMap::new(),
            openings: BTreeMap::new(),
            disks: BTreeMap::new(),
            next_token: 0,
            next_disk: 0,
            done: VecDeque::new(),
        }
    }

    /// The configuration.
    #[must_use]
    pub fn config(&self) -> &StorageConfig {
        &self.config
    }

    /// Whether there should be a TCP connection to the server now. False for a while after one was lost
    /// or refused, and from the moment a connection has stopped answering until it is closed.
    #[must_use]
    pub fn wants_connection(&self) -> bool {
        self.client.wants_connection()
    }

    /// The connection stands.
    pub fn on_connected(&mut self, now_ns: u64) {
        self.client.on_connected(now_ns);
        let mut cx = Context {
            client: &mut self.client,
            done: &mut self.done,
            now_ns,
        };
        for disk in self.disks.values_mut() {
            disk.on_connected(&mut cx);
        }
        self.hold_back();
    }

    /// Nothing is repeated on a new connection before what comes late from the old one is fenced off.
    fn hold_back(&mut self) {
        self.client.hold(self.disks.values().any(Disk::is_fencing));
    }

    /// The connection is gone, or could not be made. Everything outstanding is sent again on the next one.
    pub fn on_disconnected(&mut self, now_ns: u64) {
        self.client.on_disconnected(now_ns);
    }

    /// Takes in what arrived on the connection.
    pub fn receive(&mut self, bytes: &[u8], now_ns: u64) {
        self.client.receive(bytes, now_ns);
        self.on_answers(now_ns);
    }

    /// Fills `into`, the free part of the socket's send buffer, with what is to be sent, and says how many bytes
    /// that were. 0: nothing to send.
    pub fn transmit(&mut self, into: &mut [u8], now_ns: u64) -> usize {
        self.client.transmit(into, now_ns)
    }

    /// When [`on_time`](Self::on_time) must be called at the latest.
    #[must_use]
    pub fn next_deadline_ns(&self) -> Option<u64> {
        let disks = self.disks.values().filter_map(Disk::next_deadline_ns);
        disks.chain(self.client.next_deadline_ns()).min()
    }

    /// Time has passed: renews leases, gives up on a connection that does not answer.
    pub fn on_time(&mut self, now_ns: u64) {
        self.client.on_time(now_ns);
        self.on_answers(now_ns);
        let mut cx = Context {
            client: &mut self.client,
            done: &mut self.done,
            now_ns,
        };
        for disk in self.disks.values_mut() {
            disk.on_time(&mut cx);
        }
    }

    /// Whether the server answers. False from the loss of a connection, or 2 s without an awaited
    /// answer, until the next answer.
    #[must_use]
    pub fn is_up(&self) -> bool {
        self.client.is_up()
    }

    /// Reads a whole file, such as a kernel. Ends in [`Completion::File`].
    pub fn read_file(&mut self, path: &str, now_ns: u64) -> Token {
        let token = self.token();
        let deadline_ns = self.open_deadline(now_ns);
        match FileRead::start(&self.config.export, path, self.config.max_file) {
            Ok((file, call)) => {
                self.files.insert(token, (file, deadline_ns));
                self.client
                    .call(Tag::File(token, FileJob::Step), call, Some(deadline_ns));
            }
            Err(why) => self.done.push_back(Completion::File {
                token,
                result: Err(why),
            }),
        }
        token
    }

    /// Opens a disk: takes its lease (an exclusive one, or a shared one for [`Access::ReadOnly`]), reads its tables.
    /// Ends in [`Completion::Opened`], after which it accepts I/O.
    pub fn open_disk(&mut self, path: &str, access: Access, now_ns: u64) -> Token {
        let purpose = match access {
            Access::ReadWrite => Purpose::Own,
            Access::ReadOnly => Purpose::Share,
        };
        self.open(path, purpose, now_ns)
    }

    /// Opens a disk that another host owns, for taking it over: reads its tables, without a lease. Ends in
    /// [`Completion::Opened`]; it accepts I/O after [`restore_disk`](Self::restore_disk) and
    /// [`take_lease`](Self::take_lease). (A read-only disk is not taken over: the destination opens it too.)
    pub fn prepare_disk(&mut self, path: &str, now_ns: u64) -> Token {
        self.open(path, Purpose::Prepare, now_ns)
    }

    fn open(&mut self, path: &str, purpose: Purpose, now_ns: u64) -> Token {
        let token = self.token();
        let deadline_ns = self.open_deadline(now_ns);
        let in_use = self.disks.values().any(|disk| disk.path() == path)
            || self
                .openings
                .values()
                .any(|(opening, _)| opening.path() == path);
        let started = if in_use && purpose == Purpose::Own {
            // To the server it would look like this host after a reboot.
            let reason = "this host has the disk open already";
            Err(StorageError::Unusable {
                path: path.into(),
                reason,
            })
        } else {
            Opening::start(&self.config, path, purpose)
        };
        match started {
            Ok((opening, call)) => {
                self.openings.insert(token, (opening, deadline_ns));
                self.client
                    .call(Tag::Open(token, OpenJob::Step), call, Some(deadline_ns));
            }
            Err(why) => self.done.push_back(Completion::Opened {
                token,
                result: Err(why),
            }),
        }
        token
    }

    fn token(&mut self) -> Token {
        self.next_token += 1;
        Token(self.next_token)
    }

    fn open_deadline(&self, now_ns: u64) -> u64 {
        now_ns + u64::from(self.config.open_timeout_ms) * NS_PER_MS
    }

    /// Starts an operation; ends in [`Completion::Io`] with the same `id`. Operations complete in any order;
    /// overlapping ones that are in flight together may take effect in any order.
    pub fn submit(&mut self, disk: DiskId, id: u64, op: Op, now_ns: u64) {
        if !self.with_disk(disk, now_ns, |disk, cx| disk.submit(id, op, cx)) {
            let result = Err(crate::IoError::NotOpen);
            self.done.push_back(Completion::Io { disk, id, result });
        }
    }

    /// Whether the disk has room for more operations. Submitting beyond it is allowed, but costs memory.
    #[must_use]
    pub fn has_room(&self, disk: DiskId) -> bool {
        self.disks.get(&disk).is_none_or(Disk::has_room)
    }

    /// The next thing that has ended or happened.
    pub fn next_completion(&mut self) -> Option<Completion> {
        self.done.pop_front()
    }

    /// Operations submitted and not completed.
    #[must_use]
    pub fn in_flight(&self, disk: DiskId) -> usize {
        self.disks.get(&disk).map_or(0, Disk::in_flight)
    }

    /// Epoch of the disk's lease, if we hold it.
    #[must_use]
    pub fn lease_epoch(&self, disk: DiskId) -> Option<u64> {
        self.disks.get(&disk)?.lease_epoch()
    }

    /// Until when the lease is certainly ours; after that moment another host may take it. Counts
    /// from the *sending* of the last renewal that was granted.
    #[must_use]
    pub fn lease_expires_ns(&self, disk: DiskId) -> Option<u64> {
        self.disks.get(&disk)?.lease_expires_ns()
    }

    /// Has the server commit what it has cached so far; for the last rounds of a migration, so that little is
    /// left for the drain. Does nothing when one is under way or nothing is uncommitted. No completion.
    pub fn commit_early(&mut self, disk: DiskId, now_ns: u64) {
        self.with_disk(disk, now_ns, Disk::commit_early);
    }

    /// The vCPUs are stopped: brings the disk to where [`save_disk`](Self::save_disk) works, which is when
    /// [`is_drained`](Self::is_drained). I/O may go on with the next `submit` if the migration is given up.
    pub fn drain(&mut self, disk: DiskId, now_ns: u64) {
        self.with_disk(disk, now_ns, Disk::drain);
    }

    /// Whether nothing is in flight and what is uncommitted is little enough to travel.
    #[must_use]
    pub fn is_drained(&self, disk: DiskId) -> bool {
        self.disks.get(&disk).is_some_and(Disk::is_drained)
    }

    /// What the new owner must know. The disk stays open here, and usable if the migration is given up.
    ///
    /// # Errors
    /// When the disk is not drained or holds no lease.
    pub fn save_disk(&self, disk: DiskId) -> Result<DiskState, StateError> {
        match self.disks.get(&disk) {
            Some(disk) => disk.save(),
            None => Err(StateError::NotReady("there is no such disk")),
        }
    }

    /// Brings a prepared disk to the state of its old owner.
    ///
    /// # Errors
    /// When the state does not fit the disk; nothing is changed then.
    pub fn restore_disk(&mut self, disk: DiskId, state: &DiskState) -> Result<(), StateError> {
        match self.disks.get_mut(&disk) {
            Some(disk) => disk.restore(state),
            None => Err(StateError::NotReady("there is no such disk")),
        }
    }

    /// Takes the lease over, in one round trip, if its epoch is still `expected_epoch`: the commit point of a
    /// migration. Ends in [`Completion::Taken`]. The old owner, drained, may call it too, with its own epoch, to
    /// find out whether the hand-over happened: if this succeeds it did not, and no longer can; if not,
    /// [`Completion::LeaseLost`] follows. An epoch of 0 stands for a disk that nobody has ever opened.
    ///
    /// It is retried until the server answers; there is no time-out after which the outcome is unknown.
    pub fn take_lease(&mut self, disk: DiskId, expected_epoch: u64, now_ns: u64) {
        if !self.with_disk(disk, now_ns, |disk, cx| disk.take_lease(expected_epoch, cx)) {
            let path = String::new();
            let result = Err(StorageError::Unusable {
                path,
                reason: "there is no such disk",
            });
            self.done.push_back(Completion::Taken { disk, result });
        }
    }

    /// The vCPUs are stopped: brings the disk to where [`branch_disk`](Self::branch_disk) works, which is when
    /// [`is_settled`](Self::is_settled): all that was written is on stable storage.
    pub fn settle(&mut self, disk: DiskId, now_ns: u64) {
        self.with_disk(disk, now_ns, Disk::settle);
    }

    /// Whether nothing is in flight and everything is on stable storage.
    #[must_use]
    pub fn is_settled(&self, disk: DiskId) -> bool {
        self.disks.get(&disk).is_some_and(Disk::is_settled)
    }

    /// Whether a commit is under way.
    #[must_use]
    pub fn is_committing(&self, disk: DiskId) -> bool {
        self.disks.get(&disk).is_some_and(Disk::is_committing)
    }

    /// Identity of the disk's parent; nil without one.
    #[must_use]
    pub fn parent_of(&self, disk: DiskId) -> [u8; 16] {
        self.disks.get(&disk).map_or([0; 16], Disk::parent)
    }

    /// Puts an empty child of the disk, prepared under a name of its own, in the disk's place at the server: name, lease, and
    /// what is written from now on. The disk's file becomes the child's parent, under the name that the child has for it.
    /// Ends in [`Completion::Branched`]; the child's id is gone then.
    pub fn branch_disk(&mut self, disk: DiskId, child: DiskId, now_ns: u64) {
        let ask = |of: &Disk, empty: &Disk| of.ask_to_branch(child, empty);
        self.replace(disk, child, ask, now_ns);
    }

    /// As [`branch_disk`](Self::branch_disk), with an empty child of another disk, such as an older state of this one. What the
    /// disk held keeps the name `kept`, which it has beside its own.
    pub fn replace_disk(&mut self, disk: DiskId, child: DiskId, kept: &str, now_ns: u64) {
        let ask = |of: &Disk, empty: &Disk| of.ask_to_replace(child, empty, kept);
        self.replace(disk, child, ask, now_ns);
    }

    fn replace(
        &mut self,
        disk: DiskId,
        child: DiskId,
        ask: impl FnOnce(&Disk, &Disk) -> Result<Call, &'static str>,
        now_ns: u64,
    ) {
        let request = match (self.disks.get(&disk), self.disks.get(&child)) {
            (Some(disk), Some(empty)) => ask(disk, empty),
            _ => Err("there is no such disk"),
        };
        match request {
            Ok(call) => {
                self.with_disk(disk, now_ns, |disk, cx| disk.branch(child, call, cx));
            }
            Err(reason) => {
                let path = self.disks.get(&disk).map_or("", Disk::path).into();
                let result = Err(StorageError::Unusable { path, reason });
                self.done.push_back(Completion::Branched { disk, result });
            }
        }
    }

    /// Has a disk in use read through the ancestors that it has by now. `fresh` is the same disk, prepared for this, and is gone when
    /// this gives true. False: not at this moment, since something is being read; to be asked again.
    ///
    /// # Errors
    /// When they are not the same disk.
    pub fn renew_ancestors(&mut self, disk: DiskId, fresh: DiskId) -> Result<bool, &'static str> {
        let Some(mut new) = self.disks.remove(&fresh) else {
            return Err("there is no such disk");
        };
        let renewed = match self.disks.get_mut(&disk) {
            Some(disk) => disk.take_ancestors(&mut new),
            None => Err("there is no such disk"),
        };
        if renewed == Ok(false) {
            self.disks.insert(fresh, new);
        }
        renewed
    }

    /// Finishes what is in flight, commits what is uncommitted, releases the lease, forgets the disk. Ends in
    /// [`Completion::Closed`].
    pub fn close_disk(&mut self, disk: DiskId, now_ns: u64) {
        if !self.with_disk(disk, now_ns, Disk::close) {
            self.done.push_back(Completion::Closed {
                disk,
                result: Ok(()),
            });
        }
        self.remove_closed();
    }

    /// Forgets the disk at once, without a word to the server: its lease now belongs to another host, or
    /// shall expire. Outstanding operations never complete.
    pub fn forget_disk(&mut self, disk: DiskId) {
        self.disks.remove(&disk);
        self.client
            .forget(|tag| matches!(tag, Tag::Disk(of, _) if *of == disk));
    }

    /// Whether there is such a disk.
    fn with_disk(
        &mut self,
        disk: DiskId,
        now_ns: u64,
        act: impl FnOnce(&mut Disk, &mut Context<'_>),
    ) -> bool {
        let Some(disk) = self.disks.get_mut(&disk) else {
            return false;
        };
        act(
            disk,
            &mut Context {
                client: &mut self.client,
                done: &mut self.done,
                now_ns,
            },
        );
        true
    }

    fn on_answers(&mut self, now_ns: u64) {
        while let Some((tag, answer)) = self.client.next_answer() {
            match tag {
                Tag::File(token, job) => self.on_file(token, job, answer),
                Tag::Open(token, job) => self.on_opening(token, job, answer, now_ns),
                Tag::Disk(disk, DiskJob::Replace { child, sent_ns }) => {
                    let child = self.disks.remove(&child);
                    self.with_disk(disk, now_ns, |disk, cx| {
                        disk.on_replaced(child, sent_ns, answer, cx);
                    });
                }
                Tag::Disk(disk, job) => {
                    self.with_disk(disk, now_ns, |disk, cx| disk.on_answer(job, answer, cx));
                }
                Tag::Nobody => {}
            }
        }
        self.remove_closed();
        self.hold_back();
    }

    fn remove_closed(&mut self) {
        for completion in &self.done {
            if let Completion::Closed { disk, .. } = completion {
                self.disks.remove(disk);
            }
        }
    }

    fn on_file(&mut self, token: Token, job: FileJob, answer: Result<Reply, CallError>) {
        let Some((file, deadline_ns)) = self.files.get_mut(&token) else {
            return;
        };
        let result = match file.advance(job, answer) {
            Ok(file::Step::Calls(calls)) => {
                for (job, call) in calls {
                    self.client
                        .call(Tag::File(token, job), call, Some(*deadline_ns));
                }
                return;
            }
            Ok(file::Step::Content(content)) => Ok(content),
            Err(why) => {
                self.client
                    .forget(|tag| matches!(tag, Tag::File(of, _) if *of == token));
                Err(why)
            }
        };
        self.files.remove(&token);
        self.done.push_back(Completion::File { token, result });
    }

    fn on_opening(
        &mut self,
        token: Token,
        job: OpenJob,
        answer: Result<Reply, CallError>,
        now_ns: u64,
    ) {
        let Some((opening, deadline_ns)) = self.openings.get_mut(&token) else {
            return;
        };
        let result = match opening.advance(job, answer, now_ns) {
            Ok(opening::Step::Calls(calls)) => {
                for (job, call) in calls {
                    self.client
                        .call(Tag::Open(token, job), call, Some(*deadline_ns));
                }
                return;
            }
            Ok(opening::Step::Opened(opened)) => {
                self.next_disk += 1;
                let id = DiskId(self.next_disk);
                let disk = Disk::new(id, *opened, &self.config);
                let info = disk.info();
                self.disks.insert(id, disk);
                self.with_disk(id, now_ns, Disk::advance);
                Ok((id, info))
            }
            Err(why) => {
                self.client
                    .forget(|tag| matches!(tag, Tag::Open(of, _) if *of == token));
                if let Some(object) = opening.leased() {
                    self.client
                        .call(Tag::Nobody, Call::Release { object }, Some(*deadline_ns));
                }
                Err(why)
            }
        };
        self.openings.remove(&token);
        self.done.push_back(Completion::Opened { token, result });
    }
}
