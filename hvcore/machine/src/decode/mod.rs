//! Instructions that the hypervisor carries out for the guest.
//!
//! Decoding is `iced-x86`'s; here is only what an instruction means for a device access. The set is
//! that of compilers' and operating systems' device accessors (MOV in all forms, MOVZX, MOVSX); a
//! read-modify-write on a device register is refused by name. An own opcode table was rejected: prefixes
//! and ModRM lengths are where such tables are wrong.

mod walk;

use alloc::{format, string::String};

use guest_memory::GuestMemory;
use iced_x86::{Code, Decoder, DecoderOptions, Instruction, Mnemonic, OpKind, Register};

use crate::vcpu::{Gpr, SegmentName, Vcpu};

pub use walk::{fetch, translate};

/// Code segment attributes (APM vol. 2, 4.7.2, packed as in the VMCB).
const ATTRIBUTE_LONG: u16 = 1 << 9;
const ATTRIBUTE_DEFAULT_32: u16 = 1 << 10;
const EFER_LMA: u64 = 1 << 10;

/// A part of a general-purpose register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RegisterPart {
    /// The register.
    pub number: Gpr,
    /// Bytes: 1, 2, 4 or 8.
    pub size: u8,
    /// The second byte, `ah` to `bh`.
    pub high: bool,
}

impl RegisterPart {
    fn of(register: Register) -> Option<Self> {
        let full = register.full_register();
        if !full.is_gpr64() {
            return None;
        }
        let high = matches!(
            register,
            Register::AH | Register::BH | Register::CH | Register::DH
        );
        Some(Self {
            number: full.number() as u8,
            size: register.size() as u8,
            high,
        })
    }

    /// Its value.
    #[must_use]
    pub fn get(self, vcpu: &impl Vcpu) -> u64 {
        let shift = if self.high { 8 } else { 0 };
        vcpu.gpr(self.number) >> shift & mask(self.size)
    }

    /// Sets it as a MOV does: four bytes clear the upper half, fewer leave the rest.
    pub fn set(self, vcpu: &mut impl Vcpu, value: u64) {
        let value = value & mask(self.size);
        let value = match self.size {
            4 | 8 => value,
            size => {
                let shift = if self.high { 8 } else { 0 };
                vcpu.gpr(self.number) & !(mask(size) << shift) | value << shift
            }
        };
        vcpu.set_gpr(self.number, value);
    }
}

/// All ones in the lowest `size` bytes.
#[must_use]
pub fn mask(size: u8) -> u64 {
    if size >= 8 {
        u64::MAX
    } else {
        (1 << (size * 8)) - 1
    }
}

/// What a device access moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transfer {
    /// From the device to a register.
    Load {
        /// The register.
        into: RegisterPart,
        /// Extend the value's sign rather than zeroes.
        signed: bool,
    },
    /// A register to the device.
    Store(RegisterPart),
    /// A constant to the device.
    StoreConstant(u64),
}

/// A device access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    /// What it moves.
    pub transfer: Transfer,
    /// Bytes at the device.
    pub size: u8,
    /// Address of the next instruction.
    pub next_rip: u64,
}

/// A string I/O instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StringIo {
    /// The segment of the memory operand.
    pub segment: SegmentName,
    /// Bytes of the address registers: 2, 4 or 8.
    pub address_size: u8,
    /// Address of the next instruction.
    pub next_rip: u64,
}

/// An instruction that this machine does not carry out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotEmulated(pub String);

fn bitness(vcpu: &impl Vcpu) -> u32 {
    let attributes = vcpu.segment(SegmentName::Cs).attributes;
    if vcpu.efer() & EFER_LMA != 0 && attributes & ATTRIBUTE_LONG != 0 {
        64
    } else if attributes & ATTRIBUTE_DEFAULT_32 != 0 {
        32
    } else {
        16
    }
}

fn instruction(memory: &GuestMemory, vcpu: &impl Vcpu) -> Result<Instruction, NotEmulated> {
    let (bytes, fetched) = fetch(memory, vcpu);
    let mut decoder = Decoder::with_ip(
        bitness(vcpu),
        &bytes[..fetched],
        vcpu.rip(),
        DecoderOptions::NONE,
    );
    let instruction = decoder.decode();
    if instruction.is_invalid() {
        return Err(NotEmulated(format!(
            "no instruction at {:#x}: bytes {:02x?}",
            vcpu.rip(),
            &bytes[..fetched]
        )));
    }
    Ok(instruction)
}

/// Decodes the device access at the instruction pointer.
///
/// # Errors
/// When it is none that this machine carries out.
pub fn device_access(memory: &GuestMemory, vcpu: &impl Vcpu) -> Result<Access, NotEmulated> {
    let instruction = instruction(memory, vcpu)?;
    access_of(&instruction).ok_or_else(|| {
        NotEmulated(format!(
            "{:?} on a device register at {:#x}",
            instruction.code(),
            vcpu.rip()
        ))
    })
}

fn access_of(instruction: &Instruction) -> Option<Access> {
    let signed = match instruction.mnemonic() {
        Mnemonic::Mov | Mnemonic::Movzx => false,
        Mnemonic::Movsx | Mnemonic::Movsxd => true,
        _ => return None,
    };
    let size = instruction.memory_size().size();
    if !matches!(size, 1 | 2 | 4 | 8) {
        return None;
    }
    let transfer = match (instruction.op0_kind(), instruction.op1_kind()) {
        (OpKind::Register, OpKind::Memory) => Transfer::Load {
            into: RegisterPart::of(instruction.op0_register())?,
            signed,
        },
        (OpKind::Memory, OpKind::Register) => {
            Transfer::Store(RegisterPart::of(instruction.op1_register())?)
        }
        (OpKind::Memory, _) => Transfer::StoreConstant(instruction.immediate(1)),
        _ => return None,
    };
    Some(Access {
        transfer,
        size: size as u8,
        next_rip: instruction.next_ip(),
    })
}

/// Decodes the INS or OUTS at the instruction pointer: the exit names neither its segment nor its
/// address size (TCG-QUIRK 3).
///
/// # Errors
/// When it is neither.
pub fn string_io(memory: &GuestMemory, vcpu: &impl Vcpu) -> Result<StringIo, NotEmulated> {
    let instruction = instruction(memory, vcpu)?;
    let (segment, address) = match instruction.code() {
        Code::Insb_m8_DX | Code::Insw_m16_DX | Code::Insd_m32_DX => {
            (Register::ES, instruction.op0_kind())
        }
        Code::Outsb_DX_m8 | Code::Outsw_DX_m16 | Code::Outsd_DX_m32 => {
            (instruction.memory_segment(), instruction.op1_kind())
        }
        other => return Err(NotEmulated(format!("{other:?} as string I/O"))),
    };
    let address_size = match address {
        OpKind::MemorySegSI | OpKind::MemoryESDI => 2,
        OpKind::MemorySegESI | OpKind::MemoryESEDI => 4,
        _ => 8,
    };
    let segment = match segment {
        Register::ES => SegmentName::Es,
        Register::CS => SegmentName::Cs,
        Register::SS => SegmentName::Ss,
        Register::FS => SegmentName::Fs,
        Register::GS => SegmentName::Gs,
        _ => SegmentName::Ds,
    };
    Ok(StringIo {
        segment,
        address_size,
        next_rip: instruction.next_ip(),
    })
}

/// Decodes the MOV to a control register at the instruction pointer: its source, and the address behind it. The exit
/// does not name the source (TCG-QUIRK 2).
///
/// # Errors
/// When it is none.
pub fn move_to_control(memory: &GuestMemory, vcpu: &impl Vcpu) -> Result<(Gpr, u64), NotEmulated> {
    let instruction = instruction(memory, vcpu)?;
    match instruction.code() {
        Code::Mov_cr_r64 | Code::Mov_cr_r32 => {
            let from = instruction.op1_register().full_register().number();
            Ok((from as u8, instruction.next_ip()))
        }
        other => Err(NotEmulated(format!(
            "{other:?} as MOV to a control register"
        ))),
    }
}

/// Address behind the instruction at the instruction pointer, which the exit has already identified and
/// whose opcode has `opcode` bytes. Only its prefixes are unknown: newer kernels pad WRMSR with
/// some (TCG-QUIRK 1). When the bytes cannot be fetched, another processor has just unmapped them, and
/// the guest meets its own fault at the next fetch.
#[must_use]
pub fn after(memory: &GuestMemory, vcpu: &impl Vcpu, opcode: usize) -> u64 {
    let (bytes, fetched) = fetch(memory, vcpu);
    let long = bitness(vcpu) == 64;
    let prefixes = bytes[..fetched]
        .iter()
        .take_while(|byte| is_prefix(**byte, long))
        .count();
    vcpu.rip().wrapping_add((prefixes + opcode) as u64)
}

/// PAUSE is F3 90, so its prefix counts as opcode: callers of [`after`] pass 1 for it.
fn is_prefix(byte: u8, long: bool) -> bool {
    match byte {
        0x26 | 0x2e | 0x36 | 0x3e | 0x64..=0x67 | 0xf0 | 0xf2 | 0xf3 => true,
        0x40..=0x4f => long,
        _ => false,
    }
}

#[cfg(test)]
mod tests;
