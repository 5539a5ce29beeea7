//! Named places where a daemon ends itself with SIGKILL: for the tests that start it again.
//!
//! Only a build with the feature `failpoints` has them, and says so in `--version`; elsewhere every
//! call here is empty. `FOREBAY_FAILPOINT=NAME:COUNT` arms one: the COUNTth time that NAME is reached
//! is the end. The names are KIND-before (an operation is about to be given to its device),
//! KIND-under-way (the kernel has it, and nobody has looked at its end) and KIND-done (it has ended,
//! and the engine does not know) for the operations of [`Kind`], and those of [`PLACES`].

#[cfg(not(feature = "failpoints"))]
pub(crate) use absent::{Watch, arm, hit};
#[cfg(feature = "failpoints")]
pub(crate) use present::{Watch, arm, hit};

/// What `--version` says.
pub(crate) const VERSION: &str = if cfg!(feature = "failpoints") {
    concat!(env!("CARGO_PKG_VERSION"), " with failpoints, not for use")
} else {
    env!("CARGO_PKG_VERSION")
};

#[cfg(not(feature = "failpoints"))]
mod absent {
    use forebay_cache::engine::Source;
    use forebay_control::error::Result;
    use forebay_io::Op;
    use forebay_reactor::PoolBuf;

    #[expect(clippy::unnecessary_wraps, reason = "as where there are failpoints")]
    pub(crate) const fn arm() -> Result<()> {
        Ok(())
    }

    #[inline(always)]
    pub(crate) const fn hit(_: &str) {}

    /// Nothing.
    #[derive(Default)]
    pub(crate) struct Watch;

    impl Watch {
        #[inline(always)]
        pub(crate) const fn submitting(&mut self, _: usize, _: Source, _: &Op<PoolBuf>) {}
        #[inline(always)]
        pub(crate) const fn polled(&mut self) {}
        #[inline(always)]
        pub(crate) const fn done(&mut self, _: usize) {}
        #[inline(always)]
        pub(crate) const fn sending(&mut self) {}
    }
}

#[cfg(feature = "failpoints")]
mod present {
    use forebay_cache::engine::Source;
    use forebay_cache::format::batch::{BATCH_MAGIC, BatchView};
    use forebay_cache::format::footer::{FOOTER_MAGIC, MARK_MAGIC};
    use forebay_cache::format::record::Kind as Record;
    use forebay_cache::format::superblock::SUPER_MAGIC;
    use forebay_control::error::{ControlError, ErrorKind, Result};
    use forebay_io::{Buf, Op, OpKind};
    use forebay_reactor::PoolBuf;
    use std::collections::BTreeMap;
    use std::sync::Mutex;

    /// What chooses the failpoint.
    const VARIABLE: &str = "FOREBAY_FAILPOINT";

    /// Places that are no operation of an engine.
    const PLACES: [&str; 5] = [
        // Hosts' writes are in the log and acknowledged; the sockets do not have the answers.
        "ack-unsent",
        // An operation of recovery has ended; recovery is about to write (footers, superblock).
        "recovery-step",
        "recovery-write",
        // Before a step of a format; before a volume is made known to its engine.
        "format-step",
        "volume-add",
    ];

    /// Operations of engines.
    const KINDS: [&str; 9] = [
        // A batch of the log with data of hosts; with trims; with anything else (fill, moved data).
        "log-write",
        "trim-write",
        "fill-write",
        "superblock",
        "free-mark",
        "footer",
        "cache-flush",
        // In write-back these are destage's.
        "backing-write",
        "backing-flush",
    ];

    const STAGES: [&str; 3] = ["before", "under-way", "done"];

    struct Armed {
        name: String,
        left: u64,
    }

    static ARMED: Mutex<Option<Armed>> = Mutex::new(None);

    fn known(name: &str) -> bool {
        let of_kind = |kind: &str| {
            let stage = name.strip_prefix(kind).and_then(|rest| rest.strip_prefix('-'));
            stage.is_some_and(|stage| STAGES.contains(&stage))
        };
        PLACES.contains(&name) || KINDS.into_iter().any(of_kind)
    }

    /// Arms what the environment names.
    ///
    /// # Errors
    /// A name that is none, or no count.
    pub(crate) fn arm() -> Result<()> {
        let Ok(text) = std::env::var(VARIABLE) else { return Ok(()) };
        let invalid = || {
            let names = format!(
                "{}, and {} each with -{}",
                PLACES.join(" "),
                KINDS.join(" "),
                STAGES.join(" -")
            );
            ControlError::new(ErrorKind::Invalid, format!("{VARIABLE} is NAME:COUNT of {names}"))
                .value(&text)
        };
        let (name, count) = text.split_once(':').ok_or_else(invalid)?;
        let left: u64 = count.parse().map_err(|_| invalid())?;
        if !known(name) || left == 0 {
            return Err(invalid());
        }
        if let Ok(mut armed) = ARMED.lock() {
            *armed = Some(Armed { name: name.to_owned(), left });
        }
        Ok(())
    }

    /// Whether this is the place and the time.
    fn due(name: &str) -> bool {
        let Ok(mut armed) = ARMED.lock() else { return false };
        match &mut *armed {
            Some(armed) if armed.name == name => {
                armed.left = armed.left.saturating_sub(1);
                armed.left == 0
            }
            _ => false,
        }
    }

    /// Ends the process at once if this place is armed and was reached often enough.
    pub(crate) fn hit(name: &str) {
        if due(name) {
            die(name);
        }
    }

    fn die(name: &str) -> ! {
        // Standard error has no buffer of this process.
        eprintln!("failpoint {name}: the end");
        // SAFETY: no memory is passed; the process ends itself.
        unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
        std::process::abort()
    }

    /// What the operations under way are, by their slot.
    #[derive(Default)]
    pub(crate) struct Watch {
        under: BTreeMap<usize, Vec<&'static str>>,
        /// Reached, and the device has yet to be polled, which hands what it has to the kernel.
        armed: Option<&'static str>,
        acknowledged: bool,
    }

    impl Watch {
        pub(crate) fn submitting(&mut self, slot: usize, source: Source, op: &Op<PoolBuf>) {
            let kinds = kinds(source, op);
            for kind in &kinds {
                hit(&format!("{kind}-before"));
                if due(&format!("{kind}-under-way")) {
                    self.armed = Some(kind);
                }
            }
            self.under.insert(slot, kinds);
        }

        /// The devices have what was submitted.
        pub(crate) fn polled(&mut self) {
            if let Some(kind) = self.armed {
                die(&format!("{kind}-under-way"));
            }
        }

        pub(crate) fn done(&mut self, slot: usize) {
            for kind in self.under.remove(&slot).unwrap_or_default() {
                hit(&format!("{kind}-done"));
                self.acknowledged |= kind == "log-write";
            }
        }

        /// What the engines said goes to the sockets now.
        pub(crate) fn sending(&mut self) {
            if core::mem::take(&mut self.acknowledged) {
                hit("ack-unsent");
            }
        }
    }

    fn kinds(source: Source, op: &Op<PoolBuf>) -> Vec<&'static str> {
        let cache = matches!(source, Source::Cache);
        match op.kind {
            OpKind::Read => Vec::new(),
            OpKind::Flush if cache => vec!["cache-flush"],
            OpKind::Flush => vec!["backing-flush"],
            _ if !cache => vec!["backing-write"],
            _ => op.buf.as_ref().map_or_else(Vec::new, |buf| of_cache(buf.as_slice())),
        }
    }

    fn of_cache(bytes: &[u8]) -> Vec<&'static str> {
        match bytes.get(..8) {
            Some(magic) if magic == SUPER_MAGIC => vec!["superblock"],
            Some(magic) if magic == MARK_MAGIC => vec!["free-mark"],
            Some(magic) if magic == FOOTER_MAGIC => vec!["footer"],
            Some(magic) if magic == BATCH_MAGIC => of_batch(bytes),
            _ => Vec::new(),
        }
    }

    fn of_batch(bytes: &[u8]) -> Vec<&'static str> {
        let Some(Ok(batch)) = bytes.get(..4096).map(BatchView::parse) else { return Vec::new() };
        let (mut hosts, mut trims) = (false, false);
        for (record, _) in batch.records() {
            hosts |= record.kind.takes_lsn();
            trims |= record.kind == Record::Trim;
        }
        match (hosts, trims) {
            (true, true) => vec!["log-write", "trim-write"],
            (true, false) => vec!["log-write"],
            (false, true) => vec!["trim-write"],
            (false, false) => vec!["fill-write"],
        }
    }
}
