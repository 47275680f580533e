//! Watched folders: files taken whole, once, in order; nothing overwritten, nothing lost.

mod inbound_support;

use futures_util::future::BoxFuture;
use hie::{
    config::WatchedFolder,
    engine::ports::{Answer, Refusal},
    gateway::inbound::folder,
    message::{MessageId, Protocol},
};
use inbound_support::*;
use std::{
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, SystemTime},
};
use tokio::{task::JoinHandle, time::sleep};
use tokio_util::sync::CancellationToken;

fn config(directory: &Path) -> WatchedFolder {
    WatchedFolder {
        name: "drop".into(),
        directory: directory.to_owned(),
        poll: Duration::from_millis(20),
        settle: Duration::from_millis(60),
        client: Some("ward".into()),
        ..WatchedFolder::default()
    }
}

fn watch(config: WatchedFolder, fake: Arc<Fake>) -> (CancellationToken, JoinHandle<()>) {
    let drain = CancellationToken::new();
    (drain.clone(), tokio::spawn(folder::watch(config, fake, drain)))
}

/// The names in a folder, subfolders left out.
fn names(folder: PathBuf) -> Vec<String> {
    let Ok(entries) = fs::read_dir(folder) else { return vec![] };
    let mut names: Vec<String> = entries
        .map(|e| e.unwrap())
        .filter(|e| e.file_type().unwrap().is_file())
        .map(|e| e.file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// Writes a file that was last changed so many seconds before a fixed time.
fn put(path: PathBuf, content: &[u8], age: u64) {
    let hidden = path.with_file_name(".part");
    fs::write(&hidden, content).unwrap();
    let file = fs::File::options().write(true).open(&hidden).unwrap();
    file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000 - age)).unwrap();
    fs::rename(hidden, path).unwrap();
}

#[tokio::test]
async fn files_are_taken_oldest_first_byte_for_byte_and_moved() {
    let folder = tempfile::tempdir().unwrap();
    let (at, fake) = (folder.path(), Fake::accepting());
    let single = [adt("single"), b"OBX|1|TX|||M\xfcller\r\n\r\n".to_vec()].concat();
    put(at.join("b.hl7"), &single, 50);
    put(at.join("a.bin"), b"\x00\x01binary\xff", 60);
    put(at.join("d.hl7"), &adt("d"), 40);
    put(at.join("c.hl7"), &adt("c"), 40);
    put(at.join("e.hl7"), &adt("e"), 10);
    put(at.join(".hidden"), b"not taken", 90);
    fs::create_dir(at.join("subfolder")).unwrap();
    fs::create_dir(at.join("done")).unwrap();
    put(at.join("done/c.hl7"), b"an older one", 1000);
    let (drain, watching) = watch(config(at), fake.clone());
    until("all moved", || names(at.join("done")).len() == 6).await;
    assert_eq!(fake.bodies(), [&b"\x00\x01binary\xff"[..], &single, &adt("c"), &adt("d"), &adt("e")]);
    assert_eq!(names(at.join("done")), ["a.bin", "b.hl7", "c.hl7", "c.hl7.1", "d.hl7", "e.hl7"]);
    assert_eq!(fs::read(at.join("done/c.hl7")).unwrap(), b"an older one");
    assert_eq!(fs::read(at.join("done/b.hl7")).unwrap(), single);
    assert_eq!(names(at.to_owned()), [".hidden"]);
    let seen = fake.seen.lock().unwrap()[1].clone();
    assert_eq!(
        (seen.protocol, seen.listener.as_str(), seen.client.as_str(), seen.remote.as_str()),
        (Protocol::File, "drop", "ward", "b.hl7")
    );
    drain.cancel();
    watching.await.unwrap();
}

#[tokio::test]
async fn a_file_written_slowly_is_taken_whole_and_once() {
    let folder = tempfile::tempdir().unwrap();
    let (at, fake) = (folder.path(), Fake::accepting());
    let (_drain, _watching) = watch(config(at), fake.clone());
    let mut file = fs::File::create(at.join("slow.hl7")).unwrap();
    let message = [adt("slow"), vec![b'x'; 5000]].concat();
    for piece in message.chunks(500) {
        std::io::Write::write_all(&mut file, piece).unwrap();
        sleep(Duration::from_millis(25)).await;
    }
    until("moved", || names(at.join("done")) == ["slow.hl7"]).await;
    sleep(Duration::from_millis(200)).await;
    assert_eq!(fake.bodies(), [message]);
}

#[tokio::test]
async fn only_names_that_fit_the_pattern() {
    let folder = tempfile::tempdir().unwrap();
    let (at, fake) = (folder.path(), Fake::accepting());
    put(at.join("a.hl7"), &adt("a"), 1);
    put(at.join("a.hl7.tmp"), &adt("tmp"), 1);
    std::os::unix::fs::symlink("/etc/passwd", at.join("link.hl7")).unwrap();
    let (_drain, _watching) = watch(WatchedFolder { pattern: "*.hl7".into(), ..config(at) }, fake.clone());
    until("moved", || names(at.join("done")) == ["a.hl7"]).await;
    sleep(Duration::from_millis(200)).await;
    assert_eq!(fake.count(), 1);
    assert!(at.join("a.hl7.tmp").exists() && at.join("link.hl7").is_symlink());
}

#[tokio::test]
async fn batches_are_split_and_what_is_refused_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let fake = Fake::new(|seen| {
        Box::pin(async move {
            match seen.control_id().as_str() {
                "m2" => Answer::Refused { id: None, refusal: Refusal::NoChannel },
                _ => default_answer(&seen),
            }
        })
    });
    let batch = [&b"FHS|^~\\&|A\rBHS|^~\\&|A\r"[..], &adt("m1"), &adt("m2"), &adt("m3"), b"BTS|3\rFTS|1\r"].concat();
    put(at.join("batch.hl7"), &batch, 9);
    put(at.join("several.hl7"), &[adt("m4"), adt("m5")].concat(), 5);
    put(at.join("empty.hl7"), b"", 1);
    let (_drain, _watching) = watch(config(at), fake.clone());
    until("moved", || names(at.join("failed")).len() == 4 && names(at.join("done")).len() == 1).await;
    assert_eq!(fake.bodies(), [adt("m1"), adt("m2"), adt("m3"), adt("m4"), adt("m5")]);
    assert_eq!(names(at.join("failed")), ["batch.hl7", "batch.hl7.reason", "empty.hl7", "empty.hl7.reason"]);
    assert_eq!(fs::read(at.join("failed/batch.hl7")).unwrap(), batch);
    let reason = fs::read_to_string(at.join("failed/batch.hl7.reason")).unwrap();
    assert_eq!(reason, "message 2: no channel takes this message\n");
    assert_eq!(names(at.join("done")), ["several.hl7"]);
}

#[tokio::test]
async fn large_files_flow_through() {
    let folder = tempfile::tempdir().unwrap();
    let (at, fake) = (folder.path(), Fake::accepting());
    let mut large = adt("large");
    large.resize(3_000_000, b'x');
    let binary = vec![0xA5; 2_000_000];
    let batch: Vec<u8> = (0..20_000).flat_map(|i| adt(&i.to_string())).collect();
    put(at.join("1.hl7"), &large, 30);
    put(at.join("2.bin"), &binary, 20);
    put(at.join("3.hl7"), &[&large[..], b"\r", &adt("small")].concat(), 15);
    put(at.join("4.hl7"), &batch, 10);
    let (_drain, _watching) = watch(config(at), fake.clone());
    until("moved", || names(at.join("done")).len() == 4).await;
    let seen = fake.seen.lock().unwrap();
    assert!(seen[0].body == large && seen[1].body == binary);
    assert!(seen[2].body == [&large[..], b"\r"].concat() && seen[3].body == adt("small"));
    assert!(seen[..3].iter().all(|s| s.head.is_some_and(|h| (65_536..300_000).contains(&h))), "in pieces");
    assert_eq!(seen.len(), 20_004);
    assert!((0..20_000).all(|i| seen[4 + i].body == adt(&i.to_string())));
}

#[tokio::test]
async fn pushed_back_messages_wait_and_keep_their_order() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    static TRIES: AtomicUsize = AtomicUsize::new(0);
    let fake = Fake::new(|seen| -> BoxFuture<'static, Answer> {
        Box::pin(async move {
            let wait = Duration::from_millis(30);
            match (seen.control_id().as_str(), TRIES.fetch_add(1, Ordering::SeqCst)) {
                ("m1", 0) => Answer::Refused { id: None, refusal: Refusal::Busy("full", wait) },
                ("m1", 1) => Answer::Refused { id: None, refusal: Refusal::RateLimited { retry_after: wait } },
                _ => Answer::Accepted { id: MessageId::now(), resend: false },
            }
        })
    });
    fake.set_open(false);
    put(at.join("1.hl7"), &adt("m1"), 9);
    put(at.join("2.hl7"), &adt("m2"), 5);
    let (_drain, _watching) = watch(config(at), fake.clone());
    until("taken aside", || names(at.join(".taking")) == ["1.hl7"]).await;
    sleep(Duration::from_millis(100)).await;
    assert_eq!(fake.count(), 0, "while the node pushes back nothing is handed over");
    fake.set_open(true);
    until("moved", || names(at.join("done")).len() == 2).await;
    let order: Vec<String> = fake.seen.lock().unwrap().iter().map(Seen::control_id).collect();
    assert_eq!(order, ["m1", "m1", "m1", "m2"]);
    assert!(names(at.join("failed")).is_empty());
}

#[tokio::test]
async fn what_a_drain_or_a_crash_left_is_taken_again_at_the_next_start() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let stuck = Fake::new(|_| Box::pin(async { Answer::Refused { id: None, refusal: Refusal::Store } }));
    put(at.join("1.hl7"), &adt("m1"), 9);
    put(at.join("2.hl7"), &adt("m2"), 5);
    let (drain, watching) = watch(config(at), stuck.clone());
    until("tried", || stuck.count() > 0).await;
    drain.cancel();
    watching.await.unwrap();
    assert_eq!(names(at.join(".taking")), ["1.hl7"]);
    let fake = Fake::accepting();
    let (_drain, _watching) = watch(config(at), fake.clone());
    until("moved", || names(at.join("done")).len() == 2).await;
    assert_eq!(fake.bodies(), [adt("m1"), adt("m2")]);
}

#[tokio::test]
async fn a_file_that_cannot_be_moved_is_not_accepted_again() {
    let folder = tempfile::tempdir().unwrap();
    let (at, fake) = (folder.path(), Fake::accepting());
    fs::create_dir(at.join("done")).unwrap();
    let gone = at.join("done");
    let removing = gone.clone();
    let removed = Fake::new(move |seen| {
        // After the accept, the folder it should be moved to is a file.
        fs::remove_dir(&removing).unwrap();
        fs::write(&removing, "in the way").unwrap();
        Box::pin(async move { default_answer(&seen) })
    });
    put(at.join("1.bin"), b"not hl7", 9);
    let (_drain, _watching) = watch(config(at), removed.clone());
    until("accepted", || removed.count() == 1).await;
    sleep(Duration::from_millis(300)).await;
    assert_eq!(removed.count(), 1);
    fs::remove_file(&gone).unwrap();
    until("moved", || names(gone.clone()) == ["1.bin"]).await;
    assert_eq!((removed.count(), fake.count()), (1, 0));
}

#[tokio::test]
async fn a_folder_that_is_not_there_is_waited_for() {
    let folder = tempfile::tempdir().unwrap();
    let (at, fake) = (folder.path().join("later"), Fake::accepting());
    let (_drain, _watching) = watch(config(&at), fake.clone());
    sleep(Duration::from_millis(100)).await;
    fs::create_dir(&at).unwrap();
    put(at.join("1.hl7"), &adt("m1"), 9);
    until("moved", || names(at.join("done")) == ["1.hl7"]).await;
}
