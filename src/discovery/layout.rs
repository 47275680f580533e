//! A domain's layout in Consul's KV: `hie/<domain>/layout`, followed by blocking queries, changed by check-and-set.
//! <https://developer.hashicorp.com/consul/api-docs/kv>

use super::{
    Backoff, Inner,
    client::{Client, Error, Indexed},
};
use crate::{config::Layout, telemetry::discovery as events};
use base64::{Engine, engine::general_purpose::STANDARD};
use serde::Deserialize;
use std::{sync::Arc, time::Duration};

/// How long a query waits for a change.
const WAIT: Duration = Duration::from_secs(55);
/// Between two answers, however often something changes.
const PAUSE: Duration = Duration::from_millis(50);

/// Takes the layout as it stands in the KV.
pub trait FollowLayout: Send + Sync {
    /// What stands there now; the error: it is none. May block. Called again whenever it changed, and after every interruption.
    fn take(&self, layout: Result<Layout, String>);
    /// Nothing stands there: what this node follows, to be put there.
    fn absent(&self) -> Option<Layout>;
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Pair {
    value: Option<String>,
    modify_index: u64,
}

/// The key.
pub fn key(domain: &str) -> String {
    format!("hie/{domain}/layout")
}

/// What stands in the key; with the index for [`put`].
pub struct Standing {
    pub layout: Result<Layout, String>,
    pub index: u64,
}

/// What stands there now.
pub async fn read(client: &Client, domain: &str) -> Result<Option<Standing>, Error> {
    Ok(look(client, domain, 0).await?.value)
}

/// Puts a layout there if nothing has changed since `index` (0: if nothing stands there). False: something has.
pub async fn put(client: &Client, domain: &str, layout: &Layout, index: u64) -> Result<bool, Error> {
    let value = serde_json::to_value(layout).map_err(|e| Error::Config(e.to_string()))?;
    client.put_told(&["kv", "hie", domain, "layout"], &[("cas", &index.to_string())], &value).await
}

async fn look(client: &Client, domain: &str, index: u64) -> Result<Indexed<Standing>, Error> {
    // What is read decides what is written: never an answer of a server that has lost the others.
    let query = [("consistent", "")];
    let Indexed { index, value } = client.watch::<Vec<Pair>>(&["kv", "hie", domain, "layout"], &query, index, WAIT).await?;
    let standing = value.and_then(|pairs| pairs.into_iter().next()).map(|pair| {
        let text = STANDARD.decode(pair.value.unwrap_or_default()).map_err(|e| format!("cannot be decoded: {e}"));
        let layout = text.and_then(|text| Layout::parse(&text)).map_err(|e| format!("Consul KV {}: {e}", key(domain)));
        Standing { layout, index: pair.modify_index }
    });
    Ok(Indexed { index, value: standing })
}

/// Until discovery stops.
pub(super) async fn keep_following(inner: Arc<Inner>, follow: Arc<dyn FollowLayout>) {
    let domain = inner.node.domain.clone();
    let (mut index, mut backoff) = (0, Backoff::new());
    loop {
        let answer = tokio::select! {
            answer = look(&inner.client, &domain, index) => answer,
            () = inner.stop.cancelled() => return,
        };
        let wait = match answer {
            Ok(Indexed { index: now, value: Some(standing) }) => {
                backoff = Backoff::new();
                // An index that falls is another Consul's.
                index = if now < index { 0 } else { now };
                let follow = follow.clone();
                let _ = tokio::task::spawn_blocking(move || follow.take(standing.layout)).await;
                PAUSE
            }
            Ok(Indexed { index: now, value: None }) => {
                index = now;
                match follow.absent() {
                    // A token that may not write leaves it to the others, and to the operator, who is told by the command.
                    Some(layout) if put(&inner.client, &domain, &layout, 0).await.is_ok() => PAUSE,
                    _ => backoff.wait(),
                }
            }
            Err(error) => {
                index = 0;
                // The channels, which are read in the same way, say why.
                events::failed("layout", error.kind());
                backoff.wait()
            }
        };
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = inner.stop.cancelled() => return,
        }
    }
}
