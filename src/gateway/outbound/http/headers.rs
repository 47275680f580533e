//! Headers on the way out: what is passed on, what a route sets, values read from files.

use super::super::ConnectorError;
use crate::message::envelope::HeaderBytes;
use http::{HeaderMap, HeaderName, HeaderValue, header};
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant, SystemTime},
};

/// Headers of one connection only (RFC 9110 section 7.6.1), and those that the client computes itself.
const HOP_BY_HOP: [&str; 12] = [
    "connection",
    "content-length",
    "expect",
    "host",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];
/// A file that holds a header's value is looked at again after this time.
const RECHECK: Duration = Duration::from_secs(1);
const MAX_VALUE: u64 = 16 * 1024;

/// Must not be passed on; `name` in lower case.
pub(super) fn is_hop_by_hop(name: &str) -> bool {
    HOP_BY_HOP.contains(&name)
}

/// A response's headers to pass on. `keep_length`: the length describes a body that is not sent (HEAD, 304).
pub(super) fn end_to_end(headers: &HeaderMap, keep_length: bool) -> Vec<(String, HeaderBytes)> {
    let listed: Vec<String> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|v| v.to_str().ok())
        .flat_map(|v| v.split(',').map(|name| name.trim().to_ascii_lowercase()))
        .collect();
    let pass = |name: &HeaderName| match name.as_str() {
        "content-length" => keep_length,
        name => !is_hop_by_hop(name) && !listed.iter().any(|l| l == name),
    };
    let own = |(name, value): (&HeaderName, &HeaderValue)| (name.to_string(), HeaderBytes(value.as_bytes().to_vec()));
    headers.iter().filter(|(name, _)| pass(name)).map(own).collect()
}

/// The headers that a route sets.
pub(super) struct SetHeaders(Vec<(HeaderName, Value)>);

enum Value {
    Fixed(HeaderValue),
    File { path: PathBuf, cache: Mutex<Option<Cached>> },
}

struct Cached {
    looked: Instant,
    changed: SystemTime,
    value: HeaderValue,
}

impl SetHeaders {
    pub(super) fn new(headers: &BTreeMap<String, String>) -> Result<Self, ConnectorError> {
        let one = |(name, value): (&String, &String)| {
            let error = |reason| ConnectorError::Header(name.clone(), reason);
            let parsed = HeaderName::from_bytes(name.as_bytes()).map_err(|_| error("not a header name"))?;
            if is_hop_by_hop(parsed.as_str()) && parsed != header::HOST {
                return Err(error("belongs to the connection and cannot be set"));
            }
            let value = match value.strip_prefix("file:") {
                Some(path) => Value::File { path: path.into(), cache: Mutex::new(None) },
                None => Value::Fixed(HeaderValue::from_str(value).map_err(|_| error("its value has control characters"))?),
            };
            Ok((parsed, value))
        };
        headers.iter().map(one).collect::<Result<_, _>>().map(Self)
    }

    /// Sets them, in place of what the sender gave. The error names the header and the file, never a value.
    pub(super) fn apply(&self, map: &mut HeaderMap) -> Result<(), String> {
        for (name, value) in &self.0 {
            let value = match value {
                Value::Fixed(value) => value.clone(),
                Value::File { path, cache } => from_file(path, cache).map_err(|reason| {
                    format!("header {name}: {} {reason}; correct the file or the route's `headers`", path.display())
                })?,
            };
            map.insert(name, value);
        }
        Ok(())
    }
}

fn from_file(path: &Path, cache: &Mutex<Option<Cached>>) -> Result<HeaderValue, &'static str> {
    let mut cache = cache.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(cached) = &*cache
        && cached.looked.elapsed() < RECHECK
    {
        return Ok(cached.value.clone());
    }
    let meta = fs::metadata(path).map_err(|_| "cannot be read")?;
    let changed = meta.modified().unwrap_or(SystemTime::UNIX_EPOCH);
    if let Some(cached) = &mut *cache
        && cached.changed == changed
    {
        cached.looked = Instant::now();
        return Ok(cached.value.clone());
    }
    if meta.len() > MAX_VALUE {
        return Err("is larger than 16 KiB");
    }
    let bytes = fs::read(path).map_err(|_| "cannot be read")?;
    let mut value = HeaderValue::from_bytes(bytes.trim_ascii()).map_err(|_| "holds control characters")?;
    value.set_sensitive(true);
    *cache = Some(Cached { looked: Instant::now(), changed, value: value.clone() });
    Ok(value)
}
