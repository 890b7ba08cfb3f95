//! The client proper: numbers, window, queue, repetition.

use alloc::{
    collections::{BTreeMap, VecDeque},
    string::String,
    vec::Vec,
};

use nfs3::{
    FileHandle,
    record::Assembler,
    rpc::{self, Credentials, MachineName, UnixUser},
};

use crate::{
    call::{self, Call, Message, Reply},
    connection::Connection,
    error::CallError,
};

/// Pause before a call is made again to which the server said "try later".
const TRY_LATER_NS: u64 = 200_000_000;

/// How a client behaves.
#[derive(Clone, Debug)]
pub struct ClientConfig {
    /// Host name in the credentials.
    pub machine: String,
    /// Number of the first call; random, so that the server does not take calls after a reboot for
    /// repetitions of earlier ones.
    pub seed: u32,
    /// At most so many calls are unanswered at a time.
    pub max_calls: usize,
    /// At most so many bytes of file data are asked for or sent, and unanswered, at a time.
    pub max_bytes: usize,
}

impl ClientConfig {
    /// The usual figures.
    #[must_use]
    pub fn new(machine: String, seed: u32) -> Self {
        Self {
            machine,
            seed,
            max_calls: 64,
            max_bytes: 4 << 20,
        }
    }
}

#[derive(Debug)]
struct Pending<T> {
    /// The caller's; none for the client's own probe.
    tag: Option<T>,
    call: Call,
    deadline_ns: Option<u64>,
    progress: Progress,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Progress {
    /// Not sent on this connection.
    Queued,
    /// To be queued at this time.
    Delayed { until_ns: u64 },
    /// Sent, at least in part; it takes room in the window.
    Sent,
}

/// A message partly handed out by [`Client::transmit`].
#[derive(Debug)]
struct Sending {
    message: Message,
    position: usize,
}

/// An NFS client for one connection. `T` is the caller's name for a call, returned with its reply.
///
/// Ordering: calls are sent in the order in which they are made, those of the LEASE program first.
#[derive(Debug)]
pub struct Client<T> {
    config: ClientConfig,
    connection: Connection,
    assembler: Assembler,
    /// Unanswered calls by number. The transaction number on the wire is its low half plus the seed.
    pending: BTreeMap<u64, Pending<T>>,
    next_number: u64,
    urgent: VecDeque<u64>,
    queued: VecDeque<u64>,
    sending: Option<Sending>,
    /// Only calls of the LEASE program are sent.
    held: bool,
    sent_calls: usize,
    sent_bytes: usize,
    answers: VecDeque<(T, Result<Reply, CallError>)>,
}

impl<T> Client<T> {
    /// No connection yet.
    #[must_use]
    pub fn new(config: ClientConfig, now_ns: u64) -> Self {
        Self {
            config,
            connection: Connection::new(now_ns),
            assembler: Assembler::new(nfs3::MAX_RECORD),
            pending: BTreeMap::new(),
            next_number: 0,
            urgent: VecDeque::new(),
            queued: VecDeque::new(),
            sending: None,
            held: false,
            sent_calls: 0,
            sent_bytes: 0,
            answers: VecDeque::new(),
        }
    }

    /// Makes a call. Without a deadline it is repeated until the server answers.
    pub fn call(&mut self, tag: T, call: Call, deadline_ns: Option<u64>) {
        self.add(Some(tag), call, deadline_ns, Progress::Queued);
    }

    fn add(&mut self, tag: Option<T>, call: Call, deadline_ns: Option<u64>, progress: Progress) {
        let number = self.next_number;
        self.next_number += 1;
        if progress == Progress::Queued {
            self.queue_of(&call).push_back(number);
        }
        self.pending.insert(
            number,
            Pending {
                tag,
                call,
                deadline_ns,
                progress,
            },
        );
    }

    fn queue_of(&mut self, call: &Call) -> &mut VecDeque<u64> {
        if call.is_urgent() {
            &mut self.urgent
        } else {
            &mut self.queued
        }
    }

    /// The next call that has ended.
    pub fn next_answer(&mut self) -> Option<(T, Result<Reply, CallError>)> {
        self.answers.pop_front()
    }

    /// Forgets the calls whose tags are chosen; they are not repeated and their answers are dropped.
    pub fn forget(&mut self, chosen: impl Fn(&T) -> bool) {
        let numbers: Vec<u64> = self
            .pending
            .iter()
            .filter(|(_, pending)| pending.tag.as_ref().is_some_and(&chosen))
            .map(|(number, _)| *number)
            .collect();
        for number in numbers {
            self.remove(number);
        }
        self.answers.retain(|(tag, _)| !chosen(tag));
    }

    /// Holds back all calls but those of the LEASE program, or no longer.
    pub fn hold(&mut self, held: bool) {
        self.held = held;
    }

    /// A file has another handle now: calls that are not answered use it when they are sent (again).
    pub fn replace_handle(&mut self, old: FileHandle, new: FileHandle) {
        for pending in self.pending.values_mut() {
            pending.call.replace_handle(old, new);
        }
    }

    /// Whether there should be a connection now.
    #[must_use]
    pub fn wants_connection(&self) -> bool {
        self.connection.wanted()
    }

    /// Whether the server answers what it is asked.
    #[must_use]
    pub fn is_up(&self) -> bool {
        self.connection.server_answers()
    }

    /// The connection stands: everything unanswered is sent again, in the old order and under the old
    /// numbers.
    pub fn on_connected(&mut self, now_ns: u64) {
        self.connection.on_connected(now_ns);
        self.start_over();
        self.add(None, Call::Null, None, Progress::Queued);
    }

    /// The connection is gone.
    pub fn on_disconnected(&mut self, now_ns: u64) {
        self.connection.on_disconnected(now_ns);
        self.pending.retain(|_, pending| pending.tag.is_some());
        self.start_over();
    }

    fn start_over(&mut self) {
        self.assembler = Assembler::new(nfs3::MAX_RECORD);
        self.sending = None;
        self.sent_calls = 0;
        self.sent_bytes = 0;
        self.urgent.clear();
        self.queued.clear();
        for (number, pending) in &mut self.pending {
            if let Progress::Delayed { .. } = pending.progress {
                continue;
            }
            pending.progress = Progress::Queued;
            let queue = if pending.call.is_urgent() {
                &mut self.urgent
            } else {
                &mut self.queued
            };
            queue.push_back(*number);
        }
    }

    /// Fills the front of `into` with what is to be sent, and says how much that was.
    pub fn transmit(&mut self, into: &mut [u8], now_ns: u64) -> usize {
        let mut filled = 0;
        while filled < into.len() && self.connection.is_up() {
            if self.sending.is_none() {
                match self.next_message() {
                    Some(message) => {
                        self.connection.on_call(now_ns);
                        self.sending = Some(Sending {
                            message,
                            position: 0,
                        });
                    }
                    None => break,
                }
            }
            if let Some(sending) = &mut self.sending {
                filled += sending.copy(&mut into[filled..]);
                if sending.position == sending.message.len() {
                    self.sending = None;
                }
            }
        }
        filled
    }

    fn next_message(&mut self) -> Option<Message> {
        let number = match self.urgent.pop_front() {
            Some(number) => number,
            None if self.held => return None,
            None => {
                let weight = self.pending[self.queued.front()?].call.weight();
                let full = self.sent_calls >= self.config.max_calls
                    || self.sent_bytes + weight > self.config.max_bytes;
                // A call that is larger than the whole window goes alone.
                if full && self.sent_calls > 0 {
                    return None;
                }
                self.queued.pop_front()?
            }
        };
        let xid = self.xid(number);
        let pending = self
            .pending
            .get_mut(&number)
            .expect("a queued call is pending");
        pending.progress = Progress::Sent;
        self.sent_calls += 1;
        self.sent_bytes += pending.call.weight();
        let as_whom = Credentials::Unix(UnixUser {
            stamp: self.config.seed,
            machine: MachineName(self.config.machine.as_bytes()),
            uid: 0,
            gid: 0,
            groups: Vec::new(),
        });
        Some(pending.call.encode(xid, &as_whom))
    }

    fn xid(&self, number: u64) -> u32 {
        self.config.seed.wrapping_add(number as u32)
    }

    /// The pending call that a transaction number on the wire stands for.
    fn number(&self, xid: u32) -> Option<u64> {
        let age = (self.next_number as u32).wrapping_sub(xid.wrapping_sub(self.config.seed));
        let number = self.next_number.checked_sub(u64::from(age))?;
        self.pending.contains_key(&number).then_some(number)
    }

    /// Takes in what arrived.
    pub fn receive(&mut self, mut bytes: &[u8], now_ns: u64) {
        self.connection.on_bytes(now_ns);
        while self.connection.is_up() {
            match self.assembler.next(&mut bytes) {
                Ok(Some(record)) => self.on_record(record, now_ns),
                Ok(None) => break,
                Err(_) => self.connection.give_up(),
            }
        }
    }

    fn on_record(&mut self, record: Vec<u8>, now_ns: u64) {
        let Ok(rpc::Reply { xid, .. }) = rpc::Reply::parse(&record) else {
            self.connection.give_up();
            return;
        };
        // A number that is not pending: the answer to a call that has been forgotten or timed out.
        let number = self.number(xid);
        let Some(pending) = number.and_then(|number| self.remove(number)) else {
            self.connection.on_answer(true, self.sent_calls > 0);
            return;
        };
        self.connection
            .on_answer(pending.tag.is_none(), self.sent_calls > 0);
        let result = pending.call.decode(record);
        if result.as_ref().is_err_and(call::is_try_later) {
            let until_ns = now_ns + TRY_LATER_NS;
            self.add(
                pending.tag,
                pending.call,
                pending.deadline_ns,
                Progress::Delayed { until_ns },
            );
        } else if let Some(tag) = pending.tag {
            self.answers.push_back((tag, result));
        }
    }

    fn remove(&mut self, number: u64) -> Option<Pending<T>> {
        let pending = self.pending.remove(&number)?;
        match pending.progress {
            Progress::Sent => {
                self.sent_calls -= 1;
                self.sent_bytes -= pending.call.weight();
            }
            Progress::Queued => self
                .queue_of(&pending.call)
                .retain(|queued| *queued != number),
            Progress::Delayed { .. } => {}
        }
        Some(pending)
    }

    /// Time has passed.
    pub fn on_time(&mut self, now_ns: u64) {
        self.connection.on_time(now_ns);
        if self.connection.must_probe() {
            self.add(None, Call::Null, None, Progress::Queued);
        }
        let due: Vec<u64> = self
            .pending
            .iter()
            .filter(|(_, pending)| pending.deadline_ns.is_some_and(|at| at <= now_ns))
            .map(|(number, _)| *number)
            .collect();
        for number in due {
            if let Some(tag) = self.remove(number).and_then(|pending| pending.tag) {
                self.answers.push_back((tag, Err(CallError::TimedOut)));
            }
        }
        for (number, pending) in &mut self.pending {
            if let Progress::Delayed { until_ns } = pending.progress
                && until_ns <= now_ns
            {
                pending.progress = Progress::Queued;
                let queue = if pending.call.is_urgent() {
                    &mut self.urgent
                } else {
                    &mut self.queued
                };
                queue.push_back(*number);
            }
        }
    }

    /// When [`on_time`](Self::on_time) must be called at the latest.
    #[must_use]
    pub fn next_deadline_ns(&self) -> Option<u64> {
        let calls = self.pending.values().flat_map(|pending| {
            let delayed = match pending.progress {
                Progress::Delayed { until_ns } => Some(until_ns),
                _ => None,
            };
            [pending.deadline_ns, delayed]
        });
        calls
            .flatten()
            .chain(self.connection.next_deadline_ns())
            .min()
    }
}

impl Message {
    fn len(&self) -> usize {
        self.head.len() + self.data.as_ref().map_or(0, crate::Payload::len) + self.padding
    }
}

impl Sending {
    /// Copies the next bytes of the message; says how many.
    fn copy(&mut self, into: &mut [u8]) -> usize {
        let data = self
            .message
            .data
            .as_ref()
            .map_or(&[][..], |data| data.as_slice());
        let mut filled = 0;
        let mut skip = self.position;
        for part in [
            &self.message.head[..],
            data,
            &[0; 3][..self.message.padding],
        ] {
            let from = &part[skip.min(part.len())..];
            skip = skip.saturating_sub(part.len());
            let count = from.len().min(into.len() - filled);
            into[filled..filled + count].copy_from_slice(&from[..count]);
            filled += count;
        }
        self.position += filled;
        filled
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec;

    use nfs3::{Attributes, FileType, NfsResult, Time, nfs};
    use proptest::prelude::*;

    use super::*;

    const SEED: u32 = u32::MAX - 2;

    fn file() -> FileHandle {
        FileHandle::new(b"file").expect("short")
    }

    fn client() -> Client<&'static str> {
        let config = ClientConfig {
            max_calls: 4,
            ..ClientConfig::new("h1".into(), SEED)
        };
        Client::new(config, 0)
    }

    /// Sends everything that can be sent; the records.
    fn sent(client: &mut Client<&'static str>, now_ns: u64) -> Vec<Vec<u8>> {
        let mut stream = Vec::new();
        let mut buffer = [0; 100];
        loop {
            let count = client.transmit(&mut buffer, now_ns);
            if count == 0 {
                break;
            }
            stream.extend_from_slice(&buffer[..count]);
        }
        let mut assembler = Assembler::new(nfs3::MAX_RECORD);
        let mut input = &stream[..];
        let mut records = Vec::new();
        while let Some(record) = assembler.next(&mut input).expect("a well-formed stream") {
            records.push(record);
        }
        records
    }

    /// Numbers of the calls but for the probe.
    fn numbers(records: &[Vec<u8>]) -> Vec<u32> {
        let calls = records
            .iter()
            .map(|record| rpc::Call::parse(record).expect("a call"));
        calls
            .filter(|call| call.procedure != 0)
            .map(|call| call.xid)
            .collect()
    }

    fn size_reply(xid: u32, size: u64) -> Vec<u8> {
        let attributes = Attributes {
            kind: FileType::Regular,
            mode: 0,
            nlink: 1,
            uid: 0,
            gid: 0,
            size,
            used: 0,
            device: nfs3::Device::default(),
            fsid: 0,
            fileid: 0,
            atime: Time::default(),
            mtime: Time::default(),
            ctime: Time::default(),
        };
        rpc::reply::<nfs::GetAttr>(xid, &Ok(attributes))
    }

    fn ask(client: &mut Client<&'static str>, tag: &'static str) {
        client.call(tag, Call::GetSize { file: file() }, None);
    }

    #[test]
    fn answers_find_their_calls_in_any_order() {
        let mut client = client();
        client.on_connected(0);
        ask(&mut client, "a");
        ask(&mut client, "b");
        let numbers = numbers(&sent(&mut client, 0));
        client.receive(&size_reply(numbers[1], 2), 0);
        client.receive(&size_reply(numbers[0], 1), 0);
        client.receive(&size_reply(numbers[0], 9), 0);
        assert_eq!(client.next_answer(), Some(("b", Ok(Reply::Size(2)))));
        assert_eq!(client.next_answer(), Some(("a", Ok(Reply::Size(1)))));
        assert_eq!(client.next_answer(), None, "a second answer is dropped");
    }

    #[test]
    fn the_window_is_kept_and_urgent_calls_pass_it() {
        let mut client = client();
        client.on_connected(0);
        for _ in 0..10 {
            ask(&mut client, "bulk");
        }
        // One of the four is the probe.
        let first = numbers(&sent(&mut client, 0));
        assert_eq!(first.len(), 3);
        client.call(
            "lease",
            Call::Renew {
                object: file(),
                ttl_ms: 1,
            },
            None,
        );
        assert_eq!(sent(&mut client, 0).len(), 1, "the renewal");
        client.receive(&size_reply(first[0], 0), 0);
        client.receive(&size_reply(first[1], 0), 0);
        assert_eq!(
            sent(&mut client, 0).len(),
            1,
            "five were under way, now four are"
        );
    }

    #[test]
    fn what_is_unanswered_is_repeated_under_the_same_numbers() {
        let mut client = client();
        client.on_connected(0);
        ask(&mut client, "a");
        ask(&mut client, "b");
        let before = numbers(&sent(&mut client, 0));
        client.receive(&size_reply(before[0], 1), 0);
        client.on_disconnected(0);
        assert!(!client.is_up());
        ask(&mut client, "c");
        client.on_connected(0);
        let after = numbers(&sent(&mut client, 0));
        assert_eq!(after[0], before[1]);
        assert_eq!(after.len(), 2);
    }

    #[test]
    fn a_write_is_one_record_with_its_data() {
        let mut client = client();
        client.on_connected(0);
        let data = vec![7; 1023];
        let call = Call::Write {
            file: file(),
            offset: 5,
            data: data.clone().into(),
        };
        client.call("w", call, None);
        let records = sent(&mut client, 0);
        let call = rpc::Call::parse(&records[1]).expect("a call");
        let mut input = call.arguments;
        let args: nfs::WriteArgs<'_> = input.get().expect("arguments of WRITE");
        input.finish().expect("nothing after them");
        assert_eq!((args.offset, args.count, args.data.0), (5, 1023, &data[..]));
    }

    #[test]
    fn a_call_with_a_deadline_ends_and_one_without_does_not() {
        let mut client = client();
        client.call("hard", Call::GetSize { file: file() }, None);
        client.call("soft", Call::GetSize { file: file() }, Some(1000));
        assert_eq!(client.next_deadline_ns(), Some(1000));
        client.on_time(999);
        assert_eq!(client.next_answer(), None);
        client.on_time(1000);
        assert_eq!(
            client.next_answer(),
            Some(("soft", Err(CallError::TimedOut)))
        );
        client.on_time(u64::MAX / 2);
        assert_eq!(client.next_answer(), None);
    }

    #[test]
    fn a_silent_connection_is_given_up() {
        let mut client = client();
        client.on_connected(0);
        ask(&mut client, "a");
        sent(&mut client, 0);
        let mut now = 0;
        while client.wants_connection() {
            now = client.next_deadline_ns().expect("something is awaited");
            assert!(now < 60_000_000_000, "it never gives up");
            client.on_time(now);
        }
        client.on_disconnected(now);
        assert!(!client.wants_connection(), "not at once again");
        client.on_time(client.next_deadline_ns().expect("it will"));
        assert!(client.wants_connection());
    }

    #[test]
    fn a_slow_server_is_probed_and_keeps_its_connection() {
        let mut client = client();
        client.on_connected(0);
        client.call("slow", Call::Commit { file: file() }, None);
        let mut now = 0;
        for _ in 0..50 {
            for record in sent(&mut client, now) {
                let call = rpc::Call::parse(&record).expect("a call");
                if call.procedure == 0 {
                    client.receive(&rpc::reply::<nfs::Null>(call.xid, &()), now);
                }
            }
            now = client.next_deadline_ns().expect("something is awaited");
            client.on_time(now);
            assert!(client.wants_connection() && client.is_up());
        }
        assert!(now > 20_000_000_000);
    }

    #[test]
    fn an_attempt_to_connect_is_replaced() {
        let mut client = client();
        let mut attempts = 0;
        let mut wanted = false;
        for ms in 0..10_000 {
            client.on_time(ms * 1_000_000);
            if client.wants_connection() != wanted {
                wanted = !wanted;
                if wanted {
                    attempts += 1;
                } else {
                    client.on_disconnected(ms * 1_000_000);
                }
            }
        }
        assert!((9..=16).contains(&attempts), "{attempts} in 10 s");
    }

    #[test]
    fn a_server_that_asks_to_try_later_is_asked_later() {
        let mut client = client();
        client.on_connected(0);
        ask(&mut client, "a");
        let first = numbers(&sent(&mut client, 0))[0];
        let later: NfsResult<Attributes, ()> = Err(nfs3::Failure {
            status: nfs3::Status::Jukebox,
            body: (),
        });
        client.receive(&rpc::reply::<nfs::GetAttr>(first, &later), 0);
        assert!(sent(&mut client, 0).is_empty());
        client.on_time(TRY_LATER_NS);
        let second = numbers(&sent(&mut client, TRY_LATER_NS))[0];
        assert_ne!(
            first, second,
            "else a duplicate request cache repeats the answer"
        );
        client.receive(&size_reply(second, 3), TRY_LATER_NS);
        assert_eq!(client.next_answer(), Some(("a", Ok(Reply::Size(3)))));
    }

    proptest! {
        #[test]
        fn nothing_that_arrives_can_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), cut in 0usize..100) {
            let mut client = client();
            client.on_connected(0);
            ask(&mut client, "a");
            let number = numbers(&sent(&mut client, 0))[0];
            let mut reply = size_reply(number, 1);
            reply.truncate(reply.len() - cut.min(reply.len()));
            reply.extend_from_slice(&bytes);
            client.receive(&reply, 0);
            client.receive(&bytes, 0);
        }
    }
}
