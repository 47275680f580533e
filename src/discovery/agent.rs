//! The registration: put in place, kept alive, put in place again when the agent lost it, taken away at the end.

use super::{
    Backoff, Inner, Link, Phase, catalog,
    client::Error,
    service::{Definition, SERVICE, prefix},
};
use crate::telemetry::discovery as events;
use serde::Deserialize;
use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::{Duration, Instant},
};

/// Between two signs of life; they also find out whether the agent still knows the node.
const BEAT: Duration = Duration::from_secs(1);
/// Between two comparisons of what is registered with what should be.
const COMPARE: Duration = Duration::from_secs(10);
/// Between two looks at whether the names are free of the node.
const LOOK: Duration = Duration::from_millis(50);
const MAINTENANCE: &str = "hie: draining";

/// A service as the agent lists it.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Listed {
    #[serde(flatten)]
    definition: Definition,
}

/// A check as the agent lists it.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Check {
    #[serde(rename = "CheckID")]
    id: String,
    status: String,
    #[serde(default)]
    notes: String,
    #[serde(default)]
    output: String,
    #[serde(rename = "ServiceID", default)]
    service: String,
}

/// What is known of the agent's side.
#[derive(Default)]
struct Known {
    /// Why the agent keeps the node out of the names, when it does.
    unhealthy: Option<String>,
    /// The first registration of this process is done.
    begun: bool,
    /// When all was compared and well.
    compared: Option<Instant>,
    /// Somebody else was seen under this node's name.
    conflict: bool,
}

/// Until discovery stops.
pub(super) async fn keep_registered(inner: Arc<Inner>) {
    let (mut known, mut backoff) = (Known::default(), Backoff::new());
    // Who has left tells nothing more.
    while inner.phase() != Phase::Left {
        let wait = match round(&inner, &mut known).await {
            Ok(()) => {
                backoff = Backoff::new();
                let name = &inner.node.name;
                let conflict =
                    || format!("another node registers with this agent under the name {name} too: give each its own node.name");
                told(
                    &inner,
                    match &known.unhealthy {
                        _ if known.conflict => Link::new("conflict", conflict()),
                        Some(why) => Link::new("unhealthy", format!("Consul's agent keeps this node out of the names: {why}")),
                        None => Link::new("well", String::new()),
                    },
                );
                BEAT
            }
            Err(error) => {
                known.compared = None;
                told(&inner, Link::new(error.kind(), error.to_string()));
                backoff.wait()
            }
        };
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = inner.stop.cancelled() => return,
        }
    }
}

/// Notes the state; tells a change of it once.
fn told(inner: &Inner, link: Link) {
    let mut last = inner.registration.lock().unwrap_or_else(|e| e.into_inner());
    let well = link.state == "well";
    if inner.phase() == Phase::Serving {
        events::registered(well);
    }
    if !matches!(link.state, "well" | "conflict" | "unhealthy") {
        events::failed("registration", link.state);
    }
    if last.state == link.state {
        // The words may have changed with the same kind of trouble.
        last.error = link.error;
        return;
    }
    match well {
        true => events::Registered {
            instances: inner.plan.instances.len(),
            service: SERVICE,
            left_out: &inner.plan.left_out.join("; "),
        }
        .emit(),
        false => events::NotRegistered { error: &link.error }.emit(),
    }
    *last = link;
}

async fn round(inner: &Inner, known: &mut Known) -> Result<(), Error> {
    let _turn = inner.turn.lock().await;
    if inner.phase() == Phase::Left {
        return Ok(());
    }
    if known.compared.is_none_or(|at| at.elapsed() >= COMPARE) {
        compare(inner, known).await?;
    }
    match beat(inner).await {
        Err(error) if error.is_unknown() => {
            known.compared = None;
            compare(inner, known).await?;
            beat(inner).await
        }
        other => other,
    }
}

async fn beat(inner: &Inner) -> Result<(), Error> {
    for instance in &inner.plan.instances {
        inner.client.put(&["agent", "check", "pass", &instance.alive_check()], &[], None).await?;
    }
    Ok(())
}

/// Registers what is missing or otherwise than it should be, and takes away what an earlier configuration left.
async fn compare(inner: &Inner, known: &mut Known) -> Result<(), Error> {
    let filter = format!("Service == \"{SERVICE}\"");
    let there: HashMap<String, Listed> = inner.client.get(&["agent", "services"], &[("filter", &filter)]).await?;
    if inner.phase() != Phase::Serving {
        return Ok(());
    }
    let (mut put, mut missing, mut conflict) = (0_u64, 0, false);
    for instance in &inner.plan.instances {
        let found = there.get(&instance.id).map(|listed| &listed.definition);
        if found.is_some_and(|found| instance.is(found)) {
            continue;
        }
        // Our own predecessor's entry is taken over at the first look; later on nobody else writes it.
        conflict |= known.begun && found.is_some_and(|found| found.meta.get("process") != Some(&inner.node.process));
        let body = instance.registration(inner.health, &inner.config);
        // A check that is there keeps its state, so that a restart does not show; maintenance of an earlier drain goes.
        let query: &[(&str, &str)] = if known.begun { &[] } else { &[("replace-existing-checks", "true")] };
        inner.client.put(&["agent", "service", "register"], query, Some(&body)).await?;
        put += 1;
        missing += usize::from(found.is_none());
    }
    let ours = prefix(&inner.node);
    for (id, listed) in &there {
        let mine = id.starts_with(&ours) && listed.definition.meta.get("node") == Some(&inner.node.name);
        if mine && !inner.plan.instances.iter().any(|instance| instance.id == *id) {
            inner.client.put(&["agent", "service", "deregister", id], &[], None).await?;
        }
    }
    if put > 0 {
        events::put(put);
    }
    if known.begun && missing > 0 {
        events::Lost { instances: missing }.emit();
    }
    // What was registered just now has not been looked at yet.
    let unhealthy = if put == 0 { unhealthy(inner).await? } else { None };
    *known = Known { unhealthy, begun: true, compared: Some(Instant::now()), conflict: known.conflict && put > 0 || conflict };
    Ok(())
}

/// The agent's words about a check of this node that fails.
async fn unhealthy(inner: &Inner) -> Result<Option<String>, Error> {
    let filter = format!("ServiceName == \"{SERVICE}\" and Status == \"critical\"");
    let failing: BTreeMap<String, Check> = inner.client.get(&["agent", "checks"], &[("filter", &filter)]).await?;
    let maintenance = |check: &Check| check.id.starts_with("_service_maintenance:");
    // One without words has not been made yet.
    let made = |check: &Check| check.status == "critical" && (maintenance(check) || !check.output.is_empty());
    let ours = |check: &&Check| made(check) && inner.plan.instances.iter().any(|i| i.id == check.service);
    Ok(failing.values().find(ours).map(|check| match maintenance(check) {
        true => format!("somebody put {} into maintenance ({})", check.service, check.notes),
        // The health listener's own answer, or why there was none.
        false => check.output.chars().map(|c| if c.is_control() { ' ' } else { c }).take(300).collect(),
    }))
}

/// Maintenance for every instance, then a look until the catalog names none of them as healthy.
pub(super) async fn withdraw(inner: &Inner) -> Result<(), Error> {
    let _turn = inner.turn.lock().await;
    events::registered(false);
    for instance in &inner.plan.instances {
        let query = [("enable", "true"), ("reason", MAINTENANCE)];
        match inner.client.put(&["agent", "service", "maintenance", &instance.id], &query, None).await {
            // Never registered: nothing to take out.
            Err(error) if error.is_unknown() => {}
            other => other?,
        }
    }
    loop {
        let members = catalog::members(&inner.client).await?;
        let instances = members.iter().flat_map(|member| &member.instances);
        if !instances.into_iter().any(|one| one.passing() && inner.plan.instances.iter().any(|ours| ours.id == one.id)) {
            return Ok(());
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Deregisters every instance.
pub(super) async fn leave(inner: &Inner) -> Result<(), Error> {
    let _turn = inner.turn.lock().await;
    let mut first = Ok(());
    for instance in &inner.plan.instances {
        match inner.client.put(&["agent", "service", "deregister", &instance.id], &[], None).await {
            Err(error) if !error.is_unknown() && first.is_ok() => first = Err(error),
            _ => {}
        }
    }
    events::registered(false);
    match &first {
        Ok(()) => events::Left { instances: inner.plan.instances.len() }.emit(),
        Err(error) => events::NotLeft { error: &error.to_string() }.emit(),
    }
    first
}
