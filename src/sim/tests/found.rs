//! What the simulator found in the engine, each by the history that showed it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use forebay_sim::bounded;
use forebay_sim::images::{Effort, ImageCounts};
use forebay_sim::run::{Options, run};

fn images(workload: u64) {
    let effort = Effort { per_cut: 12, stride: 1, interrupt: 10, drain: 10 };
    let mut counts = ImageCounts::default();
    let result = bounded::run(workload, 0, &effort, None, false, &mut counts);
    assert!(counts.images > 10, "workload {workload} has images");
    assert_eq!(result.map_err(|bad| bad.0), Ok(()), "workload {workload}");
}

fn long(workload: u64) {
    let effort = Effort { per_cut: 16, stride: 1, interrupt: 10, drain: 10 };
    let mut counts = ImageCounts::default();
    let result = bounded::long(workload, 0, &effort, None, false, &mut counts);
    assert!(counts.images > 10, "the history has images");
    assert_eq!(result.map_err(|bad| bad.0), Ok(()), "long {workload}");
}

fn seeds(list: &[u64]) {
    for seed in list {
        let report = run(*seed, &Options::default());
        assert_eq!(report.violation, None, "forebay-sim --seed {seed}");
    }
}

#[test]
fn what_a_volatile_cache_may_lose_is_not_destaged() {
    [28, 84, 308, 420].into_iter().for_each(images);
}

#[test]
fn write_through_with_a_volatile_cache_leaves_no_older_clean_copy() {
    [21, 77, 189, 357, 413].into_iter().for_each(images);
}

#[test]
fn a_footer_leaves_nothing_out_for_a_version_that_is_not_durable() {
    images(3668);
}

#[test]
fn a_write_through_block_that_reclaim_moved_is_destaged_again() {
    seeds(&[18, 74]);
}

#[test]
fn what_a_backing_device_may_lose_is_not_kept_in_a_volatile_cache() {
    seeds(&[53]);
}

#[test]
fn a_write_zeroes_with_edges_waits_for_nobody_who_waits_for_them() {
    seeds(&[126, 132, 148, 152, 177, 220]);
}

#[test]
fn a_lost_block_that_reclaim_moved_stays_an_error_after_a_crash() {
    seeds(&[102]);
}

#[test]
fn a_torn_footer_of_an_interrupted_recovery_proves_nothing_of_what_the_crash_tore() {
    long(63);
}

#[test]
fn lost_blocks_and_footers_keep_nobody_waiting() {
    seeds(&[162, 289, 369]);
}

#[test]
fn reclaim_does_not_wait_for_the_destage_of_what_is_lost_until_no_segment_is_free() {
    seeds(&[503]);
}

#[test]
fn no_write_passes_a_switch_to_pass_through_before_the_cache_has_forgotten_the_volume() {
    long(54);
}

#[test]
fn overlapping_write_through_requests_reach_the_backing_device_in_the_order_of_the_log() {
    // Bursts while the log is full; requests that come between devices' answers and the end of a poll.
    seeds(&[1047]);
}

#[test]
fn what_was_destaged_while_reclaim_moved_it_is_clean_after_a_crash() {
    seeds(&[1582, 1966]);
}

/// A round of destage that is under way while reclaim frees and hosts fill its segment again.
#[test]
fn a_slot_that_is_used_again_is_not_taken_for_what_it_held() {
    seeds(&[1805]);
}

/// Destage goes on where the pool never has buffers for all of a run at once.
#[test]
fn a_run_of_destage_ends_where_buffers_do() {
    seeds(&[1631]);
}

#[test]
fn nothing_is_placed_in_the_log_of_a_cache_device_that_failed() {
    seeds(&[5126]);
}

#[test]
fn the_rest_of_a_block_that_a_late_write_may_change_is_not_read_too_early() {
    seeds(&[15_660]);
}

#[test]
fn a_flush_covers_a_write_around_the_cache_that_is_still_tried() {
    seeds(&[16_985]);
}

#[test]
fn a_flush_covers_a_write_that_timed_out_and_came_late() {
    seeds(&[100_132]);
}

#[test]
fn a_journal_segment_is_freed_where_no_log_has_room_for_its_mark() {
    seeds(&[100_287]);
}

#[test]
fn zeroes_are_not_appended_again_behind_their_trim() {
    seeds(&[13_236]);
}

#[test]
fn what_goes_around_a_volatile_cache_waits_for_the_trims_of_zeroes() {
    seeds(&[19_297]);
}

/// A hit is checked against 16 bits of its CRC: nobody can tell a wrong block that agrees in them.
#[test]
fn a_wrong_block_that_no_check_can_tell_is_not_given() {
    seeds(&[16_909, 19_523]);
}
