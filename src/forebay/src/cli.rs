//! The command line: one definition for parsing, help, man pages and completions.

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{ArgGroup, Args, Parser, Subcommand, ValueEnum};
use forebay_control::value::{ByteSize, LbaSpan, Mode, Span};
use std::path::PathBuf;

const EXIT_CODES: &str = "\
Exit codes: 0 ok, 1 failed, 2 usage, 3 degraded, 4 unreachable, 5 refused as unsafe, \
6 timed out and still running.";

/// A polled-mode userspace NVMe cache
///
/// Puts local NVMe in front of slow backing storage and serves the result to hosts over NVMe/TCP.
#[derive(Debug, Parser)]
#[command(name = "forebay", version = crate::serve::failpoints::VERSION, propagate_version = true, after_help = EXIT_CODES)]
#[command(arg_required_else_help = true)]
pub(crate) struct Cli {
    /// How to print
    #[arg(short, long, global = true, value_enum, default_value_t = Format::Table)]
    pub(crate) output: Format,
    /// The control socket of the daemon [default: $FOREBAY_SOCKET; else that of a quickstart in
    /// this directory; else /run/forebay/forebay.sock]
    #[arg(long, global = true, value_name = "PATH")]
    pub(crate) socket: Option<PathBuf>,
    /// What to do
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// How to print.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people
    Table,
    /// For programs; carries `schema_version`. What goes on is one JSON value a line
    Json,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run a node in the foreground
    Serve(Serve),
    /// Check this machine: measured, wanted, exact fix, why
    Doctor(Doctor),
    /// Make a cache device
    Format(FormatDevice),
    /// Make, show, change and delete volumes
    #[command(subcommand)]
    Volume(Volume),
    /// The same as `volume scrub`
    Scrub(Scrub),
    /// Hosts that may connect
    #[command(subcommand)]
    Host(Host),
    /// Long work: drains, mode switches, deletions, scrubs, recovery
    #[command(subcommand)]
    Job(Job),
    /// Live numbers, and what is wrong
    #[command(long_about = STAT_ABOUT)]
    Stat(Stat),
    /// Put load on any device and measure it
    Bench(Bench),
    /// The configuration file against what the node runs with
    #[command(subcommand)]
    Config(Config),
    /// Inject a fault into a `fault:` device, or heal it
    #[command(hide = true)]
    Fault(Fault),
    /// Print the man page, or write those of all commands
    Man {
        /// Write one page for each command into this directory
        #[arg(long, value_name = "DIR")]
        dir: Option<PathBuf>,
    },
    /// Print the completions of a shell
    Completions {
        /// The shell
        #[arg(value_enum)]
        shell: clap_complete::Shell,
    },
}

/// `serve`.
#[derive(Args, Debug)]
#[command(group(ArgGroup::new("from").required(true).args(["quickstart", "config"])))]
pub(crate) struct Serve {
    /// One node on 127.0.0.1:4420 with one write-back volume on files it makes; started again
    /// with the same directory it goes on with its state
    #[arg(long)]
    pub(crate) quickstart: bool,
    /// The directory of the quickstart's files
    #[arg(long, conflicts_with = "config", default_value = forebay_control::config::QUICKSTART_DIR)]
    pub(crate) dir: PathBuf,
    /// The configuration file
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
}

/// `doctor`.
#[derive(Args, Debug)]
pub(crate) struct Doctor {
    /// Also check the devices and ports of this configuration file
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
}

/// `format`.
#[derive(Args, Debug)]
pub(crate) struct FormatDevice {
    /// The device: a URI such as uring:/dev/nvme1n1, or a path
    pub(crate) device: String,
    /// Overwrite foreign data: the device's name again (the last part of its path)
    #[arg(long, value_name = "NAME")]
    pub(crate) force: Option<String>,
}

/// `volume`.
#[derive(Debug, Subcommand)]
pub(crate) enum Volume {
    /// Make a volume over a backing device, whose data is served as it is
    Create(Box<VolumeCreate>),
    /// All volumes
    List,
    /// All there is to know about a volume
    Show {
        /// The volume
        name: String,
    },
    /// Drain a volume, then forget it; the backing device keeps the data
    Delete {
        /// The volume
        name: String,
        /// Drop what is dirty instead of draining: acknowledged writes are lost. Takes the volume's
        /// name again
        #[arg(long, value_name = "NAME")]
        discard_dirty: Option<String>,
        #[command(flatten)]
        confirm: Confirm,
        #[command(flatten)]
        wait: Wait,
    },
    /// Switch the cache mode under load
    SetMode {
        /// The volume
        name: String,
        /// The mode
        #[arg(value_parser = mode())]
        mode: Mode,
        #[command(flatten)]
        wait: Wait,
    },
    /// Write everything dirty to the backing device
    Drain {
        /// The volume
        name: String,
        #[command(flatten)]
        wait: Wait,
    },
    /// Check all that the cache has of a volume: wrong clean blocks are fetched again, wrong dirty ones
    /// reported (exit code 3)
    Scrub(Scrub),
    /// Which copy of a range is current, and where it is
    Where {
        /// The volume
        name: String,
        /// Logical blocks: N, FIRST-LAST or FIRST+COUNT
        #[arg(long, value_name = "RANGE")]
        lba: LbaSpan,
    },
    /// Fetch a range into the cache, and keep it there
    #[command(long_about = PIN_ABOUT)]
    Pin {
        /// The volume
        name: String,
        /// Logical blocks: N, FIRST-LAST or FIRST+COUNT
        #[arg(long, value_name = "RANGE")]
        lba: LbaSpan,
        #[command(flatten)]
        wait: Wait,
    },
    /// Let pinned blocks leave the cache again, as others do
    #[command(group(ArgGroup::new("which").required(true).args(["lba", "all"])))]
    Unpin {
        /// The volume
        name: String,
        /// Logical blocks: N, FIRST-LAST or FIRST+COUNT; a part of what is pinned is enough
        #[arg(long, value_name = "RANGE")]
        lba: Option<LbaSpan>,
        /// All that is pinned
        #[arg(long)]
        all: bool,
    },
    /// Change the limits of a volume, or give it an ordered journal
    Set {
        /// The volume
        name: String,
        #[command(flatten)]
        limits: SetLimits,
    },
    /// Go on without a cache that is lost: prints what is known to be lost and what an ordered journal
    /// holds, applies that, attaches cold
    Recover {
        /// The volume
        name: String,
        /// The cache device is gone for good
        #[arg(long, required = true)]
        lost_cache: bool,
        #[command(flatten)]
        confirm: Confirm,
    },
}

/// `volume scrub` and `scrub`.
#[derive(Args, Debug)]
pub(crate) struct Scrub {
    /// The volume
    pub(crate) name: String,
    /// Bytes a second at most; a quarter of that while hosts have requests [default: 64MiB]
    #[arg(long, value_name = "SIZE")]
    pub(crate) rate: Option<ByteSize>,
    #[command(flatten)]
    pub(crate) wait: Wait,
}

/// `volume create`.
#[derive(Args, Debug)]
pub(crate) struct VolumeCreate {
    /// The name; hosts see PREFIX:NAME
    pub(crate) name: String,
    /// The backing device: uring:/path, nvmf+tcp://host:port/NQN, mem:?size=1G, slow:URI
    #[arg(long, value_name = "URI")]
    pub(crate) backing: String,
    /// The cache mode
    #[arg(long, value_parser = mode())]
    pub(crate) mode: Mode,
    /// Journals, the owner's included (more than one comes with clusters)
    #[arg(long, value_name = "N")]
    pub(crate) replicas: Option<u32>,
    /// Journals that must hold a write before it is acknowledged
    #[arg(long, value_name = "M")]
    pub(crate) min_copies: Option<u32>,
    /// Logical block size in bytes: 512 or 4096
    #[arg(long, value_name = "BYTES")]
    pub(crate) block_size: Option<u32>,
    /// Share this subsystem with other volumes instead of having one of its own
    #[arg(long, value_name = "S")]
    pub(crate) subsystem: Option<String>,
    /// Let only this host connect (again for more); otherwise those of `host allow`
    #[arg(long = "host", value_name = "NQN")]
    pub(crate) hosts: Vec<String>,
    #[command(flatten)]
    pub(crate) limits: Limits,
    /// In write-back-ordered: an empty device that each batch is written to first, so that even the loss
    /// of the cache in the middle of a batch leaves a prefix of the acknowledged writes
    #[arg(long, value_name = "URI")]
    pub(crate) ordered_journal: Option<String>,
}

/// Limits of a volume.
#[derive(Args, Debug)]
pub(crate) struct Limits {
    /// Cache that other volumes cannot take away, once the volume has it. With what is pinned, which
    /// counts in it, at most half of a cache over all its volumes; dirty data has that much less
    #[arg(long, value_name = "SIZE")]
    pub(crate) cache_min: Option<ByteSize>,
    /// Most cache: beyond it what is read is not cached. Writes always are, and go first once they are
    /// clean
    #[arg(long, value_name = "SIZE")]
    pub(crate) cache_max: Option<ByteSize>,
    /// Most dirty data
    #[arg(long, value_name = "SIZE")]
    pub(crate) dirty_max: Option<ByteSize>,
    /// Greatest age of dirty data
    #[arg(long, value_name = "TIME")]
    pub(crate) dirty_age_max: Option<Span>,
    /// In write-back-ordered: data that closes a batch
    #[arg(long, value_name = "SIZE")]
    pub(crate) batch_max: Option<ByteSize>,
    /// In write-back-ordered: time after which a batch is closed
    #[arg(long, value_name = "TIME")]
    pub(crate) batch_age_max: Option<Span>,
    /// Memory for the hottest blocks
    #[arg(long, value_name = "SIZE")]
    pub(crate) memory_tier: Option<ByteSize>,
}

/// The same, at least one of them.
#[derive(Args, Debug)]
#[command(group(ArgGroup::new("limits").required(true).multiple(true)
    .args(["cache_min", "cache_max", "dirty_max", "dirty_age_max", "batch_max", "batch_age_max", "memory_tier", "ordered_journal"])))]
pub(crate) struct SetLimits {
    #[command(flatten)]
    pub(crate) limits: Limits,
    /// Give a volume in write-back-ordered that has none an ordered journal: an empty device
    #[arg(long, value_name = "URI")]
    pub(crate) ordered_journal: Option<String>,
}

/// Confirmation of what destroys.
#[derive(Args, Debug)]
pub(crate) struct Confirm {
    /// Do not ask for the volume's name
    #[arg(long)]
    pub(crate) yes: bool,
}

/// Waiting for a job.
#[derive(Args, Debug)]
pub(crate) struct Wait {
    /// Print the job's number and do not wait for it
    #[arg(long, conflicts_with = "timeout")]
    pub(crate) no_wait: bool,
    /// Wait no longer than this; the job goes on
    #[arg(long, value_name = "TIME")]
    pub(crate) timeout: Option<Span>,
}

/// `host`.
#[derive(Debug, Subcommand)]
pub(crate) enum Host {
    /// Let a host connect
    Allow(HostChange),
    /// Let a host no longer connect, and disconnect it
    Deny(HostChange),
    /// Who may connect, and who has
    List,
}

/// `host allow` and `host deny`.
#[derive(Args, Debug)]
pub(crate) struct HostChange {
    /// The host's NQN (on a Linux host: cat /etc/nvme/hostnqn)
    pub(crate) nqn: String,
    /// Only for this volume, which then has a list of its own
    #[arg(long, value_name = "NAME")]
    pub(crate) volume: Option<String>,
}

/// `job`.
#[derive(Debug, Subcommand)]
pub(crate) enum Job {
    /// Jobs that run, and the last ones that ended
    List,
    /// Wait for a job
    Wait {
        /// The job's number
        id: u64,
        /// Wait no longer than this
        #[arg(long, value_name = "TIME")]
        timeout: Option<Span>,
    },
    /// Stop a job; what it has done stays done
    Cancel {
        /// The job's number
        id: u64,
    },
}

/// What `volume pin` does.
const PIN_ABOUT: &str = "\
Fetch a range into the cache, and keep it there

A job fetches what the cache lacks of the range. From then on the blocks stay, whatever other blocks \
are read or written, until `volume unpin`; also across restarts. Ranges that overlap or touch are one. \
With the minimums of all volumes they are at most half of a cache, and they count in their volume's \
own --cache-min. `job cancel` ends the fetching alone: the range stays pinned, and what hosts read of \
it comes in. In write-around a write of a pinned block takes it out of the cache until it is read.";

/// What the columns of `stat` mean.
const STAT_ABOUT: &str = "\
Live numbers, and what is wrong: exit code 3 where something is

A single look shows rates, shares and latencies since the start; --watch shows the last interval.

HIT, MEM, BYPASS: of the blocks of 4 KiB that hosts read, the share that the cache had, that it had \
in memory, and that was read past the cache (pass-through, sequential beyond the cutoff, cache device \
failed); the rest was missed. W BYPASS: of the blocks that hosts wrote, the share that went to the \
backing device alone (write-around, pass-through, cache device failed).
CACHED: what the cache has of the volume, dirty data included.
OLDEST: the age of the oldest dirty data in the volume's cache; with > it is from before the start, \
and older.
p50, p99, p99.9: times of host commands in the target, from their arrival to their response, at most \
1/16 too large. Another client that asks for statistics in the middle of an interval of --watch cuts \
the interval of the percentiles short.";

/// `stat`.
#[derive(Args, Debug)]
pub(crate) struct Stat {
    /// Again and again, until interrupted; in JSON the node's whole statistics, one line each time
    #[arg(long)]
    pub(crate) watch: bool,
    /// How often
    #[arg(long, value_name = "TIME", default_value = "1s")]
    pub(crate) interval: Span,
}

/// `config`.
#[derive(Debug, Subcommand)]
pub(crate) enum Config {
    /// What `config apply` would do
    Plan(ConfigFile),
    /// Make the node what the file says, as far as that goes while it runs
    Apply(ConfigFile),
    /// Where file and node differ
    Diff(ConfigFile),
    /// Print what the node runs with, as a configuration file
    Export,
}

/// A configuration file.
#[derive(Args, Debug)]
pub(crate) struct ConfigFile {
    /// The file [default: the one that the daemon was started with]
    pub(crate) file: Option<PathBuf>,
}

/// `bench`.
#[derive(Args, Debug)]
pub(crate) struct Bench {
    /// Devices: uring:/path, mem:?size=1G, nvmf+tcp://host:port/NQN, slow:URI; each is measured in turn
    #[arg(required = true, value_name = "URI")]
    pub(crate) devices: Vec<String>,
    /// What to do
    #[arg(long, default_value = "randread",
        value_parser = PossibleValuesParser::new(["randread", "randwrite", "read", "write", "randrw"]))]
    pub(crate) rw: String,
    /// Reads of a hundred operations, for randrw
    #[arg(long, value_name = "PERCENT", default_value_t = 70, value_parser = clap::value_parser!(u8).range(0..=100))]
    pub(crate) read_percent: u8,
    /// Bytes of each operation
    #[arg(long, value_name = "SIZE", default_value = "4KiB")]
    pub(crate) block_size: ByteSize,
    /// Operations in flight of each job
    #[arg(long, visible_alias = "qd", value_name = "N", default_value_t = 32, value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub(crate) queue_depth: u16,
    /// Jobs, each a thread with connections or devices of its own
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub(crate) jobs: u16,
    /// Connections of each job, which share its operations in flight
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub(crate) connections: u16,
    /// Open loop: so many operations a second are due, of all jobs together, whatever the device does, and
    /// latencies count from that moment; the queue depth bounds those in flight
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) rate: Option<u32>,
    /// How they are spread in time
    #[arg(long, requires = "rate", default_value = "constant",
        value_parser = PossibleValuesParser::new(["constant", "poisson"]))]
    pub(crate) arrivals: String,
    /// How long
    #[arg(long, value_name = "TIME", default_value = "10s", conflicts_with = "ops")]
    pub(crate) time: Span,
    /// Stop after this many operations of each job
    #[arg(long, value_name = "N")]
    pub(crate) ops: Option<u64>,
    /// Time before measuring begins
    #[arg(long, value_name = "TIME", default_value = "0s")]
    pub(crate) warm_up: Span,
    /// Use only the first part of the device
    #[arg(long, value_name = "SIZE")]
    pub(crate) size: Option<ByteSize>,
    /// Positions by Zipf's law with this exponent instead of evenly
    #[arg(long, value_name = "EXPONENT")]
    pub(crate) zipf: Option<f64>,
    /// A hot set instead: of a hundred operations, those on the first so many of a hundred blocks
    #[arg(long, value_name = "OPERATIONS/BLOCKS", conflicts_with = "zipf")]
    pub(crate) hot_cold: Option<String>,
    /// Of a hundred operations, those that read the range (the cold part of it) in order beside the others
    #[arg(long, value_name = "PERCENT", default_value_t = 0, value_parser = clap::value_parser!(u8).range(0..=100))]
    pub(crate) scan: u8,
    /// Stamp what is written and check what is read
    #[arg(long)]
    pub(crate) verify: bool,
    /// Force Unit Access on writes
    #[arg(long)]
    pub(crate) fua: bool,
    /// Every operation repeats, given the same seed
    #[arg(long, default_value_t = 1)]
    pub(crate) seed: u64,
    /// Let writes overwrite what is on the devices
    #[arg(long)]
    pub(crate) yes: bool,
}

/// `fault`.
#[derive(Args, Debug)]
pub(crate) struct Fault {
    /// The device: its URI as configured, cache:N, backing:VOLUME or journal:VOLUME
    pub(crate) device: String,
    /// What it does from now on
    #[arg(value_parser = PossibleValuesParser::new(["error", "hang", "gone", "heal"]))]
    pub(crate) fault: String,
    /// Only these operations (again for more)
    #[arg(long = "op", value_parser = PossibleValuesParser::new(["read", "write", "flush"]))]
    pub(crate) ops: Vec<String>,
    /// Heal by itself after this many operations
    #[arg(long, value_name = "N")]
    pub(crate) count: Option<u64>,
}

fn mode() -> impl TypedValueParser<Value = Mode> {
    PossibleValuesParser::new(Mode::WORDS.iter().copied())
        .try_map(|text: String| text.parse::<Mode>())
}

#[cfg(test)]
mod tests;
