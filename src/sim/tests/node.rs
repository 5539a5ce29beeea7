//! Whole nodes with hosts: the same seed is the same run, and the seeds of what was found.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use forebay_sim::node::run::run;
use forebay_sim::run::Options;

#[test]
fn a_seed_says_everything() {
    for seed in [3, 7] {
        let [first, again] = [(); 2].map(|()| run(seed, &Options::default()));
        assert_eq!(first.violation, None, "forebay-sim node --seed {seed}");
        assert_eq!(first.hash, again.hash, "forebay-sim node --seed {seed}");
        assert!(first.counts.reads > 20 && first.counts.messages > 20, "{:?}", first.counts);
    }
    assert_ne!(run(3, &Options::default()).hash, run(7, &Options::default()).hash);
}
