//! The loop around `host::Host`: what arrived goes in, what is due gets done, a guest runs, else the CPU
//! halts.

use alloc::vec::Vec;

use host::{
    Host, HostConfig,
    platform::{Nic, Platform},
};

use crate::{boot, interrupts, net::Receiver, platform::BareMetal, time};

/// Frames taken from a card before the others have their turn.
const FRAMES_AT_ONCE: usize = 256;
/// Rounds of receiving before guests have their turn, however much keeps arriving.
const ROUNDS_MAX: usize = 4;

/// Runs the host for ever. `receivers` are in the order of [`Nic::ALL`].
pub fn run(config: HostConfig, platform: BareMetal, mut receivers: Vec<Receiver>) -> ! {
    let mut host = Host::new(config, platform);
    loop {
        assert!(boot::stack_is_sound(), "the host's stack overflowed");
        // Interrupts that are taken here announce what is looked at below; one that comes later
        // ends the guest's slice or the halt.
        interrupts::take_pending();
        for _ in 0..ROUNDS_MAX {
            for (nic, receiver) in Nic::ALL.into_iter().zip(&mut receivers) {
                receiver.receive(FRAMES_AT_ONCE, |frame| host.on_frame(nic, frame));
            }
            host.poll();
            host.platform_mut().flush();
            if !receivers.iter().any(Receiver::has_frame) {
                break;
            }
        }
        let ran = host.run_slice();
        // Else it fires while the host works, and ends the next slice before the guest's first instruction; when the
        // host works for long every time, no guest ever gets on.
        time::stop_timer();
        host.platform_mut().flush();
        if ran || host.platform_mut().wake_for_room() {
            continue;
        }
        match host.next_deadline_ns() {
            // More to do at once: halting until a timer says so would take a tenth of a millisecond.
            Some(at_ns) if at_ns <= time::now_ns() => continue,
            Some(at_ns) => host.platform_mut().interrupt_at(at_ns),
            None => time::stop_timer(),
        }
        interrupts::wait();
    }
}
