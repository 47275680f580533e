//! Which patients a message is about.

use super::{Message, segments, split};

/// At most this many identifiers of one message are kept.
pub const MAX_PATIENTS: usize = 16;
/// Longest identifier kept, in bytes of text; longer ones are cut.
const MAX_ID: usize = 256;

/// Identifiers to search by: the first component (CX.1) of every repetition of PID-3 and MRG-1, of all PID and MRG segments;
/// PID-2 where PID-3 is empty (before v2.3 it held the identifier). In order, each once, at most [`MAX_PATIENTS`].
pub fn patients(message: &Message<'_>) -> Vec<String> {
    collect(message, true)
}

/// Identifiers that decide order: the first of each PID segment, and for merges every identifier of PID-3 and MRG-1, so that the
/// message waits for, and holds back, the messages of both patients. Two at least: the message is a barrier.
pub fn ordering_patients(message: &Message<'_>) -> Vec<String> {
    collect(message, false)
}

/// `all`: every identifier; else those that decide order.
fn collect(message: &Message<'_>, all: bool) -> Vec<String> {
    // One pass over the message; more than these segments cannot add identifiers.
    let (mut pids, mut mrgs) = ([&[][..]; MAX_PATIENTS], [&[][..]; MAX_PATIENTS]);
    let (mut pid_count, mut mrg_count) = (0, 0);
    for segment in segments(message.bytes()) {
        let (found, count) = match segment.first_chunk() {
            Some(b"PID") => (&mut pids, &mut pid_count),
            Some(b"MRG") => (&mut mrgs, &mut mrg_count),
            _ => continue,
        };
        let own = segment.get(3).is_none_or(|b| *b == message.header().delimiters.field);
        if own && *count < MAX_PATIENTS {
            found[*count] = segment;
            *count += 1;
        }
    }
    // A merge may name the prior patient by any of its identifiers.
    let all = all || mrg_count > 0;
    let mut ids = Vec::new();
    for segment in &pids[..pid_count] {
        if !identifiers(message, segment, 3, all, &mut ids) {
            identifiers(message, segment, 2, all, &mut ids);
        }
    }
    for segment in &mrgs[..mrg_count] {
        identifiers(message, segment, 1, all, &mut ids);
    }
    ids
}

/// Appends the identifiers of one field, the first or all; false when it holds none.
fn identifiers<'a>(message: &Message<'a>, segment: &'a [u8], field: usize, all: bool, ids: &mut Vec<String>) -> bool {
    let delimiters = &message.header().delimiters;
    let Some(field) = split(segment, delimiters.field).nth(field) else { return false };
    let mut found = false;
    for repetition in split(field, delimiters.repetition) {
        let raw = split(repetition, delimiters.component).next().unwrap_or(&[]).trim_ascii();
        if raw.is_empty() || raw == b"\"\"" {
            continue;
        }
        if ids.len() >= MAX_PATIENTS {
            return true;
        }
        let mut id = String::from(message.decode(raw));
        if id.len() > MAX_ID {
            id.truncate(id.floor_char_boundary(MAX_ID));
        }
        if !ids.contains(&id) {
            ids.push(id);
        }
        found = true;
        if !all {
            break;
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn both(body: &str) -> (Vec<String>, Vec<String>) {
        let text = format!("MSH|^~\\&|A|B|C|D|||ADT^A40|1|P|2.5\r{body}");
        let message = Message::new(text.as_bytes()).unwrap();
        (patients(&message), ordering_patients(&message))
    }

    #[test]
    fn one_patient_with_several_identifiers() {
        let (search, order) = both("PID|1|old|1^^^H~2^^^N~1^^^X\r");
        assert_eq!((search, order), (vec!["1".into(), "2".into()], vec!["1".into()]));
    }

    #[test]
    fn a_merge_is_a_barrier_of_both() {
        let (search, order) = both("PID|1||1^^^H~2\rPD1|1\rMRG|8^^^H~9\r");
        assert_eq!(search, ["1", "2", "8", "9"]);
        assert_eq!(order, search);
    }

    #[test]
    fn two_pid_segments_are_a_barrier() {
        assert_eq!(both("PID|1||1~5\rPV1|1\rPID|2||2~6\r").1, ["1", "2"]);
    }

    #[test]
    fn blanks_and_nulls_do_not_count() {
        assert_eq!(both("PID|1||\"\"~ ~3\r").1, ["3"]);
        assert_eq!(both("PID|1|2|\r").1, ["2"]);
        assert!(both("PID|1\rEVN|1\rPIDX|1||9\r").0.is_empty());
    }

    #[test]
    fn bounded() {
        let many: Vec<String> = (0..100).map(|n| n.to_string()).collect();
        assert_eq!(both(&format!("PID|1||{}\r", many.join("~"))).0.len(), MAX_PATIENTS);
        assert_eq!(both(&format!("PID|1||{}\r", "\u{e9}".repeat(500))).0[0].len(), MAX_ID);
    }
}
