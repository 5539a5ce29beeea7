//! Medians, spread, and the confidence of ratios.

/// Student's t for a two-sided interval of 95 %, by degrees of freedom from 1 on.
const T_95: [f64; 30] = [
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160,
    2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056,
    2.052, 2.048, 2.045, 2.042,
];

/// Median and range of some values.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) least: f64,
    pub(crate) most: f64,
}

impl Spread {
    /// Of values in any order; not a number where there are none.
    pub(crate) fn of(values: impl Iterator<Item = f64>) -> Self {
        let mut all: Vec<f64> = values.collect();
        all.sort_by(f64::total_cmp);
        let (least, most) = (all.first().copied(), all.last().copied());
        let median = match all.len() {
            0 => f64::NAN,
            n if n % 2 == 1 => all[n / 2],
            n => f64::midpoint(all[n / 2 - 1], all[n / 2]),
        };
        Self { median, least: least.unwrap_or(f64::NAN), most: most.unwrap_or(f64::NAN) }
    }

    /// `median (least–most)`.
    pub(crate) fn show(self, decimals: usize) -> String {
        let Self { median, least, most } = self;
        format!("{median:.decimals$} ({least:.decimals$}–{most:.decimals$})")
    }
}

/// The ratios of pairs: their median and range, and an interval of 95 % for their geometric mean, by
/// Student's t over the logarithms (with five pairs a bootstrap would give intervals that are too narrow).
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Ratio {
    pub(crate) spread: Spread,
    /// Lower end of the interval; 0 for a single pair.
    pub(crate) low: f64,
    /// Upper end; infinite for a single pair.
    pub(crate) high: f64,
}

impl Ratio {
    /// Of ratios above zero.
    pub(crate) fn of(ratios: impl Iterator<Item = f64>) -> Self {
        let ratios: Vec<f64> = ratios.collect();
        let logs: Vec<f64> = ratios.iter().map(|ratio| ratio.ln()).collect();
        let spread = Spread::of(ratios.into_iter());
        let freedom = logs.len().saturating_sub(1);
        let Some(t) = freedom.checked_sub(1).map(|at| T_95[at.min(T_95.len() - 1)]) else {
            return Self { spread, low: 0.0, high: f64::INFINITY };
        };
        #[expect(clippy::cast_precision_loss, reason = "a handful of pairs")]
        let (count, freedom) = (logs.len() as f64, freedom as f64);
        let mean = logs.iter().sum::<f64>() / count;
        let variance = logs.iter().map(|log| (log - mean).powi(2)).sum::<f64>() / freedom;
        let half = t * (variance / count).sqrt();
        Self { spread, low: (mean - half).exp(), high: (mean + half).exp() }
    }

    /// `median (least–most) [low, high]`.
    pub(crate) fn show(self) -> String {
        // Two pairs that differ give bounds of many digits, which say no more than this.
        let high = if self.high < 100.0 { format!("{:.2}", self.high) } else { "> 100".to_owned() };
        format!("{} [{:.2}, {high}]", self.spread.show(2), self.low)
    }

    /// What may be said of it beside the noise of the subject against itself.
    pub(crate) fn verdict(self, noise: Self) -> Verdict {
        let apart = self.low > 1.0 || self.high < 1.0;
        let beyond = self.spread.median > noise.high.max(noise.spread.most)
            || self.spread.median < noise.low.min(noise.spread.least);
        match (apart && beyond, self.spread.median > 1.0) {
            (false, _) => Verdict::Noise,
            (true, true) => Verdict::More,
            (true, false) => Verdict::Less,
        }
    }
}

/// What a ratio shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// The subject has more.
    More,
    /// The subject has less.
    Less,
    /// Nothing: the interval holds 1, or the subject against itself reaches as far.
    Noise,
}

impl Verdict {
    /// In a table.
    pub(crate) const fn show(self) -> &'static str {
        match self {
            Self::More => "more",
            Self::Less => "less",
            Self::Noise => "within the noise",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn near(value: f64, want: f64) -> bool {
        (value - want).abs() < 1e-3
    }

    #[test]
    fn medians_and_ranges() {
        assert_eq!(Spread::of([4.0, 1.0].into_iter()).show(1), "2.5 (1.0–4.0)");
        assert_eq!(Spread::of([2.0, 1.0, 3.0].into_iter()).show(2), "2.00 (1.00–3.00)");
        assert!(Spread::of([].into_iter()).median.is_nan());
    }

    #[test]
    fn the_interval_is_that_of_students_t_over_logarithms() {
        // Logarithms 0.1 to 0.5: mean 0.3, deviation 0.158114, t(4) 2.776: 0.3 ± 0.196293.
        let logs = [0.3, 0.1, 0.5, 0.2, 0.4_f64];
        let ratio = Ratio::of(logs.iter().map(|log| log.exp()));
        assert!(near(ratio.low.ln(), 0.103_707) && near(ratio.high.ln(), 0.496_293), "{ratio:?}");
        // Two pairs: t(1) 12.706, deviation of 0 and 1 0.707107: 0.5 ± 6.353.
        let two = Ratio::of([1.0, core::f64::consts::E].into_iter());
        assert!(near(two.low.ln(), -5.853) && near(two.high.ln(), 6.853), "{two:?}");
        // The same in the other direction.
        let back = Ratio::of(logs.iter().map(|log| (-log).exp()));
        assert!(near(back.low * ratio.high, 1.0) && near(back.high * ratio.low, 1.0));
        let one = Ratio::of([1.3].into_iter());
        assert_eq!((one.low, one.high), (0.0, f64::INFINITY));
        assert_eq!(one.show(), "1.30 (1.30–1.30) [0.00, > 100]");
        assert_eq!(Ratio::of([2.0; 5].into_iter()).show(), "2.00 (2.00–2.00) [2.00, 2.00]");
    }

    #[test]
    fn it_covers_the_truth_as_often_as_it_says() {
        // Normal logarithms around 0.2 from a fixed seed, five pairs each.
        let mut random = forebay_bench::random::Random::new(11);
        let mut normal = || -> f64 { (0..12).map(|_| random.unit()).sum::<f64>() - 6.0 };
        let covered = (0..4000)
            .filter(|_| {
                let pairs: Vec<f64> = (0..5).map(|_| (0.2 + 0.1 * normal()).exp()).collect();
                let ratio = Ratio::of(pairs.into_iter());
                (ratio.low.ln()..ratio.high.ln()).contains(&0.2)
            })
            .count();
        assert!((3740..3860).contains(&covered), "{covered} of 4000");
    }

    #[test]
    fn nothing_is_claimed_within_the_noise() {
        let noise = Ratio::of([0.9, 1.0, 1.1, 1.0, 0.95].into_iter());
        let verdict = |ratios: [f64; 5]| Ratio::of(ratios.into_iter()).verdict(noise);
        assert_eq!(verdict([1.5, 1.6, 1.4, 1.5, 1.55]), Verdict::More);
        assert_eq!(verdict([0.5, 0.6, 0.4, 0.5, 0.55]), Verdict::Less);
        assert_eq!(verdict([0.5, 2.0, 1.6, 1.1, 1.3]), Verdict::Noise, "the interval holds 1");
        assert_eq!(verdict([1.05, 1.06, 1.05, 1.06, 1.05]), Verdict::Noise, "so does A/A");
    }
}
