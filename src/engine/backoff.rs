//! How long to wait before the next attempt. Pure; the random number is the caller's.

use crate::channel::Retry;
use std::time::Duration;

/// The wait after the `attempt`-th failed attempt (1 for the first): exponential, with jitter between half and the whole
/// of each step. `random` is uniform in 0..1.
pub fn wait(retry: &Retry, attempt: u32, random: f64) -> Duration {
    let exponent = attempt.saturating_sub(1).min(64);
    let factor = retry.factor.max(1.0);
    let step = (retry.first.as_secs_f64() * factor.powi(exponent as i32)).min(retry.max.as_secs_f64());
    Duration::from_secs_f64(step * (0.5 + random.clamp(0.0, 1.0) / 2.0))
}

/// Whether a message of this age is given up (parked) instead of tried again.
pub fn given_up(retry: &Retry, age_ms: i64) -> bool {
    retry.give_up.is_some_and(|limit| age_ms >= 0 && age_ms as u128 >= limit.as_millis())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grows_to_its_limit_and_jitters_down_to_half() {
        let retry = Retry {
            first: Duration::from_millis(100),
            max: Duration::from_secs(1),
            factor: 2.0,
            give_up: Some(Duration::from_secs(60)),
        };
        let whole: Vec<u128> = (1..=6).map(|n| wait(&retry, n, 1.0).as_millis()).collect();
        assert_eq!(whole, [100, 200, 400, 800, 1000, 1000]);
        assert_eq!(wait(&retry, 3, 0.0).as_millis(), 200);
        assert_eq!(wait(&retry, u32::MAX, 1.0).as_millis(), 1000);
        assert!(!given_up(&retry, 59_999) && given_up(&retry, 60_000));
        assert!(!given_up(&retry, -5));
    }
}
