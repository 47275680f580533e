//! The deliberately broken build `break-panic`: a body that holds a marker makes the node panic, with the body's own text
//! as the panic's message. `tests/panics.rs` sees what the node tells of it, and that it goes on.

use std::cell::RefCell;
use std::time::{Duration, Instant};

/// The message that asks for a panic is answered first, also on a busy machine.
const AFTER: Duration = Duration::from_millis(700);

/// Where the panic is to happen.
#[derive(Clone, Copy, PartialEq)]
enum Place {
    /// The task of a listener, in the instance that took the message.
    Listener,
    /// That instance's own loop.
    Instance,
}

thread_local! {
    /// An instance is one thread, so what is asked for here happens to the instance that took the message.
    static ASKED: RefCell<Option<(Place, Instant, String)>> = const { RefCell::new(None) };
}

/// `BREAK-TASK` panics here, in the sender's connection, before anything is stored. `BREAK-LISTENER` and `BREAK-INSTANCE`
/// let the message pass; the panic follows about a second later.
pub fn provoke(body: &[u8]) {
    let holds = |marker: &str| body.windows(marker.len()).any(|part| part == marker.as_bytes());
    let text = || String::from_utf8_lossy(body).into_owned();
    if holds("BREAK-TASK") {
        panic!("{}", text());
    } else if holds("BREAK-LISTENER") {
        ASKED.set(Some((Place::Listener, Instant::now(), text())));
    } else if holds("BREAK-INSTANCE") {
        ASKED.set(Some((Place::Instance, Instant::now(), text())));
    }
}

/// Runs beside an instance's listeners; ends in a panic when one was asked for.
pub async fn listener() {
    loop {
        tokio::time::sleep(Duration::from_millis(100)).await;
        panic_at(Place::Listener);
    }
}

/// Called by an instance's own loop.
pub fn instance() {
    panic_at(Place::Instance);
}

fn panic_at(place: Place) {
    let asked = ASKED.with_borrow_mut(|asked| asked.take_if(|(at, since, _)| *at == place && since.elapsed() > AFTER));
    if let Some((_, _, text)) = asked {
        panic!("{text}");
    }
}
