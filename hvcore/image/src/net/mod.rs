//! The host's network cards: virtio-net over PCI (virtio 1.2, 4.1 and 5.1).
//!
//! Rings and transport are the `virtio-drivers` crate's. Its network driver is not used: it has no interrupt
//! messages, rings the doorbell for every frame by three register accesses, and negotiates event
//! indices, whose comparison there fails when they wrap. Here a batch of frames costs one doorbell, and
//! the device is never polled: an interrupt says that there is something.

mod ring;

use alloc::vec::Vec;

use bitflags::bitflags;
use virtio_drivers::transport::{
    DeviceType, Transport,
    pci::{
        PciTransport, VIRTIO_PCI_CAP_COMMON_CFG, VIRTIO_PCI_CAP_NOTIFY_CFG, VIRTIO_VENDOR_ID,
        bus::{ConfigurationAccess, DeviceFunction, PciRoot},
        virtio_device_type,
    },
};

use crate::{interrupts::NIC_VECTOR, mmio::Registers, pci::ConfigSpace};
use ring::{Doorbell, Identity};

pub use ring::{Receiver, Transmitter};

/// Queue numbers (virtio 1.2, 5.1.2).
const RECEIVE_QUEUE: u16 = 0;
const TRANSMIT_QUEUE: u16 = 1;
/// PCI capability "vendor specific", which virtio uses.
const CAPABILITY_VENDOR: u8 = 9;
/// Offsets in the common configuration structure (virtio 1.2, 4.1.4.3).
const QUEUE_SELECT: u64 = 0x16;
const QUEUE_MSIX_VECTOR: u64 = 0x1a;
const QUEUE_NOTIFY_OFF: u64 = 0x1e;

bitflags! {
    #[derive(Debug)]
    struct Features: u64 {
        /// The device has a MAC address.
        const MAC = 1 << 5;
        /// Not the legacy interface.
        const VERSION_1 = 1 << 32;
    }
}

/// A card ready for use.
pub struct Card {
    /// Its own address.
    pub mac: [u8; 6],
    /// Frames from the network.
    pub receiver: Receiver,
    /// Frames to the network.
    pub transmitter: Transmitter,
}

/// Sets up all network cards of bus 0, in the order of their slots. One that fails is reported and
/// left out.
pub fn init(config: ConfigSpace) -> Vec<Card> {
    let devices: Vec<DeviceFunction> = PciRoot::new(config)
        .enumerate_bus(0)
        .filter(|(_, info)| {
            info.vendor_id == VIRTIO_VENDOR_ID
                && virtio_device_type(info) == Some(DeviceType::Network)
        })
        .map(|(device, _)| device)
        .collect();
    devices
        .into_iter()
        .zip(NIC_VECTOR..)
        .filter_map(|(device, vector)| match card(config, device, vector) {
            Ok(card) => Some(card),
            Err(why) => {
                crate::println!("elab: the network card at PCI {device} is left out: {why}");
                None
            }
        })
        .collect()
}

fn card(config: ConfigSpace, device: DeviceFunction, vector: u8) -> Result<Card, &'static str> {
    config.enable(device);
    let mut transport = PciTransport::new::<Identity, _>(&mut PciRoot::new(config), device)
        .map_err(|_| "it has no modern virtio interface")?;
    let common = Structure::find(config, device, VIRTIO_PCI_CAP_COMMON_CFG)
        .ok_or("it has no common configuration")?;
    let notify = Structure::find(config, device, VIRTIO_PCI_CAP_NOTIFY_CFG)
        .ok_or("it has no notification area")?;
    let negotiated = transport.begin_init(Features::all());
    if !negotiated.contains(Features::VERSION_1 | Features::MAC) {
        return Err("it lacks a feature that every virtio-net device since version 1 has");
    }
    let mac = transport
        .read_config_space::<[u8; 6]>(0)
        .map_err(|_| "its configuration cannot be read")?;
    config
        .enable_msi_x(device, vector)
        .map_err(|_| "it has no MSI-X")?;
    let doorbell = |queue| common.route_queue(queue).doorbell(&notify, queue);
    let receiver = Receiver::new(&mut transport, RECEIVE_QUEUE, doorbell(RECEIVE_QUEUE))?;
    let transmitter = Transmitter::new(&mut transport, TRANSMIT_QUEUE, doorbell(TRANSMIT_QUEUE))?;
    transport.finish_init();
    receiver.ring_doorbell();
    // Dropping the transport would reset the device.
    core::mem::forget(transport);
    Ok(Card {
        mac,
        receiver,
        transmitter,
    })
}

/// One of the structures that a virtio device has in its memory (virtio 1.2, 4.1.4).
struct Structure {
    address: u64,
    /// For the notification area: bytes between two doorbells.
    multiplier: u32,
}

/// A queue as the common configuration shows it once selected.
struct SelectedQueue {
    notify_offset: u64,
}

impl Structure {
    fn find(config: ConfigSpace, device: DeviceFunction, kind: u8) -> Option<Self> {
        PciRoot::new(config)
            .capabilities(device)
            .filter(|capability| capability.id == CAPABILITY_VENDOR)
            .find(|capability| (capability.private_header >> 8) as u8 == kind)
            .and_then(|capability| {
                let word = |offset| config.read_word(device, capability.offset + offset);
                Some(Self {
                    address: config.bar(device, word(4) as u8)? + u64::from(word(8)),
                    multiplier: word(16),
                })
            })
    }

    /// Sends a queue's interrupts as message 0, and looks up its doorbell.
    fn route_queue(&self, queue: u16) -> SelectedQueue {
        // SAFETY: the device's own common configuration; its driver is the only one to use it.
        let registers = unsafe { Registers::new(self.address) };
        registers.write_u16(QUEUE_SELECT, queue);
        registers.write_u16(QUEUE_MSIX_VECTOR, 0);
        SelectedQueue {
            notify_offset: registers.read_u16(QUEUE_NOTIFY_OFF).into(),
        }
    }
}

impl SelectedQueue {
    fn doorbell(&self, notify: &Structure, queue: u16) -> Doorbell {
        let address = notify.address + self.notify_offset * u64::from(notify.multiplier);
        // SAFETY: the device's own doorbell.
        Doorbell::new(unsafe { Registers::new(address) }, queue)
    }
}
