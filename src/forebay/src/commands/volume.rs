//! `volume`: make, show, change, drain, delete.

use super::{Context, confirm};
use crate::cli::{Limits, Scrub, Volume, VolumeCreate};
use crate::{output, progress};
use forebay_control::VolumeConfig;
use forebay_control::error::{ControlError, ErrorKind, Result};
use forebay_control::jobs::JobView;
use forebay_control::node::{LbaRange, Located, LostCache};
use forebay_control::stat::{OrderedJournalStat, Prefix, VolumeStat};
use forebay_control::value::{LbaSpan, Mode};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

/// The answer of `volume_list`.
#[derive(Serialize, Deserialize)]
struct Volumes {
    schema_version: u32,
    volumes: Vec<VolumeStat>,
}

/// The answer of `volume_show`.
#[derive(Serialize, Deserialize)]
struct Shown {
    schema_version: u32,
    config: VolumeConfig,
    /// `None` where the node has not got it, as while it is being made.
    volume: Option<VolumeStat>,
    jobs: Vec<JobView>,
}

/// The answer of `volume_where`.
#[derive(Serialize, Deserialize)]
struct Pieces {
    schema_version: u32,
    volume: String,
    pieces: Vec<Located>,
}

/// The answer to what begins a job.
#[derive(Deserialize)]
struct Began {
    job: u64,
}

pub(super) fn run(context: &Context, args: Volume) -> Result<()> {
    let format = context.format;
    match args {
        Volume::Create(create) => {
            let shown: Shown = context.client()?.get("volume_create", create_params(&create))?;
            output::show(format, &shown, |shown| match &shown.volume {
                Some(volume) => format!(
                    "volume {} is served as {} namespace {}, {}",
                    volume.name,
                    volume.nqn,
                    volume.nsid,
                    output::bytes(volume.size)
                ),
                None => format!("volume {} is made", shown.config.name),
            })
        }
        Volume::List => {
            let all: Volumes = context.client()?.get("volume_list", json!({}))?;
            output::show(format, &all, |all| list(&all.volumes))
        }
        Volume::Show { name } => {
            let shown: Shown = context.client()?.get("volume_show", json!({ "name": name }))?;
            output::show(format, &shown, details)
        }
        Volume::Delete { name, discard_dirty, confirm: yes, wait } => {
            let mut client = context.client()?;
            // A name that is not there is said before anybody is asked to type it.
            let shown: Shown = client.get("volume_show", json!({ "name": name }))?;
            let discard = discard_dirty.is_some();
            if let Some(again) = discard_dirty {
                discards(&name, &again, &shown)?;
            } else {
                let what = format!(
                    "volume {name} is drained, then deleted; its backing device keeps the data"
                );
                confirm(&name, yes.yes, &what)?;
            }
            let params = json!({ "name": name, "discard_dirty": discard });
            let began: Began = client.get("volume_delete", params)?;
            progress::follow(&mut client, format, began.job, &wait)
        }
        Volume::SetMode { name, mode, wait } => {
            let mut client = context.client()?;
            let params = json!({ "name": name, "mode": mode });
            let began: Began = client.get("volume_set_mode", params)?;
            progress::follow(&mut client, format, began.job, &wait)
        }
        Volume::Drain { name, wait } => {
            let mut client = context.client()?;
            let began: Began = client.get("volume_drain", json!({ "name": name }))?;
            progress::follow(&mut client, format, began.job, &wait)
        }
        Volume::Scrub(args) => scrub(context, &args),
        Volume::Where { name, lba } => locate(context, &name, lba),
        Volume::Pin { name, lba, wait } => {
            let mut client = context.client()?;
            let params = json!({ "name": name, "lba": lba.first, "blocks": lba.blocks });
            let began: Began = client.get("volume_pin", params)?;
            progress::follow(&mut client, format, began.job, &wait)
        }
        Volume::Unpin { name, lba, all: _ } => {
            let mut params = json!({ "name": name });
            if let Some(lba) = lba {
                (params["lba"], params["blocks"]) = (json!(lba.first), json!(lba.blocks));
            }
            let config: VolumeConfig = context.client()?.get("volume_unpin", params)?;
            output::show(format, &config, |config| configured(config).join("\n"))
        }
        Volume::Set { name, limits } => {
            let mut params = limit_params(&limits.limits);
            params.insert("name".to_owned(), json!(name));
            if let Some(journal) = limits.ordered_journal {
                params.insert("ordered_journal".to_owned(), json!(journal));
            }
            let config: VolumeConfig = context.client()?.get("volume_set", params.into())?;
            output::show(format, &config, |config| configured(config).join("\n"))
        }
        Volume::Recover { name, lost_cache: _, confirm: yes } => recover(context, &name, yes.yes),
    }
}

/// `volume scrub` and `scrub`.
pub(super) fn scrub(context: &Context, args: &Scrub) -> Result<()> {
    let mut client = context.client()?;
    let mut params = json!({ "name": args.name });
    if let Some(rate) = args.rate {
        params["rate"] = json!(rate.0);
    }
    let began: Began = client.get("volume_scrub", params)?;
    progress::follow(&mut client, context.format, began.job, &args.wait)
}

/// Whether the volume whose dirty data is dropped was named twice alike; `--yes` is not enough here.
fn discards(name: &str, again: &str, shown: &Shown) -> Result<()> {
    let lost = shown.volume.as_ref().map_or(0, |volume| volume.dirty_bytes);
    let lost = output::bytes(lost);
    if again == name {
        eprintln!("volume {name} is deleted, and {lost} that only the cache has with it");
        return Ok(());
    }
    let message =
        format!("refused: volume {name} would be deleted, and {lost} that only the cache has LOST");
    Err(ControlError::new(ErrorKind::Unsafe, message)
        .field("--discard-dirty")
        .value(again)
        .accepted(name)
        .remedy(format!("if you mean it: forebay volume delete {name} --discard-dirty {name}")))
}

fn create_params(create: &VolumeCreate) -> Value {
    let mut params = limit_params(&create.limits);
    let mut put = |key: &str, value: Option<Value>| {
        if let Some(value) = value {
            params.insert(key.to_owned(), value);
        }
    };
    put("name", Some(json!(create.name)));
    put("backing", Some(json!(create.backing)));
    put("mode", Some(json!(create.mode)));
    put("replicas", create.replicas.map(|n| json!(n)));
    put("min_copies", create.min_copies.map(|n| json!(n)));
    put("block_size", create.block_size.map(|n| json!(n)));
    put("subsystem", create.subsystem.as_ref().map(|s| json!(s)));
    put("ordered_journal", create.ordered_journal.as_ref().map(|uri| json!(uri)));
    put("hosts", (!create.hosts.is_empty()).then(|| json!(create.hosts)));
    params.into()
}

fn limit_params(limits: &Limits) -> Map<String, Value> {
    let mut params = Map::new();
    let sizes = [
        ("cache_min", limits.cache_min),
        ("cache_max", limits.cache_max),
        ("dirty_max", limits.dirty_max),
        ("batch_max", limits.batch_max),
        ("memory_tier", limits.memory_tier),
    ];
    for (key, size) in sizes {
        if let Some(size) = size {
            params.insert(key.to_owned(), json!(size.0));
        }
    }
    if let Some(age) = limits.batch_age_max {
        params.insert("batch_age_max".to_owned(), json!(age.to_string()));
    }
    if let Some(age) = limits.dirty_age_max {
        params.insert("dirty_age_max".to_owned(), json!(age.to_string()));
    }
    params
}

fn mode_of(volume: &VolumeStat) -> String {
    if volume.mode == volume.target_mode {
        volume.mode.to_string()
    } else {
        format!("{} -> {}", volume.mode, volume.target_mode)
    }
}

fn state_of(volume: &VolumeStat) -> String {
    format!("{:?}", volume.state).to_lowercase()
}

/// The age of the oldest dirty byte; `>` where it is older, but nobody knows by how much.
pub(super) fn age_of(volume: &VolumeStat) -> String {
    let Some(ms) = volume.oldest_dirty_ms else { return "-".to_owned() };
    let more = if volume.oldest_dirty_before_start { ">" } else { "" };
    format!("{more}{:.1} s", ms as f64 / 1000.0)
}

fn list(volumes: &[VolumeStat]) -> String {
    if volumes.is_empty() {
        return "There are no volumes: forebay volume create NAME --backing URI --mode MODE\n"
            .to_owned();
    }
    let rows = volumes.iter().map(|volume| {
        vec![
            volume.name.clone(),
            state_of(volume),
            mode_of(volume),
            output::bytes(volume.size),
            output::bytes(volume.dirty_bytes),
            age_of(volume),
            volume.backing.uri.clone(),
            format!("{} ns {}", volume.nqn, volume.nsid),
        ]
    });
    let head = ["NAME", "STATE", "MODE", "SIZE", "DIRTY", "OLDEST", "BACKING", "SERVED AS"];
    output::table(&head, &[3, 4, 5], rows.collect())
}

fn details(shown: &Shown) -> String {
    let mut lines: Vec<String> = Vec::new();
    let mut add = |key: &str, value: String| lines.push(format!("{key:<14} {value}"));
    if let Some(v) = &shown.volume {
        add("state", state_of(v));
        if let Some(cause) = &v.cause {
            add("cause", cause.clone());
        }
        add("mode", mode_of(v));
        add("served as", format!("{} namespace {}", v.nqn, v.nsid));
        add("uuid", v.uuid.clone());
        add(
            "size",
            format!(
                "{} ({} blocks of {} B)",
                output::bytes(v.size),
                v.size / u64::from(v.block_size.max(1)),
                v.block_size
            ),
        );
        add("backing state", format!("{:?}", v.backing.health).to_lowercase());
        if let Some(cause) = &v.backing.cause {
            add("", cause.clone());
        }
        add(
            "dirty",
            format!(
                "{} of at most {}, oldest {}",
                output::bytes(v.dirty_bytes),
                output::bytes(v.dirty_max),
                age_of(v)
            ),
        );
        if let Some(prefix) = v.prefix {
            add("backing alone", prefix_text(prefix, v.ordered_journal.as_ref()));
            add(
                "kept",
                format!("{} replaced, waiting for their batch", output::bytes(v.kept_bytes)),
            );
        }
        if let Some(journal) = &v.ordered_journal {
            let holds = if journal.complete {
                "holds a complete batch, which is being applied"
            } else {
                "holds no complete batch"
            };
            let health = format!("{:?}", journal.device.health).to_lowercase();
            let capacity = output::bytes(journal.capacity);
            add("journal state", format!("{health}; {holds}, of at most {capacity}"));
            if let Some(cause) = &journal.device.cause {
                add("", cause.clone());
            }
        }
        add("cached", cached_text(v));
        add(
            "hit ratio",
            v.hit_ratio.map_or_else(|| "-".to_owned(), |r| format!("{:.1} %", r * 100.0)),
        );
        if v.healed > 0 {
            add("healed", format!("{} clean blocks that were wrong in the cache", v.healed));
        }
        if v.damaged_bytes > 0 {
            add(
                "DAMAGED",
                format!(
                    "{} are wrong in the cache and nowhere else: forebay volume where",
                    output::bytes(v.damaged_bytes)
                ),
            );
        }
        if v.lost_bytes > 0 {
            add("LOST", format!("{} whose only copy cannot be read", output::bytes(v.lost_bytes)));
        }
        add("owner epoch", v.owner_epoch.to_string());
        add("reactor", v.reactor.to_string());
    }
    lines.extend(configured(&shown.config));
    for job in &shown.jobs {
        let state = format!("{:?}", job.state).to_lowercase();
        lines.push(format!("{}: {state} {}", progress::named(job), progress::speed(job)));
    }
    lines.join("\n")
}

/// What the cache has of a volume, and may have.
fn cached_text(volume: &VolumeStat) -> String {
    let mut parts = vec![output::bytes(volume.cached_bytes)];
    if volume.cache_min_bytes > 0 {
        parts.push(format!("{} that others leave it", output::bytes(volume.cache_min_bytes)));
    }
    if let Some(max) = volume.cache_max_bytes {
        parts.push(format!("no fills beyond {}", output::bytes(max)));
    }
    if volume.pinned_bytes > 0 {
        parts.push(format!("{} pinned", output::bytes(volume.pinned_bytes)));
    }
    parts.push(format!("{} of its cache in memory", output::bytes(volume.memory_tier_bytes)));
    parts.join(", ")
}

/// What the backing store would be without the cache, in words.
fn prefix_text(prefix: Prefix, journal: Option<&OrderedJournalStat>) -> String {
    match prefix {
        Prefix::NotYet => {
            "no known prefix yet: the first batch since the start or the switch is not complete"
                .to_owned()
        }
        Prefix::Holds { lsn } => format!("the prefix of writes at LSN {lsn}"),
        Prefix::Destaging { lsn, end } if journal.is_some_and(|journal| journal.complete) => {
            format!(
                "in the middle of the batch from LSN {lsn} to {end}: the ordered journal makes it a prefix"
            )
        }
        Prefix::Destaging { lsn, end } => {
            format!("in the middle of the batch from LSN {lsn} to {end}: no prefix")
        }
    }
}

fn configured(config: &VolumeConfig) -> Vec<String> {
    let mut lines = Vec::new();
    let mut add = |key: &str, value: Option<String>| {
        lines.push(format!("{key:<14} {}", value.unwrap_or_else(|| "default".to_owned())));
    };
    add("backing", Some(config.backing.clone()));
    let hosts =
        config.hosts.as_ref().map_or("those of `forebay host list`".to_owned(), |h| h.join(", "));
    add("hosts", Some(hosts));
    add("dirty_max", config.dirty_max.map(|v| v.to_string()));
    add("dirty_age_max", config.dirty_age_max.map(|v| v.to_string()));
    if config.mode == Mode::WriteBackOrdered {
        add("batch_max", config.batch_max.map(|v| v.to_string()));
        add("batch_age_max", config.batch_age_max.map(|v| v.to_string()));
        let journal = config.ordered_journal.clone();
        add("ordered_journal", Some(journal.unwrap_or_else(|| "none".to_owned())));
    }
    add("memory_tier", config.memory_tier.map(|v| v.to_string()));
    add("cache_min", config.cache_min.map(|v| v.to_string()));
    add("cache_max", config.cache_max.map(|v| v.to_string()));
    let pins: Vec<String> = config.pin.iter().map(ToString::to_string).collect();
    add("pin", Some(if pins.is_empty() { "none".to_owned() } else { pins.join(", ") }));
    lines
}

fn locate(context: &Context, name: &str, lba: LbaSpan) -> Result<()> {
    let params = json!({ "name": name, "lba": lba.first, "blocks": lba.blocks });
    let answer: Pieces = context.client()?.get("volume_where", params)?;
    output::show(context.format, &answer, |answer| {
        let rows = answer.pieces.iter().map(|piece| {
            let last = piece.lba.saturating_add(piece.blocks).saturating_sub(1);
            let memory = if piece.in_memory { ", and in memory" } else { "" };
            vec![
                format!("{}-{last}", piece.lba),
                format!("{}{memory}", piece.current.as_str()),
                piece.lsn.map_or_else(|| "-".to_owned(), |lsn| lsn.to_string()),
                piece.place.clone().unwrap_or_default(),
            ]
        });
        output::table(&["BLOCKS", "CURRENT", "LSN", "PLACE"], &[], rows.collect())
    })
}

fn recover(context: &Context, name: &str, yes: bool) -> Result<()> {
    let mut client = context.client()?;
    let mut ask = |commit: bool| -> Result<LostCache> {
        let params = json!({ "name": name, "lost_cache": true, "commit": commit });
        client.get("volume_recover", params)
    };
    let lost = ask(false)?;
    output::show(context.format, &lost, lost_table)?;
    let what = if lost.clean {
        format!("volume {name} goes on without its cache; nothing is lost")
    } else {
        format!("volume {name} goes on without its cache, and what is listed above is LOST")
    };
    confirm(name, yes, &what)?;
    let after = ask(true)?;
    if after.ranges != lost.ranges {
        return Err(ControlError::new(
            ErrorKind::Degraded,
            format!("volume {name} goes on, but what was lost changed: look again"),
        ));
    }
    Ok(())
}

fn lost_table(lost: &LostCache) -> String {
    let mut text = String::new();
    if lost.clean {
        text.push_str("The volume was clean: nothing is lost.\n");
    } else {
        let rows = lost
            .ranges
            .iter()
            .map(|LbaRange { lba, blocks }| vec![lba.to_string(), blocks.to_string()]);
        text.push_str(&output::table(&["LOST FROM BLOCK", "BLOCKS"], &[0, 1], rows.collect()));
        if !lost.complete {
            text.push_str("There may be more: not everything can be known without the device.\n");
        }
    }
    if !lost.note.is_empty() {
        text.push_str(&lost.note);
        text.push('\n');
    }
    text
}
