//! Events of the engine. What happens per message is a metric only, through handles that the compiled channel holds
//! (a few nanoseconds each); what an operator has to know is also a log line.

mod channel;
mod events;

pub use channel::{ChannelMetrics, RouteMetrics, Tried, all as channels, arrived, retain, tried};
pub use events::*;

pub(super) fn touch() {
    events::touch();
    channel::touch();
}
