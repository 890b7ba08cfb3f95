//! `nfs-sr serve`: opens an export, starts the transports, and stops in order.

use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    path::PathBuf,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, Sender, channel},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{SigSet, Signal};
use smoltcp::wire::IpCidr;

use crate::{
    durability,
    events::{Event, Events},
    export::{Export, Network, Squash},
    faults::{self, FaultyDisk},
    file_io::{Disk, HostDisk},
    metrics::Metrics,
    node::PRIVATE,
    server::{Config, Server},
    transport::{
        ethernet::{EthernetConfig, EthernetTransport, MacAddress},
        mailbox::Mailbox,
        tcp::TcpTransport,
    },
};

/// Options of `nfs-sr serve`.
#[derive(Clone, Debug, clap::Args)]
pub struct ServeOptions {
    /// Directory to export.
    pub directory: PathBuf,
    /// Name under which clients mount it.
    #[arg(long, default_value = "/export")]
    pub export: String,
    /// TCP address to listen on; port 0 chooses one. All programs (NFS, MOUNT, portmap, LEASE) are on this port.
    #[arg(long, default_value = "127.0.0.1:2049")]
    pub listen: SocketAddr,
    /// Do not listen on TCP, only on the switch.
    #[arg(long, requires = "switch")]
    pub no_tcp: bool,
    /// Serve on the Ethernet switch at this unix socket, too.
    #[arg(long, requires_all = ["mac", "address"])]
    pub switch: Option<PathBuf>,
    /// Ethernet address on the switch.
    #[arg(long)]
    pub mac: Option<MacAddress>,
    /// IP address and network on the switch, such as 198.18.1.1/24. The port is always 2049.
    #[arg(long, value_parser = parse_cidr)]
    pub address: Option<IpCidr>,
    /// Longest IP packet on the switch.
    #[arg(long, default_value_t = 9000, value_parser = clap::value_parser!(u16).range(576..=65000))]
    pub mtu: u16,
    /// Who may use the export: a network or address; several are allowed, none is everybody.
    #[arg(long = "client")]
    pub clients: Vec<Network>,
    /// Refuse every change.
    #[arg(long)]
    pub read_only: bool,
    /// Whose users become nobody.
    #[arg(long, value_enum, default_value_t)]
    pub squash: Squash,
    /// Take writes again after a sync has failed. For when the disk was replaced, and every VM's disk checked.
    #[arg(long)]
    pub clear_failure: bool,
    /// For labs: the disk fails as lines on standard input tell it to, which are eio-read, eio-write, eio-fsync, full, and clear.
    #[arg(long)]
    pub faults: bool,
    /// Report once a second what was done.
    #[arg(long)]
    pub statistics: bool,
    /// TCP address on which Prometheus may fetch /metrics.
    #[arg(long)]
    pub metrics: Option<SocketAddr>,
    /// Negative control of tests: answer COMMIT and stable writes without syncing. LOSES DATA.
    #[arg(long)]
    pub no_commit_sync: bool,
    /// Negative control of tests: grant leases and enforce none. CORRUPTS DISKS that two hosts open.
    #[arg(long)]
    pub no_lease_enforcement: bool,
}

fn parse_cidr(text: &str) -> Result<IpCidr, String> {
    text.parse()
        .map_err(|()| format!("'{text}' is not an address with its network, such as 198.18.1.1/24"))
}

/// Serves until SIGTERM or SIGINT.
pub fn serve(options: ServeOptions) -> Result<()> {
    let signals = block_signals()?;
    end_on_panic();
    // Modes are what clients ask for.
    rustix::process::umask(rustix::fs::Mode::empty());
    raise_descriptor_limit();
    let events = Arc::new(Events::to_stdout());
    let listener = match options.no_tcp {
        true => None,
        false => Some(TcpListener::bind(options.listen).with_context(|| {
            format!(
                "cannot listen on {}; choose another with --listen",
                options.listen
            )
        })?),
    };
    let tcp = listener
        .as_ref()
        .map(|listener| listener.local_addr())
        .transpose()?;
    let private = options.directory.join(PRIVATE);
    if options.clear_failure {
        durability::clear_mark(&private)
            .with_context(|| format!("cannot change {}", private.display()))?;
    }
    let faulty = options.faults.then(FaultyDisk::default);
    let disk: Arc<dyn Disk> = match &faulty {
        Some(disk) => Arc::new(disk.clone()),
        None => Arc::new(HostDisk),
    };
    let server = Server::open(config(&options, tcp, disk), events.clone())?;
    server
        .announce(tcp)
        .with_context(|| format!("cannot write in {}", options.directory.display()))?;
    let mut running = Running::new(signals)?;
    if let Some(listener) = listener {
        let server = server.clone();
        running.start(
            "tcp",
            move || TcpTransport::new(server, listener),
            TcpTransport::mailbox,
            TcpTransport::run,
        )?;
    }
    if let Some(config) = ethernet_config(&options) {
        let server = server.clone();
        let new = move || EthernetTransport::new(server, config);
        running.start(
            "ethernet",
            new,
            EthernetTransport::mailbox,
            EthernetTransport::run,
        )?;
    }
    let metrics = options
        .metrics
        .map(|address| serve_metrics(address, &server))
        .transpose()?;
    events.report(&Event::Ready {
        pid: std::process::id(),
        tcp: tcp.map(|address| address.to_string()),
        ethernet: options.address.map(|address| address.to_string()),
        export: options.export.clone(),
        metrics: metrics.map(|address| address.to_string()),
    });
    if let Ok(Some(failure)) = durability::mark(&private) {
        let message = format!(
            "{failure}. Nothing is written any more: replace the disk, check the repositories ('nfs-sr sr check'), then serve with --clear-failure"
        );
        events.report(&Event::Warning { message });
    }
    server.report_leases();
    if let Some(disk) = faulty {
        // Whoever gives no line must not keep the server from ending.
        let server = Arc::downgrade(&server);
        thread::Builder::new()
            .name("faults".into())
            .spawn(move || faults::obey(io::stdin().lock(), &disk, &server))?;
    }
    if options.statistics {
        let server = Arc::downgrade(&server);
        thread::Builder::new()
            .name("statistics".into())
            .spawn(move || report_statistics(&server))?;
    }
    running.begin();
    let reason = running.wait();
    server.settle();
    let reason = reason?;
    events.report(&Event::Stopped { reason });
    Ok(())
}

fn config(options: &ServeOptions, tcp: Option<SocketAddr>, disk: Arc<dyn Disk>) -> Config {
    Config {
        export: Export {
            name: options.export.clone(),
            directory: options.directory.clone(),
            clients: options.clients.clone(),
            read_only: options.read_only,
            squash: options.squash,
        },
        commit_sync: !options.no_commit_sync,
        lease_enforcement: !options.no_lease_enforcement,
        port: tcp.map_or(nfs3::PORT, |address| address.port()),
        disk,
    }
}

fn ethernet_config(options: &ServeOptions) -> Option<EthernetConfig> {
    Some(EthernetConfig {
        switch: options.switch.clone()?,
        mac: options.mac?,
        address: options.address?,
        mtu: options.mtu.into(),
        port: nfs3::PORT,
    })
}

/// The event loops, and what ends them.
struct Running {
    stop: Arc<AtomicBool>,
    ended: Receiver<Ended>,
    end: Sender<Ended>,
    mailboxes: Vec<Arc<Mailbox>>,
    threads: Vec<JoinHandle<()>>,
    /// Dropped when the loops may begin: nothing is served, or reported, before the server says that it is ready.
    held: Vec<Sender<()>>,
}

enum Ended {
    Signal(&'static str),
    Transport(&'static str, io::Result<()>),
}

impl Running {
    fn new(signals: SigSet) -> Result<Self> {
        let (end, ended) = channel();
        let report = end.clone();
        thread::Builder::new()
            .name("signals".into())
            .spawn(move || {
                while let Ok(signal) = signals.wait() {
                    if report.send(Ended::Signal(signal.as_str())).is_err() {
                        return;
                    }
                }
            })?;
        Ok(Self {
            stop: Arc::default(),
            ended,
            end,
            mailboxes: Vec::new(),
            threads: Vec::new(),
            held: Vec::new(),
        })
    }

    /// Starts an event loop on a thread of its own, where it is also made.
    fn start<T: 'static>(
        &mut self,
        name: &'static str,
        new: impl FnOnce() -> io::Result<T> + Send + 'static,
        mailbox: fn(&T) -> Arc<Mailbox>,
        run: fn(T, &AtomicBool) -> io::Result<()>,
    ) -> Result<()> {
        let (made, is_made) = channel();
        let (held, begin) = channel::<()>();
        self.held.push(held);
        let (stop, end) = (self.stop.clone(), self.end.clone());
        self.threads.push(
            thread::Builder::new()
                .name(name.into())
                .spawn(move || match new() {
                    Ok(transport) => {
                        let _ = made.send(Ok(mailbox(&transport)));
                        // An error: the other end is dropped, and that is the sign.
                        let _ = begin.recv();
                        let _ = end.send(Ended::Transport(name, run(transport, &stop)));
                    }
                    Err(error) => drop(made.send(Err(error))),
                })?,
        );
        let mailbox = is_made
            .recv()
            .context("the event loop ended before it began")?;
        self.mailboxes
            .push(mailbox.with_context(|| format!("cannot serve on {name}"))?);
        Ok(())
    }

    /// Lets the loops begin.
    fn begin(&mut self) {
        self.held.clear();
    }

    /// Waits for the end, has every loop finish, and says what ended it.
    fn wait(self) -> Result<String> {
        let ended = self.ended.recv().context("nobody can end the server")?;
        self.stop.store(true, Ordering::SeqCst);
        self.mailboxes.iter().for_each(|mailbox| mailbox.wake());
        for thread in self.threads {
            let _ = thread.join();
        }
        match ended {
            Ended::Signal(name) => Ok(name.to_owned()),
            Ended::Transport(name, Ok(())) => Ok(format!("{name} ended")),
            Ended::Transport(name, Err(error)) => bail!("serving on {name} failed: {error}"),
        }
    }
}

/// Keeps the signals that end the server from ending it at once. To be called before any thread is started, since each
/// thread has its own mask and inherits it.
fn block_signals() -> Result<SigSet> {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGTERM);
    signals.add(Signal::SIGINT);
    signals.thread_block().context("cannot block signals")?;
    Ok(signals)
}

/// A server of which a thread is missing would leave calls without a reply and locks taken. Rather it ends, clients wait, and whoever
/// started it starts it again.
fn end_on_panic() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        report(panic);
        std::process::abort();
    }));
}

/// A few descriptors for each file in use, and one for each connection.
fn raise_descriptor_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    // Not fatal: files that are not in use are closed before the limit is reached.
    let _ = setrlimit(
        Resource::Nofile,
        Rlimit {
            current: limit.maximum,
            maximum: limit.maximum,
        },
    );
}

/// Until the server ends.
fn report_statistics(server: &Weak<Server>) {
    const EVERY: Duration = Duration::from_secs(1);
    let mut before = Vec::new();
    let mut was_busy = false;
    loop {
        thread::sleep(EVERY);
        let Some(server) = server.upgrade() else {
            return;
        };
        let operations = server.metrics.calls();
        let busy = operations != before;
        if busy || was_busy {
            server.events.report(&Event::Statistics {
                operations: operations.clone(),
                read_bytes: server.metrics.read_bytes.load(Ordering::Relaxed),
                written_bytes: server.metrics.written_bytes.load(Ordering::Relaxed),
            });
        }
        (before, was_busy) = (operations, busy);
    }
}

/// Answers every HTTP request with the metrics, one at a time.
fn serve_metrics(address: SocketAddr, server: &Arc<Server>) -> Result<SocketAddr> {
    let listener = TcpListener::bind(address)
        .with_context(|| format!("cannot listen on {address} for metrics"))?;
    let address = listener.local_addr()?;
    let server = server.clone();
    thread::Builder::new()
        .name("metrics".into())
        .spawn(move || {
            for stream in listener.incoming().flatten() {
                // Whoever asks for metrics has a second to do it; its trouble is not ours.
                let _ = answer_metrics(stream, &server);
            }
        })?;
    Ok(address)
}

fn answer_metrics(mut stream: TcpStream, server: &Server) -> io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(1)))?;
    stream.set_write_timeout(Some(Duration::from_secs(1)))?;
    let _ = stream.read(&mut [0; 4096])?;
    let body = Metrics::render(server);
    write!(
        stream,
        "HTTP/1.1 200 OK\r\nContent-Type: text/plain; version=0.0.4\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )
}
