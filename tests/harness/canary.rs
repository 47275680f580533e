//! Canary strings, and the search for them in everything that a node says.

use super::Node;
use super::http::once;

/// In names, identifiers, notes, paths, queries, headers, credentials, certificates, file names and contents, and
/// receivers' answers.
pub const CANARIES: &[&str] = &[
    "ZZNAMEZZ",
    "ZZPATIENTZZ",
    "ZZCONTROLZZ",
    "ZZBODYZZ",
    "ZZQUERYZZ",
    "ZZHEADERZZ",
    "ZZPASSZZ",
    "ZZTOKENZZ",
    "ZZANSWERZZ",
    "ZZSEARCHZZ",
    "ZZFACILITYZZ",
    "ZZJSONZZ",
    "ZZSUBJECTZZ",
    "ZZFILEZZ",
];

/// An HL7 message full of them; `extra` ends its control id.
pub fn adt(kind: &str, extra: &str) -> Vec<u8> {
    format!(
        "MSH|^~\\&|ZZFACILITYZZ|ZZFACILITYZZ|C|D|20250101||{kind}|ZZCONTROLZZ{extra}|P|2.5\rPID|1||ZZPATIENTZZ||ZZNAMEZZ^ZZNAMEZZ\r\
         NTE|1||ZZBODYZZ\r"
    )
    .into_bytes()
}

/// What a running node tells those who may ask: metrics, health, status.
pub fn told(node: &Node) -> Vec<(&'static str, String)> {
    let health = |path: &str| once(node.health, "GET", path, &[], b"").expect("health").text();
    let status = ["/heartbeat", "/routes", "/status"].map(|path| node.get(path).text()).concat();
    vec![("a metric", node.metrics()), ("health", health("/health/live") + &health("/health/ready")), ("status", status)]
}

/// Fails where a canary, in any case, or the management token is in one of the texts.
pub fn search(node: &Node, texts: &[(&str, String)]) {
    for (what, text) in texts {
        for canary in CANARIES {
            let bare = canary.to_lowercase();
            if let Some(line) = text.lines().find(|line| line.to_lowercase().contains(&bare)) {
                panic!("{canary} in {what}: {line}");
            }
        }
        assert!(!text.contains(&node.token()), "the management token in {what}");
    }
}
