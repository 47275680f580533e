//! Group commit: appenders that wait together share a commit. By itself in its process, for it reads the metrics.

mod ledger_support;

use ledger_support::*;

fn metric(name: &str) -> u64 {
    let text = hie::telemetry::encode();
    let line = text.lines().find(|l| l.starts_with(name)).unwrap_or_else(|| panic!("{name} is not in the metrics"));
    line.rsplit(' ').next().unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn appenders_that_wait_together_share_a_commit() {
    let dir = tempfile::tempdir().unwrap();
    let (ledger, _, _) = start(dir.path(), small());
    let tasks: Vec<_> = (0..128)
        .map(|w| {
            let ledger = ledger.clone();
            tokio::spawn(async move {
                for n in 0..20 {
                    accept(&ledger, &message(w * 100 + n, 500)).await.unwrap();
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    let (records, commits) = (metric("hie_ledger_records_total"), metric("hie_ledger_commits_total"));
    assert_eq!(records, 128 * 20);
    assert!(commits * 4 <= records, "{commits} commits for {records} records");

    // Somebody alone is not kept waiting for others.
    let before = metric("hie_ledger_commits_total");
    accept(&ledger, &message(1, 100)).await.unwrap();
    assert_eq!(metric("hie_ledger_commits_total"), before + 1);
}
