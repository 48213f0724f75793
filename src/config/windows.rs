//! The sections `[[windows]]`.

use std::collections::BTreeSet;
use std::sync::Arc;

use headwater_dataflows::windows::EmitPolicy;

use super::is_name;
use super::spaces::Spaces;
use crate::pipeline::{WindowKind, WindowPlan};
use crate::settings::{Diagnostics, Section};

/// Reads the sections.
pub(super) fn read(
    sections: Vec<Section<'_>>,
    epoch_ms: u64,
    spaces: &Spaces,
    diagnostics: &mut Diagnostics,
) -> Vec<WindowPlan> {
    let mut names = BTreeSet::new();
    let read = |section| read_window(section, epoch_ms, spaces, &mut names, diagnostics);
    sections.into_iter().filter_map(read).collect()
}

fn read_window(
    mut section: Section<'_>,
    epoch_ms: u64,
    spaces: &Spaces,
    names: &mut BTreeSet<String>,
    diagnostics: &mut Diagnostics,
) -> Option<WindowPlan> {
    #[derive(Clone, Copy)]
    enum Kind {
        Tumbling,
        Sliding,
        Session,
    }
    let name = section.text("name", diagnostics);
    if let Some(name) = &name {
        if !is_name(name, "_") {
            section.report_error("name", "expected at most 63 lower-case letters, digits and _", diagnostics);
        }
        if !names.insert(name.clone()) {
            section.report_error("name", format!("two windows have the name {name}"), diagnostics);
        }
    }
    let kinds = [("tumbling", Kind::Tumbling), ("sliding", Kind::Sliding), ("session", Kind::Session)];
    let by = spaces.by(&mut section, diagnostics);
    let kind = section.choice("kind", &kinds, diagnostics);
    let mut required_duration = |section: &mut Section<'_>, key: &str| {
        let value = section.duration(key, 1, diagnostics);
        if value.is_none() {
            section.report_error(key, "this kind of window needs this key", diagnostics);
        }
        value
    };
    let kind = match kind {
        None => None,
        Some(Kind::Tumbling) => {
            required_duration(&mut section, "size").map(|size_ms| WindowKind::Tumbling { size_ms })
        }
        Some(Kind::Session) => {
            required_duration(&mut section, "gap").map(|gap_ms| WindowKind::Session { gap_ms })
        }
        Some(Kind::Sliding) => {
            match (required_duration(&mut section, "size"), required_duration(&mut section, "slide")) {
                (Some(size_ms), Some(slide_ms)) => {
                    check_overlap(&section, size_ms, slide_ms, diagnostics);
                    Some(WindowKind::Sliding { size_ms, slide_ms })
                }
                _ => None,
            }
        }
    };
    let early = section.choice("emit", &[("final", false), ("early", true)], diagnostics);
    let revise_every = section.duration("revise_every", 1, diagnostics);
    section.end(diagnostics);
    let emit = match early? {
        false => EmitPolicy::Final,
        true => EmitPolicy::Early { epochs: (revise_every? as u64).div_ceil(epoch_ms) },
    };
    Some(WindowPlan { name: Arc::from(name?), kind: kind?, by: by?, emit })
}

/// Checks the number of sliding windows that each event is in: `size_ms / slide_ms`. Each window has its own state.
fn check_overlap(section: &Section<'_>, size_ms: i64, slide_ms: i64, diagnostics: &mut Diagnostics) {
    const MAX_OVERLAP: i64 = 100_000;
    const WARN_OVERLAP: i64 = 10_000;
    if size_ms % slide_ms != 0 {
        section.report_error("slide", "`size` must be a multiple of `slide`", diagnostics);
    }
    let overlap = size_ms / slide_ms;
    let cost = format!(
        "each event is in {overlap} windows of its key, about {} of memory per key",
        megabytes(overlap.saturating_mul(BYTES_PER_WINDOW))
    );
    if overlap > MAX_OVERLAP {
        let message =
            format!("{cost}; the most is {MAX_OVERLAP}: choose a larger `slide` or a smaller `size`");
        section.report_error("slide", message, diagnostics);
    } else if overlap > WARN_OVERLAP {
        section.warn("slide", format!("{cost}; a larger `slide` needs less memory"), diagnostics);
    }
}

/// The measured memory of an open window with one event, including the entry that removes the event again.
const BYTES_PER_WINDOW: i64 = 800;

fn megabytes(bytes: i64) -> String {
    format!("{} MB", bytes / 1_000_000 + 1)
}
