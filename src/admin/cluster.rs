//! The node among others: members, registration, shared channels.

use super::{error::ApiError, shared::App};
use axum::{Json, extract::State};
use futures_util::future::BoxFuture;
use serde_json::Value;
use std::collections::BTreeMap;

/// What is known of the cluster.
pub trait Cluster: Send + Sync {
    /// The answer of `/cluster`.
    fn view(&self) -> BoxFuture<'static, Value>;

    /// What an operator should look at.
    fn problems(&self) -> Vec<String>;

    /// Why searches may miss transactions of other nodes just now; ASCII.
    fn incomplete(&self) -> Option<&'static str> {
        None
    }

    /// Channels in force that are not this node's own to change, with the place where they are.
    fn shared_channels(&self) -> BTreeMap<String, String>;
}

#[utoipa::path(get, path = "/cluster", tag = "node", responses((status = 200, description = "`discovery`: `consul` or `off`; `registration`: state, error and ports of this node; `channels`: those in Consul's KV, and what is refused there; `members`: nodes of all domains with health, ports, addresses, weights, versions; `joined`: what became of copying a peer's ledger at this start (`from`, `logs`, `facts`, `bytes`, `took_ms`, or `why` none was; null: the ledger was not empty); `transport`: `kind` (`embedded` or `rabbitmq`) and, of RabbitMQ, `link` (state, broker, version, since, error), `members` heard on the ledger stream with their spool, `queues` with what waits, consumers and errors, `spooled`, `ledger` (lag)", body = Object)))]
/// The node among others: members of all domains, this node's registration, the channels that the domain shares, the transport.
pub(super) async fn show(State(app): State<App>) -> Result<Json<Value>, ApiError> {
    Ok(Json(app.state.cluster.view().await))
}
