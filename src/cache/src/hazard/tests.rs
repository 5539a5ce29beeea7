use super::*;
use proptest::prelude::*;

fn claim(first: u64, blocks: u64, mode: Mode, token: u64) -> Claim {
    Claim { volume: 1, first, blocks, mode, token }
}

fn granted(verdict: Verdict) -> ClaimId {
    match verdict {
        Verdict::Granted(id) => id,
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_overlapping_claim_waits_and_nobody_overtakes_it() {
    let mut table = HazardTable::new(8);
    let write = granted(table.claim(claim(0, 4, Mode::Exclusive, 1)));
    let read = table.claim(claim(3, 2, Mode::Shared, 2));
    assert!(matches!(read, Verdict::Waiting(_)));
    // Does not touch the first one, but the read that waits.
    assert!(matches!(table.claim(claim(4, 1, Mode::Exclusive, 3)), Verdict::Waiting(_)));
    let aside = granted(table.claim(claim(100, 1, Mode::Exclusive, 4)));
    assert_eq!(table.release(write).unwrap().token, 1);
    let (id, woken) = table.pop_granted().unwrap();
    assert_eq!(woken.token, 2);
    assert!(table.pop_granted().is_none());
    table.release(id);
    assert_eq!(table.pop_granted().unwrap().1.token, 3);
    assert!(table.release(write).is_none(), "a name is never used twice");
    table.release(aside);
    assert_eq!((table.len(), table.waiting()), (1, 0));
}

#[test]
fn a_full_table_refuses_and_a_wide_claim_meets_all() {
    let mut table = HazardTable::new(3);
    let a = granted(table.claim(claim(1 << 20, 1, Mode::Exclusive, 1)));
    let b = granted(table.claim(claim(1 << 30, 1, Mode::Shared, 2)));
    let wide = table.claim(claim(0, 1 << 36, Mode::Exclusive, 3));
    assert!(matches!(wide, Verdict::Waiting(_)));
    assert_eq!(table.claim(claim(5, 1, Mode::Shared, 4)), Verdict::Full);
    table.release(a);
    assert!(table.pop_granted().is_none());
    assert!(matches!(table.claim(claim(5, 1, Mode::Shared, 5)), Verdict::Waiting(_)));
    table.release(b);
    assert_eq!(table.pop_granted().unwrap().1.token, 3);
}

/// The obvious implementation: a list in order of arrival.
#[derive(Default)]
struct Model {
    claims: Vec<(ClaimId, Claim, bool)>,
}

impl Model {
    fn conflicts(a: &Claim, b: &Claim) -> bool {
        a.volume == b.volume
            && a.blocks > 0
            && b.blocks > 0
            && a.first < b.first + b.blocks
            && b.first < a.first + a.blocks
            && (a.mode == Mode::Exclusive || b.mode == Mode::Exclusive)
    }

    fn free(&self, upto: usize, claim: &Claim) -> bool {
        !self.claims[..upto].iter().any(|(_, other, _)| Self::conflicts(other, claim))
    }

    fn wake(&mut self) -> Vec<ClaimId> {
        let mut woken = Vec::new();
        for at in 0..self.claims.len() {
            if !self.claims[at].2 && self.free(at, &self.claims[at].1) {
                self.claims[at].2 = true;
                woken.push(self.claims[at].0);
            }
        }
        woken
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn it_agrees_with_a_plain_list(
        steps in prop::collection::vec(
            (any::<bool>(), 0u16..2, 0u64..700, prop_oneof![1u64..8, 1u64..400, Just(0)],
             any::<bool>(), any::<prop::sample::Index>()), 1..120)
    ) {
        let mut table = HazardTable::new(24);
        let mut model = Model::default();
        for (token, (add, volume, first, blocks, shared, pick)) in steps.into_iter().enumerate() {
            if add || model.claims.is_empty() {
                let mode = if shared { Mode::Shared } else { Mode::Exclusive };
                let claim = Claim { volume, first, blocks, mode, token: token as u64 };
                let free = blocks == 0 || model.free(model.claims.len(), &claim);
                prop_assert!(table.is_free(&claim) == free);
                match table.claim(claim) {
                    Verdict::Granted(id) => { prop_assert!(free); model.claims.push((id, claim, true)); }
                    Verdict::Waiting(id) => { prop_assert!(!free); model.claims.push((id, claim, false)); }
                    Verdict::Full => prop_assert_eq!(model.claims.len(), 24),
                }
            } else {
                let at = pick.index(model.claims.len());
                let (id, claim, _) = model.claims.remove(at);
                prop_assert_eq!(table.release(id), Some(claim));
            }
            let woken: Vec<_> = std::iter::from_fn(|| table.pop_granted()).map(|g| g.0).collect();
            prop_assert_eq!(woken, model.wake());
            prop_assert_eq!(table.len(), model.claims.len());
            prop_assert_eq!(table.waiting(), model.claims.iter().filter(|c| !c.2).count());
        }
    }
}
