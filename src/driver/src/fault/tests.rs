use super::*;
use crate::open;
use crate::testing::{Bench, against_model};

fn device(bench: &Bench) -> (AnyDevice, FaultHandle) {
    let device = open("fault:mem:?size=1M", &bench.context).unwrap();
    let handle = device.faults().unwrap();
    (device, handle)
}

const EIO: DeviceError = DeviceError::Io(libc::EIO);

#[test]
fn without_a_fault_and_after_a_heal_it_behaves_as_its_model() {
    let mut bench = Bench::new();
    let (mut device, handle) = device(&bench);
    assert_eq!(against_model(&mut bench, &mut device, 41, 1000), 1000);
    handle.inject(Fault::Error(EIO), FaultOps::ALL, None);
    assert_eq!(bench.write(&mut device, 0, &[1; 4096]), Err(EIO));
    handle.heal();
    assert_eq!(against_model(&mut bench, &mut device, 42, 1000), 1000);
}

#[test]
fn errors_concern_the_kinds_asked_for_and_the_device_sees_nothing() {
    let mut bench = Bench::new();
    let (mut device, handle) = device(&bench);
    bench.write(&mut device, 0, &[1; 4096]).unwrap();
    let writes = FaultOps { read: false, write: true, flush: false };
    handle.inject(Fault::Error(EIO), writes, Some(2));
    assert_eq!(bench.read(&mut device, 0, 4096).unwrap(), [1; 4096]);
    assert_eq!(bench.write(&mut device, 0, &[2; 4096]), Err(EIO));
    let zeroes = Op::range(5, OpKind::WriteZeroes, 0, 4096);
    assert_eq!(bench.run(&mut device, zeroes).result, Err(EIO));
    assert_eq!(bench.run(&mut device, Op::flush(1)).result, Ok(()));
    assert_eq!(bench.read(&mut device, 0, 4096).unwrap(), [1; 4096]);
    assert_eq!(bench.write(&mut device, 0, &[3; 4096]), Ok(()), "after two it ends by itself");
    handle.inject(Fault::Error(DeviceError::Gone), FaultOps::ALL, None);
    assert_eq!(bench.read(&mut device, 0, 4096), Err(DeviceError::Gone));
    assert_eq!(bench.run(&mut device, Op::flush(1)).result, Err(DeviceError::Gone));
}

#[test]
fn what_hangs_is_carried_out_when_healed_and_not_before() {
    let mut bench = Bench::new();
    let (mut device, handle) = device(&bench);
    handle.inject(Fault::Hang, FaultOps::ALL, Some(2));
    for token in 0..2 {
        let buf = bench.buf(&[7; 4096]);
        device.submit(Op::write(token, token * 4096, 4096, buf)).unwrap();
    }
    let mut done = Vec::new();
    assert_eq!(device.next_deadline(), Instant::NEVER, "a reactor may sleep over it");
    device.poll(&mut done);
    assert_eq!((done.len(), device.in_flight()), (0, 2));
    // The third one passes, and the end of the fault releases nothing.
    assert_eq!(bench.read(&mut device, 0, 4096).unwrap(), [0; 4096]);
    handle.end();
    device.poll(&mut done);
    assert_eq!((done.len(), device.in_flight()), (0, 2));
    handle.heal();
    assert_eq!(device.next_deadline(), Instant(0));
    device.poll(&mut done);
    assert_eq!(done.iter().map(|completion| completion.token).collect::<Vec<_>>(), [0, 1]);
    assert!(done.iter().all(|completion| completion.result.is_ok()));
    assert_eq!(bench.read(&mut device, 4096, 4096).unwrap(), [7; 4096]);
    assert_eq!(device.in_flight(), 0);
}

#[test]
fn rules_spare_some_and_choose_by_seed() {
    let pattern = |rule: FaultRule| {
        let mut bench = Bench::new();
        let (mut device, handle) = device(&bench);
        handle.inject_rule(rule);
        let results = (0..400).map(|_| bench.read(&mut device, 0, 512).is_err());
        results.collect::<Vec<_>>()
    };
    let rule = FaultRule::always(Fault::Error(EIO));
    let after = pattern(FaultRule { after: 10, count: Some(3), ..rule });
    let failed: Vec<_> = (0..400).filter(|at| after[*at]).collect();
    assert_eq!(failed, [10, 11, 12]);
    let some = FaultRule { per_million: 250_000, seed: 1, ..rule };
    let chosen = pattern(some);
    let count = chosen.iter().filter(|failed| **failed).count();
    assert!((60..=140).contains(&count), "{count} of 400, about 100 expected");
    assert_eq!(chosen, pattern(some));
    assert_ne!(chosen, pattern(FaultRule { seed: 2, ..some }));
}

#[test]
fn the_handle_is_found_through_wrappers() {
    let bench = Bench::new();
    for (uri, there) in [
        ("slow:fault:mem:?size=1M&read_us=1", true),
        ("fault:slow:mem:?size=1M&read_us=1", true),
        ("slow:mem:?size=1M&read_us=1", false),
    ] {
        let device = open(uri, &bench.context).unwrap();
        assert_eq!(device.faults().is_some(), there, "{uri}");
    }
}
