//! From what a caller searches by, plainly or in OpenHIM's words, to the ledger's query.

use super::{error::ApiError, records::Query};
use crate::{engine::fact::Status, message::MessageId};
use serde::Deserialize;
use serde_json::{Map, Value};
use time::{Date, OffsetDateTime, format_description::well_known::Rfc3339, macros::format_description};
use utoipa::{IntoParams, ToSchema};

/// The most rows of one page, and of one page with bodies.
pub(super) const MOST: usize = 1000;
pub(super) const MOST_FULL: usize = 100;
/// The deepest row that paging reaches.
const DEEPEST: usize = 100_000;

/// What to search for: query parameters of `GET /transactions`, or the JSON body of `POST /transactions/search`.
#[derive(Clone, Debug, Default, Deserialize, serde::Serialize, IntoParams, ToSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
#[into_params(parameter_in = Query)]
pub(super) struct Search {
    /// Rows of a page: 1 to 1000 (with bodies to 100); default 100 (50).
    #[serde(deserialize_with = "number")]
    pub filter_limit: Option<u64>,
    /// Page, from 0.
    #[serde(deserialize_with = "number")]
    pub filter_page: Option<u64>,
    /// `simple` (default), `simpledetails` (all but bodies) or `full`.
    pub filter_representation: Option<String>,
    /// OpenHIM's filters as a JSON object: `status`, `channelID`, `clientID`, `parentID`, `_id`, `request.timestamp` with
    /// `$gte`, `$gt`, `$lte`, `$lt`; also `hie.type` and `hie.controlId`.
    #[schema(value_type = Option<Object>)]
    #[param(value_type = Option<String>)]
    pub filters: Option<Value>,
    /// One or more, separated by commas.
    pub status: Option<String>,
    /// Full channel name.
    pub channel: Option<String>,
    /// Client name.
    pub client: Option<String>,
    /// Message type, as `ADT^A01` or `Patient`.
    pub r#type: Option<String>,
    /// MSH-10 or resource id.
    pub control_id: Option<String>,
    /// Arrived at or after: RFC 3339, a date (UTC), or Unix milliseconds.
    pub from: Option<String>,
    /// Arrived before: as `from`.
    pub to: Option<String>,
    /// Reruns of this transaction.
    pub parent: Option<String>,
    /// Patient identifier; only with POST, so that it is in no URL.
    pub patient: Option<String>,
    /// Words in the body; only with POST, and with `from`.
    pub text: Option<String>,
}

/// A number, also as text: query strings have nothing else, and some of OpenHIM's scripts send both.
fn number<'de, D: serde::Deserializer<'de>>(d: D) -> Result<Option<u64>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Either {
        Number(u64),
        Text(String),
        Null(()),
    }
    match Either::deserialize(d)? {
        Either::Number(n) => Ok(Some(n)),
        Either::Text(t) => t.parse().map(Some).map_err(serde::de::Error::custom),
        Either::Null(()) => Ok(None),
    }
}

/// How much of each transaction is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Representation {
    Simple,
    Details,
    Full,
}

impl Search {
    /// Refuses what may not stand in a URL.
    pub fn by_get(self) -> Result<Self, ApiError> {
        match self.patient.is_some() || self.text.is_some() {
            false => Ok(self),
            true => Err(ApiError::bad(
                "searches by patient or text are not taken in a URL, which ends up in logs",
                "POST /transactions/search with the same names in a JSON body",
            )),
        }
    }

    /// How much to show.
    pub fn representation(&self) -> Result<Representation, ApiError> {
        match self.filter_representation.as_deref() {
            None | Some("" | "simple" | "bulkrerun") => Ok(Representation::Simple),
            Some("simpledetails") => Ok(Representation::Details),
            Some("full" | "fulltruncate") => Ok(Representation::Full),
            Some(_) => Err(ApiError::bad("no such filterRepresentation", "simple, simpledetails or full")),
        }
    }

    /// The query, paging included.
    pub fn query(&self) -> Result<Query, ApiError> {
        let full = self.representation()? == Representation::Full;
        let (most, usual) = if full { (MOST_FULL, 50) } else { (MOST, 100) };
        let limit = self.filter_limit.map_or(usual, |n| usize::try_from(n).unwrap_or(usize::MAX));
        if limit == 0 || limit > most {
            return Err(ApiError::bad(format!("filterLimit is 1 to {most}"), "turn pages with filterPage"));
        }
        let offset = usize::try_from(self.filter_page.unwrap_or(0)).unwrap_or(usize::MAX).saturating_mul(limit);
        if offset > DEEPEST {
            return Err(ApiError::bad(
                format!("paging reaches {DEEPEST} rows deep"),
                "narrow the search by `to`: the oldest row's time",
            ));
        }
        let mut query = Query {
            from: self.from.as_deref().map(moment).transpose()?,
            to: self.to.as_deref().map(moment).transpose()?,
            channel: self.channel.clone(),
            client: self.client.clone(),
            kind: self.r#type.clone(),
            control_id: self.control_id.clone(),
            patient: self.patient.clone(),
            text: self.text.clone(),
            parent: self.parent.as_deref().map(id).transpose()?,
            offset,
            limit,
            ..Query::default()
        };
        for word in self.status.iter().flat_map(|s| s.split(',')) {
            query.status.push(status(word.trim())?);
        }
        openhim(self.filters.as_ref(), &mut query)?;
        if query.text.is_some() && query.from.is_none() {
            return Err(ApiError::bad("a search by text needs a time range", "give `from`, and `to` where you can"));
        }
        Ok(query)
    }
}

fn openhim(filters: Option<&Value>, query: &mut Query) -> Result<(), ApiError> {
    let filters = match filters {
        None | Some(Value::Null) => return Ok(()),
        Some(Value::String(text)) if text.is_empty() => return Ok(()),
        Some(Value::String(text)) => object(text)?,
        Some(Value::Object(map)) => map.clone(),
        Some(_) => return Err(not_an_object()),
    };
    for (key, value) in &filters {
        match key.as_str() {
            "status" => query.status = one_of(value)?.iter().map(|w| status(w)).collect::<Result<_, _>>()?,
            "channelID" => query.channel = Some(only(value, key)?),
            "clientID" => query.client = Some(only(value, key)?),
            "hie.type" => query.kind = Some(only(value, key)?),
            "hie.controlId" => query.control_id = Some(only(value, key)?),
            "parentID" => query.parent = Some(id(&only(value, key)?)?),
            "_id" => query.id = Some(id(&only(value, key)?)?),
            "request.timestamp" => range(value, query)?,
            _ => {
                return Err(ApiError::bad(
                    "a filter of this name is not supported",
                    "status, channelID, clientID, parentID, _id, request.timestamp, hie.type, hie.controlId; patient and text by POST",
                ));
            }
        }
    }
    Ok(())
}

fn range(value: &Value, query: &mut Query) -> Result<(), ApiError> {
    let map = match value {
        Value::String(text) => object(text)?,
        Value::Object(map) => map.clone(),
        _ => return Err(not_an_object()),
    };
    for (operator, value) in &map {
        let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        let at = moment(&text)?;
        match operator.as_str() {
            "$gte" => query.from = Some(at),
            "$gt" => query.from = Some(at.saturating_add(1)),
            "$lt" => query.to = Some(at),
            "$lte" => query.to = Some(at.saturating_add(1)),
            _ => return Err(ApiError::bad("no such operator on request.timestamp", "$gte, $gt, $lte, $lt")),
        }
    }
    Ok(())
}

fn object(text: &str) -> Result<Map<String, Value>, ApiError> {
    serde_json::from_str(text).map_err(|_| not_an_object())
}

fn not_an_object() -> ApiError {
    ApiError::bad("filters is a JSON object, or the text of one", "for example {\"status\":\"Parked\"}")
}

/// A value, or several in `$in`.
fn one_of(value: &Value) -> Result<Vec<&str>, ApiError> {
    let list = match value {
        Value::Object(map) if map.len() == 1 => map.get("$in").and_then(Value::as_array).map(Vec::as_slice),
        single => Some(std::slice::from_ref(single)),
    };
    list.and_then(|l| l.iter().map(Value::as_str).collect::<Option<Vec<_>>>())
        .ok_or_else(|| ApiError::bad("a filter's value is a text or {\"$in\": [texts]}", "see /openapi.json"))
}

fn only(value: &Value, key: &str) -> Result<String, ApiError> {
    match one_of(value)?.as_slice() {
        [one] => Ok((*one).to_owned()),
        _ => Err(ApiError::bad(format!("filter {key} takes one value"), "search once for each")),
    }
}

fn id(text: &str) -> Result<MessageId, ApiError> {
    text.parse().map_err(|_| ApiError::bad("not a transaction's id", "an id is a UUID, as in X-HIE-Transaction-ID"))
}

fn status(word: &str) -> Result<Status, ApiError> {
    Status::ALL.into_iter().find(|s| s.as_str().eq_ignore_ascii_case(word)).ok_or_else(|| {
        let known: Vec<&str> = Status::ALL.iter().map(|s| s.as_str()).collect();
        ApiError::bad("no such status", known.join(", "))
    })
}

/// Unix milliseconds from RFC 3339, a date, or a number.
fn moment(text: &str) -> Result<i64, ApiError> {
    let text = text.trim();
    let of = |t: OffsetDateTime| i64::try_from(t.unix_timestamp_nanos() / 1_000_000).ok();
    text.parse::<i64>()
        .ok()
        .or_else(|| OffsetDateTime::parse(text, &Rfc3339).ok().and_then(of))
        .or_else(|| {
            Date::parse(text, format_description!("[year]-[month]-[day]")).ok().and_then(|d| of(d.midnight().assume_utc()))
        })
        .ok_or_else(|| ApiError::bad("a time is not one", "RFC 3339 (2026-01-31T12:00:00Z), a date, or Unix milliseconds"))
}

/// RFC 3339 in UTC with milliseconds, as OpenHIM writes times.
pub(super) fn timestamp(ms: i64) -> String {
    let format = format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:3]Z");
    OffsetDateTime::from_unix_timestamp_nanos(i128::from(ms) * 1_000_000)
        .ok()
        .and_then(|t| t.format(format).ok())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn search(json: &str) -> Result<Query, ApiError> {
        serde_json::from_str::<Search>(json).unwrap().query()
    }

    #[test]
    fn openhims_filters_and_plain_ones_mean_the_same() {
        let openhim = r#"{"filters":"{\"status\":\"Failed\",\"channelID\":\"lab.results\",\"clientID\":\"lab\",\"request.timestamp\":\"{\\\"$gte\\\":\\\"2026-01-01T00:00:00.000Z\\\",\\\"$lt\\\":\\\"2026-02-01T01:00:00+01:00\\\"}\"}","filterPage":"2","filterLimit":10}"#;
        let plain = r#"{"status":"failed","channel":"lab.results","client":"lab","from":"2026-01-01","to":"1769904000000","filterPage":2,"filterLimit":"10"}"#;
        assert_eq!(search(openhim).unwrap(), search(plain).unwrap());
        assert_eq!(search(plain).unwrap().offset, 20);
    }

    #[test]
    fn wrong_ones_are_told_without_repeating_them() {
        for wrong in [
            r#"{"filters":{"canary":"1"}}"#,
            r#"{"filters":"canary"}"#,
            r#"{"filters":{"status":{"$in":[1]}}}"#,
            r#"{"filters":{"request.timestamp":{"$gte":"canary"}}}"#,
            r#"{"status":"canary"}"#,
            r#"{"from":"canary"}"#,
            r#"{"parent":"canary"}"#,
            r#"{"filterLimit":0}"#,
            r#"{"filterLimit":1001}"#,
            r#"{"filterLimit":101,"filterRepresentation":"full"}"#,
            r#"{"filterPage":18446744073709551615}"#,
            r#"{"filterRepresentation":"canary"}"#,
            r#"{"text":"canary"}"#,
        ] {
            let error = search(wrong).unwrap_err();
            assert!(!format!("{error:?}").contains("canary"), "{error:?}");
        }
    }

    #[test]
    fn times_are_written_as_openhim_does() {
        assert_eq!(timestamp(1_769_904_000_007), "2026-02-01T00:00:00.007Z");
        assert_eq!(timestamp(i64::MAX), "");
    }
}
