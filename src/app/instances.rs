//! Accepting instances: threads with their own runtimes that share the ports. One that panics is started again on the
//! same descriptors, so that nothing waiting in an accept queue is lost.

use crate::{
    engine::ports::Intake,
    gateway::inbound::{folder, http, mllp},
    telemetry::app as events,
};
use std::{
    net::TcpListener,
    panic::AssertUnwindSafe,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    thread::JoinHandle,
    time::Duration,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// One port to serve.
#[derive(Clone)]
pub(super) enum Port {
    Http(Arc<http::HttpServer>),
    Mllp(Arc<mllp::MllpServer>),
}

/// A port with this instance's descriptors of it: called anew after a panic.
pub(super) type Open = Arc<dyn Fn(usize) -> std::io::Result<Vec<(Port, TcpListener)>> + Send + Sync>;

/// What every instance needs.
#[derive(Clone)]
pub(super) struct Shared {
    pub intake: Arc<dyn Intake>,
    pub open: Open,
    /// Run by the first instance only.
    pub folders: Vec<crate::config::WatchedFolder>,
    pub drain: CancellationToken,
    pub drain_timeout: Duration,
}

/// The running instances.
pub(super) struct Instances {
    threads: Vec<JoinHandle<()>>,
    beats: Vec<Arc<AtomicU64>>,
    open: OpenConnections,
    doors: Doors,
}

/// The accept loops of all instances.
#[derive(Clone, Default)]
pub(super) struct Doors(TaskTracker);

impl Doors {
    /// Resolves when none accepts any more.
    pub async fn closed(self) {
        self.0.close();
        self.0.wait().await;
    }
}

/// The connections of all instances.
#[derive(Clone, Default)]
pub(super) struct OpenConnections(Vec<TaskTracker>);

impl OpenConnections {
    /// Open now.
    pub fn count(&self) -> usize {
        self.0.iter().map(TaskTracker::len).sum()
    }
}

impl Instances {
    /// Starts `count` instances.
    pub fn spawn(count: usize, shared: &Shared) -> std::io::Result<Self> {
        let mut threads = Vec::new();
        let mut beats = Vec::new();
        let mut open = OpenConnections::default();
        let doors = Doors::default();
        for number in 0..count {
            let beat = Arc::new(AtomicU64::new(0));
            beats.push(beat.clone());
            let tasks = TaskTracker::new();
            open.0.push(tasks.clone());
            let (shared, doors) = (shared.clone(), doors.clone());
            let name = format!("hie-accept-{number}");
            let work = move || keep_running(number, &shared, &beat, &tasks, &doors);
            threads.push(std::thread::Builder::new().name(name).spawn(work)?);
        }
        Ok(Self { threads, beats, open, doors })
    }

    /// Each instance's count of seconds lived; one that stands still hangs.
    pub fn beats(&self) -> Vec<u64> {
        self.beats.iter().map(|b| b.load(Relaxed)).collect()
    }

    /// What counts their connections.
    pub fn connections(&self) -> OpenConnections {
        self.open.clone()
    }

    /// What tells when they accept no more.
    pub fn doors(&self) -> Doors {
        self.doors.clone()
    }

    /// Waits for all of them; they end after `drain`.
    pub fn join(self) {
        for thread in self.threads {
            // A panic was reported where it was caught.
            let _ = thread.join();
        }
    }
}

/// What is said of a panic; its place is in the line that the hook wrote.
const PANICKED: &str = "panicked; the place is in the log";

fn keep_running(number: usize, shared: &Shared, beat: &AtomicU64, tasks: &TaskTracker, doors: &Doors) {
    while !shared.drain.is_cancelled() {
        let lived = std::panic::catch_unwind(AssertUnwindSafe(|| live(number, shared, beat, tasks, doors)));
        let error = match lived {
            Ok(Ok(())) => return,
            Ok(Err(error)) => error.to_string(),
            Err(_) => PANICKED.to_owned(),
        };
        events::InstanceRestarts { number, error: &error }.emit();
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn live(number: usize, shared: &Shared, beat: &AtomicU64, tasks: &TaskTracker, Doors(doors): &Doors) -> std::io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let ports = (shared.open)(number)?;
    runtime.block_on(async {
        let mut servers = tokio::task::JoinSet::new();
        for (port, listener) in ports {
            listener.set_nonblocking(true)?;
            let listener = tokio::net::TcpListener::from_std(listener)?;
            let (intake, drain, tasks) = (shared.intake.clone(), shared.drain.clone(), tasks.clone());
            match port {
                Port::Http(server) => servers.spawn(doors.track_future(http::serve(listener, server, intake, drain, tasks))),
                Port::Mllp(server) => servers.spawn(doors.track_future(mllp::serve(listener, server, intake, drain, tasks))),
            };
        }
        if number == 0 {
            for config in &shared.folders {
                servers.spawn(folder::watch(config.clone(), shared.intake.clone(), shared.drain.clone()));
            }
        }
        #[cfg(feature = "break-panic")]
        servers.spawn(crate::engine::broken::listener());
        let mut seconds = tokio::time::interval(Duration::from_secs(1));
        loop {
            tokio::select! {
                _ = seconds.tick() => {
                    beat.fetch_add(1, Relaxed);
                    #[cfg(feature = "break-panic")]
                    crate::engine::broken::instance();
                }
                ended = servers.join_next(), if !servers.is_empty() => {
                    if !shared.drain.is_cancelled() {
                        // Without the error's own text: it repeats what the panic said.
                        let panicked = matches!(&ended, Some(Err(e)) if e.is_panic());
                        let why = if panicked { PANICKED } else { "a listener ended" };
                        return Err(std::io::Error::other(why));
                    }
                }
                () = shared.drain.cancelled() => break,
            }
        }
        tasks.close();
        let done = async {
            while servers.join_next().await.is_some() {}
            tasks.wait().await;
        };
        if tokio::time::timeout(shared.drain_timeout, done).await.is_err() {
            events::DrainForced { number, connections: tasks.len() }.emit();
        }
        Ok(())
    })
}
