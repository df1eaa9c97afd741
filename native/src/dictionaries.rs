//! LowCardinality: parts that are made of the texts of all their rows together.

use foldhash::{HashMap, HashMapExt};

use crate::values::push_string;

const FLAGS: u64 = 1 << 9 | 1 << 10; // additional keys, new dictionary

/// A dictionary of the distinct texts, entry 0 of a nullable one being NULL, then each row's position in it.
pub fn low_cardinality(texts: &[Option<&[u8]>], nullable: bool) -> Vec<u8> {
    if texts.is_empty() {
        return Vec::new();
    }
    let mut positions = HashMap::new();
    let mut keys: Vec<&[u8]> = Vec::new();
    if nullable {
        positions.insert(None, 0);
        keys.push(b"");
    }
    let rows: Vec<u32> = texts
        .iter()
        .map(|text| {
            *positions.entry(*text).or_insert_with(|| {
                keys.push(text.unwrap_or_default());
                keys.len() as u32 - 1
            })
        })
        .collect();
    let width = u64::from(keys.len() > 1 << 8) + u64::from(keys.len() > 1 << 16);
    let mut out = Vec::with_capacity(32 + rows.len() * 2 + keys.len() * 16);
    out.extend_from_slice(&(width | FLAGS).to_le_bytes());
    out.extend_from_slice(&(keys.len() as u64).to_le_bytes());
    for key in keys {
        push_string(&mut out, key);
    }
    out.extend_from_slice(&(rows.len() as u64).to_le_bytes());
    for row in rows {
        out.extend_from_slice(&row.to_le_bytes()[..1 << width]);
    }
    out
}
