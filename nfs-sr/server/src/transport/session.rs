//! One client's connection, whatever carries its bytes: calls come in, replies go out, and both are bounded.

use std::{
    collections::VecDeque,
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use nfs3::{MAX_RECORD, record::Assembler};

use super::mailbox::{Delivery, Mailbox};
use crate::{
    drc::ReplyTo,
    server::{Server, reply_bound},
};

/// Calls that may be under way; beyond that the client is not read from.
const MAX_CALLS: usize = 256;
/// Bytes of replies that may wait or be in the making; beyond that the client is not read from. One call is always taken.
const MAX_UNSENT: usize = 2 << 20;

/// A call of so many bytes is received where it belongs.
const LONG: usize = 32 << 10;

/// A connection.
pub struct Session {
    id: u64,
    from: IpAddr,
    mailbox: Arc<Mailbox>,
    records: Assembler,
    /// Received beyond what may be under way.
    unread: Vec<u8>,
    unsent: VecDeque<Vec<u8>>,
    unsent_bytes: usize,
    sent_of_first: usize,
    calls: usize,
    reserved: usize,
    progress: Instant,
    served: bool,
    long: bool,
}

impl Session {
    /// A connection from this address, whose replies come to `mailbox` under `id`.
    pub fn new(id: u64, from: IpAddr, mailbox: Arc<Mailbox>) -> Self {
        Self {
            id,
            from,
            mailbox,
            records: Assembler::new(MAX_RECORD),
            unread: Vec::new(),
            unsent: VecDeque::new(),
            unsent_bytes: 0,
            sent_of_first: 0,
            calls: 0,
            reserved: 0,
            progress: Instant::now(),
            served: false,
            long: false,
        }
    }

    /// Which deliveries are its own.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// More may be received.
    pub fn wants_input(&self) -> bool {
        self.unread.is_empty() && self.has_room()
    }

    /// Replies wait to be sent.
    pub fn has_output(&self) -> bool {
        !self.unsent.is_empty()
    }

    /// Calls are under way.
    pub fn is_busy(&self) -> bool {
        self.calls > 0
    }

    /// It has never sent a call: worth less than any other.
    pub fn is_unproven(&self) -> bool {
        !self.served && self.calls == 0
    }

    /// It holds memory and has neither sent nor taken anything for so long.
    pub fn is_stuck(&self, since: Duration) -> bool {
        let holds = self.records.held() > 0 || !self.served || self.has_output();
        holds && self.calls == 0 && self.progress.elapsed() > since
    }

    fn has_room(&self) -> bool {
        self.calls == 0 && self.unsent.is_empty()
            || self.calls < MAX_CALLS && self.unsent_bytes + self.reserved < MAX_UNSENT
    }

    /// Where the rest of a long call belongs; empty if there is none under way. To be received into instead of a buffer from
    /// which it would be copied, and followed by [`Self::received`].
    pub fn space(&mut self) -> &mut [u8] {
        match self.unread.is_empty() && self.has_room() {
            true => self.records.space(),
            false => &mut [],
        }
    }

    /// So many bytes are in [`Self::space`] now. An error ends the connection.
    pub fn received(&mut self, server: &Arc<Server>, bytes: usize) -> Result<(), String> {
        match self.records.received(bytes) {
            Some(record) => self.submit(server, record),
            None => Ok(()),
        }
    }

    /// The last call was a long one: so may the next be, and it is worth knowing its length before more of it is received.
    pub fn expects_long(&self) -> bool {
        self.long
    }

    /// Takes what was received. An error ends the connection.
    pub fn receive(&mut self, server: &Arc<Server>, mut input: &[u8]) -> Result<(), String> {
        while self.has_room() {
            match self.records.next(&mut input) {
                Ok(Some(record)) => self.submit(server, record)?,
                Ok(None) => return Ok(()),
                Err(why) => return Err(why.to_string()),
            }
        }
        self.unread.extend_from_slice(input);
        Ok(())
    }

    fn submit(&mut self, server: &Arc<Server>, record: Vec<u8>) -> Result<(), String> {
        self.long = record.len() >= LONG;
        let reserved = reply_bound(&record);
        self.calls += 1;
        self.reserved += reserved;
        self.progress = Instant::now();
        let to = ReplyTo {
            mailbox: self.mailbox.clone(),
            connection: self.id,
            reserved,
        };
        let taken = server.submit(record, self.from, to);
        taken.map_err(|why| why.to_string())?;
        self.served = true;
        Ok(())
    }

    /// Takes what was received before and had to wait.
    pub fn resume(&mut self, server: &Arc<Server>) -> Result<(), String> {
        if self.unread.is_empty() || !self.has_room() {
            return Ok(());
        }
        let unread = std::mem::take(&mut self.unread);
        self.receive(server, &unread)
    }

    /// Takes a reply to be sent.
    pub fn deliver(&mut self, delivery: Delivery) {
        self.calls -= 1;
        self.reserved -= delivery.reserved;
        if !delivery.reply.is_empty() {
            self.unsent_bytes += delivery.reply.len();
            self.unsent.push_back(delivery.reply);
        }
    }

    /// What is to be sent next, in order.
    pub fn output(&self) -> impl Iterator<Item = &[u8]> {
        let first = self
            .unsent
            .front()
            .map(|first| &first[self.sent_of_first..]);
        first
            .into_iter()
            .chain(self.unsent.iter().skip(1).map(Vec::as_slice))
    }

    /// So many bytes of the output were sent.
    pub fn sent(&mut self, mut bytes: usize) {
        self.unsent_bytes -= bytes;
        self.progress = Instant::now();
        while let Some(first) = self.unsent.front() {
            let left = first.len() - self.sent_of_first;
            if bytes < left {
                self.sent_of_first += bytes;
                return;
            }
            bytes -= left;
            self.sent_of_first = 0;
            self.unsent.pop_front();
        }
    }
}
