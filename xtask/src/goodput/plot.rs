//! Every run as a dot and the medians as strokes, over the losses. The scale is logarithmic: a ratio is
//! as high in a slow cell as in a fast one.

use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::{Cell, Contender};

const SIZE: (u32, u32) = (760, 440);
const FONT: (&str, u32) = ("sans-serif", 14);
const TITLE_FONT: (&str, u32) = ("sans-serif", 17);
const COLOURS: [RGBColor; 2] = [RGBColor(0x44, 0x44, 0x44), RGBColor(0xd9, 0x5f, 0x02)];
/// Of the width of a cell: from its middle to a contender's column, and half a column.
const COLUMN_AT: f64 = 0.17;
const COLUMN_HALF: f64 = 0.12;

/// The plot as SVG.
pub(super) fn draw(cells: &[Cell], link: &str) -> Result<String, String> {
    let mut svg = String::new();
    drawn(&mut svg, cells, link).map_err(|error| format!("cannot draw the plot: {error}"))?;
    Ok(svg)
}

fn drawn(svg: &mut String, cells: &[Cell], link: &str) -> Result<(), Box<dyn std::error::Error>> {
    let runs = || cells.iter().flat_map(|cell| cell.runs.iter().flatten());
    let least = runs().fold(f64::INFINITY, |least, run| least.min(*run));
    let most = runs().fold(0.0, |most: f64, run| most.max(*run));
    // Whole decades.
    let bottom = 10_f64.powf(least.log10().floor());
    let top = 10_f64.powf(most.log10().floor() + 1.0);
    let root = SVGBackend::with_string(svg, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&root)
        .caption(format!("Goodput of one download: {link}"), TITLE_FONT)
        .margin(12)
        .x_label_area_size(44)
        .y_label_area_size(56)
        .build_cartesian_2d(0.0..cells.len() as f64, (bottom..top).log_scale())?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .x_labels(0)
        .light_line_style(TRANSPARENT)
        .y_desc("Mbit/s")
        .axis_desc_style(FONT)
        .label_style(FONT)
        .draw()?;

    let below = TextStyle::from(FONT.into_font()).pos(Pos::new(HPos::Center, VPos::Top));
    for (i, cell) in cells.iter().enumerate() {
        let middle = i as f64 + 0.5;
        let (x, y) = chart.backend_coord(&(middle, bottom));
        let label = format!("loss {} %, ratio {:.2}", cell.loss_percent, cell.ratio());
        root.draw(&Text::new(label, (x, y + 8), below.clone()))?;
        for (contender, side) in Contender::ALL.into_iter().zip([-1.0, 1.0]) {
            let at = middle + side * COLUMN_AT;
            let colour = COLOURS[contender as usize];
            let median = cell.median(contender);
            chart.draw_series([PathElement::new(
                [(at - COLUMN_HALF, median), (at + COLUMN_HALF, median)],
                colour.stroke_width(2),
            )])?;
            let runs = &cell.runs[contender as usize];
            let least = runs.iter().copied().fold(f64::INFINITY, f64::min);
            let (x, y) = chart.backend_coord(&(at, least));
            let number = Text::new(format!("{median:.2}"), (x, y + 6), below.clone());
            root.draw(&number)?;
            let step = 2.0 * COLUMN_HALF / (runs.len() + 1) as f64;
            chart.draw_series(runs.iter().enumerate().map(|(run, rate)| {
                let x = at - COLUMN_HALF + step * (run + 1) as f64;
                Circle::new((x, *rate), 3, colour.mix(0.6).filled())
            }))?;
        }
    }
    for contender in Contender::ALL {
        let colour = COLOURS[contender as usize].mix(0.6).filled();
        let (x, y) = (SIZE.0 as i32 - 100, 50 + 20 * contender as i32);
        root.draw(&Rectangle::new([(x, y), (x + 12, y + 12)], colour))?;
        root.draw(&Text::new(
            contender.name(),
            (x + 18, y),
            TextStyle::from(FONT.into_font()),
        ))?;
    }
    root.present()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_run_is_a_dot() {
        let cell = |loss_percent, rate: f64| Cell {
            loss_percent,
            runs: [vec![rate; 5], vec![rate / 2.0; 5]],
            doubts: Vec::new(),
        };
        let svg = draw(&[cell(0.0, 90.0), cell(3.0, 3.0)], "a link").unwrap();
        assert_eq!(svg.matches("<circle").count(), 20);
        assert!(svg.contains("loss 3 %, ratio 0.50"), "{svg}");
    }
}
