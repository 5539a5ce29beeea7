use super::*;
use crate::testing::{Bench, against_model};
use crate::{AnyDevice, open};
use forebay_io::Instant;

#[test]
fn memory_behaves_as_its_model() {
    let mut bench = Bench::new();
    for (uri, seed) in [("mem:?size=6M", 21), ("mem:?size=1M&block_size=4096", 22)] {
        let mut device = open(uri, &bench.context).unwrap();
        assert_eq!(against_model(&mut bench, &mut device, seed, 4000), 4000);
    }
}

#[test]
fn a_large_range_is_zeroed_in_steps_while_other_operations_complete() {
    let mut bench = Bench::new();
    let mut device = MemDevice::new(32 << 20, 512).unwrap();
    for offset in [0, (32 << 20) - 4096] {
        bench.write(&mut device, offset, &[7; 4096]).unwrap();
    }
    device.submit(Op::range(1, OpKind::Deallocate, 0, 32 << 20)).unwrap();
    device.submit(Op::flush(2)).unwrap();
    let (mut polls, mut done) = (0, Vec::new());
    while device.in_flight() > 0 {
        device.poll(&mut done);
        polls += 1;
        assert_eq!(done[0].token, 2, "the flush does not wait for the range");
    }
    assert_eq!((polls, done.len()), (7, 2));
    for offset in [0, (32 << 20) - 4096] {
        assert_eq!(bench.read(&mut device, offset, 4096).unwrap(), [0; 4096]);
    }
}

#[test]
fn memory_asks_to_be_polled_and_has_an_identity_of_its_own() {
    let mut bench = Bench::new();
    let mut device = open("mem:?size=1M", &bench.context).unwrap();
    assert_eq!(device.next_deadline(), Instant::NEVER);
    device.submit(Op::flush(1)).unwrap();
    assert_eq!(device.next_deadline(), Instant(0));
    assert_eq!(bench.wait_one(&mut device).result, Ok(()));
    let other = open("mem:?size=1M", &bench.context).unwrap();
    assert_ne!(device.info().identity, other.info().identity);
    assert!(matches!(other, AnyDevice::Mem(_)));
    let end = Err(DeviceError::OutOfRange);
    assert_eq!(bench.write(&mut device, 1 << 20, &[0; 512]), end);
    assert_eq!(bench.write(&mut device, 100, &[0; 512]), Err(DeviceError::Io(libc::EINVAL)));
    let error = open("mem:?size=4000000T", &bench.context).err().unwrap().to_string();
    assert!(error.contains("no memory of"), "{error}");
}
