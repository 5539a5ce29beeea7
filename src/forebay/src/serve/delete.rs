//! Deleting a volume: hosts lose it, its dirty data is destaged or dropped, its records die, its key
//! becomes a tombstone. What a crash interrupts goes on at the next start, as a job does.

use super::attach::{close_backing, engine_error, parse_nqn};
use super::follow::{Look, cancelled, damage_left};
use super::node::Node;
use super::publish::home_of;
use super::registry::{Served, store_error};
use forebay_control::error::{ControlError, Result};
use forebay_control::jobs::JobHandle;
use forebay_io::Device;
use std::sync::Arc;

impl Node {
    /// Begins to delete a volume; the job ends when nothing of it is left.
    pub(crate) fn delete(
        self: &Arc<Self>,
        name: &str,
        discard_dirty: bool,
        job: JobHandle,
    ) -> Result<()> {
        let served = self.lock().registry.find(name)?.clone();
        let (id, engine) = (served.id, served.engine);
        let damaged = self.look(&served)?.damage_left;
        // First what may be refused: then hosts keep the volume.
        self.reactors.call(served.reactor, move |service, context| {
            let Some(part) = service.shard.engine(engine) else {
                return Err(ControlError::failed("the cache of this volume is not served"));
            };
            if discard_dirty { part.detach_discarding(id) } else { part.detach(id) }
                .map_err(engine_error)?;
            service.kick(context.now);
            Ok(())
        })??;
        self.withdraw(&served)?;
        if discard_dirty {
            tracing::warn!(volume = name, "deleted without its dirty data, as was asked");
        }
        let (gone, kept, back) = (served.clone(), served.clone(), served.clone());
        let done = move |node: &Node, look: &Look| {
            if look.damage_left > damaged {
                // The engine serves it again, and so must hosts see it.
                let shown = node.present_again(&back);
                return Some(
                    shown.and_then(|()| damage_left(&back.config.name, look, "it is kept")),
                );
            }
            look.detached.then(|| node.forget(&gone))
        };
        let cancelled = move |node: &Node| node.undelete(&kept);
        self.follow(job, served, done, cancelled);
        Ok(())
    }

    /// Hosts lose the volume, and its subsystem if it was the only one there.
    fn withdraw(&self, served: &Served) -> Result<()> {
        let inner = self.lock();
        let (nqn, nsid) = (parse_nqn(&served.nqn)?, served.nsid);
        let home = home_of(&inner.registry, served);
        let alone = inner.registry.served.iter().filter(|s| s.nqn == served.nqn).count() == 1;
        self.reactors.call(home, move |service, context| {
            if alone {
                service.shard.target.remove_subsystem(&nqn, context.now);
            } else {
                let _ = service.shard.target.remove_namespace(&nqn, nsid, context.now);
            }
        })
    }

    /// The operator thought better of it: the volume is served again, unless its records are dying
    /// already.
    fn undelete(&self, served: &Served) -> Option<Result<()>> {
        let (id, engine) = (served.id, served.engine);
        let kept = self.reactors.call(served.reactor, move |service, _| {
            service.shard.engine(engine).is_some_and(|part| part.cancel_detach(id))
        });
        match kept {
            Ok(true) => Some(self.present_again(served).and_then(|()| cancelled())),
            Ok(false) => None,
            Err(error) => Some(Err(error)),
        }
    }

    fn present_again(&self, served: &Served) -> Result<()> {
        let inner = self.lock();
        self.present_volume(&inner, served).and_then(|()| self.publish(&inner))
    }

    /// A volume is detached: its device is closed, its key becomes a tombstone.
    fn forget(&self, served: &Served) -> Result<()> {
        let id = served.id;
        let backing = self.reactors.call(served.reactor, move |service, _| {
            service.devices.backing(id).map(|unit| unit.device.info().clone())
        })?;
        close_backing(&self.reactors, served.reactor, id);
        self.reactors.call(served.reactor, move |service, _| {
            service.shard.unserve(id);
            service.volumes.remove(id);
        })?;
        let mut inner = self.lock();
        // What it is configured with now: it may have got a journal since the delete began.
        let there = inner.registry.find(&served.config.name);
        let journal = there.ok().and_then(|served| served.config.ordered_journal.clone());
        if let (Some(uri), Some(backing)) = (journal, backing)
            && let Err(error) = super::journal::clear(&uri, served.uuid, &backing)
        {
            tracing::warn!(volume = served.config.name, journal = uri, %error,
                "its ordered journal cannot be used for another volume as it is");
        }
        let keyed = inner.registry.key(&served.config.name)?;
        inner.registry.store.delete(served.uuid, keyed.revision).map_err(store_error)?;
        inner.registry.served.retain(|other| other.id != served.id);
        self.publish(&inner)
    }
}
