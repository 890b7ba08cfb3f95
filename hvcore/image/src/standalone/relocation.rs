//! Moving a guest to a new VM of the same host, as often as wished: everything that a migration carries is
//! saved and restored, and nothing of the old VM is left, but there is no network in between.

use alloc::{
    format,
    rc::Rc,
    string::{String, ToString},
    vec::Vec,
};

use boot_info::standalone::Guest;
use guest_memory::{GuestMemory, PAGE_SIZE};
use host::platform::VmHardware;
use machine::{
    Machine,
    vcpu::{Vcpu, VcpuState},
};

use super::build;
use crate::svm::{PhysicalCpu, SvmVm};

/// Builds a second VM and puts the guest's whole state into it. The old one is not changed.
pub fn relocate(
    cpu: &Rc<PhysicalCpu>,
    guest: &Guest,
    from: (&mut SvmVm, &Machine),
) -> Result<(SvmVm, Machine), String> {
    let (old_hardware, old_machine) = from;
    let (mut hardware, mut machine) = build(cpu, guest)?;
    copy(old_machine.memory(), machine.memory());
    machine
        .restore(&old_machine.save())
        .map_err(|error| error.to_string())?;
    for index in 0..guest.vcpus {
        let old = old_hardware.vcpu(index);
        let (state, offset) = (old.save(), old.tsc_offset());
        let new = hardware.vcpu(index);
        new.load(&state);
        new.set_tsc_offset(offset);
        // The counter goes on meanwhile; all else must be as it was.
        let again = VcpuState {
            tsc: state.tsc,
            ..new.save()
        };
        if again.xsave != state.xsave {
            return Err(format!("vCPU {index} has other extended state"));
        }
        let short = |state: VcpuState| VcpuState {
            xsave: Vec::new(),
            ..state
        };
        let (saved, loaded) = (short(state), short(again));
        if saved != loaded {
            return Err(format!(
                "vCPU {index} was saved as {saved:x?} and is {loaded:x?}"
            ));
        }
    }
    Ok((hardware, machine))
}

fn copy(from: &GuestMemory, to: &GuestMemory) {
    let mut page = [0; PAGE_SIZE];
    for index in 0..from.pages() {
        from.read_page(index, &mut page);
        // A page of zeroes stays as it is: the new VM's memory reads as zero.
        let (words, _) = page.as_chunks::<8>();
        if words.iter().any(|word| u64::from_ne_bytes(*word) != 0) {
            to.load_page(index, &page);
        }
    }
}
