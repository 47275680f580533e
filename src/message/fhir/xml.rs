//! The head of an XML body. Entities of a document type are never resolved.

use super::{Fhir, Found, Resource};
use quick_xml::events::{BytesStart, Event};
use quick_xml::reader::Reader;

const NAMESPACE: &[u8] = b"http://hl7.org/fhir";
const MAX_DEPTH: usize = 128;

/// The elements that matter.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Element {
    Other,
    /// A resource; its place among the open ones.
    Resource(usize),
    Identifier,
    /// Holds a resource.
    Holder,
    Request,
}

pub(super) fn sniff(head: &[u8]) -> Option<Fhir> {
    let mut reader = Reader::from_reader(head);
    // The head may end anywhere, so that ends cannot be checked.
    reader.config_mut().check_end_names = false;
    let mut found = Found::default();
    let mut open: Vec<Element> = Vec::new();
    let mut resources: Vec<Resource> = Vec::new();
    loop {
        match reader.read_event() {
            Ok(Event::Start(start)) => {
                if open.is_empty() && !in_namespace(&start) || open.len() >= MAX_DEPTH {
                    break;
                }
                let element = enter(&start, &open, &mut resources, &mut found);
                open.push(element);
            }
            Ok(Event::Empty(start)) => {
                if open.is_empty() {
                    if !in_namespace(&start) {
                        break;
                    }
                    resources.push(Resource { kind: local_name(&start)?.to_owned(), ..Resource::default() });
                    break;
                }
                enter(&start, &open, &mut resources, &mut found);
            }
            Ok(Event::End(_)) => {
                if let Some(Element::Resource(index)) = open.pop() {
                    found.resource(&resources[index]);
                    resources.truncate(index.max(1));
                }
                if open.is_empty() {
                    break;
                }
            }
            Ok(Event::Eof) | Err(_) => break,
            Ok(_) => {}
        }
    }
    // A cut body: the resources that are still open count with what has been read of them.
    for element in open.iter().rev() {
        if let Element::Resource(index) = element {
            found.resource(&resources[*index]);
        }
    }
    found.finish(resources.into_iter().next()?)
}

fn enter(start: &BytesStart<'_>, open: &[Element], resources: &mut Vec<Resource>, found: &mut Found) -> Element {
    let parent = open.last().copied();
    let name = local_name(start).unwrap_or("");
    if matches!(parent, None | Some(Element::Holder)) && resources.len() < MAX_DEPTH {
        resources.push(Resource { kind: name.to_owned(), ..Resource::default() });
        return Element::Resource(resources.len() - 1);
    }
    match (name, parent) {
        ("resource", _) => return Element::Holder,
        ("request", _) => return Element::Request,
        ("identifier", Some(Element::Resource(_))) => return Element::Identifier,
        ("id", Some(Element::Resource(index))) => {
            if let Some(id) = value(start) {
                resources[index].set_id(&id);
            }
        }
        ("value", Some(Element::Identifier)) => {
            if let (Some(Element::Resource(index)), Some(id)) = (open.iter().rev().nth(1), value(start)) {
                resources[*index].identifier(&id);
            }
        }
        ("reference", _) | ("url", Some(Element::Request)) => {
            if let Some(reference) = value(start) {
                found.reference(&reference);
            }
        }
        _ => {}
    }
    Element::Other
}

fn local_name<'a>(start: &'a BytesStart<'_>) -> Option<&'a str> {
    let name = start.name().into_inner();
    let local = memchr::memchr(b':', name).map_or(name, |at| &name[at + 1..]);
    std::str::from_utf8(local).ok()
}

/// Does the root declare FHIR's namespace, for its own prefix?
fn in_namespace(start: &BytesStart<'_>) -> bool {
    let prefix = start.name().prefix().map(|p| p.into_inner().to_vec());
    start.attributes().with_checks(false).flatten().any(|attribute| {
        let declares = match (attribute.key.into_inner(), &prefix) {
            (b"xmlns", None) => true,
            (key, Some(prefix)) => key.strip_prefix(b"xmlns:") == Some(prefix),
            _ => false,
        };
        declares && attribute.value.as_ref() == NAMESPACE
    })
}

/// The `value` attribute, in which FHIR keeps every primitive.
fn value(start: &BytesStart<'_>) -> Option<String> {
    let attribute = start.try_get_attribute("value").ok()??;
    let text = std::str::from_utf8(&attribute.value).ok()?;
    quick_xml::escape::unescape(text).ok().map(std::borrow::Cow::into_owned)
}
