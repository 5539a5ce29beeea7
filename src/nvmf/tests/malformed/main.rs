//! Hosts that break the protocol, against the target through its public API: valid sessions whose
//! PDUs are damaged, doubled, reordered, replayed or made up. The target must not panic, must answer
//! within bounds, must drain, must keep its memory, and must serve a well-behaved host throughout.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use forebay_io::{
    BlockError, Buf, BufPool, HeapBuf, HeapPool, Instant, Outcome, Payload, Piece, Request,
    RequestOp, Tag, Uuid, VolumeId,
};
use forebay_nvmf::target::{
    AnaState, BlockSize, ConnId, Event, HostAccess, IoSink, LocalAddress, NamespaceConfig,
    SubsystemConfig, TRANSFER_MAX, Target, TargetConfig,
};
use forebay_nvmf::tcp::{HANDSHAKE_DEADLINE, Handshake, Params, Progress};
use forebay_wire::fabrics::{self, Connect, ConnectData, PropertyGet, PropertySet};
use forebay_wire::sqe::{
    Abort, DatasetManagement, Fuse, GetFeatures, GetLogPage, Identify, ReadWrite, SetFeatures, Sgl,
    admin, nvm,
};
use forebay_wire::tcp::{
    DataPdu, Digests, Direction, FLAG_SUCCESS, Frame, IcReq, IcResp, PduKind, data_digest,
    header_digest, put_capsule_cmd, put_h2c_data,
};
use forebay_wire::{Cqe, Nqn, Sqe, dsm, feature, identify::cns, property};
use std::collections::{BTreeSet, HashSet, VecDeque};
use std::mem::{Discriminant, discriminant};

mod commands;
mod damage;
mod link;
mod rng;
mod session;
mod world;

use commands::*;
use link::*;
use rng::*;
use session::*;
use world::*;

const SEED: u64 = 0x5eed_f04e_ba11;
/// Malformed PDUs to send.
const MALFORMED: u64 = 120_000;
/// Malformed PDUs before memory is measured first.
const WARM_UP: u64 = 10_000;
/// Growth of the resident set that is tolerated after that, in KiB.
const GROWTH_MAX: u64 = 32 << 10;
/// Output bytes that one PDU or one completed request may cause.
const OUTPUT_MAX: usize = (TRANSFER_MAX as usize) + 4096;
/// Requests that one PDU may cause: the ranges of Dataset Management.
const REQUESTS_MAX: usize = 256;
const BLOCKS: u64 = 256;
/// CC as Linux sets it.
const CC_ENABLE: u64 = 0x0046_0061;
const PUBLIC: &str = "nqn.2026-01.io.forebay:public";
const PRIVATE: &str = "nqn.2026-01.io.forebay:private";
const BAD_HOST: &str = "nqn.2014-08.org.nvmexpress:uuid:bad-host";
const GOOD_HOST: &str = "nqn.2014-08.org.nvmexpress:uuid:well-behaved";

/// A well-behaved host: each of its commands must be answered right.
struct Good {
    session: Session,
    cntlid: u16,
    conns: [ConnId; 2],
}

impl Good {
    fn new(world: &mut World) -> Self {
        let session = bring_up(world, GOOD_HOST, PRIVATE, false).unwrap();
        let cntlid = world.target.controllers().next().unwrap().cntlid;
        let conns = [session.links[0].conn, session.links[1].conn];
        Self { session, cntlid, conns }
    }

    fn check(&mut self, world: &mut World) {
        // The bad host's requests may stay where they are.
        let theirs = std::mem::take(&mut world.volumes.pending);
        let causes = world.causes;
        let [admin, io] = &mut self.session.links[..] else { panic!("two queues") };
        let identify = Identify { cns: cns::CONTROLLER, ..Identify::default() };
        let identify = identify.encode(Sqe::new(admin::IDENTIFY, 0, 0));
        let cqe = admin.ask(world, &identify.with_sgl(Sgl::Transport { len: 4096 }), &[]);
        assert!(cqe.status.is_success() && admin.data.len() == 4096);
        assert_eq!(admin.data[78..80], self.cntlid.to_le_bytes());

        let len = world.rng.pick(&[512, 4096, 8192, 16384]);
        let slba = world.rng.next() % (BLOCKS - 32);
        let rw = ReadWrite { slba, blocks: len / 512, ..ReadWrite::default() };
        let data: Vec<u8> = (0..len).map(|_| world.rng.byte()).collect();
        let write = rw.encode(Sqe::new(nvm::WRITE, io.next_cid(), 1));
        if len <= 8192 {
            let sqe = write.with_sgl(Sgl::InCapsule { offset: 0, len });
            assert!(io.ask(world, &sqe, &data).status.is_success());
        } else {
            let sqe = write.with_sgl(Sgl::Transport { len });
            world.feed(io.conn, &capsule(&sqe, &[], io.params.digests), 1);
            io.receive(world);
            let (r2t, _) = io.r2ts.pop_front().expect("R2T");
            assert_eq!((r2t.cid, r2t.offset, r2t.len), (sqe.cid(), 0, len));
            world.feed(io.conn, &io.h2c(&r2t, true, &data), 1);
            world.complete(usize::MAX);
            io.receive(world);
            let cqe = io.last.expect("an answer");
            assert!(cqe.status.is_success() && cqe.cid == sqe.cid());
        }
        let read = rw.encode(Sqe::new(nvm::READ, 0, 1)).with_sgl(Sgl::Transport { len });
        assert!(io.ask(world, &read, &[]).status.is_success());
        assert!(io.data == data, "what was written");
        assert!(world.volumes.pending.is_empty());
        (world.volumes.pending, world.causes) = (theirs, causes);
    }
}

/// Closes the bad host's connections; afterwards only the well-behaved host is left.
fn end(world: &mut World, good: &mut Good) {
    if world.rng.one_in(2) {
        world.complete(usize::MAX);
    }
    let conns: Vec<ConnId> =
        world.target.connections().filter(|conn| !good.conns.contains(conn)).collect();
    for conn in conns {
        world.target.conn_closed(conn, world.now);
    }
    world.complete(usize::MAX);
    world.events();
    world.told.clear();
    world.causes = 0;
    if world.rng.one_in(32) {
        world.wait(3_000_000_000);
        good.check(world);
    }
    assert_eq!(world.target.outstanding(), 0);
    assert_eq!(world.target.connections().count(), 2);
    assert_eq!(world.target.controllers().count(), 1);
}

/// The resident set in KiB.
fn resident() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4
}

#[test]
fn malformed_pdus() {
    let mut world = World::new(SEED);
    let mut good = Good::new(&mut world);
    let (mut sessions, mut warm) = (0, None);
    while world.malformed < MALFORMED {
        if warm.is_none() && world.malformed >= WARM_UP {
            warm = Some(resident());
        }
        sessions += 1;
        if let Some(mut session) = bring_up(&mut world, BAD_HOST, PUBLIC, true) {
            session.run(&mut world, &mut good);
        }
        end(&mut world, &mut good);
    }
    good.check(&mut world);
    let growth = resident().saturating_sub(warm.unwrap());
    let errors = world.target.stats().protocol_errors + world.handshake_failures;
    println!(
        "malformed: {} PDUs in {sessions} sessions, seed {SEED:#x}, {errors} protocol errors, RSS \
         growth {growth} KiB",
        world.malformed
    );
    assert!(growth < GROWTH_MAX, "memory grew by {growth} KiB");
    // How deep it went: each kind of protocol error and of request, many kinds of refusals.
    assert_eq!(world.fatals.iter().copied().collect::<Vec<_>>(), [1, 2, 3, 4]);
    assert_eq!(world.volumes.kinds.len(), 7);
    assert!(world.statuses.len() >= 20, "{:x?}", world.statuses);
    assert!(errors > MALFORMED / 20, "hardly anything was noticed");
    assert!(world.target.stats().data_digest_errors > 0);
    assert!(world.target.stats().stale_completions > 0);
}
