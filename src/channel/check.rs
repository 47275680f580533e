//! What can be wrong with one channel, apart from its syntax.

use super::{Channel, FileTarget, Mode, Order, Route, Rule};
use std::time::Duration;

/// Longest name of a channel or route.
const MAX_NAME: usize = 128;
/// Largest body that `max_body` may allow, in bytes: that of `limits.max_body`.
const LARGEST_BODY: u64 = 1 << 40;
/// Headers whose values are credentials: they are referred to, never written into a channel.
const CREDENTIALS: [&str; 5] = ["authorization", "proxy-authorization", "cookie", "x-api-key", "api-key"];
/// Headers of one hop or of the framing, which the connection itself decides.
const NOT_OURS: [&str; 7] = ["connection", "content-length", "transfer-encoding", "te", "trailer", "upgrade", "keep-alive"];

/// Something wrong with a channel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    pub place: Place,
    /// What is wrong and what would be right.
    pub message: String,
}

/// Where in the channel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// The channel as a whole, or its name.
    Name,
    /// Line and column in the rule.
    When(usize, usize),
    /// Line and column in the order.
    Order(usize, usize),
    /// A route, by position.
    Route(usize),
}

/// Everything that is wrong with a channel; empty when it is fit for use.
pub fn check(channel: &Channel) -> Vec<Fault> {
    let mut faults = Vec::new();
    let mut fault = |place: Place, message: String| faults.push(Fault { place, message });
    if let Some(why) = wrong_name(&channel.name) {
        fault(Place::Name, why);
    }
    if let Err(e) = Rule::compile(&channel.when) {
        fault(Place::When(e.line, e.column), e.message);
    }
    if let Err(e) = Order::compile(&channel.order) {
        fault(Place::Order(e.line, e.column), e.message);
    }
    if channel.max_body.is_some_and(|size| size.as_u64() == 0) {
        fault(Place::Name, "max_body is 0: nothing could be taken; leave it out for the node's limit".into());
    }
    if let Some(size) = channel.max_body.filter(|size| size.as_u64() > LARGEST_BODY) {
        fault(Place::Name, format!("max_body: {size} is out of range; at most 1 TiB"));
    }
    if channel.silent_after.is_some_and(|after| after.is_zero()) {
        fault(Place::Name, "silent_after is 0: the alert would never end; leave it out for none".into());
    }
    if channel.allow.iter().any(|client| client.trim().is_empty()) {
        fault(Place::Name, "allow has an empty client name; leave allow out to let every client in".into());
    }
    if channel.routes.is_empty() {
        fault(Place::Name, "a channel has at least one [[channel.route]]".into());
    }
    for (index, route) in channel.routes.iter().enumerate() {
        if channel.routes[..index].iter().any(|other| other.name == route.name) {
            fault(Place::Route(index), format!("the name `{}` is given to two routes", route.name));
        }
        for message in wrong_route(route) {
            fault(Place::Route(index), format!("route `{}`: {message}", route.name));
        }
    }
    let primaries: Vec<usize> = (0..channel.routes.len()).filter(|i| channel.routes[*i].primary).collect();
    if let [_, second, ..] = primaries[..] {
        fault(Place::Route(second), "a channel has one primary route; the others are secondary".into());
    }
    let primary = primaries.first().copied().unwrap_or(0);
    if channel.mode == Some(Mode::Proxy) && channel.routes.get(primary).is_some_and(|r| r.file.is_some()) {
        fault(
            Place::Route(primary),
            "in proxy mode the primary route answers the sender; a file cannot: use http or mllp, or mode = \"queue\"".into(),
        );
    }
    faults
}

/// Is it `namespace.name`?
fn wrong_name(name: &str) -> Option<String> {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    if name.len() > MAX_NAME {
        return Some(format!("a channel's name has at most {MAX_NAME} characters"));
    }
    let parts = name.split('.').count();
    let sound = parts >= 2 && name.bytes().all(allowed) && name.split('.').all(|part| !part.is_empty());
    (!sound).then(|| {
        format!("`{name}` is no channel name: namespace.name, of letters, digits, - and _, with a dot between, as in lab.results")
    })
}

fn wrong_route(route: &Route) -> Vec<String> {
    let mut wrong = Vec::new();
    let sound = !route.name.is_empty() && route.name.len() <= MAX_NAME;
    if !sound || !route.name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.')) {
        wrong.push("a route's name is of letters, digits, -, _ and dots".into());
    }
    let kinds = [!route.http.is_empty(), !route.mllp.is_empty(), route.file.is_some()];
    match kinds.iter().filter(|given| **given).count() {
        1 => {}
        0 => wrong.push("has no destination; give one of http, mllp and file".into()),
        _ => wrong.push("has several kinds of destination; give one of http, mllp and file, and a route for each".into()),
    }
    wrong.extend(route.http.iter().filter_map(|url| wrong_url(url)));
    wrong.extend(route.mllp.iter().filter_map(|target| wrong_target(target)));
    wrong.extend(route.file.iter().filter_map(wrong_file));
    if route.http.is_empty() {
        for (given, key) in
            [(route.method.is_some(), "method"), (route.forward_path, "forward_path"), (!route.headers.is_empty(), "headers")]
        {
            if given {
                wrong.push(format!("{key} is for http destinations only"));
            }
        }
    }
    if route.file.is_some() && route.tls.is_some() {
        wrong.push("tls is for http and mllp destinations only".into());
    }
    if let Some(tls) = &route.tls
        && tls.cert.is_some() != tls.key.is_some()
    {
        wrong.push("tls.cert and tls.key belong together".into());
    }
    if let Some(method) = &route.method
        && http::Method::from_bytes(method.as_bytes()).is_err()
    {
        wrong.push(format!("`{method}` is no HTTP method"));
    }
    wrong.extend(route.headers.iter().filter_map(|(name, value)| wrong_header(name, value)));
    if route.in_flight == 0 {
        wrong.push("in_flight is at least 1; pause the route to stop it".into());
    }
    if route.timeout.is_zero() {
        wrong.push("timeout is more than 0".into());
    }
    let retry = &route.retry;
    if retry.first < Duration::from_millis(1) || retry.max < retry.first {
        wrong.push("retry.first is at least 1ms and retry.max no less than it".into());
    }
    if !retry.factor.is_finite() || !(1.0..=100.0).contains(&retry.factor) {
        wrong.push("retry.factor is from 1 to 100".into());
    }
    wrong.extend(route.on.keys().filter(|key| !is_outcome(key)).map(|key| {
        format!("on.{key}: the keys are AA AE AR CA CE CR timeout broken, 2xx 3xx 4xx 5xx, or an HTTP status such as 409")
    }));
    wrong
}

/// Is it a key of `on`?
fn is_outcome(key: &str) -> bool {
    matches!(key, "AA" | "AE" | "AR" | "CA" | "CE" | "CR" | "timeout" | "broken" | "1xx" | "2xx" | "3xx" | "4xx" | "5xx")
        || (key.len() == 3 && key.parse::<u16>().is_ok_and(|status| (100..=599).contains(&status)))
}

/// Texts name the key, not the URL: it may hold what should not be in a log.
fn wrong_url(url: &str) -> Option<String> {
    let Ok(parsed) = url.parse::<http::Uri>() else {
        return Some("an http destination is no URL; write http://host:port/path".into());
    };
    let Some(authority) = parsed.authority().filter(|_| matches!(parsed.scheme_str(), Some("http" | "https"))) else {
        return Some("an http destination begins with http:// or https:// and a host".into());
    };
    if authority.as_str().contains('@') {
        return Some("an http destination holds a user name or password; use headers with a value file:PATH".into());
    }
    // A port beyond 65535 is no port to the parser, and not a mistake either.
    let port = authority.as_str().strip_prefix(authority.host()).unwrap_or_default();
    (authority.host().is_empty() || !port.is_empty() && authority.port_u16().is_none_or(|port| port == 0))
        .then(|| "an http destination has no valid host and port (1 to 65535)".into())
}

fn wrong_target(target: &str) -> Option<String> {
    let sound = target.rsplit_once(':').is_some_and(|(host, port)| {
        let port = port.bytes().all(|b| b.is_ascii_digit()) && port.parse::<u16>().is_ok_and(|p| p > 0);
        let host = match host.strip_prefix('[').and_then(|h| h.strip_suffix(']')) {
            Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
            None => !host.is_empty() && host.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.')),
        };
        port && host
    });
    (!sound).then(|| format!("`{target}` is no mllp destination; write host:port or [IPv6]:port"))
}

fn wrong_file(file: &FileTarget) -> Option<String> {
    if file.directory.as_os_str().is_empty() {
        return Some("file.directory is empty".into());
    }
    let name = file.name.as_deref()?;
    let plain = name.replace("{id}", "").replace("{time}", "").replace("{kind}", "");
    if name.is_empty() || name.starts_with('.') || plain.contains(['/', '\\', '\0', '{', '}']) {
        return Some(
            "file.name is a file name with {id}, {time} and {kind} in it, without / and not beginning with a dot".into(),
        );
    }
    (!name.contains("{id}")).then(|| "file.name needs {id}: without it a message would overwrite another".into())
}

fn wrong_header(name: &str, value: &str) -> Option<String> {
    let lower = name.to_ascii_lowercase();
    if http::HeaderName::from_bytes(lower.as_bytes()).is_err() {
        return Some(format!("headers: `{name}` cannot be the name of a header"));
    }
    if NOT_OURS.contains(&lower.as_str()) {
        return Some(format!("headers: {name} is set by the connection itself"));
    }
    if CREDENTIALS.contains(&lower.as_str()) && !value.starts_with("file:") {
        return Some(format!("headers: {name} is a credential; write it into a file and give file:PATH"));
    }
    if value == "file:" {
        return Some(format!("headers: {name} names no file; write file:PATH"));
    }
    http::HeaderValue::from_str(value)
        .is_err()
        .then(|| format!("headers: the value of {name} has characters that a header cannot have"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(extra: &str, route: &str) -> Vec<String> {
        let text = format!("name = \"a.b\"\nwhen = 'true'\n{extra}\n[[route]]\nname = \"r\"\n{route}\n");
        let channel: Channel = toml::from_str(&text).unwrap_or_else(|e| panic!("{text}: {e}"));
        check(&channel).into_iter().map(|f| f.message).collect()
    }

    fn only(extra: &str, route: &str, part: &str) {
        let all = faults(extra, route);
        assert!(all.len() == 1 && all[0].contains(part), "{extra} {route}: {all:?} should be one with {part:?}");
    }

    #[test]
    fn sound_routes_pass() {
        for route in [
            "mllp = [\"h:1\", \"10.0.0.1:65535\", \"[::1]:2575\", \"a_b-c.d:5\"]",
            "http = [\"http://h\", \"https://h:8443/fhir?x=1\", \"http://[::1]:80/\"]\nmethod = \"PUT\"\nforward_path = true\nheaders = { Authorization = \"file:/run/t\", X-A = \"b\" }",
            "file = { directory = \"/srv\" }",
            "file = { directory = \"/srv\", name = \"{time}-{id}.hl7\" }",
            "mllp = [\"h:1\"]\non = { AE = \"retry\", timeout = \"park\", broken = \"park\", 4xx = \"retry\", 409 = \"deliver\" }",
        ] {
            assert_eq!(faults("", route), Vec::<String>::new(), "{route}");
        }
    }

    #[test]
    fn destinations() {
        only("", "", "no destination");
        only("", "mllp = [\"h:1\"]\nfile = { directory = \"/x\" }", "several kinds");
        for target in ["h", "h:", "h:0", "h:70000", ":1", "h:+1", "[::g]:1", "a b:1", "mllp://h:1"] {
            only("", &format!("mllp = [\"{target}\"]"), "no mllp destination");
        }
        for url in ["h", "ftp://h/", "/x", "http://", "http://h:0/", "http://h:/", "http://h:99999/", "http://[::1]:65536/"] {
            only("", &format!("http = [\"{url}\"]"), "http destination");
        }
        let all = faults("", "http = [\"http://user:secret@h/\"]");
        assert!(all.len() == 1 && all[0].contains("password") && !all[0].contains("secret"), "{all:?}");
    }

    #[test]
    fn values() {
        let mllp = "mllp = [\"h:1\"]\n";
        for (wrong, part) in [
            ("in_flight = 0", "in_flight"),
            ("timeout = \"0s\"", "timeout"),
            ("retry = { first = \"0s\" }", "retry.first"),
            ("retry = { first = \"5s\", max = \"1s\" }", "retry.first"),
            ("retry = { factor = 0.5 }", "retry.factor"),
            ("retry = { factor = nan }", "retry.factor"),
            ("on = { XX = \"park\" }", "on.XX"),
            ("on = { 600 = \"park\" }", "on.600"),
            ("method = \"GET\"", "http destinations only"),
            ("headers = { a = \"b\" }", "http destinations only"),
            ("tls = { cert = \"/c\" }", "belong together"),
        ] {
            only("", &format!("{mllp}{wrong}"), part);
        }
        for (wrong, part) in [
            ("headers = { authorization = \"Bearer x\" }", "credential"),
            ("headers = { \"a b\" = \"x\" }", "name of a header"),
            ("headers = { connection = \"close\" }", "connection itself"),
            ("headers = { a = \"file:\" }", "names no file"),
            ("headers = { a = \"x\\ny\" }", "characters"),
            ("method = \"G T\"", "no HTTP method"),
        ] {
            only("", &format!("http = [\"http://h/\"]\n{wrong}"), part);
        }
        for name in ["a/{id}", "{id}{x}", "", ".{id}", "..{id}"] {
            only("", &format!("file = {{ directory = \"/x\", name = \"{name}\" }}"), "file.name");
        }
        only("", "file = { directory = \"/x\", name = \"one.hl7\" }", "overwrite");
    }

    #[test]
    fn the_channel_itself() {
        let mllp = "mllp = [\"h:1\"]";
        only("mode = \"proxy\"", "file = { directory = \"/x\" }", "proxy mode");
        only("max_body = 0", mllp, "max_body");
        only("max_body = \"99999999 EiB\"", mllp, "out of range");
        only("allow = [\" \"]", mllp, "allow");
        only("order = \"nobody\"", mllp, "order");
        let two = "mllp = [\"h:1\"]\nprimary = true\n[[route]]\nname = \"s\"\nmllp = [\"h:1\"]\nprimary = true";
        only("", two, "one primary");
        only("", "mllp = [\"h:1\"]\n[[route]]\nname = \"r\"\nmllp = [\"h:1\"]", "two routes");
        for name in ["ab", "a.", ".b", "a..b", "a.b c", "a/b.c", ""] {
            let channel = Channel {
                name: name.into(),
                ..toml::from_str("name = \"x\"\nwhen = 'true'\nroute = [{ name = \"r\", mllp = [\"h:1\"] }]").unwrap()
            };
            assert_eq!(check(&channel).len(), 1, "{name}");
        }
        let none: Channel = toml::from_str("name = \"a.b\"\nwhen = 'true'").unwrap();
        assert!(check(&none)[0].message.contains("at least one"));
    }
}
