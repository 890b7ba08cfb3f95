//! A guest that does anything: ports, device registers, MSRs, configuration space, rings, at any time.
//!
//! Bytes are read as a list of actions. Some of them set a device up as its driver would, because chance alone hardly
//! ever gets a queue to work.

use guest_memory::Gpa;
use machine::{
    Machine, Outcome,
    vcpu::{Exit, Vcpu, gpr},
};

use crate::{
    bytes::Bytes,
    vcpu::{CODE, RAM, SetClock, SetVcpu, machine, machine_in},
};

/// First device window on the machine's bus; one of [`WINDOW`] bytes for each device.
const WINDOWS: u64 = 0xe000_0000;
const WINDOW: u64 = 0x8000;
const DEVICES: u64 = 4;
const IO_APIC: u64 = 0xfec0_0000;
const CONFIG_ADDRESS: u16 = 0xcf8;
const CONFIG_DATA: u16 = 0xcfc;
/// Actions in one input.
const ACTIONS_MAX: usize = 400;
/// More requests or frames than the largest ring holds.
const MANY: usize = 300;

/// Stores and loads through RDX, by width.
const STORES: [&[u8]; 4] = [
    &[0x88, 0x02],
    &[0x66, 0x89, 0x02],
    &[0x89, 0x02],
    &[0x48, 0x89, 0x02],
];
const LOADS: [&[u8]; 4] = [
    &[0x8a, 0x02],
    &[0x66, 0x8b, 0x02],
    &[0x8b, 0x02],
    &[0x48, 0x8b, 0x02],
];

struct World {
    machine: Machine,
    vcpus: [SetVcpu; 2],
    clock: SetClock,
    /// The vCPU that acts.
    active: usize,
}

impl World {
    fn exit(&mut self, exit: Exit) -> Outcome {
        let vcpu = &mut self.vcpus[self.active];
        vcpu.exit = Some(exit);
        let outcome = self.machine.run(self.active, vcpu, &self.clock);
        vcpu.exit = None;
        if let Outcome::Misbehaved(reason) = &outcome {
            assert!(!reason.is_empty(), "stopped without a reason");
        }
        outcome
    }

    fn write_port(&mut self, port: u16, size: u8, value: u32) {
        self.vcpus[self.active].set_gpr(gpr::RAX, value.into());
        self.port(port, size, true);
    }

    fn port(&mut self, port: u16, size: u8, write: bool) {
        self.exit(Exit::Io {
            port,
            size,
            write,
            string: false,
            repeat: false,
            next_rip: CODE,
        });
    }

    fn device(&mut self, gpa: u64, code: &[u8], value: u64, write: bool) {
        self.machine
            .memory()
            .write(Gpa(CODE), code)
            .expect("it is RAM");
        let vcpu = &mut self.vcpus[self.active];
        vcpu.state.rip = CODE;
        vcpu.set_gpr(gpr::RAX, value);
        self.exit(Exit::NestedFault {
            gpa,
            write,
            fetch: false,
            table_walk: false,
        });
    }

    fn store(&mut self, gpa: u64, size: u8, value: u64) {
        self.device(gpa, STORES[size.ilog2() as usize & 3], value, true);
    }

    /// Sets a device up as its driver would, with a queue's rings from `rings` on, a page each.
    fn start_driver(&mut self, device: u64, queue: u16, rings: u64) {
        self.write_port(CONFIG_ADDRESS, 4, 1 << 31 | (device as u32 + 1) << 11 | 4);
        self.write_port(CONFIG_DATA, 2, 6);
        let base = WINDOWS + device * WINDOW;
        for (register, size, value) in [
            (0x14, 1, 0),
            (0x14, 1, 3),
            (0x0c, 4, 1 << 29),
            (0x08, 4, 1),
            (0x0c, 4, 1),
            (0x14, 1, 0xb),
            (0x16, 2, queue.into()),
            (0x18, 2, 8),
            (0x20, 4, rings),
            (0x28, 4, rings + 0x1000),
            (0x30, 4, rings + 0x2000),
            (0x1a, 2, 1),
            (0x1c, 2, 1),
            (0x14, 1, 0xf),
        ] {
            self.store(base + register, size, value);
        }
    }

    /// Writes descriptors and offers them.
    fn offer(&mut self, rings: u64, bytes: &mut Bytes<'_>) {
        let memory = self.machine.memory();
        let count = bytes.u8() % 8 + 1;
        for index in 0..u64::from(count) {
            let mut descriptor = [0; 16];
            descriptor[..8].copy_from_slice(&u64::from(bytes.u16()).to_le_bytes());
            let length = match bytes.u8() {
                byte @ 0..0xf0 => u32::from(byte) * 8,
                _ => bytes.u32(),
            };
            descriptor[8..12].copy_from_slice(&length.to_le_bytes());
            descriptor[12] = bytes.u8() & 7;
            descriptor[14] = bytes.u8() % 9;
            memory
                .write(Gpa(rings + index * 16), &descriptor)
                .expect("it is RAM");
        }
        let mut available = [0; 20];
        available[2] = bytes.u8();
        for head in available[4..].chunks_exact_mut(2) {
            head[0] = bytes.u8() % 9;
        }
        memory
            .write(Gpa(rings + 0x1000), &available)
            .expect("it is RAM");
    }

    /// The host's part: what the guest asked for is answered, whatever it is.
    fn serve(&mut self, bytes: &mut Bytes<'_>) {
        let requests: Vec<_> = std::iter::from_fn(|| self.machine.next_disk_request())
            .take(MANY)
            .collect();
        assert!(requests.len() < MANY, "a ring gave requests without end");
        for request in requests {
            let result = match request.op {
                machine::DiskOp::Read { len, .. } => Ok(vec![1; len as usize]),
                _ => Ok(Vec::new()),
            };
            self.machine.complete_disk(request.id, result);
        }
        assert!(
            std::iter::from_fn(|| self.machine.next_frame())
                .take(MANY)
                .count()
                < MANY,
            "a ring gave frames without end"
        );
        self.machine.take_console_output();
        match bytes.u8() {
            0..0x40 => {
                self.machine.deliver_frame(0, bytes.take(64));
            }
            0x40..0x60 => self.machine.console_input(bytes.take(4)),
            0x60..0x68 => self.machine.announce(),
            _ => {}
        }
    }

    /// Into another machine with the same RAM, and on from there.
    fn move_on(self) -> Self {
        let sections = self.machine.save();
        let mut machine = machine_in(self.machine.into_memory());
        machine
            .restore(&sections)
            .expect("a machine can take over its own state");
        assert_eq!(machine.save(), sections, "a state changed on its way");
        Self { machine, ..self }
    }

    fn act(mut self, bytes: &mut Bytes<'_>) -> Self {
        let action = bytes.u8();
        self.active = usize::from(action >> 7);
        match action & 0x1f {
            0 | 1 => {
                let (port, size) = (bytes.u16(), 1 << (bytes.u8() % 3));
                self.write_port(port, size, 0);
                self.port(port, size, false);
            }
            2 => {
                let port = [0x3f8, CONFIG_ADDRESS, 0x600, 0x64][usize::from(action >> 5 & 3)];
                let (port, value) = (port + u16::from(bytes.u8() & 7), bytes.u32());
                // Switching off ends little; it is tried seldom.
                if port != 0x600 || value & 0xff == 0x34 {
                    self.write_port(port, 1 << (value >> 30).min(2), value);
                }
            }
            3 | 4 => {
                self.write_port(CONFIG_ADDRESS, 4, 1 << 31 | u32::from(bytes.u16() & 0x3ffc));
                let (place, value) = (bytes.u8(), bytes.u32());
                let port = CONFIG_DATA + u16::from(place & 3);
                self.write_port(port, 1 << (place >> 4 & 3).min(2), value);
                self.port(port, 4, false);
            }
            5..9 => {
                let gpa = WINDOWS
                    + u64::from(bytes.u8()) % DEVICES * WINDOW
                    + u64::from(bytes.u16() & 0x7fff);
                let value = bytes.u32();
                self.store(gpa, 1 << (action >> 5 & 3), value.into());
            }
            9 => {
                let gpa = WINDOWS + u64::from(bytes.u16()) * 2;
                self.device(gpa, LOADS[usize::from(action >> 5 & 3)], 0, false);
            }
            10 => {
                let gpa = IO_APIC + u64::from(bytes.u8() & 0x50);
                let value = bytes.u32();
                self.store(gpa, 4, value.into());
            }
            11 => {
                let (gpa, value) = (bytes.u64(), bytes.u64());
                self.store(gpa, 8, value);
            }
            12 | 13 => {
                let msr = match action >> 5 & 3 {
                    0 => 0x800 + u32::from(bytes.u8() & 0x3f),
                    1 => 0x4b56_4d00 + u32::from(bytes.u8() & 7),
                    2 => [0x6e0, 0xc000_0080, 0x277, 0xc000_0103][usize::from(bytes.u8() & 3)],
                    _ => bytes.u32(),
                };
                let value = bytes.u64();
                let vcpu = &mut self.vcpus[self.active];
                vcpu.set_gpr(gpr::RCX, msr.into());
                vcpu.set_gpr(gpr::RAX, value & 0xffff_ffff);
                vcpu.set_gpr(gpr::RDX, value >> 32);
                self.exit(if action & 1 == 0 {
                    Exit::WriteMsr
                } else {
                    Exit::ReadMsr
                });
            }
            14 => {
                let at = u64::from(bytes.u16());
                let content = bytes.take(32);
                let _ = self.machine.memory().write(Gpa(at), content);
            }
            15 | 16 => {
                let (device, queue) = (bytes.u8(), bytes.u8());
                let rings = 0x4000 + u64::from(action >> 5 & 1) * 0x4000;
                self.start_driver(u64::from(device) % DEVICES, u16::from(queue % 4), rings);
            }
            17..21 => {
                let rings = 0x4000 + u64::from(action >> 5 & 1) * 0x4000;
                self.offer(rings, bytes);
                let (device, queue) = (u64::from(bytes.u8()) % DEVICES, bytes.u8() % 4);
                let doorbell = WINDOWS + device * WINDOW + 0x3000 + 4 * u64::from(queue);
                self.store(doorbell, 2, queue.into());
            }
            21 => {
                let step = u64::from(bytes.u32());
                self.clock.0.set(self.clock.0.get() + step);
                self.exit(Exit::Interrupted);
            }
            22 => {
                let others = [
                    Exit::Cpuid,
                    Exit::Halt,
                    Exit::SetXcr,
                    Exit::Hypercall,
                    Exit::Pause,
                    Exit::InterruptWindow,
                ];
                self.vcpus[self.active].cr8 = bytes.u8() & 15;
                self.exit(others[usize::from(bytes.u8()) % others.len()]);
            }
            23 => return self.move_on(),
            _ => self.serve(bytes),
        }
        self
    }
}

/// Stopped with a reason or served, in bounded work; and at any time its state can move.
///
/// # Panics
/// When that does not hold.
pub fn guest(data: &[u8]) {
    let mut bytes = Bytes(data);
    let mut world = World {
        machine: machine(),
        vcpus: [SetVcpu::new(), SetVcpu::new()],
        clock: SetClock::default(),
        active: 0,
    };
    for _ in 0..ACTIONS_MAX {
        if bytes.is_empty() {
            break;
        }
        world = world.act(&mut bytes);
        world.clock.0.set(world.clock.0.get() + 10_000);
        for index in 0..2 {
            let _ = world.machine.runnable(index, &world.clock);
        }
    }
    assert_eq!(
        world.machine.memory().pages() * guest_memory::PAGE_SIZE,
        RAM
    );
    world.move_on();
}
