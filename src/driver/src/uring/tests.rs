use super::file::{self, UringError};
use super::identity::BlockQueue;
use crate::testing::{Bench, Scratch, against_model};
use crate::{AnyDevice, open};
use forebay_io::{Buf, BufPool, Device, DeviceError, Op, OpKind};
use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::{Duration, Instant};

fn scratch() -> Scratch {
    Scratch::new(&std::env::temp_dir())
}

fn open_sized(bench: &Bench, scratch: &Scratch, size: &str) -> AnyDevice {
    open(&format!("uring:{}?size={size}", scratch.path()), &bench.context).unwrap()
}

fn uring(device: &AnyDevice) -> &super::UringDevice {
    match device {
        AnyDevice::Uring(device) => device,
        _ => panic!("not a uring device"),
    }
}

#[test]
fn a_file_behaves_as_its_model() {
    let (mut bench, scratch) = (Bench::new(), scratch());
    let mut device = open_sized(&bench, &scratch, "8M");
    assert_eq!(against_model(&mut bench, &mut device, 11, 3000), 3000);
    let stats = uring(&device).ring().stats();
    println!("{stats:?}");
    assert!(stats.regions > 0 || stats.regions_refused > 0);
}

/// One call into the kernel for all operations of a poll, over all devices; none without any.
#[test]
fn a_poll_is_one_call_at_most() {
    let (mut bench, a, b) = (Bench::new(), scratch(), scratch());
    let mut devices = [open_sized(&bench, &a, "1M"), open_sized(&bench, &b, "1M")];
    let before = uring(&devices[0]).ring().stats();
    for number in 0..64u64 {
        let buf = bench.pool.alloc(4096).unwrap();
        let device = &mut devices[usize::try_from(number % 2).unwrap()];
        device.submit(Op::read(number, number * 4096, 4096, buf)).unwrap();
    }
    let mut done = Vec::new();
    devices[0].poll(&mut done);
    let after = uring(&devices[0]).ring().stats();
    assert_eq!((after.enters - before.enters, after.submitted - before.submitted), (1, 64));
    while devices.iter().any(|device| device.in_flight() > 0) {
        devices.iter_mut().for_each(|device| _ = device.poll(&mut done));
    }
    let before = uring(&devices[0]).ring().stats();
    (0..100).for_each(|_| _ = devices[0].poll(&mut done));
    assert_eq!(uring(&devices[0]).ring().stats(), before);
    assert_eq!(done.len(), 64);
}

#[test]
fn a_file_without_direct_io_behaves_as_its_model() {
    let (mut bench, scratch) = (Bench::new(), Scratch::new(Path::new("/dev/shm")));
    let mut device = open_sized(&bench, &scratch, "4M");
    // tmpfs takes O_DIRECT from Linux 6.6 on.
    println!("direct: {}", uring(&device).is_direct());
    assert!(device.info().volatile_write_cache);
    assert_eq!(against_model(&mut bench, &mut device, 12, 1000), 1000);
}

#[test]
fn two_devices_of_a_ring_keep_their_completions_apart() {
    let (mut bench, a, b) = (Bench::new(), scratch(), scratch());
    let mut first = open_sized(&bench, &a, "1M");
    let mut second = open_sized(&bench, &b, "1M");
    bench.write(&mut first, 0, &[1; 4096]).unwrap();
    bench.write(&mut second, 0, &[2; 4096]).unwrap();
    let (one, two) = (bench.pool.alloc(4096).unwrap(), bench.pool.alloc(4096).unwrap());
    first.submit(Op::read(7, 0, 4096, one)).unwrap();
    second.submit(Op::read(7, 0, 4096, two)).unwrap();
    // Only the second is polled until it has its own; the first one's waits for it.
    let done = bench.wait_one(&mut second);
    assert_eq!(done.buf.unwrap().as_slice(), [2; 4096]);
    assert_eq!(bench.wait_one(&mut first).buf.unwrap().as_slice(), [1; 4096]);
}

#[test]
fn what_a_file_is_stays_over_reopening_and_renaming() {
    let (mut bench, scratch) = (Bench::new(), scratch());
    let mut device = open_sized(&bench, &scratch, "1M");
    let info = device.info().clone();
    assert_eq!((info.size, info.size % u64::from(info.block_size)), (1 << 20, 0));
    bench.write(&mut device, 8192, &[5; 4096]).unwrap();
    assert_eq!(bench.run(&mut device, Op::flush(3)).result, Ok(()));
    drop(device);
    let moved = Scratch(scratch.0.with_extension("moved"));
    std::fs::rename(&scratch.0, &moved.0).unwrap();
    let mut device = open(&format!("uring:{}", moved.path()), &bench.context).unwrap();
    assert_eq!(device.info(), &info);
    assert_eq!(bench.read(&mut device, 8192, 4096).unwrap(), [5; 4096]);
    let other = open_sized(&bench, &scratch, "1M");
    assert_ne!(other.info().identity, info.identity);
}

#[test]
fn wrong_operations_are_refused_and_change_nothing() {
    let (mut bench, scratch) = (Bench::new(), scratch());
    let mut device = open_sized(&bench, &scratch, "1M");
    let (invalid, beyond) = (DeviceError::Io(libc::EINVAL), DeviceError::OutOfRange);
    for (offset, error) in [(1, invalid), (1 << 20, beyond), (u64::MAX - 511, beyond)] {
        assert_eq!(bench.write(&mut device, offset, &[1; 4096]), Err(error), "{offset}");
        assert_eq!(bench.read(&mut device, offset, 4096), Err(error), "{offset}");
        let op = Op::range(1, OpKind::Deallocate, offset, 4096);
        assert_eq!(bench.run(&mut device, op).result, Err(error), "{offset}");
    }
    let buf = bench.buf(&[1; 512]);
    let done = bench.run(&mut device, Op::write(4, 0, 4096, buf.clone()));
    assert_eq!(done.result, Err(invalid), "the buffer is too short");
    assert!(done.buf.is_some(), "buffers come back on errors, too");
    let done = bench.run(&mut device, Op::read(4, 0, 512, buf.clone()));
    assert_eq!(done.result, Err(invalid), "a shared buffer is not read into");
    assert_eq!(bench.run(&mut device, Op::range(4, OpKind::Write, 0, 512)).result, Err(invalid));
    assert_eq!(bench.read(&mut device, 0, 4096).unwrap(), [0; 4096]);
}

#[test]
fn a_file_that_is_cut_short_while_open_gives_errors() {
    let (mut bench, scratch) = (Bench::new(), scratch());
    let mut device = open_sized(&bench, &scratch, "1M");
    File::options().write(true).open(&scratch.0).unwrap().set_len(4096).unwrap();
    assert_eq!(bench.read(&mut device, 0, 4096).unwrap(), [0; 4096]);
    assert_eq!(
        bench.read(&mut device, 0, 8192),
        Err(DeviceError::OutOfRange),
        "half of it is there"
    );
    assert_eq!(bench.read(&mut device, 8192, 4096), Err(DeviceError::OutOfRange));
}

#[test]
fn what_cannot_be_opened_is_said_and_nothing_changes() {
    let (bench, scratch) = (Bench::new(), scratch());
    let path = scratch.path();
    let refused = |uri: &str, words: &[&str]| {
        let error = match open(uri, &bench.context) {
            Err(error) => error.to_string(),
            Ok(_) => panic!("{uri} was opened"),
        };
        for word in words {
            assert!(error.contains(word), "{uri}: {word:?} is not in {error:?}");
        }
    };
    refused(&format!("uring:{path}"), &["does not exist", &format!("uring:{path}?size=8G")]);
    refused(&format!("uring:{path}?size=1000"), &["1000 bytes", "multiple"]);
    assert!(!scratch.0.exists());
    refused("uring:/nowhere/at/all?size=1M", &["cannot make /nowhere/at/all"]);
    refused("uring:/dev/null", &["neither a file nor a block device"]);
    refused("uring:/tmp", &["neither a file nor a block device"]);
    drop(open_sized(&bench, &scratch, "1M"));
    refused(
        &format!("uring:{path}?size=2M"),
        &["1048576 bytes, not the 2097152", "nothing was changed"],
    );
    assert_eq!(scratch.0.metadata().unwrap().len(), 1 << 20);
    File::options().write(true).open(&scratch.0).unwrap().set_len(1000).unwrap();
    refused(&format!("uring:{path}"), &["1000 bytes", "multiple"]);
    File::options().write(true).open(&scratch.0).unwrap().set_len(0).unwrap();
    refused(&format!("uring:{path}?size=1M"), &["is empty", "remove it"]);
    assert_eq!(scratch.0.metadata().unwrap().len(), 0);
}

/// The lock belongs to the opening, so a second one in this process meets what another process would.
#[test]
fn a_file_is_opened_once_and_free_again_when_dropped() {
    let (mut bench, scratch) = (Bench::new(), scratch());
    let mut device = open_sized(&bench, &scratch, "1M");
    let again = file::open(scratch.path(), None, Duration::ZERO).unwrap_err();
    assert!(matches!(again, UringError::InUse(_)), "{again}");
    assert!(again.to_string().contains("in use"), "{again}");
    // With operations under way, the file closes after the last of them, in somebody else's poll.
    let other_scratch = Scratch::new(&std::env::temp_dir());
    let mut other = open_sized(&bench, &other_scratch, "1M");
    let buf = bench.buf(&[1; 4096]);
    device.submit(Op::write(1, 0, 4096, buf)).unwrap();
    drop(device);
    let begun = Instant::now();
    while file::open(scratch.path(), None, Duration::ZERO).is_err() {
        assert!(begun.elapsed() < Duration::from_secs(10), "the file was never closed");
        other.poll(&mut Vec::new());
    }
    assert_eq!(bench.pool.usage().buffers, 0);
    let mut device = open(&format!("uring:{}", scratch.path()), &bench.context).unwrap();
    assert_eq!(bench.read(&mut device, 0, 4096).unwrap(), [1; 4096]);
}

/// Another process, killed outright while it holds the file: the lock goes with it.
#[test]
fn a_killed_process_leaves_no_lock() {
    let scratch = scratch();
    File::create(&scratch.0).unwrap().set_len(1 << 20).unwrap();
    // flock(1) takes another kind of lock, so the child is python or this test does not run.
    let script = "import fcntl,struct,sys,time\n\
        f=open(sys.argv[1],'r+b')\n\
        fcntl.fcntl(f,37,struct.pack('hhqqi4x',1,0,0,0,0))\n\
        print('locked',flush=True)\ntime.sleep(60)\n";
    let child = std::process::Command::new("python3")
        .args(["-c", script, scratch.path()])
        .stdout(std::process::Stdio::piped())
        .spawn();
    let Ok(mut child) = child else {
        println!("process: not run: no python3 to hold a lock in another process");
        return;
    };
    let mut line = [0u8; 7];
    std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut line).unwrap();
    let refused = file::open(scratch.path(), None, Duration::ZERO).unwrap_err();
    assert!(matches!(refused, UringError::InUse(_)), "{refused}");
    child.kill().unwrap();
    file::open(scratch.path(), None, file::LOCK_PATIENCE).unwrap();
    child.wait().unwrap();
}

/// A sleeping reactor is woken by a completion, at once and with deferred completions, too.
#[test]
fn a_completion_ends_a_wait() {
    let (mut bench, scratch) = (Bench::new(), scratch());
    let mut device = open_sized(&bench, &scratch, "1M");
    let (mut events, mut done) = (Vec::new(), Vec::new());
    for round in 0..50 {
        // A flush goes through a kernel thread, so that it is not complete when submitted.
        let buf = bench.buf(&[round; 4096]);
        device.submit(Op::write(0, 0, 4096, buf)).unwrap();
        device.poll(&mut done);
        if done.is_empty() {
            device.submit(Op::flush(1)).unwrap();
            device.poll(&mut done);
        }
        let begun = Instant::now();
        while device.in_flight() > 0 {
            bench.context.wait.wait(Some(Duration::from_secs(5)), &mut events).unwrap();
            device.poll(&mut done);
        }
        assert!(begun.elapsed() < Duration::from_secs(4), "round {round}: slept through it");
        done.clear();
    }
}

/// More than the submission queue takes at once, from a device with a full share.
#[test]
fn a_full_device_gives_operations_back_and_recovers() {
    let (mut bench, scratch) = (Bench::new(), scratch());
    let mut device = open_sized(&bench, &scratch, "8M");
    let (mut taken, mut done) = (0u64, Vec::new());
    loop {
        let buf = bench.pool.alloc(512).unwrap();
        match device.submit(Op::read(taken, taken % 2048 * 4096, 512, buf)) {
            Ok(()) => taken += 1,
            Err(op) => {
                assert_eq!(op.token, taken);
                break;
            }
        }
    }
    assert_eq!(taken, 1024);
    let begun = Instant::now();
    while device.in_flight() > 0 {
        assert!(begun.elapsed() < Duration::from_secs(20));
        device.poll(&mut done);
    }
    let mut tokens: Vec<_> = done.iter().map(|completion| completion.token).collect();
    tokens.sort_unstable();
    assert_eq!(tokens, (0..1024).collect::<Vec<_>>());
    assert!(done.iter().all(|completion| completion.result.is_ok()));
    drop(done);
    bench.write(&mut device, 0, &[1; 512]).unwrap();
}

#[test]
fn a_disk_is_known_by_what_stays_with_it() {
    let root = scratch();
    let disk = root.0.join("sda");
    let partition = disk.join("sda1");
    for folder in [&disk.join("queue"), &disk.join("device"), &partition] {
        std::fs::create_dir_all(folder).unwrap();
    }
    let put = |place: &str, text: &str| std::fs::write(disk.join(place), text).unwrap();
    put("size", "2048\n");
    put("sda1/partition", "1\n");
    put("sda1/start", "64\n");
    put("queue/write_cache", "write through\n");
    put("queue/write_zeroes_max_bytes", "0\n");
    put("queue/physical_block_size", "4096\n");
    let whole = BlockQueue::at(disk.clone());
    assert_eq!(whole.identity(), "block name sda sectors 2048");
    put("device/wwid", "naa.5000c500\n");
    assert_eq!(whole.identity(), "block wwid naa.5000c500");
    let part = BlockQueue::at(partition);
    assert_eq!(part.identity(), "block wwid naa.5000c500 from 64");
    assert!(!part.volatile_write_cache() && !part.zeroes_without_writing());
    assert_eq!(part.optimal_io(), Some(4096));
    put("queue/write_cache", "write back\n");
    assert!(part.volatile_write_cache());
    std::fs::remove_dir_all(&root.0).unwrap();
    assert!(BlockQueue::at(disk).volatile_write_cache(), "unknown counts as volatile");
}

/// A loop device made for the test; needs root and a free one.
struct Loop {
    device: String,
    control: File,
}

impl Loop {
    fn new(backing: &Path) -> Option<Self> {
        let control = File::options().read(true).write(true).open("/dev/loop-control").ok()?;
        // SAFETY: LOOP_CTL_GET_FREE passes no memory.
        let number = unsafe { libc::ioctl(control.as_raw_fd(), 0x4c82) };
        let device = format!("/dev/loop{}", u32::try_from(number).ok()?);
        let file = File::options().read(true).write(true).open(backing).ok()?;
        let node = File::options().read(true).write(true).open(&device).ok()?;
        // SAFETY: LOOP_SET_FD takes a descriptor by value.
        let set = unsafe { libc::ioctl(node.as_raw_fd(), 0x4c00, file.as_raw_fd()) };
        (set == 0).then_some(Self { device, control: node })
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        // SAFETY: LOOP_CLR_FD passes no memory.
        unsafe { libc::ioctl(self.control.as_raw_fd(), 0x4c01) };
    }
}

#[test]
fn a_block_device_behaves_as_its_model_and_is_exclusive() {
    let (mut bench, scratch) = (Bench::new(), scratch());
    File::create(&scratch.0).unwrap().set_len(4 << 20).unwrap();
    let Some(loop_device) = Loop::new(&scratch.0) else {
        println!("process: not run: no loop device can be made here");
        return;
    };
    let uri = format!("uring:{}", loop_device.device);
    let mut device = open(&uri, &bench.context).unwrap();
    println!("{:?}", device.info());
    assert_eq!(device.info().size, 4 << 20);
    assert!(device.info().identity.starts_with("block loop of file inode "));
    let again = file::open(&loop_device.device, None, Duration::ZERO).unwrap_err();
    assert!(matches!(again, UringError::InUse(_)), "{again}");
    assert_eq!(against_model(&mut bench, &mut device, 13, 1000), 1000);
    drop(device);
    let other = open(&format!("{uri}?size=8M"), &bench.context);
    assert!(other.is_err_and(|error| error.to_string().contains("not the 8388608")));
}

#[test]
fn the_space_of_a_file_is_set_aside_once_and_holds_what_it_held() {
    let (bench, scratch) = (Bench::new(), scratch());
    std::fs::write(scratch.path(), vec![7; 8192]).unwrap();
    File::options().write(true).open(scratch.path()).unwrap().set_len(4 << 20).unwrap();
    let device = open(&format!("fault:slow:uring:{}?write_us=1", scratch.path()), &bench.context);
    let device = device.unwrap();
    assert!(device.is_direct() && device.unreserved() >= (4 << 20) - (64 << 10));
    device.reserve().unwrap();
    assert_eq!(device.unreserved(), 0);
    device.reserve().unwrap();
    let bytes = std::fs::read(scratch.path()).unwrap();
    assert!(bytes.len() == 4 << 20 && bytes[..8192].iter().all(|byte| *byte == 7));
    assert!(bytes[8192..].iter().all(|byte| *byte == 0));
    drop(device);
    // More than any file system has left: refused, and nothing is taken.
    File::options().write(true).open(scratch.path()).unwrap().set_len(1 << 43).unwrap();
    let device = open(&format!("uring:{}", scratch.path()), &bench.context).unwrap();
    let before = device.unreserved();
    let error = device.reserve().unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::ENOSPC));
    assert_eq!(device.unreserved(), before);
}
