//! Negative controls: with one safeguard off, or with other times, the simulation must find what they protect from.
//!
//! | promise | controls |
//! |---|---|
//! | no VM runs on two hosts | permit, check after a lapse, late signs, looking again, waiting when excluded, asking when alone |
//! | no disk has two writers | the server's check of epochs |
//! | what a dead host ran runs again | lease first, succession |
//! | and soon | `dead_ms`, the lease that tells where a VM went |
//! | after a blackout too | leases that remember |
//! | no guest stands still for good | orphans |
//! | nobody is given up for a cut of the management network | signs in the statefile |
//! | nobody stands still for an outage of the storage | each other's word |
//! | nobody is given up for being slow, or for a clock | `run_ms` and `dead_ms`, one's own stalls |
//! | a host without storage fences itself | `storage_ms` |
//! | strangers and echoes are not believed | replays, the seal |
//! | a host that boots anew is let in | lives told apart |

use pool::{Safeguards, Timing};

use crate::{
    cases::{Case, Setup, run},
    found,
};

/// Runs `case` with a safeguard off until a run fails with what `expected` names.
fn breaks(case: Case, off: impl Fn(&mut Safeguards), enforced: bool, expected: &str, seeds: u64) {
    let mut setup = Setup {
        enforced,
        ..Setup::default()
    };
    off(&mut setup.safeguards);
    breaks_with(case, &setup, expected, seeds);
}

/// The same, with other times.
fn breaks_timed(case: Case, change: impl Fn(&mut Timing), expected: &str) {
    let mut setup = Setup::default();
    change(&mut setup.timing);
    breaks_with(case, &setup, expected, 50);
}

fn breaks_with(case: Case, setup: &Setup, expected: &str, seeds: u64) {
    let mut seen = Vec::new();
    for seed in 0..seeds {
        match run(case, seed, setup) {
            Err(why) if why.contains(expected) => {
                println!("caught after {} runs: {why}", seed + 1);
                return;
            }
            Err(why) => seen.push(why),
            Ok(_) => {}
        }
    }
    seen.truncate(3);
    panic!("{seeds} runs did not show \"{expected}\", only {seen:?}");
}

/// As [`breaks`], for one of the small scenarios.
fn breaks_small(
    scenario: fn(u64, Safeguards) -> Result<(), String>,
    off: impl Fn(&mut Safeguards),
    expected: &str,
) {
    let mut safeguards = Safeguards::default();
    off(&mut safeguards);
    let caught = (0..100).any(|seed| scenario(seed, safeguards) == Err(expected.into()));
    assert!(caught, "100 runs did not show \"{expected}\"");
}

#[test]
fn without_refusing_late_signs_a_host_that_stood_still_twice_runs_a_vm_twice() {
    breaks_small(
        found::sign_after_the_end,
        |it| it.late_signs_refused = false,
        "the VM ran twice",
    );
}

#[test]
fn without_asking_a_host_that_is_alone_goes_on_after_it_stood_still() {
    breaks_small(
        found::alone_without_storage,
        |it| it.alone_asks = false,
        "the guest runs on unasked",
    );
}

#[test]
fn a_pool_that_waits_longer_decides_too_late() {
    let expected = "a restart was decided";
    breaks_timed(Case::Pull, |it| it.dead_ms = 2500, expected);
}

#[test]
fn a_pool_that_waits_less_gives_up_slow_hosts() {
    let shorter = |it: &mut Timing| (it.run_ms, it.dead_ms) = (400, 620);
    breaks_timed(Case::Busy, shorter, "while hosts were only slow");
}

#[test]
fn a_host_that_waits_longer_for_its_storage_does_not_fence_itself() {
    let expected = "did not fence itself";
    breaks_timed(Case::StorageCut, |it| it.storage_ms = 20_000, expected);
}

#[test]
fn without_telling_lives_apart_a_host_that_boots_anew_is_not_let_in() {
    breaks_small(
        found::boots_anew_after_an_unwritten_life,
        |it| it.lives_apart = false,
        "it is not let in",
    );
}

#[test]
fn without_waiting_a_host_that_cannot_read_who_excluded_it_restarts_what_runs() {
    breaks_small(
        found::excluded_by_a_damaged_table,
        |it| it.excluded_wait = false,
        "the VM ran twice",
    );
}

#[test]
fn without_skipping_orphans_a_lost_announcement_stops_a_guest_for_good() {
    breaks_small(
        found::generation_without_a_table,
        |it| it.orphans_skipped = false,
        "the guest stands still for good",
    );
}

#[test]
fn without_asking_the_lease_a_vm_whose_destination_died_waits() {
    breaks_small(
        found::destination_dies_in_the_hand_over,
        |it| it.leases_tell_where = false,
        "it took long",
    );
}

#[test]
fn without_the_permit_a_cut_off_host_runs_a_vm_twice() {
    breaks(Case::Chaos, |it| it.permit = false, true, "at once", 2000);
}

#[test]
fn without_the_check_after_a_lapse_a_thawed_host_runs_a_vm_twice() {
    breaks(
        Case::Freeze,
        |it| it.check_after_lapse = false,
        true,
        "at once",
        20_000,
    );
}

#[test]
fn without_looking_again_a_host_that_thaws_just_then_loses_its_vms_while_they_run() {
    breaks(
        Case::FreezeApart,
        |it| it.look_again = false,
        true,
        "at once",
        5000,
    );
}

#[test]
fn without_the_servers_check_two_hosts_write_a_disk() {
    breaks(
        Case::Freeze,
        |it| it.permit = false,
        false,
        "two writers",
        2000,
    );
}

#[test]
fn without_taking_the_lease_first_nothing_restarts() {
    breaks(
        Case::Pull,
        |it| it.fence_first = false,
        true,
        "VMs run on",
        50,
    );
}

#[test]
fn without_succession_a_pulled_coordinator_is_not_replaced() {
    breaks(
        Case::Pull,
        |it| it.succession = false,
        true,
        "no VM was restarted",
        50,
    );
}

#[test]
fn without_the_statefile_a_cut_of_the_network_restarts_vms() {
    let expected = "while only the management network was cut";
    breaks(
        Case::ManagementCut,
        |it| it.statefile_signs = false,
        true,
        expected,
        50,
    );
}

#[test]
fn without_each_others_word_an_outage_of_the_storage_stops_all() {
    breaks(
        Case::Outage,
        |it| it.peers_vouch = false,
        true,
        "the storage failed for all",
        50,
    );
}

#[test]
fn without_excusing_ones_own_stalls_a_clock_that_is_set_ahead_kills_others() {
    let expected = "when clocks were set";
    breaks(
        Case::Clocks,
        |it| it.own_stalls_excused = false,
        true,
        expected,
        500,
    );
}

#[test]
fn without_looking_at_leases_a_blackout_and_a_damaged_statefile_forget_vms() {
    breaks(
        Case::Blackout,
        |it| it.leases_remember = false,
        true,
        "after a blackout",
        20,
    );
}

#[test]
fn without_replay_protection_a_dead_host_stays_alive() {
    breaks(
        Case::Hostile,
        |it| it.replay_protection = false,
        true,
        "kept a dead host alive",
        50,
    );
}

#[test]
fn without_the_seal_forged_heartbeats_do_harm() {
    breaks(Case::Hostile, |it| it.authenticate = false, true, "", 200);
}
