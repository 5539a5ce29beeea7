//! The table of claims. Ranges of up to [`REGIONS`] regions of 64 blocks are found by hash;
//! wider ones, which are rare (a discard of a whole volume), stand in a list of their own.

use std::collections::VecDeque;

/// Blocks of a region: 256 KiB of 4 KiB blocks.
const REGION_SHIFT: u32 = 6;
/// Regions that a claim enters by hash: 1 MiB at any alignment.
const REGIONS: u32 = 5;
/// No link, no claim.
const NONE: u32 = u32::MAX;

/// How a range is claimed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Together with other shared claims.
    Shared,
    /// Alone.
    Exclusive,
}

/// What is claimed: `blocks` cache blocks of a volume, from `first` on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claim {
    /// The volume's index in its shard.
    pub volume: u16,
    /// First cache block.
    pub first: u64,
    /// Cache blocks; a claim on none conflicts with nothing.
    pub blocks: u64,
    /// Alone or together.
    pub mode: Mode,
    /// The claimant's own, given back when a waiting claim is granted.
    pub token: u64,
}

impl Claim {
    const fn end(&self) -> u64 {
        self.first.saturating_add(self.blocks)
    }

    /// First and last region, both included.
    const fn regions(&self) -> (u64, u64) {
        (self.first >> REGION_SHIFT, self.end().saturating_sub(1) >> REGION_SHIFT)
    }

    fn is_wide(&self) -> bool {
        let (low, high) = self.regions();
        high.saturating_sub(low) >= u64::from(REGIONS)
    }

    /// Whether the two may not be granted at once.
    fn conflicts(&self, other: &Self) -> bool {
        self.volume == other.volume
            && self.blocks.min(other.blocks) > 0
            && self.first < other.end()
            && other.first < self.end()
            && (self.mode == Mode::Exclusive || other.mode == Mode::Exclusive)
    }
}

/// Names a claim until its release; a name is never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ClaimId {
    slot: u32,
    generation: u32,
}

/// The answer to a claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It holds from now until [`HazardTable::release`].
    Granted(ClaimId),
    /// It comes out of [`HazardTable::pop_granted`] once it holds.
    Waiting(ClaimId),
    /// The table is full; nothing changed.
    Full,
}

/// A link of a claim in one hash chain, or (the first link) in the list of wide claims.
#[derive(Clone, Copy)]
struct Link {
    prev: u32,
    next: u32,
    chain: u32,
}

const UNLINKED: Link = Link { prev: NONE, next: NONE, chain: NONE };

#[derive(Clone, Copy)]
struct Node {
    claim: Claim,
    order: u64,
    blockers: u32,
    generation: u32,
    links: u8,
    live: bool,
}

/// Claims in flight and waiting. Bounded; allocates only when made.
pub struct HazardTable {
    nodes: Vec<Node>,
    links: Vec<Link>,
    /// Heads of the hash chains, then the head of the list of wide claims.
    heads: Vec<u32>,
    free: Vec<u32>,
    granted: VecDeque<ClaimId>,
    scratch: Vec<u32>,
    next_order: u64,
    waiting: usize,
    wide: usize,
}

impl HazardTable {
    /// A table for up to `capacity` claims, granted and waiting together.
    #[must_use]
    pub fn new(capacity: u16) -> Self {
        let size = usize::from(capacity);
        let node = Node {
            claim: Claim { volume: 0, first: 0, blocks: 0, mode: Mode::Shared, token: 0 },
            order: 0,
            blockers: 0,
            generation: 0,
            links: 0,
            live: false,
        };
        Self {
            nodes: vec![node; size],
            links: vec![UNLINKED; size * REGIONS as usize],
            heads: vec![NONE; size.max(1).next_power_of_two() * 2 + 1],
            free: (0..u32::from(capacity)).rev().collect(),
            granted: VecDeque::with_capacity(size),
            scratch: Vec::with_capacity(size),
            next_order: 0,
            waiting: 0,
            wide: 0,
        }
    }

    /// Claims a range. Conflicting claims are granted in the order in which they were made.
    pub fn claim(&mut self, claim: Claim) -> Verdict {
        let Some(slot) = self.free.pop() else { return Verdict::Full };
        self.conflicting(&claim);
        let blockers = u32::try_from(self.scratch.len()).unwrap_or(u32::MAX);
        let node = &mut self.nodes[slot as usize];
        let generation = node.generation;
        *node = Node { claim, order: self.next_order, blockers, generation, links: 0, live: true };
        self.next_order += 1;
        self.link(slot);
        let id = ClaimId { slot, generation };
        if blockers == 0 {
            Verdict::Granted(id)
        } else {
            self.waiting += 1;
            Verdict::Waiting(id)
        }
    }

    /// Whether a claim would be granted at once.
    pub fn is_free(&mut self, claim: &Claim) -> bool {
        self.conflicting(claim);
        self.scratch.is_empty()
    }

    /// Ends a claim, granted or waiting, and grants what waited for it alone. Returns the claim;
    /// `None` for a claim that has ended already.
    pub fn release(&mut self, id: ClaimId) -> Option<Claim> {
        let node = *self.node(id)?;
        self.unlink(id.slot);
        let ended = &mut self.nodes[id.slot as usize];
        ended.live = false;
        ended.generation = ended.generation.wrapping_add(1);
        self.free.push(id.slot);
        self.waiting -= usize::from(node.blockers > 0);
        if self.waiting == 0 {
            return Some(node.claim);
        }
        self.conflicting(&node.claim);
        self.scratch.retain(|slot| self.nodes[*slot as usize].order > node.order);
        self.scratch.sort_unstable_by_key(|slot| self.nodes[*slot as usize].order);
        for slot in &self.scratch {
            let later = &mut self.nodes[*slot as usize];
            later.blockers -= 1;
            if later.blockers == 0 {
                self.waiting -= 1;
                self.granted.push_back(ClaimId { slot: *slot, generation: later.generation });
            }
        }
        Some(node.claim)
    }

    /// The next waiting claim that holds now, in order of arrival among those that one release
    /// granted.
    pub fn pop_granted(&mut self) -> Option<(ClaimId, Claim)> {
        // A claim may have been released between its grant and now.
        while let Some(id) = self.granted.pop_front() {
            if let Some(node) = self.node(id) {
                return Some((id, node.claim));
            }
        }
        None
    }

    /// The claim behind a name, and whether it is granted.
    #[must_use]
    pub fn get(&self, id: ClaimId) -> Option<(Claim, bool)> {
        self.node(id).map(|node| (node.claim, node.blockers == 0))
    }

    /// Claims, granted and waiting.
    #[must_use]
    pub fn len(&self) -> usize {
        self.nodes.len() - self.free.len()
    }

    /// Whether there is no claim.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Claims that wait.
    #[must_use]
    pub const fn waiting(&self) -> usize {
        self.waiting
    }

    /// Bytes of memory, all included.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        size_of::<Self>()
            + self.nodes.capacity() * size_of::<Node>()
            + self.links.capacity() * size_of::<Link>()
            + (self.heads.capacity() + self.free.capacity() + self.scratch.capacity())
                * size_of::<u32>()
            + self.granted.capacity() * size_of::<ClaimId>()
    }

    fn node(&self, id: ClaimId) -> Option<&Node> {
        self.nodes
            .get(id.slot as usize)
            .filter(|node| node.live && node.generation == id.generation)
    }

    /// Collects the live claims that conflict with `claim`, each once, in `scratch`.
    fn conflicting(&mut self, claim: &Claim) {
        self.scratch.clear();
        if claim.blocks == 0 {
            return;
        }
        if claim.is_wide() {
            let found = self.nodes.iter().enumerate();
            let found = found.filter(|(_, node)| node.live && node.claim.conflicts(claim));
            self.scratch.extend(found.filter_map(|(slot, _)| u32::try_from(slot).ok()));
            return;
        }
        let (low, high) = claim.regions();
        for region in low..=high {
            let mut at = self.heads[self.chain(claim.volume, region)];
            while at != NONE {
                let slot = at / REGIONS;
                let other = &self.nodes[slot as usize].claim;
                // Two claims may meet in several regions, and two regions in one chain: only the
                // link that stands for the first common region counts.
                let here = other.regions().0 + u64::from(at % REGIONS);
                if here == region && region == low.max(other.regions().0) && other.conflicts(claim)
                {
                    self.scratch.push(slot);
                }
                at = self.links[at as usize].next;
            }
        }
        if self.wide > 0 {
            let mut at = self.heads[self.heads.len() - 1];
            while at != NONE {
                let slot = at / REGIONS;
                if self.nodes[slot as usize].claim.conflicts(claim) {
                    self.scratch.push(slot);
                }
                at = self.links[at as usize].next;
            }
        }
    }

    fn chain(&self, volume: u16, region: u64) -> usize {
        let mixed = (region ^ (u64::from(volume) << 48)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let chains = self.heads.len() - 1;
        (mixed >> 32) as usize & (chains - 1)
    }

    fn link(&mut self, slot: u32) {
        let claim = self.nodes[slot as usize].claim;
        if claim.blocks == 0 {
            return;
        }
        let base = slot * REGIONS;
        if claim.is_wide() {
            self.push_link(base, self.heads.len() - 1);
            self.wide += 1;
            self.nodes[slot as usize].links = 1;
            return;
        }
        let (low, high) = claim.regions();
        let mut links = 0u8;
        for region in low..=high {
            self.push_link(base + u32::from(links), self.chain(claim.volume, region));
            links += 1;
        }
        self.nodes[slot as usize].links = links;
    }

    fn push_link(&mut self, link: u32, chain: usize) {
        let next = self.heads[chain];
        if next != NONE {
            self.links[next as usize].prev = link;
        }
        let chain_number = u32::try_from(chain).unwrap_or(NONE);
        self.links[link as usize] = Link { prev: NONE, next, chain: chain_number };
        self.heads[chain] = link;
    }

    fn unlink(&mut self, slot: u32) {
        let node = self.nodes[slot as usize];
        let base = slot * REGIONS;
        for at in base..base + u32::from(node.links) {
            let Link { prev, next, chain } = self.links[at as usize];
            if prev == NONE {
                self.heads[chain as usize] = next;
            } else {
                self.links[prev as usize].next = next;
            }
            if next != NONE {
                self.links[next as usize].prev = prev;
            }
        }
        self.wide -= usize::from(node.claim.blocks > 0 && node.claim.is_wide());
    }
}
