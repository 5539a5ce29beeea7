//! Devices that a daemon must not touch: refused, with what to do, and nothing changed.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test, whose helpers are not marked as such"
)]

mod support;

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;
use support::{
    Daemon, Host, HostOptions, Load, MIB, Plan, Refusal, Setup, Volume, forebay, refused, seed,
};

const BACKING: u64 = 48 * MIB;
const CACHE: u64 = 96 * MIB;

/// A node whose volume was used and that was stopped, or killed with dirty data in the cache.
fn used(seed: u64, killed: bool) -> (Setup, Load, PathBuf, PathBuf) {
    let mut setup = Setup::new();
    let cache = setup.cache_file("", CACHE);
    let backing = setup.backing_file("backing.img", BACKING);
    setup.volumes = vec![Volume::new("v", &format!("uring:{}", backing.display()))];
    let mut daemon = Daemon::start(&setup);
    let mut host = Host::connect(setup.address(), &Setup::nqn("v"), HostOptions::default());
    let mut load = Load::new(seed, Plan::mixed(BACKING));
    load.run_for(&mut host, Duration::from_millis(500));
    load.verify(&mut host);
    load.assert_no_errors();
    host.disconnect();
    if killed {
        daemon.kill();
    } else {
        daemon.stop();
    }
    (setup, load, cache, backing)
}

/// A node that must be refused: by a code other than 0, with a text that names the thing and says
/// what to do; and the files must be as before.
fn check(what: &str, setup: &Setup, files: &[&Path], names: &[&str], says: &[&str]) -> Refusal {
    let before: Vec<Vec<u8>> =
        files.iter().map(|file| fs::read(file).unwrap_or_default()).collect();
    let refusal = refused(setup);
    assert!(
        matches!(refusal.code, Some(1 | 3 | 5)),
        "{what}: exit {:?}: {}",
        refusal.code,
        refusal.text
    );
    assert!(!refusal.text.contains("stopping:"), "{what}: only the error: {}", refusal.text);
    assert!(!refusal.text.contains('\x1b'), "{what}: no colours in a file: {}", refusal.text);
    for name in names {
        assert!(refusal.text.contains(name), "{what}: `{name}` is not named: {}", refusal.text);
    }
    let text = refusal.text.to_lowercase();
    let said = says.iter().any(|word| text.contains(word));
    assert!(said, "{what}: none of {says:?} is said: {}", refusal.text);
    for (file, before) in files.iter().zip(&before) {
        assert!(
            fs::read(file).is_ok_and(|now| now == *before),
            "{what}: {} has changed",
            file.display()
        );
    }
    println!("process: {what}: exit {}: {}", refusal.code.unwrap_or(-1), refusal.text.trim());
    refusal
}

/// The same node serves again, with all it had, once the device is right again.
fn check_served(setup: &Setup, load: &mut Load) {
    let daemon = Daemon::start(setup);
    let mut host = Host::connect(setup.address(), &Setup::nqn("v"), HostOptions::default());
    load.verify(&mut host);
    load.assert_no_errors();
    host.disconnect();
    daemon.stop();
}

#[test]
fn blank_and_foreign_cache_devices() {
    let mut setup = Setup::new();
    let cache = setup.dir.sparse("cache.img", CACHE);
    let backing = setup.backing_file("backing.img", BACKING);
    let uri = format!("uring:{}", cache.display());
    setup.caches.push(uri.clone());
    setup.volumes = vec![Volume::new("v", &format!("uring:{}", backing.display()))];
    let names = ["cache.img"];
    check("blank cache device", &setup, &[&cache, &backing], &names, &["forebay format"]);

    // The superblock of ext4: magic 0xef53 at byte 1080.
    fs::File::options()
        .write(true)
        .open(&cache)
        .unwrap()
        .write_all_at(&[0x53, 0xef], 1080)
        .unwrap();
    check("ext4 on the cache device", &setup, &[&cache, &backing], &names, &["format", "foreign"]);
    let before = fs::read(&cache).unwrap();
    let plain = forebay(&["format", &uri]);
    assert_eq!(plain.code, Some(5), "refused as unsafe: {}", plain.text);
    assert!(plain.text.contains("--force cache.img"), "says how: {}", plain.text);
    let wrong = forebay(&["format", &uri, "--force", "other.img"]);
    assert_eq!(wrong.code, Some(5), "refused as unsafe: {}", wrong.text);
    assert!(fs::read(&cache).unwrap() == before, "a refused format changes nothing");
    println!("process: format of ext4: exit 5: {}", plain.text.trim());
    let forced = forebay(&["format", &format!("slow:{uri}"), "--force", "cache.img"]);
    assert_eq!(forced.code, Some(0), "{}", forced.text);
    assert!(forced.text.contains(&format!("formatted was {uri}:")), "says so: {}", forced.text);
    Daemon::start(&setup).stop();
}

#[test]
fn a_cache_device_that_was_cut_short() {
    let (setup, mut load, cache, backing) = used(seed(61), true);
    let whole = fs::read(&cache).unwrap();
    for size in [CACHE - 4096, CACHE / 2, 64 << 10] {
        fs::File::options().write(true).open(&cache).unwrap().set_len(size).unwrap();
        let what = format!("cache device cut to {size} bytes");
        check(&what, &setup, &[&cache, &backing], &["cache.img"], &["size", "short", "smaller"]);
    }
    fs::write(&cache, whole).unwrap();
    check_served(&setup, &mut load);
}

#[test]
fn a_second_process_on_one_cache_device() {
    let (setup, mut load, cache, _) = used(seed(62), false);
    let daemon = Daemon::start(&setup);
    let mut host = Host::connect(setup.address(), &Setup::nqn("v"), HostOptions::default());
    let mut other = Setup::new();
    other.caches.clone_from(&setup.caches);
    let backing = other.backing_file("other.img", BACKING);
    other.volumes = vec![Volume::new("w", &format!("uring:{}", backing.display()))];
    // The daemon itself changes nothing while nobody asks it to.
    daemon.drain("v", Duration::from_secs(30));
    std::thread::sleep(Duration::from_millis(200));
    check("second process", &other, &[&cache, &backing], &["cache.img"], &["in use", "another"]);
    // Nor may it be formatted.
    let uri = setup.caches[0].clone();
    let before = fs::read(&cache).unwrap();
    let format = forebay(&["format", &uri, "--force", "cache.img"]);
    assert_ne!(format.code, Some(0), "format of a device in use: {}", format.text);
    assert!(fs::read(&cache).unwrap() == before, "a refused format changes nothing");
    println!("process: format of a device in use: exit {:?}: {}", format.code, format.text.trim());
    // Nor its backing device by another node.
    let mut third = Setup::new();
    third.cache_file("", CACHE);
    third.volumes = setup.volumes.clone();
    let names = ["backing.img"];
    check("second process on a backing device", &third, &[], &names, &["in use", "another"]);
    load.verify(&mut host);
    load.run_for(&mut host, Duration::from_millis(300));
    load.assert_no_errors();
    host.disconnect();
    daemon.stop();
}

#[test]
fn a_backing_device_that_shrank_or_was_swapped() {
    let (mut setup, mut load, cache, backing) = used(seed(63), true);
    let whole = fs::read(&backing).unwrap();
    fs::File::options().write(true).open(&backing).unwrap().set_len(BACKING / 2).unwrap();
    let names = ["backing.img"];
    let says = ["smaller", "shrank", "size"];
    check("backing device that shrank", &setup, &[&cache, &backing], &names, &says);

    // Another file of the same size under the same name, while the right one is elsewhere.
    let aside = setup.dir.file("aside.img");
    fs::rename(&backing, &aside).unwrap();
    fs::write(&aside, &whole).unwrap();
    fs::File::create(&backing).unwrap().set_len(BACKING).unwrap();
    let says = ["give it its own", "another", "identity"];
    let refusal = check("swapped backing device", &setup, &[&cache, &backing], &names, &says);
    assert!(refusal.text.contains("another name"), "what a restored copy needs: {}", refusal.text);
    // That remedy works: served under another name, without anything that was cached.
    let mut other = Setup::new();
    other.cache_file("", CACHE);
    other.volumes = vec![Volume::new("w", &setup.volumes[0].backing)];
    Daemon::start(&other).stop();

    fs::rename(&backing, setup.dir.file("foreign.img")).unwrap();
    check("backing device that is not there", &setup, &[&cache], &names, &["not there"]);
    let plain = setup.volumes[0].backing.clone();
    setup.volumes[0].backing += "?size=48M";
    check("backing device that is not there", &setup, &[&cache], &names, &["not there"]);
    assert!(!backing.exists(), "a backing device that has a volume is not made anew");
    setup.volumes[0].backing = plain;
    fs::rename(&aside, &backing).unwrap();
    check_served(&setup, &mut load);
}
