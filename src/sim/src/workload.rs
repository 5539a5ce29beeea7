//! What hosts do: random requests of mixed sizes on hot sets and in scans, overlapping, with and without
//! data.

use crate::rng::Rng;
use crate::world::{Ask, World};
use forebay_io::RequestOp;

/// A random request of one of the volumes; `most` blocks of 4096 bytes at most.
#[must_use]
pub fn random_ask(volumes: &[(u64, u32)], rng: &mut Rng, most: u64) -> Ask {
    let volume = rng.index(volumes.len());
    let (size, unit) = volumes[volume];
    let unit = u64::from(unit);
    let units = size / unit;
    let longest = match rng.below(12) {
        0 => most * 4096,
        1 | 2 => 32 << 10,
        3..=5 => 4096,
        _ => 8 << 10,
    } / unit;
    let span = if rng.below(3) > 0 { units / 8 } else { units };
    let mut start = rng.below(span.max(1));
    if rng.below(3) == 0 {
        // Whole cache blocks.
        start = start * unit / 4096 * 4096 / unit;
    }
    let count = (1 + rng.below(longest.max(1))).min(units - start);
    let (offset, len) = (start * unit, count * unit);
    let fua = rng.one_in(16);
    let mut ask = Ask { volume, op: RequestOp::Read, offset, len, fua: false, spoil: false };
    match rng.below(100) {
        0..=34 => {}
        35..=76 => (ask.op, ask.fua) = (RequestOp::Write, fua),
        77..=81 => {
            (ask.op, ask.fua) = (RequestOp::WriteZeroes { deallocate: rng.one_in(2) }, fua);
            // Long ones are records without data.
            ask.len = (len.max(20 * 4096)).min(size - offset) / unit * unit;
        }
        82..=86 => ask.op = RequestOp::Deallocate,
        87..=91 => (ask.op, ask.offset, ask.len) = (RequestOp::Flush, 0, 0),
        n => {
            ask.op = if n < 95 { RequestOp::Compare } else { RequestOp::CompareAndWrite };
            ask.len = len.min(8 << 10);
            ask.spoil = rng.one_in(2);
        }
    }
    ask
}

/// Asks for something random, sometimes lets time go on, and keeps at most sixteen under way.
pub fn random_op(world: &mut World, rng: &mut Rng, most: u64) {
    let volumes: Vec<(u64, u32)> = world.config.volumes.iter().map(|v| (v.size, v.unit)).collect();
    while world.under_way() > 16 && world.violation.is_none() {
        world.step();
    }
    let ask = random_ask(&volumes, rng, most);
    world.ask(ask);
    if rng.one_in(3) {
        world.step();
    }
}
