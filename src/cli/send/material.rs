//! What `hie send` sends: messages from files, folders and standard input.

use super::Options;
use crate::message::hl7::{Header, HeaderKind, batch};
use bytes::{Bytes, BytesMut};
use std::{
    collections::VecDeque,
    fs, io,
    io::Read,
    ops::Range,
    path::{Path, PathBuf},
    time::SystemTime,
};

/// Files up to here in sum are kept in memory; the others are read again each time.
const KEEP: u64 = 256 * 1024 * 1024;

/// All messages, in order.
pub(super) struct Material {
    items: Vec<Item>,
    /// Begins each fresh control id, so that two runs never share one.
    run: Option<String>,
}

enum Item {
    Ready(Message),
    File(PathBuf),
}

/// One message as it will be sent.
#[derive(Clone, Debug)]
pub(super) struct Message {
    pub body: Bytes,
    /// Where MSH-10 lies; `None` where there is none.
    id: Option<Range<usize>>,
}

impl Message {
    fn new(body: Bytes) -> Self {
        let header = Header::parse(&body).ok().filter(|h| h.kind == HeaderKind::Msh);
        let id = header.map(|h| h.control_id).filter(|id| !id.is_empty()).map(|id| {
            // The slice is part of `body`: its distance from the beginning is its place.
            let start = id.as_ptr() as usize - body.as_ptr() as usize;
            start..start + id.len()
        });
        Self { body, id }
    }

    /// MSH-10 as sent; empty where there is none.
    pub(super) fn control_id(&self) -> &[u8] {
        self.id.clone().map_or(&[], |range| &self.body[range])
    }
}

impl Material {
    pub(super) fn gather(options: &Options) -> Result<Self, String> {
        let mut items = vec![];
        for message in &options.messages {
            split_into(message.clone(), options, &mut items);
        }
        let mut kept = 0;
        for path in files(&options.paths)? {
            let named = |e: io::Error| format!("{}: {e}", path.display());
            if path == Path::new("-") {
                let mut body = vec![];
                io::stdin().lock().read_to_end(&mut body).map_err(named)?;
                split_into(body.into(), options, &mut items);
                continue;
            }
            let size = fs::metadata(&path).map_err(named)?.len();
            kept += size;
            if kept <= KEEP || options.split {
                split_into(fs::read(&path).map_err(named)?.into(), options, &mut items);
            } else {
                items.push(Item::File(path));
            }
        }
        if items.is_empty() {
            return Err("nothing to send: the files or folders given hold no message".into());
        }
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        // Twenty characters are what older versions of HL7 allow: nine here, up to eleven for the number.
        let run = options.fresh_ids.then(|| format!("{:08X}-", now.as_millis() as u32 ^ rand::random::<u32>()));
        Ok(Self { items, run })
    }

    pub(super) fn len(&self) -> usize {
        self.items.len()
    }

    /// The message with this number, counted around the material.
    pub(super) fn get(&self, number: u64, options: &Options) -> io::Result<Message> {
        let message = match &self.items[(number % self.items.len() as u64) as usize] {
            Item::Ready(message) => message.clone(),
            Item::File(path) => Message::new(prepare(fs::read(path)?.into(), options)),
        };
        Ok(match (&self.run, message.id.clone()) {
            (Some(run), Some(range)) => {
                let id = format!("{run}{number}");
                let mut body = BytesMut::with_capacity(message.body.len() + id.len());
                body.extend_from_slice(&message.body[..range.start]);
                body.extend_from_slice(id.as_bytes());
                body.extend_from_slice(&message.body[range.end..]);
                Message { body: body.freeze(), id: Some(range.start..range.start + id.len()) }
            }
            _ => message,
        })
    }
}

/// All files below the paths, those of a folder by name.
fn files(paths: &[PathBuf]) -> Result<Vec<PathBuf>, String> {
    let mut found = vec![];
    let mut left: VecDeque<PathBuf> = paths.iter().cloned().collect();
    while let Some(path) = left.pop_front() {
        if path == Path::new("-") || !path.is_dir() {
            found.push(path);
            continue;
        }
        let named = |e: io::Error| format!("{}: {e}", path.display());
        let mut inside: Vec<PathBuf> =
            fs::read_dir(&path).and_then(|entries| entries.map(|entry| entry.map(|e| e.path())).collect()).map_err(named)?;
        inside.retain(|p| !p.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b".")));
        inside.sort();
        inside.into_iter().rev().for_each(|p| left.push_front(p));
    }
    Ok(found)
}

fn prepare(body: Bytes, options: &Options) -> Bytes {
    if !options.cr || !body.contains(&b'\n') {
        return body;
    }
    let mut out = Vec::with_capacity(body.len());
    for (i, byte) in body.iter().enumerate() {
        match byte {
            b'\n' if i > 0 && body[i - 1] == b'\r' => {}
            b'\n' => out.push(b'\r'),
            other => out.push(*other),
        }
    }
    out.into()
}

fn split_into(body: Bytes, options: &Options, items: &mut Vec<Item>) {
    let body = prepare(body, options);
    if !options.split {
        return items.push(Item::Ready(Message::new(body)));
    }
    let before = items.len();
    for part in batch::messages(&body) {
        items.push(Item::Ready(Message::new(body.slice(part))));
    }
    // No MSH in it: sent as it is.
    if items.len() == before && !body.trim_ascii().is_empty() {
        items.push(Item::Ready(Message::new(body)));
    }
}
