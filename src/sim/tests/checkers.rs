//! The checkers notice what they are there for: each is shown a fault that it must name.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use forebay_cache::engine::CacheMode;
use forebay_io::{Op, RequestOp};
use forebay_sim::buffer::SimBuf;
use forebay_sim::config::{Config, VolumeConfig};
use forebay_sim::oracle::content;
use forebay_sim::world::{Ask, World};

const LEN: u64 = 4096;

fn world() -> World {
    let volume = VolumeConfig { size: 256 << 10, unit: 4096, mode: CacheMode::WriteBack };
    World::new(Config::small(1, 16, 16, volume), false)
}

fn write(world: &mut World) {
    let (op, offset, len) = (RequestOp::Write, 0, LEN);
    world.ask(Ask { volume: 0, op, offset, len, fua: false, spoil: false });
}

/// Two writes of one block that are under way together, destaged.
fn two_at_once() -> World {
    let mut world = world();
    write(&mut world);
    write(&mut world);
    world.quiesce();
    world.drain_and_wait(0);
    assert_eq!(world.violation, None);
    world
}

/// Which of the two the log has last is on the backing device.
fn last(world: &World) -> u64 {
    let held = world.backing[0].bytes.bytes(0, LEN);
    [1, 2].into_iter().find(|write| held == content(*write, 0, LEN)).expect("one of the two")
}

#[test]
fn a_backing_write_that_overtakes_a_newer_version_is_noticed_although_hosts_had_no_order() {
    let mut world = two_at_once();
    let older = 3 - last(&world);
    let now = world.now;
    world.backing[0]
        .submit(Op::write(u64::MAX, 0, LEN, SimBuf::from_bytes(&content(older, 0, LEN))), now);
    for _ in 0..1000 {
        if world.backing[0].in_flight() == 0 {
            break;
        }
        world.step();
    }
    let what = world.violation.expect("it is noticed");
    assert!(what.contains("goes back in time"), "{what}");
}

#[test]
fn a_clean_copy_that_differs_from_the_backing_device_is_noticed() {
    let mut world = two_at_once();
    world.check_copies(0);
    assert_eq!(world.violation, None);
    let older = 3 - last(&world);
    world.backing[0].put(0, &content(older, 0, LEN));
    world.check_copies(0);
    let what = world.violation.expect("it is noticed");
    assert!(what.contains("is clean and not what the backing device holds"), "{what}");
}
