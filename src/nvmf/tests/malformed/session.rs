//! A bad host's association.

use super::*;

/// A bad host's association.
pub(super) struct Session {
    pub(super) links: Vec<Link>,
    /// PDUs to send before anything else, by link: second halves, and what was held back.
    pub(super) next: VecDeque<(usize, Vec<u8>)>,
}

pub(super) fn opening(rng: &mut Rng, host: &str, subsystem: &str) -> Opening {
    let digests = Digests { header: rng.one_in(2), data: rng.one_in(2) };
    let request = IcReq { hpda: rng.pick(&[0, 0, 1, 7, 31]), digests, maxr2t: 0 };
    let connect = Connect {
        sqsize: rng.pick(&[3, 31, 127]),
        no_sq_flow: rng.one_in(2),
        kato: 5000,
        ..Connect::default()
    };
    let hostid = if host == GOOD_HOST { [1; 16] } else { [2; 16] };
    let (subnqn, hostnqn) = (nqn(subsystem), nqn(host));
    let cntlid = fabrics::CNTLID_DYNAMIC;
    Opening { request, connect, data: ConnectData { hostid, cntlid, subnqn, hostnqn } }
}

/// Brings up a controller with one or two I/O queues, in the order in which Linux does.
pub(super) fn bring_up(
    world: &mut World,
    host: &str,
    subsystem: &str,
    spoil: bool,
) -> Option<Session> {
    let mut opening = opening(&mut world.rng, host, subsystem);
    let mut admin = open(world, &opening, spoil)?;
    opening.data.cntlid = u16::try_from(admin.last?.result).ok()?;
    let sets = PropertySet { wide: false, offset: property::CC, value: CC_ENABLE }.encode(0);
    assert!(admin.ask(world, &sets, &[]).status.is_success());
    let ready = PropertyGet { wide: false, offset: property::CSTS }.encode(0);
    assert_eq!(admin.ask(world, &ready, &[]).result, 1);
    let mut links = vec![admin];
    opening.connect.kato = 0;
    for qid in 1..=1 + u16::from(spoil && world.rng.one_in(4)) {
        // Now and then a number that is taken: that Connect waits for the older queue.
        opening.connect.qid = if spoil && world.rng.one_in(16) { 1 } else { qid };
        links.extend(open(world, &opening, spoil));
    }
    Some(Session { links, next: VecDeque::new() })
}

impl Session {
    /// The next valid PDU of a queue.
    pub(super) fn valid(&mut self, rng: &mut Rng) -> (usize, Vec<u8>) {
        if let Some(next) = self.next.pop_front() {
            return next;
        }
        let at = if rng.one_in(4) { 0 } else { rng.below(self.links.len()) };
        let link = &mut self.links[at];
        if !rng.one_in(3)
            && let Some(data) = link.answer(rng)
        {
            return (at, data);
        }
        if at == 0 {
            return (0, admin_command(rng, link));
        }
        let mut pdus = io_commands(rng, link).into_iter();
        let first = pdus.next().unwrap();
        self.next.extend(pdus.map(|pdu| (at, pdu)));
        (at, first)
    }

    /// Sends one PDU, right or wrong.
    pub(super) fn step(&mut self, world: &mut World) {
        let (at, mut pdu) = self.valid(&mut world.rng);
        let (conn, digests) = (self.links[at].conn, self.links[at].params.digests);
        if world.rng.one_in(16) {
            world.heard.truncate(63);
            world.heard.push_front(pdu.clone());
        }
        let mut pdus = 1;
        if !world.rng.one_in(3) {
            match world.rng.below(16) {
                0 => {
                    pdu.extend_from_within(..);
                    (world.malformed, pdus) = (world.malformed + 1, 2);
                }
                1 => {
                    // Held back until after the next one.
                    world.malformed += 1;
                    let (other, later) = self.valid(&mut world.rng);
                    self.next.push_front((at, pdu));
                    world.feed(self.links[other].conn, &later, 1);
                    return;
                }
                2 if !world.heard.is_empty() => {
                    world.malformed += 1;
                    let old = world.rng.below(world.heard.len());
                    pdu.extend_from_slice(&world.heard[old]);
                    pdus = 2;
                }
                3 => pdu = world.made_up(),
                _ => world.damage(&mut pdu, digests),
            }
        }
        world.feed(conn, &pdu, pdus);
    }

    /// Sends until the target closes a connection, or the host has had enough.
    pub(super) fn run(&mut self, world: &mut World, good: &mut Good) {
        for _ in 0..16 + world.rng.below(48) {
            world.pool.empty = world.rng.one_in(16);
            self.step(world);
            world.pool.empty = false;
            if !world.rng.one_in(4) {
                world.complete(usize::MAX);
            }
            world.wait(100_000);
            if !world.rng.one_in(8) {
                let sent: usize = self.links.iter_mut().map(|link| link.receive(world)).sum();
                assert!(sent <= world.causes * OUTPUT_MAX, "{sent} bytes of {}", world.causes);
                world.causes = 0;
            }
            if world.rng.one_in(8) {
                good.check(world);
            }
            if self.links.iter().any(|link| link.ended || world.closed(link.conn)) {
                break;
            }
        }
    }
}
