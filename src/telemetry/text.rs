//! From OpenMetrics text, which the metrics library writes, to the Prometheus text format 0.0.4, which every scraper
//! and `promtool check metrics` read: a counter's HELP and TYPE carry the name of its samples, no UNIT, no EOF.
//! <https://prometheus.io/docs/instrumenting/exposition_formats/>

/// Rewrites one whole exposition.
pub(super) fn classic(open: &str) -> String {
    let mut out = String::with_capacity(open.len());
    let mut help: Option<&str> = None;
    for line in open.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            help = Some(rest);
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap_or((rest, "untyped"));
            let suffix = if kind == "counter" { "_total" } else { "" };
            let kind = if kind == "unknown" { "untyped" } else { kind };
            if let Some((_, text)) = help.take().and_then(|h| h.split_once(' ')) {
                out.extend(["# HELP ", name, suffix, " ", text, "\n"]);
            }
            out.extend(["# TYPE ", name, suffix, " ", kind, "\n"]);
        } else if !line.starts_with("# ") {
            out.extend([line, "\n"]);
        }
    }
    out
}
