//! The chaos driver: kill -9 at random moments, start again, go on.

use super::{Node, Rng};
use std::time::{Duration, Instant};

/// What the kills did.
#[derive(Debug, Default)]
pub struct Kills {
    pub kills: u64,
    /// Longest time from start to ready.
    pub slowest_start: Duration,
}

/// Kills the node `kills` times after a random stretch of work (from `work.0` to `work.1`), and starts it again each
/// time; some kills come while it is still starting. `stop` is asked before each kill: true ends it early.
pub fn kill_often(
    node: &mut Node,
    rng: &mut Rng,
    kills: u64,
    work: (Duration, Duration),
    mut stop: impl FnMut() -> bool,
) -> Kills {
    let mut told = Kills::default();
    while told.kills < kills && !stop() {
        let span = rng.range(work.0.as_micros() as u64, work.1.as_micros() as u64);
        std::thread::sleep(Duration::from_micros(span));
        node.kill9();
        told.kills += 1;
        if rng.chance(0.1) {
            node.spawn();
            std::thread::sleep(Duration::from_millis(rng.range(0, 60)));
            node.kill9();
            told.kills += 1;
        }
        let begin = Instant::now();
        node.start();
        told.slowest_start = told.slowest_start.max(begin.elapsed());
    }
    println!("chaos: {} kills, slowest start {:?}", told.kills, told.slowest_start);
    told
}
