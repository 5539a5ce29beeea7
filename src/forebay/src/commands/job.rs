//! `job`: long work.

use super::Context;
use crate::cli::Job;
use crate::{output, progress};
use forebay_control::error::Result;
use forebay_control::jobs::JobView;
use forebay_control::value::Span;
use serde::{Deserialize, Serialize};
use serde_json::json;

/// The answer of `job_list`.
#[derive(Serialize, Deserialize)]
struct Jobs {
    schema_version: u32,
    jobs: Vec<JobView>,
}

pub(super) fn run(context: &Context, args: &Job) -> Result<()> {
    let mut client = context.client()?;
    match args {
        Job::List => {
            let jobs: Jobs = client.get("job_list", json!({}))?;
            output::show(context.format, &jobs, |jobs| table(&jobs.jobs))
        }
        Job::Wait { id, timeout } => {
            progress::wait_for(&mut client, context.format, *id, timeout.map(Span::duration))
        }
        Job::Cancel { id } => {
            let job: JobView = client.get("job_cancel", json!({ "id": id }))?;
            output::show(context.format, &job, |job| {
                format!("{} will stop soon: forebay job wait {id}", progress::named(job))
            })
        }
    }
}

fn table(jobs: &[JobView]) -> String {
    if jobs.is_empty() {
        return "There are no jobs.\n".to_owned();
    }
    let size = |bytes: Option<u64>| bytes.map_or_else(|| "?".to_owned(), output::bytes);
    let rows = jobs.iter().map(|job| {
        vec![
            job.id.to_string(),
            job.work.kind().to_owned(),
            job.work.volume().unwrap_or("").to_owned(),
            format!("{:?}", job.state).to_lowercase(),
            size(job.left_bytes),
            size(job.total_bytes),
            job.error.clone().unwrap_or_else(|| progress::doing(job)),
        ]
    });
    let head = ["JOB", "KIND", "VOLUME", "STATE", "LEFT", "OF", ""];
    output::table(&head, &[0, 4, 5], rows.collect())
}
