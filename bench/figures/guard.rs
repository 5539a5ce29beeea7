//! What this program started ends with it, however it ends: Ctrl-C and SIGTERM run no destructors, and a
//! target that is held still (SIGSTOP) would stay so for ever.

use crate::Result;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

/// A shell beside this program that runs a command if this program ends without having dropped it.
#[derive(Debug)]
pub(crate) struct Guard(Child);

impl Guard {
    /// Guards against leaving something behind that `command` (of `sh`) ends.
    pub(crate) fn new(command: &str) -> Result<Self> {
        // It reads a word that Drop writes; the end of its input says that nobody will.
        let script =
            format!("trap '' INT TERM HUP; echo armed; exec >&2; read -r word || {{ {command}\n}}");
        let mut guard = Command::new("sh")
            .args(["-c", &script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            // What a terminal sends to this program must not reach it.
            .process_group(0)
            .spawn()
            .map_err(|error| format!("sh: {error}"))?;
        // A shell that has not set its traps yet can still be ended by a signal.
        let mut armed = String::new();
        if let Some(output) = guard.stdout.take() {
            let read = BufReader::new(output).read_line(&mut armed);
            read.map_err(|error| format!("sh: {error}"))?;
        }
        if armed.is_empty() {
            return Err("sh: it ended before it could guard".to_owned());
        }
        Ok(Self(guard))
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        let _told = self.0.stdin.take().map(|mut input| input.write_all(b"done\n"));
        let _reaped = self.0.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, Instant};

    fn held() -> Child {
        let child = Command::new("sleep").arg("600").spawn().expect("sleep");
        signal("-STOP", &child);
        child
    }

    fn signal(signal: &str, child: &Child) {
        let sent = Command::new("kill").args([signal, &child.id().to_string()]).status();
        assert!(sent.expect("kill").success());
    }

    fn ends(child: &mut Child) -> bool {
        let end = Instant::now() + Duration::from_secs(20);
        while Instant::now() < end {
            if child.try_wait().expect("a child").is_some() {
                return true;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        false
    }

    #[test]
    fn what_is_held_ends_when_its_guard_loses_this_program() {
        let mut target = held();
        let pid = target.id();
        let mut guard = Guard::new(&format!("kill -CONT {pid}; kill {pid}")).expect("a shell");
        // The signals that end this program reach its whole group, at times.
        signal("-INT", &guard.0);
        signal("-TERM", &guard.0);
        assert!(target.try_wait().expect("a child").is_none());
        // As the kernel does it for a program that dies.
        drop(guard.0.stdin.take());
        assert!(ends(&mut target), "it is continued and ended");
    }

    #[test]
    fn a_guard_that_is_dropped_does_nothing() {
        let mut target = held();
        drop(Guard::new(&format!("kill -9 {}", target.id())).expect("a shell"));
        assert!(target.try_wait().expect("a child").is_none());
        target.kill().expect("a child");
        target.wait().expect("a child");
    }
}
