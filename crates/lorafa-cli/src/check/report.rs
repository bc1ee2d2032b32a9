//! What was compared, as text.

use super::compare::{AGREE, Verdict};
use super::{Checked, Figures};
use crate::units::count;
use comfy_table::{Cell, CellAlignment, ContentArrangement, Table, presets};

/// The gradients that are wrong one by one, the others counted.
pub fn text(figures: &Figures) -> String {
    let dtype = figures.dtype.as_deref().unwrap_or("no floats");
    let mut text = format!(
        "{} · {dtype}, computed in f64 · {} gradients · loss {:.6}\n",
        figures.model,
        count(figures.gradients.len() as u64),
        figures.loss
    );
    let wrong: Vec<&Checked> = figures.gradients.iter().filter(|g| !g.right()).collect();
    if !wrong.is_empty() {
        text.push_str(&format!("\n{}\n\n", table(&wrong)));
    }
    let agree = || figures.gradients.iter().filter(|g| g.apart.agree());
    let judged = |verdict| agree().filter(|g| g.verdict == verdict).count() as u64;
    text.push_str(&format!(
        "{} of {} gradients agree with ours within {AGREE:.0e} and with finite differences\n",
        count(judged(Verdict::Both)),
        count(figures.gradients.len() as u64)
    ));
    let unclear = judged(Verdict::Unclear);
    if unclear > 0 {
        text.push_str(&format!(
            "{} agree with ours, and are too small, or the loss too uneven, for finite differences\n",
            count(unclear)
        ));
    }
    let zero = agree().filter(|g| g.apart.zero).count() as u64;
    if zero > 0 {
        text.push_str(&format!(
            "{} of them are zero, as any multiple would be: other values (--weights, --adapter) say more\n",
            count(zero)
        ));
    }
    text
}

fn table(wrong: &[&Checked]) -> String {
    let mut table = Table::new();
    // The width of the terminal must not show in the output.
    let preset = table.load_preset(presets::NOTHING);
    preset.set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(["gradient of", "difference", "of ours", "finite differences"]);
    for gradient in wrong {
        let apart = &gradient.apart;
        let factor = match apart.factor {
            Some(factor) if apart.rest <= AGREE => format!("{factor:.4}×"),
            Some(factor) => format!("{factor:.4}× and more"),
            None => "0, theirs not".to_owned(),
        };
        let verdict = match gradient.verdict {
            Verdict::Both | Verdict::Unclear => "do not tell",
            Verdict::Given => "agree with the graph's",
            Verdict::Ours => "agree with ours",
            Verdict::Neither => "agree with neither",
        };
        let difference = format!("{:.1e}", apart.difference);
        table.add_row([
            Cell::new(&gradient.parameter),
            Cell::new(difference).set_alignment(CellAlignment::Right),
            Cell::new(factor).set_alignment(CellAlignment::Right),
            Cell::new(verdict),
        ]);
    }
    table.trim_fmt()
}
