//! The corpus that is kept is the one that real encodings give, is small, and goes deep.
#![allow(missing_docs, reason = "a test")]

use forebay_fuzz::{TARGETS, reached, seeds};
use std::collections::BTreeSet;
use std::path::Path;

const TOTAL_MAX: u64 = 1 << 20;

#[test]
fn every_seed_is_kept_and_every_file_is_small() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    for ((target, name), content) in seeds::corpus() {
        let kept = std::fs::read(dir.join(target).join(&name));
        let kept = kept.unwrap_or_else(|error| panic!("{target}/{name}: {error}"));
        assert!(kept == content, "{target}/{name} is not made as it was: run fuzz --write corpus");
    }
    let mut total = 0;
    let names: BTreeSet<_> = TARGETS.iter().map(|target| target.name).collect();
    for target in std::fs::read_dir(&dir).unwrap() {
        let target = target.unwrap();
        assert!(names.contains(&*target.file_name().to_string_lossy()), "{:?}", target.path());
        for file in std::fs::read_dir(target.path()).unwrap() {
            let len = file.unwrap().metadata().unwrap().len();
            assert!(len <= seeds::FILE_MAX as u64);
            total += len;
        }
    }
    assert!(total < TOTAL_MAX, "{total} bytes");
}

#[test]
fn the_corpus_alone_reaches_the_depths() {
    for ((target, _), content) in seeds::corpus() {
        let target = TARGETS.iter().find(|other| other.name == target).unwrap();
        (target.run)(&content);
    }
    let depths = [
        "requests to volumes",
        "namespaces connected",
        "operations done well",
        "logs read",
        "superblocks and headers accepted",
        "headers, footers and marks accepted",
        "complete batches read back",
        "shards recovered",
        "configurations accepted",
        "URIs accepted",
        "results",
    ];
    for count in reached::ALL.iter().filter(|count| depths.contains(&count.name)) {
        println!("{}: {} {}", count.target, count.get(), count.name);
        assert!(count.get() > 0, "{}: no {}", count.target, count.name);
    }
}
