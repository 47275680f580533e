//! A closed segment's keys in one file: a sorted table of (hash, number) under a directory of buckets. A look-up, hit or
//! miss, is two small reads and no memory, so that a search by id, control id or patient may ask every segment.
//!
//! Layout, little endian: magic, version, first number, count of entries, count of buckets; per bucket and one past the
//! end: index of its first entry (u32) and a checksum of its entries (u32); entries: hash (i64), number less the
//! segment's first (u32). Buckets divide the range of hashes evenly.

use super::catalog::sync_dir;
use super::sql::{Damage, FileError, from_sql, io_error};
use crate::engine::fact::Seq;
use rusqlite::Connection;
use std::fs::File;
use std::io::{self, BufWriter, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use xxhash_rust::xxh3::xxh3_64;

const MAGIC: u64 = 0x3179_656b_6569_6801;
const HEAD: usize = 8 * 4;
const ENTRY: usize = 12;
const SLOT: usize = 8;
/// Entries per bucket, about.
const PER_BUCKET: u64 = 64;
/// The runs are merged slice by slice of the range of hashes: about so many keys in memory at a time.
const SLICE_KEYS: u64 = 16 * 1024;

/// Signed hashes in their order as unsigned numbers.
fn place(hash: i64) -> u64 {
    (hash as u64) ^ (1 << 63)
}

fn bucket(hash: i64, buckets: u64) -> u64 {
    ((u128::from(place(hash)) * u128::from(buckets)) >> 64) as u64
}

/// Merges the runs of keys of a view into the file at `path`.
pub fn build(view: &Connection, path: &Path, first: Seq) -> Result<(), FileError> {
    let total = view.query_row("SELECT count(*) FROM keys", [], |r| r.get::<_, i64>(0))? as u64;
    let runs: i64 = view.query_row("SELECT coalesce(max(run), 0) FROM keys", [], |r| r.get(0))?;
    let buckets = (total / PER_BUCKET).max(1);
    let new = path.with_extension("new");
    let written = write(view, &new, first, total, runs, buckets);
    if written.is_err() {
        let _ = std::fs::remove_file(&new);
    }
    written?;
    std::fs::rename(&new, path).map_err(|e| io_error(&e))?;
    sync_dir(path.parent().unwrap_or(Path::new("."))).map_err(|e| io_error(&e))
}

fn write(view: &Connection, new: &Path, first: Seq, total: u64, runs: i64, buckets: u64) -> Result<(), FileError> {
    let fail = |e: io::Error| io_error(&e);
    let mut out = BufWriter::new(File::create(new).map_err(fail)?);
    let mut directory: Vec<(u32, u32)> = Vec::new();
    out.seek(SeekFrom::Start((HEAD + (buckets as usize + 1) * SLOT) as u64)).map_err(fail)?;
    let mut statement = view.prepare("SELECT hash, seq FROM keys WHERE run = ?1 AND hash BETWEEN ?2 AND ?3")?;
    let slices = (total / SLICE_KEYS + 1).min(buckets);
    let mut count = 0u32;
    let mut bytes = Vec::new();
    for slice in 0..slices {
        // Whole buckets per slice.
        let from = slice * buckets / slices;
        let to = (slice + 1) * buckets / slices;
        let mut entries: Vec<(i64, Seq)> = Vec::new();
        for run in 0..=runs {
            let mut rows = statement.query([run, lowest(from, buckets), highest(to, buckets)])?;
            while let Some(row) = rows.next()? {
                entries.push((row.get(0)?, from_sql(row.get(1)?)));
            }
        }
        entries.sort_unstable();
        entries.dedup();
        let mut rest = entries.as_slice();
        for b in from..to {
            let n = rest.partition_point(|(hash, _)| bucket(*hash, buckets) <= b);
            let (here, later) = rest.split_at(n);
            rest = later;
            bytes.clear();
            for (hash, seq) in here {
                let Ok(delta) = u32::try_from(seq.wrapping_sub(first)) else { continue };
                bytes.extend_from_slice(&hash.to_le_bytes());
                bytes.extend_from_slice(&delta.to_le_bytes());
            }
            directory.push((count, xxh3_64(&bytes) as u32));
            count += (bytes.len() / ENTRY) as u32;
            out.write_all(&bytes).map_err(fail)?;
        }
    }
    directory.push((count, 0));
    out.seek(SeekFrom::Start(0)).map_err(fail)?;
    for word in [MAGIC, first, u64::from(count), buckets] {
        out.write_all(&word.to_le_bytes()).map_err(fail)?;
    }
    for (index, sum) in directory {
        out.write_all(&index.to_le_bytes()).map_err(fail)?;
        out.write_all(&sum.to_le_bytes()).map_err(fail)?;
    }
    out.into_inner().map_err(|e| io_error(e.error()))?.sync_all().map_err(fail)
}

/// Lowest hash of a bucket.
fn lowest(bucket: u64, buckets: u64) -> i64 {
    let place = (u128::from(bucket) << 64).div_ceil(u128::from(buckets));
    (u64::try_from(place).unwrap_or(u64::MAX) ^ (1 << 63)) as i64
}

/// Highest hash below a bucket.
fn highest(bucket: u64, buckets: u64) -> i64 {
    if bucket >= buckets { i64::MAX } else { lowest(bucket, buckets) - 1 }
}

/// The numbers stored under hashes, each with its hash.
pub fn find(path: &Path, first: Seq, hashes: &[i64]) -> Result<Vec<(i64, Seq)>, FileError> {
    let damaged = || FileError::from(Damage("the file of keys does not match its checksum".into()));
    let mut file = File::open(path).map_err(|e| io_error(&e))?;
    let mut head = [0; HEAD];
    file.read_exact(&mut head).map_err(|_| damaged())?;
    let word = |i: usize| head[i * 8..][..8].try_into().map(u64::from_le_bytes).unwrap_or(0);
    let (count, buckets) = (word(2), word(3));
    if word(0) != MAGIC || word(1) != first || buckets == 0 || buckets > count.max(1) {
        return Err(damaged());
    }
    let mut found = Vec::new();
    for hash in hashes {
        let b = bucket(*hash, buckets);
        let mut slots = [0; SLOT * 2];
        file.read_exact_at(&mut slots, HEAD as u64 + b * SLOT as u64).map_err(|_| damaged())?;
        let half = |i: usize| slots[i * 4..][..4].try_into().map(u32::from_le_bytes).unwrap_or(0);
        let (from, sum, to) = (u64::from(half(0)), half(1), u64::from(half(2)));
        if from > to || to > count || to - from > PER_BUCKET * 1024 {
            return Err(damaged());
        }
        let mut entries = vec![0; (to - from) as usize * ENTRY];
        let start = HEAD as u64 + (buckets + 1) * SLOT as u64 + from * ENTRY as u64;
        file.read_exact_at(&mut entries, start).map_err(|_| damaged())?;
        if xxh3_64(&entries) as u32 != sum {
            return Err(damaged());
        }
        let same = entries.chunks_exact(ENTRY).filter(|e| e[..8] == hash.to_le_bytes());
        found.extend(same.filter_map(|e| Some((*hash, first + u64::from(u32::from_le_bytes(e[8..].try_into().ok()?))))));
    }
    Ok(found)
}
