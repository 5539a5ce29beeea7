//! `bench`: load on any device, measured.

use super::{Context, confirm};
use crate::cli::Bench;
use crate::{devices, output};
use forebay_bench::{Arrivals, Counters, Distribution, Limit, Pace, Report, Rw, Workload};
use forebay_control::error::{ControlError, ErrorKind, Result};
use forebay_control::value::check_device_uri;
use std::sync::atomic::Ordering;

pub(super) fn run(context: &Context, args: &Bench) -> Result<()> {
    let workload = workload(args)?;
    for uri in &args.devices {
        check_device_uri(uri).map_err(|bad| bad.of("URI", uri))?;
    }
    for uri in &args.devices {
        // Memory is made for the run and goes with it.
        if workload.rw.writes() && !uri.contains("mem:") {
            confirm(
                devices::device_name(uri),
                args.yes,
                &format!("what is on {uri} is overwritten"),
            )?;
        }
        let report = measure(context, uri, &workload)?;
        output::show(context.format, &report, Report::to_table)?;
    }
    Ok(())
}

/// Runs the load on one device, with a line that shows how it goes where somebody watches.
fn measure(context: &Context, uri: &str, workload: &Workload) -> Result<Report> {
    let counters = Counters::default();
    let bar = output::is_watched(context.format).then(indicatif::ProgressBar::new_spinner);
    let done = std::sync::atomic::AtomicBool::new(false);
    let result = std::thread::scope(|scope| {
        if let Some(bar) = &bar {
            scope.spawn(|| {
                let mut before = 0;
                while !done.load(Ordering::Acquire) {
                    std::thread::sleep(std::time::Duration::from_millis(250));
                    let ops = counters.ops.load(Ordering::Relaxed);
                    bar.set_message(format!("{uri}: {} operations a second", (ops - before) * 4));
                    bar.tick();
                    before = ops;
                }
                bar.finish_and_clear();
            });
        }
        let result = devices::measure(uri, workload, &counters);
        done.store(true, Ordering::Release);
        result
    })?;
    if result.mismatches > 0 {
        let first = result.first_mismatch.map(|(block, what)| format!(": block {block}: {what:?}"));
        return Err(ControlError::failed(format!(
            "{uri}: {} blocks read back wrong{}",
            result.mismatches,
            first.unwrap_or_default()
        )));
    }
    if result.errors > 0 {
        let first = result.first_error.map(|error| format!(": {error}"));
        return Err(ControlError::failed(format!(
            "{uri}: {} operations failed{}",
            result.errors,
            first.unwrap_or_default()
        )));
    }
    Ok(Report::new(uri, workload, &result))
}

fn workload(args: &Bench) -> Result<Workload> {
    let invalid = |field: &str, why: String| {
        ControlError::new(ErrorKind::Invalid, why).field(field.to_owned())
    };
    let rw: Rw = args.rw.parse().map_err(|error| invalid("--rw", format!("{error}")))?;
    let block_size = u32::try_from(args.block_size.0)
        .map_err(|_| invalid("--block-size", "the block size is too large".to_owned()))?;
    let arrivals = match args.arrivals.as_str() {
        "poisson" => Arrivals::Poisson,
        _ => Arrivals::Constant,
    };
    let hot_cold = args.hot_cold.as_deref().map(str::parse).transpose();
    let hot_cold = hot_cold.map_err(|error| invalid("--hot-cold", format!("{error}")))?;
    Ok(Workload {
        rw,
        read_percent: args.read_percent,
        block_size,
        queue_depth: args.queue_depth,
        jobs: args.jobs,
        connections: args.connections,
        pace: args.rate.map(|rate| Pace { rate, arrivals }),
        range: args.size.map(|size| 0..size.0),
        distribution: hot_cold
            .map(Distribution::HotCold)
            .or(args.zipf.map(Distribution::Zipf))
            .unwrap_or(Distribution::Uniform),
        scan_percent: args.scan,
        limit: args.ops.map_or(Limit::Time(args.time.duration()), Limit::Ops),
        warm_up: args.warm_up.duration(),
        verify: args.verify,
        fua: args.fua,
        seed: args.seed,
        max_errors: 0,
    })
}
