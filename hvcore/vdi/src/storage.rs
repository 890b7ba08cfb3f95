//! One NFS connection of a host with all its disks.

use alloc::string::String;

use crate::{
    error::StateError,
    request::{Access, Completion, DiskId, Op, Token},
    state::DiskState,
};

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
}

impl Storage {
    /// No connection and no disks yet.
    #[must_use]
    pub fn new(config: StorageConfig, _now_ns: u64) -> Self {
        Self { config }
    }

    /// Whether there should be a TCP connection to the server now. False for a while after one was lost
    /// or refused, and from the moment a connection has stopped answering until it is closed.
    #[must_use]
    pub fn wants_connection(&self) -> bool {
        true
    }

    /// The connection stands.
    pub fn on_connected(&mut self, _now_ns: u64) {}

    /// The connection is gone, or could not be made. Everything outstanding is sent again on the next one.
    pub fn on_disconnected(&mut self, _now_ns: u64) {}

    /// Takes in what arrived on the connection.
    pub fn receive(&mut self, _bytes: &[u8], _now_ns: u64) {}

    /// Fills `into`, the free part of the socket's send buffer, with what is to be sent, and says how many bytes
    /// that were. 0: nothing to send.
    pub fn transmit(&mut self, _into: &mut [u8], _now_ns: u64) -> usize {
        0
    }

    /// When [`on_time`](Self::on_time) must be called at the latest.
    #[must_use]
    pub fn next_deadline_ns(&self) -> Option<u64> {
        None
    }

    /// Time has passed: renews leases, gives up on a connection that does not answer.
    pub fn on_time(&mut self, _now_ns: u64) {}

    /// Whether the server answers. False from the loss of a connection, or 2 s without an awaited
    /// answer, until the next answer.
    #[must_use]
    pub fn is_up(&self) -> bool {
        false
    }

    /// Reads a whole file, such as a kernel. Ends in [`Completion::File`].
    pub fn read_file(&mut self, _path: &str, _now_ns: u64) -> Token {
        Token(0)
    }

    /// Opens a disk: takes its lease (if it is to be written), reads its tables. Ends in [`Completion::Opened`],
    /// after which it accepts I/O.
    pub fn open_disk(&mut self, _path: &str, _access: Access, _now_ns: u64) -> Token {
        Token(0)
    }

    /// Opens a disk that another host owns, for taking it over: reads its tables, without a lease. Ends in
    /// [`Completion::Opened`]; it accepts I/O after [`restore_disk`](Self::restore_disk) and
    /// [`take_lease`](Self::take_lease).
    pub fn prepare_disk(&mut self, _path: &str, _now_ns: u64) -> Token {
        Token(0)
    }

    /// Starts an operation; ends in [`Completion::Io`] with the same `id`. Operations complete in any order;
    /// overlapping ones that are in flight together may take effect in any order.
    pub fn submit(&mut self, _disk: DiskId, _id: u64, _op: Op, _now_ns: u64) {}

    /// Whether the disk has room for more operations. Submitting beyond it is allowed, but costs memory.
    #[must_use]
    pub fn has_room(&self, _disk: DiskId) -> bool {
        true
    }

    /// The next thing that has ended or happened.
    pub fn next_completion(&mut self) -> Option<Completion> {
        None
    }

    /// Operations submitted and not completed.
    #[must_use]
    pub fn in_flight(&self, _disk: DiskId) -> usize {
        0
    }

    /// Epoch of the disk's lease, if we hold it.
    #[must_use]
    pub fn lease_epoch(&self, _disk: DiskId) -> Option<u64> {
        None
    }

    /// Until when the lease is certainly ours; after that moment another host may take it. Counts
    /// from the *sending* of the last renewal that was granted.
    #[must_use]
    pub fn lease_expires_ns(&self, _disk: DiskId) -> Option<u64> {
        None
    }

    /// Has the server commit what it has cached so far; for the last rounds of a migration, so that little is
    /// left for the drain. Does nothing when one is under way or nothing is uncommitted. No completion.
    pub fn commit_early(&mut self, _disk: DiskId, _now_ns: u64) {}

    /// The vCPUs are stopped: brings the disk to where [`save_disk`](Self::save_disk) works, which is when
    /// [`is_drained`](Self::is_drained). I/O may go on with the next `submit` if the migration is given up.
    pub fn drain(&mut self, _disk: DiskId, _now_ns: u64) {}

    /// Whether nothing is in flight and what is uncommitted is little enough to travel.
    #[must_use]
    pub fn is_drained(&self, _disk: DiskId) -> bool {
        true
    }

    /// What the new owner must know. The disk stays open here, and usable if the migration is given up.
    ///
    /// # Errors
    /// When the disk is not drained or holds no lease.
    pub fn save_disk(&self, _disk: DiskId) -> Result<DiskState, StateError> {
        Err(StateError::NotReady("the disk is not drained"))
    }

    /// Brings a prepared disk to the state of its old owner.
    ///
    /// # Errors
    /// When the state does not fit the disk; nothing is changed then.
    pub fn restore_disk(&mut self, _disk: DiskId, _state: &DiskState) -> Result<(), StateError> {
        Err(StateError::NotReady("the disk is not prepared"))
    }

    /// Takes the lease over, in one round trip, if its epoch is still `expected_epoch`: the commit point of a
    /// migration. Ends in [`Completion::Taken`]. The old owner may call it too, with its own epoch, to
    /// find out whether the hand-over happened: if this succeeds it did not, and no longer can.
    ///
    /// It is retried until the server answers; there is no time-out after which the outcome is unknown.
    pub fn take_lease(&mut self, _disk: DiskId, _expected_epoch: u64, _now_ns: u64) {}

    /// Commits what is uncommitted, releases the lease, forgets the disk. Ends in [`Completion::Closed`].
    pub fn close_disk(&mut self, _disk: DiskId, _now_ns: u64) {}

    /// Forgets the disk at once, without a word to the server: its lease now belongs to another host, or
    /// shall expire. Outstanding operations never complete.
    pub fn forget_disk(&mut self, _disk: DiskId) {}

    /// The configuration.
    #[must_use]
    pub fn config(&self) -> &StorageConfig {
        &self.config
    }
}
