//! What one run gave, and the raw data of a whole report.

use crate::Result;
use crate::determinism::Determinism;
use crate::machine::Machine;
use serde::{Deserialize, Serialize};
use std::path::Path;

/// The file of the raw data in a report's directory.
pub(crate) const FILE: &str = "samples.json";
/// Rises when a field changes its meaning or goes.
const SCHEMA_VERSION: u32 = 1;
/// A target that had less of its core than this was disturbed.
pub(crate) const CORE_SHARE: f64 = 0.97;

/// What one run gave.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Sample {
    /// Operations a second.
    pub(crate) iops: f64,
    /// Median latency in microseconds.
    pub(crate) p50: f64,
    /// 99 of a hundred are at most this.
    pub(crate) p99: f64,
    /// 999 of a thousand.
    pub(crate) p99_9: f64,
    /// 9,999 of ten thousand.
    pub(crate) p99_99: f64,
    /// Quantiles with their latencies in microseconds.
    pub(crate) curve: Vec<(f64, f64)>,
    /// Operations from the initiator's start to its end.
    pub(crate) all_ops: f64,
    /// The load's own longest pause in microseconds, where it is told.
    pub(crate) longest_pause: Option<f64>,
    /// Seconds from the initiator's start to its end.
    pub(crate) wall: f64,
    /// Processor time of the target in this time, in cores; absent without a target.
    pub(crate) target_cpu: Option<f64>,
    /// Of the time in which the target's busiest thread wanted its core, the share in which it had it.
    pub(crate) core_share: Option<f64>,
    /// Share of the time that the machine's own host took from its cores.
    pub(crate) stolen: f64,
    /// Instructions of the target for each operation, where they can be counted.
    pub(crate) instructions: Option<f64>,
    /// Cycles, likewise.
    pub(crate) cycles: Option<f64>,
    /// How often the run has written as much to the cache device as it has room.
    pub(crate) turnovers: Option<f64>,
}

impl Sample {
    /// From the JSON of `forebay bench`.
    pub(crate) fn from_report(report: &serde_json::Value) -> Result<Self> {
        let total = &report["total"];
        let late = |name: &str| total["latency_us"][name].as_f64();
        let curve = serde_json::from_value(total["latency_curve"].clone()).ok();
        let figures = || {
            Some(Self {
                iops: total["iops"].as_f64()?,
                p50: late("p50")?,
                p99: late("p99")?,
                p99_9: late("p99_9")?,
                p99_99: late("p99_99")?,
                curve: curve?,
                all_ops: report["all_ops"].as_f64()?,
                longest_pause: report["longest_pause_us"].as_f64(),
                ..Self::default()
            })
        };
        figures().ok_or_else(|| format!("no figures in {report}"))
    }

    /// Why the target did not have its core, if it did not.
    pub(crate) fn disturbance(&self) -> Option<String> {
        let share = self.core_share.filter(|share| *share < CORE_SHARE);
        let waited = share.map(|share| format!("had {share:.2} of its core"));
        let stolen = (self.stolen > 1.0 - CORE_SHARE)
            .then(|| format!("{:.0} % of the cores were stolen", self.stolen * 100.0));
        match (waited, stolen) {
            (Some(waited), Some(stolen)) => Some(format!("{waited}, {stolen}")),
            (waited, stolen) => waited.or(stolen),
        }
    }
}

/// Two runs, one after the other: subject and anchor, or the subject twice.
pub(crate) type Pair = (Sample, Sample);

/// A target of a comparison.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Target {
    pub(crate) name: String,
    pub(crate) uri: String,
    /// As it says itself, where it can be asked.
    pub(crate) version: Option<String>,
    /// Why it took no part.
    pub(crate) absent: Option<String>,
}

/// The pairs of one work.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct WorkPairs {
    pub(crate) name: String,
    /// What its load is, in words.
    pub(crate) load: String,
    /// The subject against itself.
    pub(crate) noise: Vec<Pair>,
    /// Each anchor that took part, with pairs of (subject, anchor).
    pub(crate) anchors: Vec<(String, Vec<Pair>)>,
}

/// A comparison.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Compared {
    pub(crate) machine: Machine,
    /// The initiator, its core, pairs and seconds.
    pub(crate) method: String,
    /// The file that says what was compared, and the configurations of its Forebay peers: name and text.
    pub(crate) files: Vec<(String, String)>,
    /// The subject first.
    pub(crate) targets: Vec<Target>,
    pub(crate) works: Vec<WorkPairs>,
}

/// All that a report is made of.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Figures {
    /// Targets side by side.
    Comparison(Compared),
    /// Latencies of one target in several states.
    Determinism(Determinism),
}

#[derive(Serialize, Deserialize)]
struct Stored {
    schema_version: u32,
    figures: Figures,
}

impl Figures {
    /// Writes the raw data.
    pub(crate) fn store(&self, dir: &Path) -> Result<()> {
        let stored = Stored { schema_version: SCHEMA_VERSION, figures: self.clone() };
        let text = serde_json::to_string(&stored).map_err(|error| error.to_string())?;
        std::fs::create_dir_all(dir).map_err(|error| format!("{}: {error}", dir.display()))?;
        let path = dir.join(FILE);
        std::fs::write(&path, text).map_err(|error| format!("{}: {error}", path.display()))
    }

    /// Reads it back.
    pub(crate) fn load(dir: &Path) -> Result<Self> {
        let path = dir.join(FILE);
        let fail = |error: &dyn core::fmt::Display| format!("{}: {error}", path.display());
        let text = std::fs::read_to_string(&path).map_err(|error| fail(&error))?;
        let stored: Stored = serde_json::from_str(&text).map_err(|error| fail(&error))?;
        if stored.schema_version != SCHEMA_VERSION {
            let found = stored.schema_version;
            return Err(fail(&format!(
                "schema version {found}; this program reads {SCHEMA_VERSION}"
            )));
        }
        Ok(stored.figures)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_without_its_core_is_disturbed() {
        let sample = |core_share, stolen| Sample { core_share, stolen, ..Sample::default() };
        assert_eq!(sample(Some(0.99), 0.01).disturbance(), None);
        assert_eq!(sample(None, 0.0).disturbance(), None);
        let text = sample(Some(0.96), 0.0).disturbance();
        assert_eq!(text.as_deref(), Some("had 0.96 of its core"));
        let text = sample(Some(0.5), 0.2).disturbance();
        assert_eq!(text.as_deref(), Some("had 0.50 of its core, 20 % of the cores were stolen"));
        assert!(sample(Some(1.0), 0.04).disturbance().is_some());
    }

    #[test]
    fn figures_come_from_the_report_of_the_load_or_not_at_all() {
        let latency = serde_json::json!({ "p50": 1.0, "p99": 2.0, "p99_9": 3.0, "p99_99": 4.0 });
        let total = serde_json::json!({ "iops": 9.0, "latency_us": latency, "latency_curve": [[0.0, 1.0]] });
        let report = serde_json::json!({ "total": total, "all_ops": 12, "longest_pause_us": 5.5 });
        let sample = Sample::from_report(&report).unwrap();
        assert_eq!((sample.iops, sample.p99_99, sample.all_ops), (9.0, 4.0, 12.0));
        assert_eq!((sample.curve, sample.longest_pause), (vec![(0.0, 1.0)], Some(5.5)));
        assert!(Sample::from_report(&serde_json::json!({ "total": null })).is_err());
    }
}
