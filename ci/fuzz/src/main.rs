//! The mutation driver: runs every target on its corpus and on seeded mutations of it, with any
//! toolchain.
//!
//!     fuzz [--seed N] [--runs N] [--corpus DIR] [TARGET...]    runs; N inputs a target
//!     fuzz --input TARGET FILE                                  runs one input
//!     fuzz --write DIR                                          writes the corpus
//!     fuzz --list                                               lists targets, inputs, longest length

use forebay_fuzz::rng::Rng;
use forebay_fuzz::{TARGETS, Target, mutate, reached, seeds};
use std::panic::catch_unwind;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// Far above what any input takes, on a loaded machine too.
const LONGEST: Duration = Duration::from_secs(10);
/// Growth of the process's memory that is tolerated after a tenth of the inputs, in KiB.
const GROWTH_MAX: u64 = 128 << 10;
/// Failing inputs of one target that are kept.
const KEPT_MAX: u64 = 8;

struct Options {
    seed: u64,
    runs: Option<u64>,
    corpus: PathBuf,
    targets: Vec<Target>,
}

/// What became of a target's inputs.
#[derive(Clone, Copy, Default)]
struct Outcome {
    inputs: u64,
    panics: u64,
    slowest: Duration,
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let result = match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["--write", dir] => write(Path::new(dir)),
        ["--list"] => list(),
        ["--input", target, file] => one(target, Path::new(file)),
        _ => options(&args).and_then(|options| run(&options)),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("fuzz: {error}");
            ExitCode::FAILURE
        }
    }
}

fn options(args: &[String]) -> Result<Options, String> {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    let mut options = Options { seed: 0x5eed, runs: None, corpus, targets: Vec::new() };
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        let mut number = || {
            let value = args.next().ok_or(format!("{arg} needs a number"))?;
            value.parse::<u64>().map_err(|_| format!("`{value}` is not a number"))
        };
        match arg.as_str() {
            "--seed" => options.seed = number()?,
            "--runs" => options.runs = Some(number()?),
            "--corpus" => options.corpus = args.next().ok_or("--corpus needs a directory")?.into(),
            name => options.targets.push(named(name)?),
        }
    }
    if options.targets.is_empty() {
        options.targets = TARGETS.to_vec();
    }
    Ok(options)
}

fn named(name: &str) -> Result<Target, String> {
    let names = TARGETS.map(|target| target.name).join(", ");
    let target = TARGETS.into_iter().find(|target| target.name == name);
    target.ok_or(format!("no target `{name}`; there are: {names}"))
}

/// Targets with their inputs and longest lengths, for the other driver.
fn list() -> Result<(), String> {
    for Target { name, runs, max_len, .. } in TARGETS {
        println!("{name} {runs} {max_len}");
    }
    Ok(())
}

fn write(dir: &Path) -> Result<(), String> {
    let (mut files, mut bytes) = (0, 0);
    for ((target, name), content) in seeds::corpus() {
        let dir = dir.join(target);
        let written =
            std::fs::create_dir_all(&dir).and_then(|()| std::fs::write(dir.join(&name), &content));
        written.map_err(|error| format!("{}/{name}: {error}", dir.display()))?;
        (files, bytes) = (files + 1, bytes + content.len());
    }
    println!("{files} files, {bytes} bytes");
    Ok(())
}

fn one(target: &str, file: &Path) -> Result<(), String> {
    let input = std::fs::read(file).map_err(|error| format!("{}: {error}", file.display()))?;
    (named(target)?.run)(&input);
    Ok(())
}

/// The files of a target's corpus, by name.
fn corpus(options: &Options, target: &Target) -> Result<Vec<Vec<u8>>, String> {
    let dir = options.corpus.join(target.name);
    let wrong = |error: std::io::Error| format!("{}: {error}", dir.display());
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(&dir).map_err(wrong)? {
        paths.push(entry.map_err(wrong)?.path());
    }
    paths.sort();
    let files: Result<Vec<_>, _> = paths.iter().map(std::fs::read).collect();
    let files = files.map_err(wrong)?;
    if files.is_empty() { Err(format!("{}: no files", dir.display())) } else { Ok(files) }
}

/// A figure of this process's memory in KiB.
fn memory(what: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with(what));
    line.and_then(|line| line.split_whitespace().nth(1)?.parse().ok()).unwrap_or(0)
}

fn run(options: &Options) -> Result<(), String> {
    std::panic::set_hook(Box::new(|_| {}));
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get) as u64;
    let began = Instant::now();
    let (mut total, mut grown) = (Outcome::default(), 0);
    for target in &options.targets {
        let files = corpus(options, target)?;
        let runs = options.runs.unwrap_or(target.runs).max(files.len() as u64);
        let start = Instant::now();
        let warm = slice(options, target, &files, threads, 0, runs / 10);
        let before = memory("VmRSS:");
        let rest = slice(options, target, &files, threads, runs / 10, runs);
        let growth = memory("VmRSS:").saturating_sub(before);
        let outcome = add(warm, rest);
        println!(
            "fuzz: {}: {} inputs ({} of the corpus), {} panics, slowest {:?}, memory grown by {growth} KiB, {:.1} s",
            target.name,
            outcome.inputs,
            files.len(),
            outcome.panics,
            outcome.slowest,
            start.elapsed().as_secs_f64(),
        );
        let reached = reached::ALL.iter().filter(|count| count.target == target.name);
        let reached: Vec<_> = reached.map(|count| (count.name, count.get())).collect();
        let shown: Vec<_> = reached.iter().map(|(name, n)| format!("{n} {name}")).collect();
        println!("fuzz: {}: reached {}", target.name, shown.join(", "));
        if let Some((name, _)) = reached.iter().find(|(_, n)| *n == 0) {
            return Err(format!("{}: no {name}: the inputs show nothing", target.name));
        }
        total = add(total, outcome);
        grown = grown.max(growth);
    }
    println!(
        "fuzz: driver: seeded mutation without coverage, seed {:#x}, {threads} threads: {} inputs, \
         {} panics, peak memory {} KiB, grown by at most {grown} KiB, {:.0} s",
        options.seed,
        total.inputs,
        total.panics,
        memory("VmHWM:"),
        began.elapsed().as_secs_f64(),
    );
    if total.panics > 0 {
        return Err(format!("{} inputs failed", total.panics));
    }
    if total.slowest > LONGEST {
        return Err(format!("an input took {:?}", total.slowest));
    }
    if grown > GROWTH_MAX {
        return Err(format!("memory grew by {grown} KiB"));
    }
    Ok(())
}

fn add(a: Outcome, b: Outcome) -> Outcome {
    Outcome {
        inputs: a.inputs + b.inputs,
        panics: a.panics + b.panics,
        slowest: a.slowest.max(b.slowest),
    }
}

/// Inputs `from` to `to`, shared among threads. Each depends on the seed and its number alone.
fn slice(
    options: &Options,
    target: &Target,
    corpus: &[Vec<u8>],
    threads: u64,
    from: u64,
    to: u64,
) -> Outcome {
    std::thread::scope(|scope| {
        let work = |first: u64| {
            let mut outcome = Outcome::default();
            for number in (from + first..to).step_by(threads as usize) {
                let known = usize::try_from(number).ok().and_then(|at| corpus.get(at));
                let input = known.cloned().unwrap_or_else(|| {
                    let name = target.name.bytes().fold(options.seed, |sum, byte| {
                        sum.wrapping_mul(31).wrapping_add(u64::from(byte))
                    });
                    let mut rng = Rng(name.wrapping_add(number.wrapping_mul(0x1234_5677)));
                    mutate::make(&mut rng, corpus, target.words, target.max_len)
                });
                let began = Instant::now();
                if let Err(panic) = catch_unwind(|| (target.run)(&input)) {
                    outcome.panics += 1;
                    if outcome.panics <= KEPT_MAX {
                        keep(target, number, &input, &*panic);
                    }
                }
                outcome.inputs += 1;
                outcome.slowest = outcome.slowest.max(began.elapsed());
            }
            outcome
        };
        let threads: Vec<_> = (0..threads).map(|first| scope.spawn(move || work(first))).collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap_or(Outcome { panics: 1, ..Outcome::default() }))
            .fold(Outcome::default(), add)
    })
}

/// Writes a failing input to where it can be run again.
fn keep(target: &Target, number: u64, input: &[u8], panic: &(dyn std::any::Any + Send)) {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("a panic");
    let path = std::env::temp_dir().join(format!("forebay-fuzz-{}-{number}", target.name));
    let kept = std::fs::write(&path, input);
    println!("fuzz: {} failed: {text}", target.name);
    match kept {
        Ok(()) => println!("fuzz: again with: fuzz --input {} {}", target.name, path.display()),
        Err(error) => println!("fuzz: the input cannot be kept: {error}"),
    }
}
