//! One network of a running switch: its fabric, and the sockets behind the fabric's ports.

use std::collections::HashMap;
use std::sync::mpsc::Sender;

use crate::fabric::{Fabric, FabricEvent, Outlet, PortId};
use crate::framing::Decoder;
use crate::link::{Direction, DropCause};
use crate::ports::{Progress, Socket};
use crate::switch::{Noticed, SwitchNotice};

/// A port with its socket.
pub(crate) struct Port {
    pub(crate) name: String,
    pub(crate) socket: Socket,
    /// Got frames in this turn.
    pub(crate) touched: bool,
}

/// A network.
pub(crate) struct Network {
    pub(crate) name: String,
    pub(crate) fabric: Fabric,
    pub(crate) ports: Vec<Port>,
    /// One for each port; apart from it, so that a frame can go to the ports while its decoder holds it.
    pub(crate) decoders: Vec<Decoder>,
    pub(crate) by_name: HashMap<String, usize>,
}

impl Network {
    /// Reads once from a port and forwards the frames that are complete.
    pub(crate) fn receive(
        &mut self,
        port: usize,
        notices: &Sender<SwitchNotice>,
        now_ns: u64,
    ) -> Progress {
        let progress = self.ports[port].socket.read(&mut self.decoders[port]);
        if matches!(progress, Progress::Closed(_)) {
            return progress;
        }
        let mut deliveries = Deliveries {
            network: &self.name,
            ports: &mut self.ports,
            notices,
            now_ns,
            overflowed: Vec::new(),
        };
        let progress = loop {
            match self.decoders[port].next_frame() {
                Ok(Some(frame)) => {
                    self.fabric
                        .ingress(PortId(port), frame, now_ns, &mut deliveries);
                }
                Ok(None) => break Progress::Open,
                Err(error) => break Progress::Closed(error.to_string()),
            }
        };
        for port in deliveries.overflowed {
            self.fabric.count_drop(port);
        }
        progress
    }

    /// Moves on the delayed frames that are due.
    pub(crate) fn move_delayed(&mut self, notices: &Sender<SwitchNotice>, now_ns: u64) {
        let mut deliveries = Deliveries {
            network: &self.name,
            ports: &mut self.ports,
            notices,
            now_ns,
            overflowed: Vec::new(),
        };
        self.fabric.on_time(now_ns, &mut deliveries);
        for port in deliveries.overflowed {
            self.fabric.count_drop(port);
        }
    }
}

/// Where a fabric's deliveries go for the length of one call.
struct Deliveries<'a> {
    network: &'a str,
    ports: &'a mut [Port],
    notices: &'a Sender<SwitchNotice>,
    now_ns: u64,
    overflowed: Vec<PortId>,
}

impl Outlet for Deliveries<'_> {
    fn deliver(&mut self, port: PortId, frame: &[u8]) {
        let target = &mut self.ports[port.0];
        if target.socket.stream.is_none() || !target.socket.queue(frame) {
            self.overflowed.push(port);
            return;
        }
        target.touched = true;
    }

    fn event(&mut self, event: FabricEvent) {
        let name = |port: PortId| self.ports[port.0].name.clone();
        let what = match event {
            FabricEvent::Learnt { .. } => return,
            FabricEvent::Moved { mac, from, to } => Noticed::Moved {
                mac,
                from: name(from),
                to: name(to),
            },
            FabricEvent::FirstFrame { mac, port } => Noticed::FirstFrame {
                mac,
                port: name(port),
            },
        };
        // Nobody listens any more when the lab ends.
        let _ = self.notices.send(SwitchNotice {
            t_ns: self.now_ns,
            network: self.network.into(),
            what,
        });
    }

    fn trace(
        &mut self,
        port: PortId,
        direction: Direction,
        frame: &[u8],
        fate: Result<(), DropCause>,
    ) {
        let socket = &mut self.ports[port.0].socket;
        let Some(capture) = &mut socket.capture else {
            return;
        };
        let comment = fate.err().map(|cause| cause.to_string());
        if capture
            .frame(self.now_ns, direction, frame, comment.as_deref())
            .is_err()
        {
            // A full disk ends the capture, not the network.
            socket.capture = None;
        }
    }
}
