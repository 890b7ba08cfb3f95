//! The far end of the cable: a switch port and a TCP/IP client, so that a test can call a server over frames.

use std::{
    collections::VecDeque,
    io::{self, Read, Write},
    os::unix::net::UnixStream,
    time::{Duration, Instant},
};

use smoltcp::{
    iface::{Config, Interface, SocketHandle, SocketSet},
    phy::{self, Device, DeviceCapabilities, Medium},
    socket::tcp,
    time::Instant as NetInstant,
    wire::{EthernetAddress, HardwareAddress, IpAddress, IpCidr, Ipv4Address},
};

struct Port {
    stream: UnixStream,
    partial: Vec<u8>,
    frames: VecDeque<Vec<u8>>,
}

impl Port {
    /// Waits a moment for bytes.
    fn receive(&mut self) -> io::Result<()> {
        let mut chunk = [0; 65536];
        match self.stream.read(&mut chunk) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(n) => self.partial.extend_from_slice(&chunk[..n]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
        while let Some((length, body)) = self.partial.split_first_chunk::<4>() {
            let length = u32::from_be_bytes(*length) as usize;
            if body.len() < length {
                break;
            }
            self.frames.push_back(body[..length].to_vec());
            self.partial.drain(..4 + length);
        }
        Ok(())
    }
}

impl Device for Port {
    type RxToken<'a> = Received;
    type TxToken<'a> = Sending<'a>;

    fn receive(&mut self, _: NetInstant) -> Option<(Received, Sending<'_>)> {
        let frame = self.frames.pop_front()?;
        Some((Received(frame), Sending(self)))
    }

    fn transmit(&mut self, _: NetInstant) -> Option<Sending<'_>> {
        Some(Sending(self))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = 9014;
        capabilities
    }
}

pub struct Received(Vec<u8>);

impl phy::RxToken for Received {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, take: F) -> R {
        take(&self.0)
    }
}

pub struct Sending<'a>(&'a mut Port);

impl phy::TxToken for Sending<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, fill: F) -> R {
        let mut frame = vec![0; length];
        let result = fill(&mut frame);
        let framed = [&(length as u32).to_be_bytes()[..], &frame].concat();
        // A port may lose a frame, TCP brings it again.
        let _ = self.0.stream.write_all(&framed);
        result
    }
}

/// A TCP connection over frames.
pub struct EthernetStream {
    port: Port,
    interface: Interface,
    sockets: SocketSet<'static>,
    socket: SocketHandle,
    begun: Instant,
}

impl EthernetStream {
    /// Connects to `server` as 198.18.1.`host` over a stream that carries frames.
    pub fn connect(stream: UnixStream, host: u8, server: Ipv4Address) -> io::Result<Self> {
        stream.set_read_timeout(Some(Duration::from_millis(2)))?;
        let mut port = Port {
            stream,
            partial: Vec::new(),
            frames: VecDeque::new(),
        };
        let mac = EthernetAddress([2, 0xe1, 0xab, 1, 0, host]);
        let mut interface = Interface::new(
            Config::new(HardwareAddress::Ethernet(mac)),
            &mut port,
            NetInstant::ZERO,
        );
        interface.update_ip_addrs(|addresses| {
            let address = IpCidr::new(IpAddress::Ipv4(Ipv4Address::new(198, 18, 1, host)), 24);
            addresses.push(address).expect("room for one");
        });
        let buffer = || tcp::SocketBuffer::new(vec![0; 512 * 1024]);
        let mut socket = tcp::Socket::new(buffer(), buffer());
        socket.set_ack_delay(None);
        socket.set_nagle_enabled(false);
        let local = 40_000 + u16::from(host);
        socket
            .connect(interface.context(), (IpAddress::Ipv4(server), 2049), local)
            .map_err(io::Error::other)?;
        let mut sockets = SocketSet::new(Vec::new());
        let socket = sockets.add(socket);
        Ok(Self {
            port,
            interface,
            sockets,
            socket,
            begun: Instant::now(),
        })
    }

    fn turn(&mut self) -> io::Result<()> {
        let now = NetInstant::from_micros(self.begun.elapsed().as_micros() as i64);
        self.interface.poll(now, &mut self.port, &mut self.sockets);
        let socket = self.sockets.get::<tcp::Socket<'_>>(self.socket);
        if !socket.is_open() {
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        Ok(())
    }
}

impl Read for EthernetStream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let until = Instant::now() + Duration::from_secs(10);
        while Instant::now() < until {
            self.turn()?;
            let socket = self.sockets.get_mut::<tcp::Socket<'_>>(self.socket);
            if socket.can_recv() {
                return socket.recv_slice(buffer).map_err(io::Error::other);
            }
            self.port.receive()?;
        }
        Err(io::ErrorKind::TimedOut.into())
    }
}

impl Write for EthernetStream {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let until = Instant::now() + Duration::from_secs(10);
        while Instant::now() < until {
            self.turn()?;
            let socket = self.sockets.get_mut::<tcp::Socket<'_>>(self.socket);
            if socket.can_send() {
                let n = socket.send_slice(data).map_err(io::Error::other)?;
                self.turn()?;
                return Ok(n);
            }
            self.port.receive()?;
        }
        Err(io::ErrorKind::TimedOut.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
