//! Opening and recovering a cache device: the production code, driven by hand, and cut short where a
//! crash is wanted.

use crate::buffer::SimPool;
use crate::config::uuid;
use crate::device::Device;
use forebay_cache::format::device::DeviceHeader;
use forebay_cache::format::open::Opener;
use forebay_cache::format::order_journal::JournalError;
use forebay_cache::index::Index;
use forebay_cache::order_journal::{JournalOpener, OpenedJournal};
use forebay_cache::recovery::{Recovered, Recovery};
use forebay_io::device::DeviceInfo;
use forebay_io::{OpKind, Uuid};

/// How an opening ended.
pub enum Boot {
    /// Well.
    Up(Box<(DeviceHeader, Recovered)>),
    /// It was cut short after the writes that were asked for.
    Cut,
    /// The device was refused, or recovery failed.
    Refused(String),
}

/// Opens and recovers a device, whose operations end at once in random order; `cut` is after how many
/// completed writes and flushes the process dies. `plant` is the rule that is removed; 0 for none.
pub fn boot(cache: &mut Device, cut: Option<u64>, plant: u16) -> Boot {
    let mut pool = SimPool::default();
    let mut opener = Opener::new(cache.info.size, Some(uuid(200)));
    let opened = loop {
        while let Some(op) = opener.poll_action(&mut pool) {
            opener.handle_completion(cache.serve(op));
        }
        if let Some(result) = opener.result() {
            match result {
                Ok(opened) => break opened,
                Err(error) => return Boot::Refused(error.to_string()),
            }
        }
    };
    let Some(map) = opened.map(0) else { return Boot::Refused("no shard".to_owned()) };
    let slots = map.slots();
    let last = u32::try_from(slots - 1).unwrap_or(u32::MAX);
    let index = match Index::new(map.data_slots(), last, 7) {
        Ok(index) => index,
        Err(error) => return Boot::Refused(error.to_string()),
    };
    let mut recovery = match Recovery::new(&opened, 0, index, false) {
        Ok(recovery) => recovery.staged(),
        Err(error) => return Boot::Refused(error.to_string()),
    };
    #[cfg(feature = "planted-bugs")]
    recovery.plant(plant);
    #[cfg(not(feature = "planted-bugs"))]
    let _ = plant;
    let mut changes = 0;
    while !recovery.is_done() {
        let mut asked = false;
        while let Some(op) = recovery.poll_action(&mut pool) {
            asked = true;
            changes += u64::from(op.kind != OpKind::Read);
            cache.submit(op, 0);
        }
        if cut.is_some_and(|cut| changes > cut) {
            return Boot::Cut;
        }
        match cache.take_ready(u64::MAX) {
            Some(done) => recovery.handle_completion(done),
            None if recovery.is_done() => break,
            None if !asked => return Boot::Refused("recovery does not go on".to_owned()),
            None => {}
        }
    }
    match recovery.finish() {
        Ok(recovered) => Boot::Up(Box::new((opened.header, recovered))),
        Err(error) => Boot::Refused(error.to_string()),
    }
}

/// Opens a volume's ordered journal, whose operations end at once.
///
/// # Errors
/// As the opener says.
pub fn open_journal(
    journal: &mut Device,
    volume: Uuid,
    backing: &DeviceInfo,
) -> Result<OpenedJournal, JournalError> {
    let mut pool = SimPool::default();
    let mut opener = JournalOpener::new(volume, backing, &journal.info);
    loop {
        if let Some(result) = opener.result() {
            return result;
        }
        // (The pool has no bound here, so that there always is an operation.)
        if let Some(op) = opener.poll_action(&mut pool) {
            opener.handle_completion(journal.serve(op));
        }
    }
}
