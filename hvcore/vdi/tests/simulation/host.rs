//! A host: a `Storage` and its connection through a network that delays, reorders answers, and breaks.

use std::collections::VecDeque;

use fastrand::Rng;
use nfs3::record::Assembler;
use vdi::{Completion, Storage, StorageConfig};

use crate::server::Server;

/// What the network does to a host, besides delaying and reordering.
#[derive(Clone, Copy, Debug, Default)]
pub struct Weather {
    /// One step in so many breaks the connection; 0 is never.
    pub break_every: u32,
    /// One answer in so many is damaged; 0 is never.
    pub corrupt_every: u32,
}

pub struct Host {
    pub storage: Storage,
    pub weather: Weather,
    connected: bool,
    /// Bytes on the way to the server.
    to_server: Vec<u8>,
    assembler: Assembler,
    /// Requests that the server has and has not executed.
    requests: Vec<Vec<u8>>,
    /// Requests of broken connections, which the server may still execute.
    late: Vec<Vec<u8>>,
    /// Answers on the way back.
    answers: VecDeque<Vec<u8>>,
    pub completions: VecDeque<Completion>,
}

impl Host {
    pub fn new(name: &str, now_ns: u64, rng: &mut Rng) -> Self {
        let config = StorageConfig::new(name.into(), "/export".into(), rng.u32(..));
        Self {
            storage: Storage::new(config, now_ns),
            weather: Weather::default(),
            connected: false,
            to_server: Vec::new(),
            assembler: Assembler::new(nfs3::MAX_RECORD),
            requests: Vec::new(),
            late: Vec::new(),
            answers: VecDeque::new(),
            completions: VecDeque::new(),
        }
    }

    /// Breaks the connection. What the server has received, or what is still on the way, it may execute much later.
    pub fn disconnect(&mut self, rng: &mut Rng, now_ns: u64) {
        if !self.connected {
            return;
        }
        self.connected = false;
        self.late
            .extend(self.requests.drain(..).filter(|_| rng.bool()));
        self.answers.clear();
        self.to_server.clear();
        self.assembler = Assembler::new(nfs3::MAX_RECORD);
        self.storage.on_disconnected(now_ns);
    }

    /// The server died: nothing of what it had received is executed.
    pub fn server_died(&mut self, now_ns: u64) {
        self.requests.clear();
        self.late.clear();
        if self.connected {
            self.connected = false;
            self.answers.clear();
            self.to_server.clear();
            self.assembler = Assembler::new(nfs3::MAX_RECORD);
            self.storage.on_disconnected(now_ns);
        }
    }

    /// One thing happens.
    pub fn step(&mut self, server: &mut Server, rng: &mut Rng, now_ns: u64) {
        if self
            .storage
            .next_deadline_ns()
            .is_some_and(|at| at <= now_ns)
        {
            self.storage.on_time(now_ns);
        }
        if !self.late.is_empty() && rng.u8(..50) == 0 {
            let request = self.late.swap_remove(rng.usize(..self.late.len()));
            server.execute(&request, rng);
        }
        if !self.connected {
            if self.storage.wants_connection() && rng.u8(..4) == 0 {
                self.connected = true;
                self.storage.on_connected(now_ns);
            }
        } else if !self.storage.wants_connection()
            || self.weather.break_every > 0 && rng.u32(..self.weather.break_every) == 0
        {
            self.disconnect(rng, now_ns);
        } else {
            match rng.u8(..3) {
                0 => self.send(rng, now_ns),
                1 => self.serve(server, rng),
                _ => self.hear(rng, now_ns),
            }
        }
        while let Some(completion) = self.storage.next_completion() {
            self.completions.push_back(completion);
        }
    }

    fn send(&mut self, rng: &mut Rng, now_ns: u64) {
        let mut buffer = vec![0; rng.usize(1..20_000)];
        let count = self.storage.transmit(&mut buffer, now_ns);
        self.to_server.extend_from_slice(&buffer[..count]);
        let all = std::mem::take(&mut self.to_server);
        let mut input = &all[..];
        while let Some(record) = self.assembler.next(&mut input).expect("well-formed stream") {
            self.requests.push(record);
        }
    }

    fn serve(&mut self, server: &mut Server, rng: &mut Rng) {
        for _ in 0..rng.usize(..4) {
            if self.requests.is_empty() {
                return;
            }
            let which = rng.usize(..self.requests.len());
            let request = self.requests.remove(which);
            self.answers.push_back(server.execute(&request, rng));
        }
    }

    fn hear(&mut self, rng: &mut Rng, now_ns: u64) {
        for _ in 0..rng.usize(..4) {
            let Some(mut answer) = self.answers.pop_front() else {
                return;
            };
            if self.weather.corrupt_every > 0 && rng.u32(..self.weather.corrupt_every) == 0 {
                // Beyond the mark and the number, lest every damage look like a lost connection.
                for _ in 0..rng.usize(1..4) {
                    let from = if rng.u8(..8) == 0 { 0 } else { 8 };
                    let at = rng.usize(from..answer.len());
                    answer[at] = rng.choice([0, 1, 5, 70, 0xff]).expect("five values");
                }
            }
            // Cut anywhere.
            let cut = rng.usize(..=answer.len());
            let rest = answer.split_off(cut);
            self.storage.receive(&answer, now_ns);
            self.storage.receive(&rest, now_ns);
        }
    }
}
