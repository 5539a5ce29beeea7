//! The store in a file: every refusal leaves the file as it was; every crash leaves one whole.

use super::*;
use crate::key::Mode;

/// A directory of its own for each test.
struct Dir(PathBuf);

impl Dir {
    fn new(name: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("forebay-store-{}-{name}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(&dir).unwrap();
        Self(dir)
    }

    fn store(&self) -> FileStore {
        FileStore::open(&self.0, "a").unwrap()
    }

    fn file(&self) -> PathBuf {
        self.0.join(STORE_FILE)
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn new_volume(name: &str, group: Option<&str>) -> NewVolume {
    NewVolume {
        name: name.to_owned(),
        group: group.map(str::to_owned),
        mode: Mode::WriteBack,
        size: 1 << 30,
        block_size: 512,
        backing: "uring:/dev/sdb".to_owned(),
        backing_identity: "wwid-1".to_owned(),
        placement: None,
    }
}

#[test]
fn what_is_written_is_there_after_a_restart_and_the_owner_epoch_rises() {
    let dir = Dir::new("restart");
    let mut store = dir.store();
    let made = store.create(new_volume("v", None)).unwrap();
    assert_eq!((made.key.owner_epoch, made.key.nsid, store.incarnation()), (1, 1, 1));
    assert_eq!(made.key.isr, [Member { node: "a".to_owned(), journal: Uuid::NIL }]);
    let cluster = store.cluster_id();
    drop(store);
    for start in 2..5 {
        let store = dir.store();
        assert_eq!((store.incarnation(), store.cluster_id()), (start, cluster));
        assert!(store.same_boot());
        let keyed = store.get(made.key.uuid).unwrap();
        assert_eq!(keyed.key.owner_epoch, start);
        assert_eq!(keyed.key.owner.incarnation, start);
        assert!(keyed.key.epoch > made.key.epoch && keyed.revision > made.revision);
        let same = VolumeKey {
            epoch: made.key.epoch,
            owner_epoch: made.key.owner_epoch,
            owner: made.key.owner.clone(),
            ..keyed.key.clone()
        };
        assert_eq!(same, made.key);
    }
}

#[test]
fn a_second_opener_is_refused_with_the_holder_named() {
    let dir = Dir::new("lock");
    let store = dir.store();
    let before = fs::read(dir.file()).unwrap();
    let error = FileStore::open(&dir.0, "b").unwrap_err();
    let text = error.to_string();
    assert!(matches!(error, StoreError::Locked { .. }), "{text}");
    let holder = format!("node `a`, process {}", std::process::id());
    assert!(text.contains(&holder), "{text}");
    assert_eq!(fs::read(dir.file()).unwrap(), before);
    drop(store);
    FileStore::open(&dir.0, "b").unwrap();
}

#[test]
fn a_swap_needs_the_revision_and_raises_the_epoch() {
    let dir = Dir::new("swap");
    let mut store = dir.store();
    let made = store.create(new_volume("v", None)).unwrap();
    let dirty = VolumeKey { clean: false, ..made.key.clone() };
    let swapped = store.swap(made.revision, dirty.clone()).unwrap();
    assert_eq!(swapped.key.epoch, made.key.epoch + 1);
    let before = fs::read(dir.file()).unwrap();
    let error = store.swap(made.revision, dirty).unwrap_err();
    assert!(matches!(error, StoreError::Conflict { found, .. } if found == swapped.revision));
    assert!(matches!(store.delete(made.key.uuid, made.revision), Err(StoreError::Conflict { .. })));
    assert_eq!(fs::read(dir.file()).unwrap(), before);
    assert_eq!(store.find("v"), Some(&swapped));
}

#[test]
fn forbidden_changes_change_nothing() {
    let dir = Dir::new("forbidden");
    let mut store = dir.store();
    let made = store.create(new_volume("v", None)).unwrap();
    let dirty = store.swap(made.revision, VolumeKey { clean: false, ..made.key.clone() }).unwrap();
    let before = fs::read(dir.file()).unwrap();
    let key = &dirty.key;
    let wrong = [
        VolumeKey { nsid: 2, ..key.clone() },
        VolumeKey { nguid: Uuid([1; 16]), ..key.clone() },
        VolumeKey { subsystem: "other".to_owned(), ..key.clone() },
        VolumeKey { block_size: 4096, ..key.clone() },
        VolumeKey { name: "w".to_owned(), ..key.clone() },
        // Leaving write-back while dirty; and without having said so first.
        VolumeKey { target_mode: Mode::PassThrough, mode: Mode::PassThrough, ..key.clone() },
        VolumeKey { mode: Mode::WriteThrough, clean: true, ..key.clone() },
        VolumeKey { size: key.size - 512, ..key.clone() },
        VolumeKey { size: key.size + 1, ..key.clone() },
        VolumeKey { owner_epoch: key.owner_epoch + 1, ..key.clone() },
        VolumeKey { owner: Owner { node: "b".to_owned(), incarnation: 1 }, ..key.clone() },
        VolumeKey { isr: Vec::new(), ..key.clone() },
    ];
    let count = wrong.len();
    for (i, wrong) in wrong.into_iter().enumerate() {
        let result = store.swap(dirty.revision, wrong);
        assert!(matches!(result, Err(StoreError::Forbidden { .. })), "{i}: {result:?}");
    }
    println!("{count} forbidden swaps refused");
    assert_eq!(fs::read(dir.file()).unwrap(), before);
    let target = VolumeKey { target_mode: Mode::PassThrough, ..key.clone() };
    let targeted = store.swap(dirty.revision, target).unwrap();
    let clean = VolumeKey { mode: Mode::PassThrough, clean: true, ..targeted.key };
    store.swap(targeted.revision, clean).unwrap();
}

#[test]
fn a_deleted_volume_leaves_a_tombstone_and_its_numbers_are_not_given_again() {
    let dir = Dir::new("tombstone");
    let mut store = dir.store();
    let first = store.create(new_volume("v1", Some("group"))).unwrap();
    let second = store.create(new_volume("v2", Some("group"))).unwrap();
    assert_eq!((first.key.nsid, second.key.nsid), (1, 2));
    store.delete(second.key.uuid, second.revision).unwrap();
    drop(store);
    let mut store = dir.store();
    assert_eq!(store.tombstones()[0].uuid, second.key.uuid);
    assert!(store.get(second.key.uuid).is_none());
    let again = store.create(new_volume("v2", Some("group"))).unwrap();
    assert_eq!(again.key.nsid, 3);
    assert_ne!(again.key.uuid, second.key.uuid);
    assert!(matches!(store.create(new_volume("v2", None)), Err(StoreError::Exists(_))));
}

#[test]
fn a_crash_while_writing_leaves_the_old_content() {
    let dir = Dir::new("torn");
    let mut store = dir.store();
    let made = store.create(new_volume("v", None)).unwrap();
    drop(store);
    let whole = fs::read(dir.file()).unwrap();
    // The new file at every stage of being written, the rename not yet done.
    for len in [0, 1, whole.len() / 2, whole.len() - 1, whole.len()] {
        fs::write(temporary(&dir.file()), &whole[..len]).unwrap();
        let store = dir.store();
        assert_eq!(store.get(made.key.uuid).unwrap().key.name, "v");
        drop(store);
        assert!(!temporary(&dir.file()).exists(), "left over: taken over by the next write");
    }
}

#[test]
fn a_damaged_store_is_refused_and_left_as_it_is() {
    let dir = Dir::new("damaged");
    let mut store = dir.store();
    store.create(new_volume("v", None)).unwrap();
    drop(store);
    let whole = fs::read(dir.file()).unwrap();
    let mut refused = 0;
    let mut check = |bytes: &[u8], what: &str| {
        fs::write(dir.file(), bytes).unwrap();
        match FileStore::open(&dir.0, "a") {
            Err(StoreError::Damaged { .. } | StoreError::Version { .. }) => refused += 1,
            other => panic!("{what}: {other:?}"),
        }
        assert_eq!(fs::read(dir.file()).unwrap(), bytes, "{what}: changed");
    };
    for len in 0..whole.len() - 1 {
        check(&whole[..len], "cut short");
    }
    // Every byte that matters, each with another digit or letter in its place.
    for at in 0..whole.len() {
        if whole[at].is_ascii_digit() || whole[at].is_ascii_alphabetic() {
            let mut bytes = whole.clone();
            bytes[at] = if bytes[at] == b'1' { b'2' } else { b'1' };
            check(&bytes, "a byte changed");
        }
    }
    println!("{refused} damaged stores refused");
    assert!(refused > 1000);
    let text = String::from_utf8(whole).unwrap();
    let newer = text.replace("\"schema_version\": 1", "\"schema_version\": 2");
    fs::write(dir.file(), newer).unwrap();
    let error = FileStore::open(&dir.0, "a").unwrap_err();
    assert!(matches!(error, StoreError::Version { found: 2, .. }), "{error}");
}
