//! The definition of the command line, and what it refuses.

use super::*;
use clap::CommandFactory;
use clap::error::ErrorKind;

fn parse(line: &str) -> Result<Cli, clap::Error> {
    Cli::try_parse_from(line.split_whitespace())
}

#[test]
fn the_definition_is_consistent() {
    Cli::command().debug_assert();
}

#[test]
fn the_documented_commands_parse() {
    let lines = [
        "forebay serve --quickstart",
        "forebay serve --quickstart --dir /tmp/x",
        "forebay serve --config forebay.toml",
        "forebay doctor",
        "forebay format /dev/nvme1n1 --force nvme1n1",
        "forebay volume create v --backing uring:/dev/sdb --mode write-back --replicas 1 --min-copies 1 --block-size 4096 --subsystem s",
        "forebay volume create v --backing uring:/dev/sdb --mode write-back-ordered --ordered-journal uring:/dev/sdc",
        "forebay volume set v --ordered-journal uring:/dev/sdc",
        "forebay volume list -o json",
        "forebay volume show v",
        "forebay volume delete v --yes",
        "forebay volume set-mode v pass-through --timeout 30s",
        "forebay volume drain v --no-wait",
        "forebay volume where v --lba 0-7",
        "forebay volume scrub v --rate 128MiB --no-wait",
        "forebay scrub v --timeout 1m",
        "forebay volume set v --cache-min 1G --cache-max 8G",
        "forebay volume pin v --lba 0+8 --no-wait",
        "forebay volume unpin v --lba 3",
        "forebay volume unpin v --all",
        "forebay volume recover v --lost-cache",
        "forebay host allow nqn.2014-08.org.nvmexpress:uuid:1",
        "forebay host deny nqn.2014-08.org.nvmexpress:uuid:1 --volume v",
        "forebay host list",
        "forebay job list",
        "forebay job wait 3 --timeout 1m",
        "forebay job cancel 3",
        "forebay stat --watch --interval 500ms",
        "forebay bench mem:?size=1G --rw randrw --read-percent 50 --queue-depth 1 --time 3s",
        "forebay bench mem:?size=1G --rate 2000 --arrivals poisson --hot-cold 90/10 --scan 5 --connections 2",
        "forebay config plan",
        "forebay config apply f.toml",
        "forebay config diff",
        "forebay config export",
        "forebay man",
        "forebay completions bash",
        "forebay --socket /tmp/s stat",
        "forebay fault cache:0 error --op read --op write --count 3",
    ];
    for line in lines {
        parse(line).unwrap_or_else(|error| panic!("{line}: {error}"));
    }
    println!("{} command lines", lines.len());
}

#[test]
fn what_is_wrong_is_refused_as_usage_with_what_is_accepted() {
    let lines = [
        ("forebay serve", ErrorKind::MissingRequiredArgument, "--quickstart"),
        ("forebay serve --quickstart --config x", ErrorKind::ArgumentConflict, "--config"),
        ("forebay serve --config x --dir y", ErrorKind::ArgumentConflict, "--dir"),
        ("forebay volume set-mode v writeback", ErrorKind::InvalidValue, "write-back"),
        ("forebay volume set v", ErrorKind::MissingRequiredArgument, "--cache-min"),
        ("forebay volume set v --cache-min 1Q", ErrorKind::ValueValidation, "8G"),
        ("forebay volume where v --lba 7-0", ErrorKind::ValueValidation, "FIRST+COUNT"),
        ("forebay volume where v --lba 5+0", ErrorKind::ValueValidation, "FIRST+COUNT"),
        ("forebay volume pin v", ErrorKind::MissingRequiredArgument, "--lba"),
        ("forebay volume unpin v", ErrorKind::MissingRequiredArgument, "--all"),
        ("forebay volume unpin v --all --lba 3", ErrorKind::ArgumentConflict, "--lba"),
        ("forebay volume recover v", ErrorKind::MissingRequiredArgument, "--lost-cache"),
        ("forebay volume drain v --timeout 3", ErrorKind::ValueValidation, "500ms"),
        ("forebay job wait x", ErrorKind::ValueValidation, "x"),
        ("forebay volumes", ErrorKind::InvalidSubcommand, "volume"),
        ("forebay bench", ErrorKind::MissingRequiredArgument, "URI"),
        ("forebay node list", ErrorKind::InvalidSubcommand, "node"),
    ];
    for (line, kind, named) in lines {
        let error = parse(line).unwrap_err();
        assert_eq!(error.kind(), kind, "{line}: {error}");
        assert_eq!(error.exit_code(), 2, "{line}");
        assert!(error.to_string().contains(named), "{line}: {error}");
    }
}
