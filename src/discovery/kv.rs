//! Channels in Consul's KV: `hie/<domain>/channels/<namespace>/<name>`, followed by blocking queries.
//! <https://developer.hashicorp.com/consul/api-docs/features/blocking>

use super::{
    Backoff, Inner, Link,
    client::{Client, Error, Indexed},
};
use crate::{config::SharedChannel, telemetry::discovery as events};
use base64::{Engine, engine::general_purpose::STANDARD};
use serde::Deserialize;
use std::{
    sync::{Arc, atomic::Ordering::SeqCst},
    time::Duration,
};

/// How long a query waits for a change.
const WAIT: Duration = Duration::from_secs(55);
/// Between two answers, however often something changes.
const PAUSE: Duration = Duration::from_millis(100);
/// What Consul takes as a value.
const LARGEST: usize = 512 * 1024;
/// Begins the names of all of the product's keys.
const ROOT: &str = "hie/";

/// Takes what is in the KV.
pub trait Follow: Send + Sync {
    /// What stands there now. May block. Called again whenever it changed, and after every interruption.
    fn take(&self, seen: Seen);
}

/// The channels of a domain at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Rises with every change; falls when Consul lost its data.
    pub index: u64,
    /// The key of the folder itself is there: when it holds nothing, that is meant so.
    pub folder: bool,
    /// In the order of their keys.
    pub channels: Vec<SharedChannel>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Pair {
    key: String,
    value: Option<String>,
}

/// Where a domain's channels are.
pub fn prefix(domain: &str) -> String {
    format!("{ROOT}{domain}/channels/")
}

/// Until discovery stops.
pub(super) async fn keep_following(inner: Arc<Inner>, follow: Arc<dyn Follow>) {
    let prefix = prefix(&inner.node.domain);
    let (mut index, mut backoff) = (0, Backoff::new());
    loop {
        let query = async { read(&inner.client, &prefix, index).await };
        let answer = tokio::select! {
            answer = query => answer,
            () = inner.stop.cancelled() => return,
        };
        let wait = match answer {
            Ok(seen) => {
                backoff = Backoff::new();
                told(&inner, Link::new("well", String::new()));
                // An index that falls is another Consul's: from the beginning again.
                let fell = seen.index < index;
                if fell || seen.index != index || index == 0 {
                    let follow = follow.clone();
                    // A panic in there has been told by the hook; the next change is another try.
                    let _ = tokio::task::spawn_blocking({
                        let seen = seen.clone();
                        move || follow.take(seen)
                    })
                    .await;
                }
                index = if fell { 0 } else { seen.index };
                PAUSE
            }
            Err(error) => {
                index = 0;
                told(&inner, Link::new(error.kind(), error.to_string()));
                backoff.wait()
            }
        };
        inner.answered.store(true, SeqCst);
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = inner.stop.cancelled() => return,
        }
    }
}

fn told(inner: &Inner, link: Link) {
    let mut last = inner.channels.lock().unwrap_or_else(|e| e.into_inner());
    if link.state != "well" {
        events::failed("channels", link.state);
    }
    if last.state == link.state {
        last.error = link.error;
        return;
    }
    match link.state {
        "well" => events::Following { prefix: &prefix(&inner.node.domain) }.emit(),
        _ => events::NotFollowing { error: &link.error }.emit(),
    }
    *last = link;
}

async fn read(client: &Client, prefix: &str, index: u64) -> Result<Seen, Error> {
    let Indexed { index, value } = client.watch::<Vec<Pair>>(&path(prefix), &[("recurse", "")], index, WAIT).await?;
    let pairs = value.unwrap_or_default();
    let folder = pairs.iter().any(|pair| pair.key == prefix);
    // A key that ends with a slash is a folder of the web interface.
    let channels = pairs.into_iter().filter(|pair| !pair.key.ends_with('/')).map(|pair| channel(prefix, pair)).collect();
    Ok(Seen { index, folder, channels })
}

/// The segments of a key that ends with a slash, which has to stay there.
fn path(prefix: &str) -> Vec<&str> {
    std::iter::once("kv").chain(prefix.split('/')).collect()
}

fn channel(prefix: &str, Pair { key, value }: Pair) -> SharedChannel {
    let rest = key.strip_prefix(prefix).unwrap_or(&key);
    let name = match rest.rsplit_once('/') {
        Some((namespace, name)) if !namespace.is_empty() && !namespace.contains('/') => Ok(format!("{namespace}.{name}")),
        _ => Err(format!("a channel's key is {prefix}NAMESPACE/NAME")),
    };
    let text = STANDARD.decode(value.unwrap_or_default()).map_err(|e| format!("cannot be decoded: {e}")).and_then(|bytes| {
        if bytes.len() > LARGEST {
            return Err(format!("is larger than {LARGEST} bytes"));
        }
        String::from_utf8(bytes).map_err(|e| format!("is not UTF-8 (from byte {} on)", e.utf8_error().valid_up_to()))
    });
    SharedChannel { place: format!("Consul KV {key}"), name, text }
}

/// Domains that have channels in the KV, with the namespaces of each, as (domain, namespace).
pub async fn namespaces(client: &Client) -> Result<Vec<(String, String)>, Error> {
    let answer = client.watch::<Vec<String>>(&path(ROOT), &[("keys", ""), ("stale", "")], 0, WAIT).await?;
    let keys = answer.value.unwrap_or_default();
    let mut found: Vec<(String, String)> = keys
        .iter()
        .filter_map(|key| {
            let (domain, rest) = key.strip_prefix(ROOT)?.split_once("/channels/")?;
            let namespace = rest.rsplit_once('/')?.0;
            (!namespace.is_empty() && !domain.contains('/')).then(|| (domain.to_owned(), namespace.to_owned()))
        })
        .collect();
    found.sort();
    found.dedup();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_a_channels_name() {
        let of =
            |key: &str, value: &str| channel("hie/d/channels/", Pair { key: key.into(), value: Some(STANDARD.encode(value)) });
        let good = of("hie/d/channels/lab.adt/orders", "x = 1");
        assert_eq!((good.name, good.text), (Ok("lab.adt.orders".into()), Ok("x = 1".into())));
        assert_eq!(good.place, "Consul KV hie/d/channels/lab.adt/orders");
        assert!(of("hie/d/channels/orders", "").name.expect_err("no namespace").contains("NAMESPACE/NAME"));
        assert!(of("hie/d/channels/a/b/c", "").name.is_err());
        assert!(of("hie/d/channels/a/b", &"x".repeat(LARGEST + 1)).text.is_err());
        assert_eq!(path("hie/d/channels/").last(), Some(&""));
    }
}
