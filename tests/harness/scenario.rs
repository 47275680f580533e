//! The durability and order runs, used on the real build (must pass) and on the broken ones (must fail).

use super::channels::{all_to, queue, route};
use super::chaos::kill_often;
use super::ledger::{control_id, settled, transactions};
use super::{Behaviour, Builder, Doubles, Load, Receiver, Rng, Sent, Via, check};
use std::collections::HashMap;
use std::path::PathBuf;
use std::time::Duration;

/// Load over MLLP and HTTP to two receivers that fail at random, `kills` times kill -9; then everything must arrive within
/// `patience`. `Err` says what broke.
pub fn kills(binary: PathBuf, rng: &mut Rng, kills: u64, patience: Duration) -> Result<(), String> {
    let failing =
        Behaviour { close: 0.01, reject: 0.01, silent: 0.0005, wrong_id: 0.002, delay: Duration::ZERO, ..Behaviour::default() };
    let lis = Receiver::mllp(failing, rng.split());
    let web = Receiver::http(Behaviour { wrong_id: 0.0, ..failing }, rng.split());
    let brief = Receiver::http(Behaviour { wrong_id: 0.0, ..failing }, rng.split());
    let upstream = Receiver::http(Behaviour { wrong_id: 0.0, ..failing }, rng.split());
    let proxy = queue("test.proxy", "protocol == \"http\" && path == \"/proxy\"").replace("\"queue\"", "\"proxy\"");
    // Its bodies lie in short-lived files, which are removed as soon as all in them is finished.
    let none = queue("test.brief", "protocol == \"http\" && path == \"/brief\"") + "priority = 2\nstorage = \"none\"\n";
    let mut node = Builder::new()
        .binary(binary)
        .channel(none + &route("primary", &brief.target(), "primary = true"))
        .channel(proxy + "priority = 1\n" + &route("upstream", &upstream.target(), "primary = true"))
        .channel(queue("test.mllp", "protocol == \"mllp\"") + &route("primary", &lis.target(), "primary = true"))
        .channel(queue("test.http", "protocol == \"http\"") + &route("primary", &web.target(), "primary = true"))
        .start();
    let load = |via: Via, name: &str, rng: &mut Rng| Load {
        name: name.into(),
        connections: 6,
        rate: Some(900.0),
        seed: rng.next(),
        ..Load::new(via)
    };
    let by_mllp = load(Via::Mllp(node.mllp), "M", rng).start();
    let by_http = load(Via::Http(node.http, "/adt".into()), "H", rng).start();
    let by_brief = Load { connections: 3, rate: Some(300.0), ..load(Via::Http(node.http, "/brief".into()), "N", rng) }.start();
    // The sender waits for the upstream's own answer, and sends again under the same Idempotency-Key what got none.
    let by_proxy = Load { connections: 3, rate: Some(150.0), ..load(Via::Http(node.http, "/proxy".into()), PROXY, rng) }.start();

    kill_often(&mut node, rng, kills, (Duration::from_millis(50), Duration::from_millis(900)), || false);

    let by_mllp = by_mllp.stop(Duration::from_secs(30));
    let by_http = by_http.stop(Duration::from_secs(30));
    let by_brief = by_brief.stop(Duration::from_secs(30));
    let by_proxy = by_proxy.stop(Duration::from_secs(30));
    // An upstream's answer that was passed on needs no waiting for.
    let all_there = lis.wait_for(&by_mllp, patience)
        && web.wait_for(&by_http, patience)
        && brief.wait_for(&by_brief, patience)
        && upstream.wait_for(&by_proxy, Duration::ZERO);
    let mut faults: Vec<String> = Vec::new();
    if !all_there {
        faults.push(format!("not everything acknowledged was delivered within {patience:?}"));
    }
    for (name, sent, receiver) in
        [("MLLP", &by_mllp, &lis), ("HTTP", &by_http, &web), ("not kept", &by_brief, &brief), ("proxy", &by_proxy, &upstream)]
    {
        print!("{name}: ");
        if let Err(fault) = check(sent, &receiver.arrivals(), Doubles::Counted) {
            faults.push(format!("{name}: {fault}"));
        }
        if sent.acknowledged.len() < 100 {
            faults.push(format!("{name}: only {} acknowledged: the load did not run", sent.acknowledged.len()));
        }
    }
    if faults.is_empty() && !settled(&node, Duration::from_secs(60)) {
        faults.push("the node did not come to rest within 60 s".into());
    }
    if faults.is_empty()
        && let Err(fault) = one_transaction_each(&node, &[&by_mllp, &by_http, &by_proxy])
    {
        faults.push(fault);
    }
    if faults.is_empty() { Ok(()) } else { Err(faults.join("\n")) }
}

/// Name of the load in proxy mode.
const PROXY: &str = "P";

/// A resend is no new transaction: each control id is in the ledger exactly once, and some were resent after they were stored. (In proxy mode a request that got no
/// answer from its upstream is tried anew by the repetition, as a transaction of its own.)
fn one_transaction_each(node: &super::Node, all: &[&Sent]) -> Result<(), String> {
    let mut times: HashMap<String, u32> = HashMap::new();
    let mut recognised = 0;
    for row in transactions(node) {
        recognised += row["hie"]["resends"].as_u64().unwrap_or(0);
        if row["status"] != "Refused" {
            *times.entry(control_id(&row)).or_default() += 1;
        }
    }
    let sent_again: u64 = all.iter().map(|s| s.sent_again).sum();
    let twice: Vec<_> = times
        .iter()
        .filter(|(id, n)| **n > 1 && !id.starts_with(PROXY))
        .map(|(id, n)| format!("{id} {n} times"))
        .take(10)
        .collect();
    let missing: Vec<_> = all.iter().flat_map(|s| &s.acknowledged).filter(|t| !times.contains_key(&t.id)).collect();
    println!(
        "ledger: {} transactions, {sent_again} sent again, {recognised} recognised, {} control ids more than once",
        times.len(),
        twice.len()
    );
    if !twice.is_empty() {
        return Err(format!("resends taken for new messages: {}", twice.join(", ")));
    }
    if sent_again == 0 || recognised == 0 {
        return Err(format!("{sent_again} sent again, {recognised} of them recognised: nothing was shown of resends"));
    }
    if !missing.is_empty() {
        return Err(format!("{} acknowledged messages have no transaction, first {:?}", missing.len(), missing[0]));
    }
    Ok(())
}

/// Order and completeness without any crash, the receiver failing at random: doubles are forbidden here.
pub fn order(binary: PathBuf, rng: &mut Rng, per_connection: u64) -> Result<(), String> {
    let receiver = Receiver::mllp(Behaviour { close: 0.02, reject: 0.02, wrong_id: 0.01, ..Behaviour::default() }, rng.split());
    let node = Builder::new().binary(binary).channel(all_to(&receiver)).start();
    let load = Load { connections: 8, count: Some(per_connection), seed: rng.next(), ..Load::new(Via::Mllp(node.mllp)) };
    let sent = load.run(Duration::from_secs(60));
    if !receiver.wait_for(&sent, Duration::from_secs(60)) {
        println!("not everything was delivered within 60 s");
    }
    check(&sent, &receiver.arrivals(), Doubles::Forbidden).map(|_| ())
}
