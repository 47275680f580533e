//! Queues of routes in memory: lanes in order per key, the tasks that work them off, what is set aside. Both transports work with
//! them; they differ in where a message comes from and what its end means.

pub mod hot;
pub mod lanes;
pub mod progress;
pub mod route;
pub mod set;
pub mod state;
pub mod words;

use progress::Progress;
use route::RouteQueue;
use std::sync::Arc;

/// Who gave the messages to the queues. Called without any lock held, on the delivery runtime.
pub trait Owner: Send + Sync {
    /// This route is done with the message: delivered.
    fn done(&self, queue: &RouteQueue, progress: &Arc<Progress>);
    /// This route has set the message aside.
    fn parked(&self, queue: &RouteQueue, progress: &Arc<Progress>);
}
