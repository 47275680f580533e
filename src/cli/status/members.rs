//! The members of all domains, as Consul and the ledger stream tell.

use crate::cli::{
    exit::Failure,
    output::{self, text},
};
use serde_json::Value;

/// A column: its heading, and its value of a member as Consul tells it and as the stream does (null where it does not).
type Column<'a> = (&'static str, Box<dyn Fn(&Value, &Value) -> String + 'a>);

fn list(value: &Value, key: &str) -> Vec<Value> {
    value.get(key).and_then(Value::as_array).cloned().unwrap_or_default()
}

/// Prints the table of members out of `/cluster`; nothing where there are none.
pub(super) fn print(cluster: &Value) -> Result<(), Failure> {
    if let Some(error) = cluster.get("members_error").and_then(Value::as_str) {
        output::print(format!("\nmembers are not known: {error}"))?;
    }
    let (named, heard) = (list(cluster, "members"), list(&cluster["transport"], "members"));
    let rows = joined(cluster, &named, &heard);
    if rows.is_empty() {
        return Ok(());
    }
    let mut columns: Vec<Column<'_>> = vec![
        ("NODE", Box::new(|named, heard| name(cluster, named, heard))),
        ("DOMAIN", Box::new(|named, _| if named.is_null() { text(cluster, &["domain"]) } else { text(named, &["domain"]) })),
    ];
    if !heard.is_empty() {
        columns.push(("HEARD", Box::new(|_, heard| silence(heard))));
        columns.push(("PARTITIONS", Box::new(|_, heard| text(heard, &["partitions"]))));
        columns.push(("SPOOL", Box::new(|_, heard| text(heard, &["spooled"]))));
    }
    if !named.is_empty() {
        columns.push(("HEALTH", Box::new(|named, _| text(named, &["health"]))));
        columns.push(("ADDRESS", Box::new(|named, _| each(named, "address"))));
        columns.push(("PORTS", Box::new(|named, _| ports(named))));
        columns.push(("WEIGHT", Box::new(|named, _| each(named, "weight"))));
        columns.push(("VERSION", Box::new(|named, _| text(named, &["version"]))));
        columns.push(("FAILING", Box::new(|named, _| failing(named))));
    }
    let mut table = output::table_of(&columns.iter().map(|(heading, _)| *heading).collect::<Vec<_>>());
    for (named, heard) in &rows {
        table.add_row(columns.iter().map(|(_, of)| of(named, heard)));
    }
    output::print("")?;
    output::print_table(&table)
}

/// Those of Consul, each with what the stream tells of it (its own domain only), then those of the stream alone.
fn joined(cluster: &Value, named: &[Value], heard: &[Value]) -> Vec<(Value, Value)> {
    let ours = |member: &Value| member.get("domain") == cluster.get("domain");
    let same = |named: &Value, heard: &Value| ours(named) && named.get("node") == heard.get("node");
    let told = |named: &Value| heard.iter().find(|h| same(named, h)).cloned().unwrap_or_default();
    let mut rows: Vec<(Value, Value)> = named.iter().map(|n| (n.clone(), told(n))).collect();
    let alone = heard.iter().filter(|h| !named.iter().any(|n| same(n, h)));
    rows.extend(alone.map(|h| (Value::Null, h.clone())));
    rows
}

fn name(cluster: &Value, named: &Value, heard: &Value) -> String {
    let name = if named.is_null() { text(heard, &["node"]) } else { text(named, &["node"]) };
    let own = match named.is_null() {
        true => heard.get("this") == Some(&Value::Bool(true)),
        false => ["node", "domain"].iter().all(|key| named.get(*key) == cluster.get(*key)),
    };
    if own { format!("{name} (this)") } else { name }
}

fn silence(heard: &Value) -> String {
    let seconds = heard.get("silent_ms").and_then(Value::as_u64).unwrap_or(0) / 1000;
    match (heard.get("this"), heard.get("alive")) {
        (Some(Value::Bool(true)), _) => "this".into(),
        (_, Some(Value::Bool(true))) => "yes".into(),
        (_, Some(_)) => format!("not for {seconds} s"),
        _ => String::new(),
    }
}

fn each(member: &Value, key: &str) -> String {
    let mut values: Vec<String> = list(member, "instances").iter().map(|i| text(i, &[key])).collect();
    values.dedup();
    values.join(", ")
}

fn ports(member: &Value) -> String {
    let tls = |one: &Value| if one.get("tls").and_then(Value::as_bool).unwrap_or(false) { "s" } else { "" };
    let port = |one: &Value| format!("{}{}:{}", text(one, &["protocol"]), tls(one), text(one, &["port"]));
    list(member, "instances").iter().map(port).collect::<Vec<_>>().join(" ")
}

fn failing(member: &Value) -> String {
    let instances = list(member, "instances");
    let mut failing: Vec<String> =
        instances.iter().flat_map(|i| list(i, "failing")).filter_map(|f| Some(f.as_str()?.to_owned())).collect();
    failing.sort();
    failing.dedup();
    failing.join(", ")
}
