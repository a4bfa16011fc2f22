//! A line chart as SVG text: categories along x, values from zero up.

use std::fmt::Write;

/// One line of a chart.
pub(crate) struct Line<'a> {
    pub(crate) name: &'a str,
    pub(crate) values: Vec<f64>,
}

const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 360.0;
const LEFT: f64 = 64.0;
const TOP: f64 = 44.0;
const BOTTOM: f64 = 310.0;
const RIGHT: f64 = 490.0;
const COLOURS: [&str; 4] = ["#3b7dd8", "#d8663b", "#3ba35c", "#8a4fc2"];

/// A chart of `lines` over `labels`; every line has a value for each label.
pub(crate) fn chart(title: &str, x_name: &str, labels: &[String], lines: &[Line<'_>]) -> String {
    let most = lines.iter().flat_map(|l| &l.values).copied().fold(1e-9, f64::max);
    let top = nice(most);
    let step = (RIGHT - LEFT) / (labels.len() - 1).max(1) as f64;
    let at = |i: usize, value: f64| (LEFT + step * i as f64, BOTTOM - (BOTTOM - TOP) * value / top);
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{HEIGHT}\" \
         font-family=\"sans-serif\" font-size=\"13\">\n\
         <rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"#fff\"/>\n\
         <text x=\"12\" y=\"24\" font-size=\"15\">{title}</text>\n"
    );
    for part in 0..=4 {
        let value = top * f64::from(part) / 4.0;
        let (_, y) = at(0, value);
        put(&mut out, format!("<path d=\"M{LEFT} {y:.1}H{RIGHT}\" stroke=\"#ddd\"/>"));
        let text = format!("<text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">", LEFT - 8.0, y + 4.0);
        put(&mut out, format!("{text}{value:.0}</text>"));
    }
    for (i, label) in labels.iter().enumerate() {
        let x = at(i, 0.0).0;
        let text = format!("<text x=\"{x:.1}\" y=\"{}\" text-anchor=\"middle\">", BOTTOM + 20.0);
        put(&mut out, format!("{text}{label}</text>"));
    }
    let middle = (LEFT + RIGHT) / 2.0;
    let text = format!("<text x=\"{middle}\" y=\"{}\" text-anchor=\"middle\">", HEIGHT - 10.0);
    put(&mut out, format!("{text}{x_name}</text>"));
    for (number, line) in lines.iter().enumerate() {
        let colour = COLOURS[number % COLOURS.len()];
        let points: Vec<String> = (line.values.iter().enumerate())
            .map(|(i, value)| at(i, *value))
            .map(|(x, y)| format!("{x:.1},{y:.1}"))
            .collect();
        put(
            &mut out,
            format!(
                "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2.5\"/>",
                points.join(" ")
            ),
        );
        for point in &points {
            let (x, y) = point.split_once(',').expect("two numbers");
            put(&mut out, format!("<circle cx=\"{x}\" cy=\"{y}\" r=\"3.5\" fill=\"{colour}\"/>"));
        }
        let y = TOP + 20.0 * number as f64;
        let text = format!("<text x=\"{}\" y=\"{y}\" fill=\"{colour}\">", RIGHT + 12.0);
        put(&mut out, format!("{text}{}</text>", line.name));
    }
    out.push_str("</svg>\n");
    out
}

fn put(out: &mut String, element: String) {
    writeln!(out, "{element}").expect("a string takes what is written");
}

/// The next of 1, 2, 4, 5, 8 times a power of ten.
fn nice(most: f64) -> f64 {
    let unit = 10f64.powf(most.log10().floor());
    let steps = [1.0, 2.0, 4.0, 5.0, 8.0, 10.0];
    unit * steps.into_iter().find(|s| unit * s >= most).unwrap_or(10.0)
}
