//! Threads for what may wait for the disk, so that the event loops never do.

use std::{
    collections::VecDeque,
    sync::{Arc, Condvar, Mutex},
    thread::{self, JoinHandle},
};

type Job = Box<dyn FnOnce() + Send>;

/// A fixed number of threads and a queue. The queue's length is bounded by the calls in flight, which the transports limit.
pub struct Pool {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

struct Shared {
    queue: Mutex<Queue>,
    work: Condvar,
}

#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    closed: bool,
}

impl Pool {
    /// Starts so many threads.
    pub fn new(threads: usize) -> Self {
        let shared = Arc::new(Shared {
            queue: Mutex::default(),
            work: Condvar::new(),
        });
        let threads = (0..threads)
            .map(|i| {
                let shared = shared.clone();
                thread::Builder::new()
                    .name(format!("disk-{i}"))
                    .spawn(move || shared.work())
                    .expect("the system can start a thread")
            })
            .collect();
        Self { shared, threads }
    }

    /// Runs `job` on one of the threads.
    pub fn spawn(&self, job: impl FnOnce() + Send + 'static) {
        let mut queue = self
            .shared
            .queue
            .lock()
            .expect("no job panics with the lock");
        queue.jobs.push_back(Box::new(job));
        drop(queue);
        self.shared.work.notify_one();
    }
}

impl Shared {
    fn work(&self) {
        loop {
            let mut queue = self.queue.lock().expect("no job panics with the lock");
            let job = loop {
                match queue.jobs.pop_front() {
                    Some(job) => break job,
                    None if queue.closed => return,
                    None => queue = self.work.wait(queue).expect("no job panics with the lock"),
                }
            };
            drop(queue);
            job();
        }
    }
}

/// Finishes the jobs in the queue, then ends the threads.
impl Drop for Pool {
    fn drop(&mut self) {
        self.shared
            .queue
            .lock()
            .expect("no job panics with the lock")
            .closed = true;
        self.shared.work.notify_all();
        for thread in self.threads.drain(..) {
            // The last job may hold the last reference to the pool's owner: a thread cannot join itself.
            if thread.thread().id() != thread::current().id() {
                let _ = thread.join();
            }
        }
    }
}
