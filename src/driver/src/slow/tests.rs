use super::*;
use crate::open;
use crate::testing::{Bench, against_model};
use forebay_io::BufPool;

const LATENCY: &str = "read_us=500&write_us=800&flush_us=300&jitter=20%";

fn at(bench: &Bench, now: u64) {
    bench.context.time.set(Instant(now));
}

/// When each of a series of operations completes, in nanoseconds of a clock that the test sets.
fn series(uri: &str, kind: OpKind) -> Vec<u64> {
    let mut bench = Bench::new();
    let mut device = open(uri, &bench.context).unwrap();
    let (mut spans, mut done, mut now) = (Vec::new(), Vec::new(), 0);
    for token in 0..200 {
        at(&bench, now);
        let mut op = Op::range(token, kind, 0, 4096);
        op.buf = matches!(kind, OpKind::Read).then(|| bench.pool.alloc(4096).unwrap());
        device.submit(op).unwrap();
        device.poll(&mut done);
        assert!(done.is_empty() && device.in_flight() == 1);
        let due = device.next_deadline();
        at(&bench, due.0 - 1);
        device.poll(&mut done);
        assert!(done.is_empty(), "not before its time");
        at(&bench, due.0);
        device.poll(&mut done);
        let completion = done.pop().unwrap();
        assert_eq!((completion.token, completion.result), (token, Ok(())));
        spans.push(due.0 - now);
        now = due.0 + 10;
    }
    spans
}

#[test]
fn latencies_are_of_their_kind_within_the_jitter_and_repeatable() {
    let uri = format!("slow:mem:?size=1M&{LATENCY}&seed=5");
    let kinds = [(OpKind::Read, 500_000), (OpKind::WriteZeroes, 800_000), (OpKind::Flush, 300_000)];
    for (kind, middle) in kinds {
        let spans = series(&uri, kind);
        let (least, most) = (*spans.iter().min().unwrap(), *spans.iter().max().unwrap());
        assert!(
            least >= middle / 10 * 8 && most <= middle / 10 * 12,
            "{kind:?}: {least} to {most}"
        );
        assert!(least < middle / 100 * 85 && most > middle / 100 * 115, "{kind:?}: it varies");
        let mean = spans.iter().sum::<u64>() / 200;
        assert!(mean.abs_diff(middle) < middle / 30, "{kind:?}: {mean}");
        assert_eq!(spans, series(&uri, kind), "the same seed, the same series");
    }
    let other = format!("slow:mem:?size=1M&{LATENCY}&seed=6");
    assert_ne!(series(&uri, OpKind::Read), series(&other, OpKind::Read));
    let exact = series("slow:mem:?size=1M&read_us=500", OpKind::Read);
    assert!(exact.iter().all(|span| *span == 500_000));
}

#[test]
fn a_slow_device_behaves_as_its_model_and_operations_overlap() {
    let mut bench = Bench::new();
    let uri = "slow:mem:?size=2M&read_us=200&write_us=200&jitter=50%";
    let mut device = open(uri, &bench.context).unwrap();
    let begun = std::time::Instant::now();
    assert_eq!(against_model(&mut bench, &mut device, 31, 3000), 3000);
    println!("3000 operations of 200 us, up to 32 at once: {:?}", begun.elapsed());
}

#[test]
fn a_full_device_gives_the_operation_back_as_it_was() {
    let bench = Bench::new();
    let mut device = open("slow:mem:?size=1M&flush_us=1000", &bench.context).unwrap();
    let mut taken = 0;
    let back = loop {
        match device.submit(Op::flush(5000 + taken)) {
            Ok(()) => taken += 1,
            Err(op) => break op,
        }
    };
    assert_eq!((taken, back.token), (1024, 5000 + 1024));
    let mut done = Vec::new();
    device.poll(&mut done);
    assert!(done.is_empty());
    at(&bench, bench.context.time.now().0 + 1_000_000);
    device.poll(&mut done);
    let tokens: Vec<_> = done.iter().map(|completion| completion.token).collect();
    assert_eq!(tokens, (5000..6024).collect::<Vec<_>>(), "in the order of submission");
}
