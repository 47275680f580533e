//! A scanner over the head of a JSON body. It builds no tree, needs no end, and does not judge: [`super::check_json`] does.

use super::{Fhir, Found, Resource};
use std::borrow::Cow;

/// Nesting beyond this ends the scan; no FHIR resource goes that deep, and a parser of the whole refuses it.
const MAX_DEPTH: usize = 128;

/// The keys that matter.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Key {
    Other,
    ResourceType,
    Id,
    Identifier,
    Value,
    Reference,
    Resource,
    Request,
    Url,
}

impl Key {
    fn of(name: &str) -> Self {
        match name {
            "resourceType" => Self::ResourceType,
            "id" => Self::Id,
            "identifier" => Self::Identifier,
            "value" => Self::Value,
            "reference" => Self::Reference,
            "resource" => Self::Resource,
            "request" => Self::Request,
            "url" => Self::Url,
            _ => Self::Other,
        }
    }
}

/// An object or array that is open.
struct Open {
    array: bool,
    /// Under which key it stands; elements of an array stand under the array's.
    under: Key,
    /// An object: the key read last.
    key: Key,
    /// An object: a key comes next, not a value.
    key_next: bool,
    /// An object that is a resource: its place among the open resources.
    resource: Option<usize>,
}

pub(super) fn sniff(head: &[u8]) -> Option<Fhir> {
    let mut scan = Scan { found: Found::default(), open: Vec::with_capacity(16), resources: Vec::with_capacity(2) };
    let mut at = 0;
    while let Some(byte) = head.get(at) {
        match byte {
            b'{' | b'[' => {
                if scan.open.len() >= MAX_DEPTH || (scan.open.is_empty() && *byte == b'[') {
                    break;
                }
                scan.enter(*byte == b'[');
                at += 1;
            }
            b'}' | b']' => {
                at += 1;
                if !scan.leave() {
                    break;
                }
            }
            b'"' => {
                let Some(end) = string_end(head, at + 1) else { break };
                scan.string(&head[at..=end]);
                at = end + 1;
            }
            b',' => {
                if let Some(open) = scan.open.last_mut() {
                    open.key_next = !open.array;
                }
                at += 1;
            }
            _ => at += 1,
        }
    }
    // A cut body: the resources that are still open count with what has been read of them.
    while scan.leave() {}
    let top = scan.resources.pop()?;
    scan.found.finish(top)
}

struct Scan {
    found: Found,
    open: Vec<Open>,
    /// Open resources; the first is the body itself and stays.
    resources: Vec<Resource>,
}

impl Scan {
    fn enter(&mut self, array: bool) {
        let under = match self.open.last() {
            Some(open) if open.array => open.under,
            Some(open) => open.key,
            None => Key::Other,
        };
        let resource = (!array && (self.open.is_empty() || under == Key::Resource)).then(|| {
            self.resources.push(Resource::default());
            self.resources.len() - 1
        });
        self.open.push(Open { array, under, key: Key::Other, key_next: true, resource });
    }

    /// Closes the innermost object or array; false when that was the body.
    fn leave(&mut self) -> bool {
        let Some(open) = self.open.pop() else { return false };
        if let Some(index) = open.resource {
            self.found.resource(&self.resources[index]);
            if index > 0 {
                self.resources.truncate(index);
            }
        }
        !self.open.is_empty()
    }

    /// A string, with its quotes.
    fn string(&mut self, quoted: &[u8]) {
        let Some(open) = self.open.last_mut() else { return };
        if open.array {
            return;
        }
        if open.key_next {
            open.key = text(quoted).map_or(Key::Other, |name| Key::of(&name));
            open.key_next = false;
            return;
        }
        match (open.key, open.resource, open.under) {
            (Key::ResourceType, Some(r), _) => {
                if let Some(kind) = text(quoted) {
                    self.resources[r].kind = kind.into_owned();
                }
            }
            (Key::Id, Some(r), _) => {
                if let Some(id) = text(quoted) {
                    self.resources[r].set_id(&id);
                }
            }
            (Key::Value, _, Key::Identifier) => {
                if let (Some(r), Some(value)) = (self.resource_above(), text(quoted)) {
                    self.resources[r].identifier(&value);
                }
            }
            (Key::Reference, _, _) | (Key::Url, _, Key::Request) => {
                if let Some(reference) = text(quoted) {
                    self.found.reference(&reference);
                }
            }
            _ => {}
        }
    }

    /// The resource to which the innermost object belongs directly, through an array or not.
    fn resource_above(&self) -> Option<usize> {
        let mut above = self.open.iter().rev().skip(1);
        match above.next()? {
            open if open.array => above.next()?.resource,
            open => open.resource,
        }
    }
}

/// The string's content; `None` when it is not one.
fn text(quoted: &[u8]) -> Option<Cow<'_, str>> {
    if memchr::memchr(b'\\', quoted).is_none() {
        return std::str::from_utf8(&quoted[1..quoted.len() - 1]).ok().map(Cow::Borrowed);
    }
    serde_json::from_slice::<String>(quoted).ok().map(Cow::Owned)
}

/// The position of the closing quote.
fn string_end(head: &[u8], mut at: usize) -> Option<usize> {
    loop {
        let found = at + memchr::memchr2(b'"', b'\\', head.get(at..)?)?;
        if head[found] == b'"' {
            return Some(found);
        }
        at = found + 2;
    }
}
