//! The two 8259 interrupt controllers of the PC: moved off the exception vectors, then masked for good.

use x86_64::instructions::port::PortWriteOnly;

/// Where a spurious interrupt of a masked controller would arrive: handled and without meaning.
const VECTORS: [u8; 2] = [0xe0, 0xe8];

/// Masks all lines (Intel 8259A data sheet: ICW1 to ICW4, then OCW1).
pub fn disable() {
    for ((command, data), (vector, cascade)) in [(0x20, 0x21), (0xa0, 0xa1)]
        .into_iter()
        .zip(VECTORS.into_iter().zip([4, 2]))
    {
        for (port, value) in [
            (command, 0x11),
            (data, vector),
            (data, cascade),
            (data, 1),
            (data, 0xff),
        ] {
            // SAFETY: programs the interrupt controller, which touches no memory.
            unsafe { PortWriteOnly::<u8>::new(port).write(value) };
        }
    }
}
