//! The progress bar: only on a terminal, drawn from the counts, never by the senders themselves.

use super::Shared;
use indicatif::{ProgressBar, ProgressStyle};
use std::{
    io::IsTerminal,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

const REDRAW: Duration = Duration::from_millis(100);

/// Removes the bar when dropped.
pub(super) struct Shown(Option<(ProgressBar, tokio::task::AbortHandle)>);

pub(super) fn show(shared: Arc<Shared>) -> Shown {
    if !shared.options.progress || !std::io::stderr().is_terminal() {
        return Shown(None);
    }
    let bar = ProgressBar::new(shared.total);
    if let Ok(style) = ProgressStyle::with_template("{bar:40} {pos}/{len} {per_sec} {eta}") {
        bar.set_style(style);
    }
    let drawn = bar.clone();
    let task = tokio::spawn(async move {
        loop {
            drawn.set_position(shared.done.load(Relaxed));
            tokio::time::sleep(REDRAW).await;
        }
    });
    Shown(Some((bar, task.abort_handle())))
}

impl Drop for Shown {
    fn drop(&mut self) {
        if let Some((bar, task)) = &self.0 {
            task.abort();
            bar.finish_and_clear();
        }
    }
}
