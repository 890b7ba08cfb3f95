//! A virtio device on the PCI bus: identity, capabilities, registers (virtio 1.2, 4.1).
//!
//! All registers are in one memory window; legacy ports are not offered. A driver that breaks the
//! rules gets an error from here, which stops the guest.

use alloc::{vec, vec::Vec};

use guest_memory::GuestMemory;

use super::{
    NO_VECTOR,
    balloon::{self, Balloon},
    block::{self, Block},
    entropy, feature,
    net::{self, Net},
    queue::{Queue, RingError},
};
use crate::{
    apic::Message,
    pci::{ConfigSpace, MsiX, msix},
    state::{SavedDevice, SavedFunction},
};

const VENDOR: u16 = 0x1af4;
/// Device ids are this plus the device type.
const DEVICE_BASE: u16 = 0x1040;
/// Subsystem ids from 0x40 on mark a device without legacy interface.
const SUBSYSTEM: u16 = 0x40;

/// Size of the memory window.
pub const WINDOW: u32 = 0x8000;
const COMMON: u64 = 0x0000;
const ISR: u64 = 0x1000;
const DEVICE: u64 = 0x2000;
const NOTIFY: u64 = 0x3000;
const MSIX_TABLE: u64 = 0x4000;
const MSIX_PENDING: u64 = 0x5000;
const AREA: u64 = 0x1000;
/// Bytes between two queues' notification registers.
const NOTIFY_STRIDE: u64 = 4;

const CAPABILITY_VENDOR: u8 = 0x09;
const CAPABILITY_MSIX: u8 = 0x11;

/// Device status bits (virtio 1.2, 2.1).
mod status {
    pub const DRIVER_OK: u8 = 4;
    pub const FEATURES_OK: u8 = 8;
}

/// Common configuration registers (virtio 1.2, 4.1.4.3).
mod common {
    pub const DEVICE_FEATURE_SELECT: u64 = 0x00;
    pub const DEVICE_FEATURE: u64 = 0x04;
    pub const DRIVER_FEATURE_SELECT: u64 = 0x08;
    pub const DRIVER_FEATURE: u64 = 0x0c;
    pub const CONFIG_VECTOR: u64 = 0x10;
    pub const QUEUE_COUNT: u64 = 0x12;
    pub const STATUS: u64 = 0x14;
    pub const CONFIG_GENERATION: u64 = 0x15;
    pub const QUEUE_SELECT: u64 = 0x16;
    pub const QUEUE_SIZE: u64 = 0x18;
    pub const QUEUE_VECTOR: u64 = 0x1a;
    pub const QUEUE_ENABLE: u64 = 0x1c;
    pub const QUEUE_NOTIFY_OFFSET: u64 = 0x1e;
    pub const QUEUE_DESCRIPTORS: u64 = 0x20;
    pub const QUEUE_AVAILABLE: u64 = 0x28;
    pub const QUEUE_USED: u64 = 0x30;
    pub const END: u64 = 0x38;
}

/// What kind of device it is.
#[derive(Debug)]
pub enum Device {
    /// A disk.
    Block(Block),
    /// A network card.
    Net(Net),
    /// An entropy source.
    Entropy,
    /// A memory balloon.
    Balloon(Balloon),
}

impl Device {
    /// Device type (virtio 1.2, 5) and PCI class.
    fn identity(&self) -> (u16, u32) {
        match self {
            Self::Net(_) => (1, 0x02_00_00),
            Self::Block(_) => (2, 0x01_00_00),
            Self::Entropy => (4, 0xff_00_00),
            Self::Balloon(_) => (5, 0xff_00_00),
        }
    }

    fn features(&self) -> u64 {
        let own = match self {
            Self::Block(block) => block.features(),
            Self::Net(net) => net.features(),
            Self::Entropy => 0,
            Self::Balloon(_) => balloon::MUST_TELL_HOST,
        };
        own | feature::INDIRECT_DESC | feature::EVENT_IDX | feature::VERSION_1
    }

    fn queue_sizes(&self) -> &'static [u16] {
        match self {
            Self::Block(_) => &[block::QUEUE_SIZE],
            Self::Net(_) => &[net::QUEUE_SIZE; 3],
            Self::Entropy => &[entropy::QUEUE_SIZE],
            Self::Balloon(_) => &[balloon::QUEUE_SIZE; 2],
        }
    }

    fn config(&self) -> Vec<u8> {
        match self {
            Self::Block(block) => block.config(),
            Self::Net(net) => net.config(),
            Self::Entropy => Vec::new(),
            Self::Balloon(balloon) => balloon.config(),
        }
    }

    fn reset(&mut self) {
        match self {
            Self::Block(block) => block.reset(),
            Self::Net(net) => net.reset(),
            Self::Entropy => {}
            Self::Balloon(balloon) => balloon.reset(),
        }
    }
}

/// A write's consequence for the rest of the machine.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Written {
    /// A queue was rung.
    pub rung: Option<usize>,
    /// An interrupt that was held back.
    pub message: Option<Message>,
}

/// A virtio device on the bus.
#[derive(Debug)]
pub struct Function {
    // Fixed configuration.
    msix_capability: usize,
    // Volatile state.
    config: ConfigSpace,
    msix: MsiX,
    device_feature_select: u32,
    driver_feature_select: u32,
    driver_features: u64,
    status: u8,
    config_generation: u8,
    config_vector: u16,
    queue_select: u16,
    isr: u8,
    queues: Vec<Queue>,
    device: Device,
}

impl Function {
    /// A device after power-on, with its window at `base`.
    #[must_use]
    pub fn new(device: Device, base: u32) -> Self {
        let (id, class) = device.identity();
        let queues: Vec<Queue> = device
            .queue_sizes()
            .iter()
            .map(|size| Queue::new(*size))
            .collect();
        // One vector for each queue, one for changes of the configuration.
        let msix = MsiX::new(queues.len() + 1);
        let mut config =
            ConfigSpace::new(VENDOR, DEVICE_BASE + id, class, SUBSYSTEM).with_memory(base, WINDOW);
        let areas = [
            (1, COMMON, common::END),
            (2, NOTIFY, NOTIFY_STRIDE * queues.len() as u64),
            (3, ISR, 4),
            (4, DEVICE, AREA),
        ];
        for (kind, offset, len) in areas {
            config.add_capability(&virtio_capability(kind, offset as u32, len as u32));
        }
        let mut capability = [0; 12];
        capability[0] = CAPABILITY_MSIX;
        capability[2..4].copy_from_slice(&(msix.len() as u16 - 1).to_le_bytes());
        capability[4..8].copy_from_slice(&(MSIX_TABLE as u32).to_le_bytes());
        capability[8..12].copy_from_slice(&(MSIX_PENDING as u32).to_le_bytes());
        let msix_capability = config.add_capability(&capability);
        config.allow(msix_capability + 2, &msix::CONTROL_WRITABLE.to_le_bytes());
        Self {
            msix_capability,
            config,
            msix,
            device_feature_select: 0,
            driver_feature_select: 0,
            driver_features: 0,
            status: 0,
            config_generation: 0,
            config_vector: NO_VECTOR,
            queue_select: 0,
            isr: 0,
            queues,
            device,
        }
    }

    /// Its configuration space.
    #[must_use]
    pub fn config(&self) -> &ConfigSpace {
        &self.config
    }

    /// Writes to its configuration space; gives the interrupts that this lets through.
    pub fn write_config(&mut self, offset: usize, size: u8, value: u32) -> Vec<Message> {
        self.config.write(offset, size, value);
        let control = self.config.read(self.msix_capability + 2, 2) as u16;
        self.msix.set_control(control)
    }

    /// The device with its queue `index`, if the driver has set both up.
    pub fn device_and_queue(&mut self, index: usize) -> Option<(&mut Device, &mut Queue)> {
        (self.is_live()).then_some((&mut self.device, &mut self.queues[index]))
    }

    /// The device.
    #[must_use]
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The device.
    pub fn device_mut(&mut self) -> &mut Device {
        &mut self.device
    }

    /// Features that the driver accepted.
    #[must_use]
    pub fn driver_features(&self) -> u64 {
        self.driver_features
    }

    /// Whether the driver is at work and the bus lets the device touch memory.
    #[must_use]
    pub fn is_live(&self) -> bool {
        self.status & status::DRIVER_OK != 0 && self.config.is_master()
    }

    /// The interrupt for what a queue gave back, if the driver wants one.
    ///
    /// # Errors
    /// When the ring breaks the rules.
    pub fn interrupt(
        &mut self,
        queue: usize,
        memory: &GuestMemory,
    ) -> Result<Option<Message>, RingError> {
        let queue = &mut self.queues[queue];
        if !queue.interrupt_due(memory)? {
            return Ok(None);
        }
        let vector = queue.vector;
        Ok(self.signal(vector, 1))
    }

    /// Whether [`Self::interrupt`] would send one.
    ///
    /// # Errors
    /// When the ring breaks the rules.
    pub fn wants_interrupt(&self, queue: usize, memory: &GuestMemory) -> Result<bool, RingError> {
        self.queues[queue].interrupt_wanted(memory)
    }

    /// The interrupt for a change of the device's configuration.
    pub fn config_changed(&mut self) -> Option<Message> {
        self.config_generation = self.config_generation.wrapping_add(1);
        self.signal(self.config_vector, 2)
    }

    fn signal(&mut self, vector: u16, isr: u8) -> Option<Message> {
        if self.msix.is_enabled() {
            self.msix.raise(vector)
        } else {
            self.isr |= isr;
            None
        }
    }

    /// Reads from the memory window.
    pub fn read(&mut self, offset: u64, size: u8) -> u64 {
        let within = offset % AREA;
        match offset - within {
            COMMON => self.read_common(within),
            ISR if within == 0 => core::mem::take(&mut self.isr).into(),
            DEVICE => {
                let config = self.device.config();
                (0..u64::from(size)).rev().fold(0, |value, i| {
                    let byte = config.get((within + i) as usize).copied().unwrap_or(0);
                    value << 8 | u64::from(byte)
                })
            }
            MSIX_TABLE => self.msix.read_table(within).into(),
            MSIX_PENDING => self.msix.read_pending(within).into(),
            _ => 0,
        }
    }

    fn read_common(&self, register: u64) -> u64 {
        let queue = self.queues.get(usize::from(self.queue_select));
        let of_queue = |field: fn(&Queue) -> u64| queue.map_or(0, field);
        match register {
            common::DEVICE_FEATURE_SELECT => self.device_feature_select.into(),
            common::DEVICE_FEATURE => half(self.device.features(), self.device_feature_select),
            common::DRIVER_FEATURE_SELECT => self.driver_feature_select.into(),
            common::DRIVER_FEATURE => half(self.driver_features, self.driver_feature_select),
            common::CONFIG_VECTOR => self.config_vector.into(),
            common::QUEUE_COUNT => self.queues.len() as u64,
            common::STATUS => self.status.into(),
            common::CONFIG_GENERATION => self.config_generation.into(),
            common::QUEUE_SELECT => self.queue_select.into(),
            common::QUEUE_SIZE => of_queue(|q| q.size.into()),
            common::QUEUE_VECTOR => of_queue(|q| q.vector.into()),
            common::QUEUE_ENABLE => of_queue(|q| q.ready.into()),
            common::QUEUE_NOTIFY_OFFSET => self.queue_select.into(),
            common::QUEUE_DESCRIPTORS => of_queue(|q| q.descriptors),
            common::QUEUE_AVAILABLE => of_queue(|q| q.available),
            common::QUEUE_USED => of_queue(|q| q.used),
            0x24 => of_queue(|q| q.descriptors >> 32),
            0x2c => of_queue(|q| q.available >> 32),
            0x34 => of_queue(|q| q.used >> 32),
            _ => 0,
        }
    }

    /// Writes to the memory window.
    ///
    /// # Errors
    /// When the driver sets up a queue that cannot be one.
    pub fn write(&mut self, offset: u64, size: u8, value: u64) -> Result<Written, RingError> {
        let mut written = Written::default();
        let within = offset % AREA;
        match offset - within {
            COMMON => {
                // 64-bit registers may be written whole or by halves.
                if size == 8 && matches!(within, 0x20 | 0x28 | 0x30) {
                    self.write_common(within, value & 0xffff_ffff)?;
                    self.write_common(within + 4, value >> 32)?;
                } else {
                    self.write_common(within, value)?;
                }
                if within == common::STATUS && self.is_live() {
                    // What was queued before is work now.
                    written.rung = Some(0);
                }
            }
            NOTIFY => {
                let queue = (within / NOTIFY_STRIDE) as usize;
                written.rung = (self.is_live() && queue < self.queues.len()).then_some(queue);
            }
            DEVICE => {
                if let Device::Balloon(balloon) = &mut self.device {
                    balloon.write_config(within, size, value as u32);
                }
            }
            MSIX_TABLE => {
                written.message = self.msix.write_table(within, value as u32);
                if size == 8 {
                    let second = self.msix.write_table(within + 4, (value >> 32) as u32);
                    written.message = written.message.or(second);
                }
            }
            _ => {}
        }
        Ok(written)
    }

    fn write_common(&mut self, register: u64, value: u64) -> Result<(), RingError> {
        let low = value as u32;
        match register {
            common::DEVICE_FEATURE_SELECT => self.device_feature_select = low,
            common::DRIVER_FEATURE_SELECT => self.driver_feature_select = low,
            common::DRIVER_FEATURE if self.status & status::FEATURES_OK == 0 => {
                if let shift @ (0 | 32) = u64::from(self.driver_feature_select) * 32 {
                    let mask = 0xffff_ffff << shift;
                    self.driver_features = self.driver_features & !mask | u64::from(low) << shift;
                }
            }
            common::CONFIG_VECTOR => self.config_vector = self.vector(low as u16),
            common::STATUS => self.write_status(low as u8),
            common::QUEUE_SELECT => self.queue_select = low as u16,
            _ => self.write_queue(register, low)?,
        }
        Ok(())
    }

    /// A vector as the guest set it, or none if there is no such one, which the guest reads back.
    fn vector(&self, vector: u16) -> u16 {
        if usize::from(vector) < self.msix.len() {
            vector
        } else {
            NO_VECTOR
        }
    }

    fn write_status(&mut self, new: u8) {
        if new == 0 {
            self.reset();
            return;
        }
        let accepted = self.driver_features & !self.device.features() == 0
            && self.driver_features & feature::VERSION_1 != 0;
        self.status = if accepted {
            new
        } else {
            new & !status::FEATURES_OK
        };
    }

    fn write_queue(&mut self, register: u64, value: u32) -> Result<(), RingError> {
        let vector = self.vector(value as u16);
        let event_idx = self.driver_features & feature::EVENT_IDX != 0;
        let Some(queue) = self.queues.get_mut(usize::from(self.queue_select)) else {
            return Ok(());
        };
        match register {
            common::QUEUE_VECTOR => queue.vector = vector,
            // A queue at work does not change under the device.
            _ if queue.ready => {}
            common::QUEUE_SIZE => queue.size = value as u16,
            common::QUEUE_ENABLE if value & 1 != 0 => {
                if !queue.is_well_formed() {
                    return Err(RingError::Request(
                        "a queue is enabled with a bad size or address",
                    ));
                }
                queue.event_idx = event_idx;
                queue.ready = true;
            }
            0x20 => set_half(&mut queue.descriptors, 0, value),
            0x24 => set_half(&mut queue.descriptors, 32, value),
            0x28 => set_half(&mut queue.available, 0, value),
            0x2c => set_half(&mut queue.available, 32, value),
            0x30 => set_half(&mut queue.used, 0, value),
            0x34 => set_half(&mut queue.used, 32, value),
            _ => {}
        }
        Ok(())
    }

    fn reset(&mut self) {
        self.device_feature_select = 0;
        self.driver_feature_select = 0;
        self.driver_features = 0;
        self.status = 0;
        self.config_vector = NO_VECTOR;
        self.queue_select = 0;
        self.isr = 0;
        self.queues.iter_mut().for_each(Queue::reset);
        self.device.reset();
    }

    /// The state that travels.
    #[must_use]
    pub fn save(&self) -> SavedFunction {
        SavedFunction {
            command: self.config.command(),
            base: self.config.base(),
            msix: self.msix.save(),
            device_feature_select: self.device_feature_select,
            driver_feature_select: self.driver_feature_select,
            driver_features: self.driver_features,
            status: self.status,
            config_generation: self.config_generation,
            config_vector: self.config_vector,
            queue_select: self.queue_select,
            isr: self.isr,
            queues: self.queues.iter().map(Queue::save).collect(),
            device: match &self.device {
                Device::Block(block) => SavedDevice::Block {
                    in_flight: block.heads_in_flight(),
                },
                Device::Net(net) => SavedDevice::Net {
                    announce: net.announcing(),
                },
                Device::Entropy => SavedDevice::Entropy,
                Device::Balloon(balloon) => SavedDevice::Balloon {
                    target: balloon.target,
                    actual: balloon.actual,
                },
            },
        }
    }

    /// This device, going on from a saved state.
    ///
    /// # Errors
    /// Why the state cannot be this device's.
    pub fn restore(mut self, saved: &SavedFunction) -> Result<Self, &'static str> {
        // A driver may ask for anything; only what it was granted matters.
        let granted = saved.status & status::FEATURES_OK != 0;
        if granted && saved.driver_features & !self.device.features() != 0 {
            return Err("its driver uses features that this host does not offer");
        }
        if saved.queues.len() != self.queues.len() {
            return Err("it has another number of queues");
        }
        self.msix = self
            .msix
            .restore(&saved.msix)
            .ok_or("its interrupt table has another length")?;
        let event_idx = saved.driver_features & feature::EVENT_IDX != 0;
        self.queues = self
            .queues
            .iter()
            .zip(&saved.queues)
            .map(|(queue, saved)| Queue::restore(queue.max_size(), saved, event_idx))
            .collect::<Option<_>>()
            .ok_or("a queue has a size or address that no queue can have")?;
        match (&mut self.device, &saved.device) {
            (Device::Block(block), SavedDevice::Block { in_flight }) => {
                if in_flight.len() > usize::from(block::QUEUE_SIZE) {
                    return Err("it has more requests in flight than its queue holds");
                }
                block.repeat(in_flight.clone());
            }
            (Device::Net(net), SavedDevice::Net { announce }) => {
                if *announce {
                    net.announce(saved.driver_features);
                }
            }
            (Device::Entropy, SavedDevice::Entropy) => {}
            (Device::Balloon(balloon), SavedDevice::Balloon { target, actual }) => {
                (balloon.target, balloon.actual) = (*target, *actual);
            }
            _ => return Err("it is a device of another type"),
        }
        self.config.restore(saved.command, saved.base);
        let place = self.msix_capability + 2;
        self.config.write(place, 2, saved.msix.control.into());
        self.device_feature_select = saved.device_feature_select;
        self.driver_feature_select = saved.driver_feature_select;
        self.driver_features = saved.driver_features;
        self.status = saved.status;
        self.config_generation = saved.config_generation;
        self.config_vector = saved.config_vector;
        self.queue_select = saved.queue_select;
        self.isr = saved.isr;
        Ok(self)
    }
}

fn half(value: u64, select: u32) -> u64 {
    match select {
        0 => value & 0xffff_ffff,
        1 => value >> 32,
        _ => 0,
    }
}

fn set_half(value: &mut u64, shift: u32, half: u32) {
    *value = *value & !(0xffff_ffff << shift) | u64::from(half) << shift;
}

/// A vendor capability that says where a group of registers is (virtio 1.2, 4.1.4).
fn virtio_capability(kind: u8, offset: u32, len: u32) -> Vec<u8> {
    const TYPE_NOTIFY: u8 = 2;
    let mut bytes = vec![CAPABILITY_VENDOR, 0, 16, kind, 0, 0, 0, 0];
    bytes.extend(offset.to_le_bytes());
    bytes.extend(len.to_le_bytes());
    if kind == TYPE_NOTIFY {
        bytes[2] = 20;
        bytes.extend((NOTIFY_STRIDE as u32).to_le_bytes());
    }
    bytes
}

#[cfg(test)]
#[path = "transport_tests.rs"]
mod tests;
