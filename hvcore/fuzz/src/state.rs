//! Saved state of a machine.

use machine::{Section, vcpu::Exit};

use crate::vcpu::{SetClock, SetVcpu, machine};

/// Refused without a trace, or a machine that runs, and saves a state that can be restored again.
///
/// # Panics
/// When that does not hold.
pub fn saved_state(data: &[u8]) {
    let Ok((sections, _)) = postcard::take_from_bytes::<Vec<Section>>(data) else {
        return;
    };
    let mut target = machine();
    let before = target.save();
    if target.restore(&sections).is_err() {
        assert_eq!(target.save(), before, "a refused state left a trace");
        return;
    }
    let clock = SetClock::default();
    for (step, exit) in [Exit::Interrupted, Exit::Cpuid, Exit::Halt]
        .into_iter()
        .enumerate()
    {
        clock.0.set(step as u64 * 10_000_000);
        for index in 0..2 {
            let mut vcpu = SetVcpu::new();
            vcpu.exit = Some(exit);
            target.run(index, &mut vcpu, &clock);
        }
        assert!(
            std::iter::from_fn(|| target.next_disk_request())
                .take(300)
                .count()
                < 300
        );
        assert!(std::iter::from_fn(|| target.next_frame()).take(300).count() < 300);
        target.deliver_frame(0, &[0; 60]);
        target.announce();
        let _ = target.next_deadline_ns();
    }
    let saved = target.save();
    let mut again = machine();
    again
        .restore(&saved)
        .expect("its own state can be restored");
    assert_eq!(again.save(), saved, "a state changed on its way");
}
