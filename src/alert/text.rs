//! Sentences for people.

use super::Rule;
use std::time::Duration;

/// What to do next, for each rule.
pub(super) fn advice(rule: Rule) -> &'static str {
    match rule {
        Rule::RouteFailing => {
            "See `hie route list` for the last error and repair the receiver; what waits is delivered in order then."
        }
        Rule::QueueAge => {
            "See `hie route list`: repair the receiver, resume the route if it is paused, or discard what waits in vain."
        }
        Rule::Parked => {
            "`hie tx list --status Parked` shows them; mend the cause, then `hie tx rerun --parked` or `hie tx discard`."
        }
        Rule::ChannelSilent => {
            "Ask the sender whether it is up; if so look at the listener, the network and `hie_inbound_connections_cut_total`."
        }
        Rule::ClientSilent => "Ask the client whether it is up; if so look at its credentials, its address and the network.",
        Rule::Feed => "Raise `feed.max_connections`, or find who opens so many; `hie plan` says when the machine is too small.",
        Rule::Memory => "See what uses it; give the node more memory, or lower `limits` and the preset.",
        Rule::Cpu => "See `hie plan --from` for the next tier; look for a sender or a search that is the cause.",
        Rule::Disk => "Free space, enlarge the disk, or lower `ledger.retention` and `ledger.max_size` before accepting stops.",
        Rule::Ledger => "Raise `ledger.max_size`, or lower `ledger.retention` to what fits: the oldest transactions go early.",
        Rule::Certificate => "Renew it, put the new files in place and restart the node.",
        Rule::NotReady => "See `hie status` and /health/ready for what is missing: senders are refused.",
        Rule::Problems => "See `problems` in `hie status` and the node's log.",
    }
}

/// A time as an operator writes it, without what nobody reads: `1h 5m`, `40s`.
pub(super) fn span(ms: i64) -> String {
    let seconds = u64::try_from(ms / 1000).unwrap_or(0);
    let shown = match seconds {
        0..3600 => seconds,
        3600..86_400 => seconds / 60 * 60,
        _ => seconds / 3600 * 3600,
    };
    humantime::format_duration(Duration::from_secs(shown)).to_string()
}

/// `1 message`, `2 messages`.
pub(super) fn count(n: u64, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}
