//! Small file systems of a test's own, which run full when the test wants it.

use super::dir::Dir;
use std::fs::File;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// A mounted file system; unmounted when dropped.
#[derive(Debug)]
pub struct Mount {
    path: PathBuf,
}

impl Mount {
    /// Mounts what the arguments of `mount` name at a fresh directory. Without the right to mount, or
    /// the file system: `None`, and a line that names the test and says why it did not run.
    pub fn new(dir: &Dir, name: &str, test: &str, args: &[&str]) -> Option<Self> {
        let path = dir.file(name);
        std::fs::create_dir_all(&path).unwrap();
        let run = Command::new("mount").args(args).arg(&path).output();
        match run {
            Ok(out) if out.status.success() => Some(Self { path }),
            Ok(out) => {
                let why = String::from_utf8_lossy(&out.stderr).trim().replace('\n', "; ");
                println!("not run: {test}: {why}");
                None
            }
            Err(error) => {
                println!("not run: {test}: mount: {error}");
                None
            }
        }
    }

    /// An ext4 of this size in a file of `dir`.
    pub fn ext4(dir: &Dir, name: &str, test: &str, bytes: u64) -> Option<Self> {
        let image = dir.sparse(&format!("{name}.ext4"), bytes);
        // Without reserved blocks: full is full, for root too.
        let made = Command::new("mkfs.ext4").args(["-q", "-F", "-m", "0"]).arg(&image).output();
        let made = made.unwrap_or_else(|error| panic!("mkfs.ext4 (package e2fsprogs): {error}"));
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        Self::new(dir, name, test, &["-o", "loop", &image.display().to_string()])
    }

    /// A tmpfs of this size.
    pub fn tmpfs(dir: &Dir, name: &str, test: &str, bytes: u64) -> Option<Self> {
        Self::new(dir, name, test, &["-t", "tmpfs", "-o", &format!("size={bytes}"), "tmpfs"])
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Cuts an ext4 off from its disk as a loss of power would: what its journal did not have is gone,
    /// and every operation from now on is an I/O error (EXT4_IOC_SHUTDOWN without flushing its log).
    pub fn cut_off(&self) {
        const SHUTDOWN: libc::Ioctl = 0x8004_587d;
        static NO_LOG_FLUSH: u32 = 2;
        let root = File::open(&self.path).unwrap();
        // SAFETY: this request reads four bytes from the place it is given.
        let done = unsafe { libc::ioctl(root.as_raw_fd(), SHUTDOWN, &raw const NO_LOG_FLUSH) };
        assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
    }

    /// Mounts the ext4 again, which replays its journal.
    pub fn again(&self) {
        let image = self.path.with_extension("ext4");
        let run = |command: &mut Command| {
            let out = command.output().unwrap();
            out.status.success()
        };
        // The kernel closes the files of a process that was killed some time after it.
        super::wait("the file system can be unmounted", Duration::from_secs(60), || {
            run(Command::new("umount").arg(&self.path)).then_some(())
        });
        assert!(run(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(&self.path)));
    }

    /// A sparse file in it.
    pub fn sparse(&self, name: &str, size: u64) -> PathBuf {
        let path = self.path.join(name);
        File::create(&path).unwrap().set_len(size).unwrap();
        path
    }

    /// Takes all the space that is left.
    pub fn fill(&self) -> u64 {
        let mut file = File::create(self.path.join("ballast")).unwrap();
        let mut taken = 0;
        for piece in [1 << 20, 4096] {
            let data = vec![0xbb; piece];
            while file.write_all(&data).and_then(|()| file.sync_data()).is_ok() {
                taken += piece as u64;
            }
        }
        taken
    }

    /// Gives a tmpfs another size.
    pub fn resize(&self, bytes: u64) {
        let size = format!("remount,size={bytes}");
        let done = Command::new("mount").args(["-o", &size]).arg(&self.path).status().unwrap();
        assert!(done.success());
    }

    /// Gives that space back.
    pub fn clear(&self) {
        std::fs::remove_file(self.path.join("ballast")).unwrap();
        // ext4 frees the blocks of a file that is gone with its next commit.
        let _ = Command::new("sync").arg("-f").arg(&self.path).status();
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // Lazily: a daemon of a failed test may still have files in it.
        let _ = Command::new("umount").arg("-l").arg(&self.path).status();
    }
}

/// A loop device over a file; detached when dropped.
#[derive(Debug)]
pub struct Loop(pub PathBuf);

impl Loop {
    pub fn new(file: &Path) -> Self {
        let made = Command::new("losetup").args(["--find", "--show"]).arg(file).output().unwrap();
        assert!(made.status.success(), "losetup: {}", String::from_utf8_lossy(&made.stderr));
        Self(PathBuf::from(String::from_utf8(made.stdout).unwrap().trim()))
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").arg("--detach").arg(&self.0).status();
    }
}
