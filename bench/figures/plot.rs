//! Plots as SVG: latency against percentiles, and ratios with their intervals.

use core::fmt::Write as _;

/// Colours that are told apart in print and by the colour-blind (Okabe and Ito).
const COLOURS: [&str; 7] =
    ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"];
const WIDTH: f64 = 760.0;
const LEFT: f64 = 84.0;
const RIGHT: f64 = 740.0;
const TOP: f64 = 40.0;
/// Pixels of a line of the legend.
const LINE: f64 = 18.0;

/// A named distribution of latencies: quantiles, and microseconds.
#[derive(Clone, Debug)]
pub(crate) struct Curve {
    pub(crate) name: String,
    pub(crate) points: Vec<(f64, f64)>,
}

/// A named ratio with its interval.
#[derive(Clone, Debug)]
pub(crate) struct Bar {
    pub(crate) name: String,
    pub(crate) low: f64,
    pub(crate) value: f64,
    pub(crate) high: f64,
}

/// Latency against percentile: nines from left to right, microseconds upwards by powers of ten.
pub(crate) fn latency(title: &str, curves: &[Curve]) -> String {
    let nines = |quantile: f64| -(1.0 - quantile).max(1e-6).log10();
    let all = || curves.iter().flat_map(|curve| curve.points.iter().copied());
    let least = all().map(|(_, us)| us).fold(f64::INFINITY, f64::min).clamp(0.1, 1e9);
    let most = all().map(|(_, us)| us).fold(least, f64::max);
    let (bottom, top) =
        (least.log10().floor(), most.log10().ceil().max(least.log10().floor() + 1.0));
    let right = all().map(|(quantile, _)| nines(quantile)).fold(1.0, f64::max);
    let height = 330.0;
    let x = |quantile: f64| LEFT + (RIGHT - LEFT) * nines(quantile) / right;
    let y = |us: f64| height - (height - TOP) * (us.max(0.1).log10() - bottom) / (top - bottom);
    let mut svg = Svg::new(title, height + 50.0 + LINE * rows(curves.len()));
    for (quantile, name) in [
        (0.0, "0"),
        (0.5, "50"),
        (0.9, "90"),
        (0.99, "99"),
        (0.999, "99.9"),
        (0.9999, "99.99"),
        (0.99999, "99.999"),
    ] {
        if nines(quantile) <= right + 1e-9 {
            svg.line((x(quantile), TOP), (x(quantile), height), "#ddd");
            svg.text((x(quantile), height + 16.0), "middle", name);
        }
    }
    svg.text((RIGHT, height + 32.0), "end", "percentile");
    let mut decade = bottom;
    while decade <= top {
        let at = y(10f64.powf(decade));
        svg.line((LEFT, at), (RIGHT, at), "#ddd");
        svg.text((LEFT - 6.0, at + 4.0), "end", &format!("{} µs", 10f64.powf(decade)));
        decade += 1.0;
    }
    for (number, curve) in curves.iter().enumerate() {
        let colour = COLOURS[number % COLOURS.len()];
        let points = curve.points.iter().map(|(quantile, us)| (x(*quantile), y(*us)));
        svg.polyline(points, colour);
        svg.legend(number, height + 50.0, colour, &curve.name);
    }
    svg.end()
}

/// Ratios with intervals, one row each, and a line at 1.
pub(crate) fn ratios(title: &str, bars: &[Bar]) -> String {
    let finite = |value: f64| value.is_finite() && value > 0.0;
    let all = || bars.iter().flat_map(|bar| [bar.low, bar.value, bar.high]).filter(|v| finite(*v));
    let reach = all().map(|value| value.ln().abs()).fold(0.2, f64::max) * 1.1;
    let left = 330.0;
    let middle = f64::midpoint(left, RIGHT);
    let x = |value: f64| middle + (RIGHT - middle) * (value.ln() / reach).clamp(-1.0, 1.0);
    let bottom = TOP + 26.0 * rows(bars.len()) * 2.0;
    let mut svg = Svg::new(title, bottom + 30.0);
    for tick in [0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0_f64] {
        if tick.ln().abs() <= reach {
            svg.line((x(tick), TOP), (x(tick), bottom), if tick == 1.0 { "#666" } else { "#ddd" });
            svg.text((x(tick), bottom + 16.0), "middle", &format!("{tick}"));
        }
    }
    let mut at = TOP + 14.0;
    for bar in bars {
        svg.text((left - 10.0, at + 4.0), "end", &bar.name);
        svg.line((x(bar.low.max(1e-9)), at), (x(bar.high), at), COLOURS[0]);
        svg.dot((x(bar.value), at), COLOURS[0]);
        at += 26.0;
    }
    svg.end()
}

/// Rows of a legend of two columns.
#[expect(clippy::cast_precision_loss, reason = "a handful")]
fn rows(count: usize) -> f64 {
    count as f64 / 2.0 + 0.5
}

/// A name that a file can have.
pub(crate) fn slug(name: &str) -> String {
    let mut slug = String::new();
    for part in name.split(|c: char| !c.is_ascii_alphanumeric()).filter(|part| !part.is_empty()) {
        if !slug.is_empty() {
            slug.push('-');
        }
        slug.push_str(&part.to_ascii_lowercase());
    }
    slug
}

/// SVG under way.
struct Svg(String);

impl Svg {
    fn new(title: &str, height: f64) -> Self {
        let mut svg = Self(format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height:.0}\" \
             viewBox=\"0 0 {WIDTH} {height:.0}\" font-family=\"sans-serif\" font-size=\"12\">\n\
             <rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n"
        ));
        svg.text((WIDTH / 2.0, 22.0), "middle", title);
        svg
    }

    fn line(&mut self, (x1, y1): (f64, f64), (x2, y2): (f64, f64), colour: &str) {
        let _infallible = writeln!(
            self.0,
            "<line x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\" stroke=\"{colour}\"/>"
        );
    }

    fn polyline(&mut self, points: impl Iterator<Item = (f64, f64)>, colour: &str) {
        let points: Vec<String> = points.map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
        let _infallible = writeln!(
            self.0,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.8\"/>",
            points.join(" ")
        );
    }

    fn dot(&mut self, (x, y): (f64, f64), colour: &str) {
        let _infallible =
            writeln!(self.0, "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"4\" fill=\"{colour}\"/>");
    }

    fn text(&mut self, (x, y): (f64, f64), anchor: &str, text: &str) {
        let text = text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
        let _infallible = writeln!(
            self.0,
            "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{text}</text>"
        );
    }

    fn legend(&mut self, number: usize, top: f64, colour: &str, name: &str) {
        #[expect(clippy::cast_precision_loss, reason = "a handful")]
        let (x, y) = (LEFT + (number % 2) as f64 * 340.0, top + (number / 2) as f64 * LINE);
        self.line((x, y - 4.0), (x + 24.0, y - 4.0), colour);
        self.text((x + 30.0, y), "start", name);
    }

    fn end(mut self) -> String {
        self.0.push_str("</svg>\n");
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attributes(svg: &str, name: &str) -> Vec<f64> {
        let key = format!(" {name}=\"");
        svg.split(&key).skip(1).filter_map(|rest| rest.split('"').next()?.parse().ok()).collect()
    }

    #[test]
    fn a_latency_plot_rises_with_the_percentile_and_names_its_curves() {
        let points = vec![(0.0, 10.0), (0.9, 20.0), (0.99, 100.0), (0.999, 1000.0)];
        let curves = [
            Curve { name: "a < b & c".to_owned(), points: points.clone() },
            Curve { name: "flat".to_owned(), points: vec![(0.0, 10.0), (0.999, 10.0)] },
        ];
        let svg = latency("latency", &curves);
        assert!(
            svg.contains("a &lt; b &amp; c") && svg.contains(">99.9<") && svg.contains(">1000 µs<")
        );
        assert!(!svg.contains(">99.99<"), "no axis beyond the data");
        let drawn = svg.split("points=\"").nth(1).and_then(|rest| rest.split('"').next()).unwrap();
        let drawn: Vec<(f64, f64)> = drawn
            .split(' ')
            .map(|point| point.split_once(',').unwrap())
            .map(|(x, y)| (x.parse().unwrap(), y.parse().unwrap()))
            .collect();
        assert_eq!(drawn.len(), points.len());
        assert!(
            drawn.windows(2).all(|two| two[0].0 < two[1].0 && two[0].1 > two[1].1),
            "{drawn:?}"
        );
        assert_eq!(drawn[3], (RIGHT, TOP), "the highest is at the corner");
        assert_eq!(svg, latency("latency", &curves));
    }

    #[test]
    fn intervals_lie_around_their_ratios_and_stay_in_the_picture() {
        let bar = |low, value, high| Bar { name: "x".to_owned(), low, value, high };
        let svg = ratios("ratios", &[bar(1.2, 1.5, 1.9), bar(0.0, 0.8, f64::INFINITY)]);
        let (left, right, dots) =
            (attributes(&svg, "x1"), attributes(&svg, "x2"), attributes(&svg, "cx"));
        let one = left.iter().zip(&right).find(|(a, b)| a == b).map(|(a, _)| *a);
        let wide: Vec<_> = left.iter().zip(&right).filter(|(a, b)| a != b).collect();
        assert_eq!((wide.len(), dots.len()), (2, 2));
        assert!(*wide[0].0 < dots[0] && dots[0] < *wide[0].1);
        assert!(one.is_some() && dots[1] < dots[0]);
        assert!(left.iter().chain(&right).all(|x| (0.0..=WIDTH).contains(x)), "{svg}");
        assert_eq!(slug("randread QD128, 4 KiB"), "randread-qd128-4-kib");
    }
}
