//! Where volumes live, and requests that came from, or went to, another reactor.

use forebay_io::{BlockError, Outcome, Piece, Request, Tag, VolumeId};

/// Set in the tags that engines see for requests of another reactor; a target of at most
/// [`CONNECTIONS_MAX`] connections never sets it itself.
const FOREIGN: u64 = 1 << 63;

/// The most connections of a target whose tags leave [`FOREIGN`] clear.
pub const CONNECTIONS_MAX: u16 = 0x7fff;

/// Requests of other reactors under way here at once; more are answered "not ready" at once.
pub const FOREIGN_MAX: usize = 4096;

/// Where a volume is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// By this engine of the shard.
    Here(usize),
    /// By another reactor, through its mailbox.
    There(u32),
}

/// The routes of all volumes that this reactor's subsystems name or that live on it.
#[derive(Debug, Default)]
pub struct Routes {
    table: Vec<Option<Route>>,
}

impl Routes {
    /// Sets, changes or (with `None`) removes a route.
    pub fn set(&mut self, volume: VolumeId, route: Option<Route>) {
        let Ok(at) = usize::try_from(volume.0) else { return };
        if self.table.len() <= at {
            self.table.resize(at + 1, None);
        }
        self.table[at] = route;
    }

    /// Where a volume is.
    #[must_use]
    pub fn get(&self, volume: VolumeId) -> Option<Route> {
        usize::try_from(volume.0).ok().and_then(|at| self.table.get(at).copied().flatten())
    }
}

/// The data of a request that crosses reactors: owned, because the receive buffer does not travel.
#[derive(Debug)]
pub enum Cargo<B> {
    /// None.
    None,
    /// Write or compare data.
    One(B),
    /// Compare data and write data.
    Pair(B, B),
}

/// What reactors send each other.
#[derive(Debug)]
pub enum Message<B> {
    /// A request for a volume that lives on the receiving reactor.
    Forward {
        /// The reactor that answers go to.
        from: u32,
        /// The request; its tag is the sender's.
        request: Request,
        /// Its data.
        cargo: Cargo<B>,
    },
    /// The end of a forwarded request.
    Answer {
        /// The tag of the request.
        tag: Tag,
        /// How it ended.
        outcome: Outcome,
        /// Read data.
        pieces: Vec<Piece<B>>,
    },
}

/// Requests of other reactors that are under way here: a slab from local tags to origins.
#[derive(Debug, Default)]
pub(crate) struct Foreign {
    origins: Vec<Option<(u32, Tag)>>,
    free: Vec<usize>,
}

impl Foreign {
    /// A local tag for a request of reactor `from`.
    pub(crate) fn admit(&mut self, from: u32, tag: Tag) -> Result<Tag, BlockError> {
        let at = match self.free.pop() {
            Some(at) => at,
            None if self.origins.len() < FOREIGN_MAX => {
                self.origins.push(None);
                self.origins.len() - 1
            }
            None => return Err(BlockError::NotReady),
        };
        self.origins[at] = Some((from, tag));
        Ok(Tag(FOREIGN | at as u64))
    }

    /// Whose request a local tag stands for; `None` for one of this reactor's own.
    pub(crate) fn release(&mut self, tag: Tag) -> Option<(u32, Tag)> {
        if tag.0 & FOREIGN == 0 {
            return None;
        }
        let at = usize::try_from(tag.0 & !FOREIGN).ok()?;
        let origin = self.origins.get_mut(at)?.take()?;
        self.free.push(at);
        Some(origin)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_foreign_tag_leads_home_once() {
        let mut foreign = Foreign::default();
        let a = foreign.admit(1, Tag(7)).unwrap();
        let b = foreign.admit(2, Tag(7)).unwrap();
        assert_ne!(a, b);
        assert_eq!(foreign.release(b), Some((2, Tag(7))));
        assert_eq!(foreign.release(b), None);
        assert_eq!(foreign.release(Tag(7)), None);
        assert_eq!(foreign.release(a), Some((1, Tag(7))));
        for _ in 0..FOREIGN_MAX {
            foreign.admit(3, Tag(0)).unwrap();
        }
        assert_eq!(foreign.admit(3, Tag(0)), Err(BlockError::NotReady));
    }

    #[test]
    fn routes_change_and_go() {
        let mut routes = Routes::default();
        routes.set(VolumeId(3), Some(Route::There(1)));
        assert_eq!(routes.get(VolumeId(3)), Some(Route::There(1)));
        assert_eq!(routes.get(VolumeId(2)), None);
        routes.set(VolumeId(3), None);
        assert_eq!(routes.get(VolumeId(3)), None);
    }
}
