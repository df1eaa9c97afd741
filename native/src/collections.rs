//! Buffers for Array and Map: the number of elements of each row, then a column of all elements.

use crate::columns::{Column, Mark, Part};
use crate::targets::Target;
use crate::values::Scalar;

const MAX_KEYS: usize = 64; // of one map: each is compared with those before it

/// A buffer that grows by one array or map per row.
pub struct Collection {
    sizes: Vec<u8>, // 64-bit numbers
    keys: Option<Column>,
    values: Column,
    row_keys: Vec<Vec<u8>>, // of the last row; longer than it, so that their memory is used again
    row_size: usize,
    rows: usize,
    before: (Mark, Mark), // the last row, in keys and values
}

impl Collection {
    pub fn new(keys: Option<Target>, values: Target) -> Self {
        Self {
            sizes: Vec::new(),
            keys: keys.map(Column::new),
            values: Column::new(values),
            row_keys: Vec::new(),
            row_size: 0,
            rows: 0,
            before: Default::default(),
        }
    }

    pub fn is_map(&self) -> bool {
        self.keys.is_some()
    }

    pub fn rows(&self) -> usize {
        self.rows
    }

    pub fn begin_row(&mut self) {
        let keys = self.keys.as_ref().map(Column::mark);
        self.before = (keys.unwrap_or_default(), self.values.mark());
        self.rows += 1;
        self.row_size = 0;
    }

    /// Append a key; None if the row has it already, or too many.
    pub fn push_key(&mut self, key: &[u8]) -> Option<()> {
        let known = self.row_keys.get(..self.row_size)?;
        if self.row_size == MAX_KEYS || known.iter().any(|other| other == key) {
            return None;
        }
        match self.row_keys.get_mut(self.row_size) {
            Some(place) => key.clone_into(place),
            None => self.row_keys.push(key.to_owned()),
        }
        self.keys.as_mut()?.push(Scalar::Text(key))
    }

    /// Append a value, after its key in a map.
    pub fn push(&mut self, value: Scalar) -> Option<()> {
        self.row_size += 1;
        self.values.push(value)
    }

    pub fn end_row(&mut self) {
        let size = self.row_size as u64;
        self.sizes.extend_from_slice(&size.to_le_bytes());
    }

    /// Remove the last row, complete or not, if there are more than `rows`.
    pub fn roll_back(&mut self, rows: usize) {
        if self.rows > rows {
            self.rows = rows;
            self.sizes.truncate(rows * size_of::<u64>());
            if let Some(keys) = &mut self.keys {
                keys.truncate(self.before.0);
            }
            self.values.truncate(self.before.1);
        }
    }

    /// Return the rows so far and begin again.
    pub fn cut(&mut self) -> Part {
        let sizes = std::mem::replace(&mut self.sizes, Vec::with_capacity(self.rows * 8));
        self.rows = 0;
        let columns = self.keys.iter_mut().chain([&mut self.values]);
        Part::Collection {
            sizes,
            columns: columns.map(Column::cut).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_rolled_back_complete_or_not() {
        let mut arrays = Collection::new(None, Target::parse("Nullable(String)").unwrap());
        arrays.begin_row();
        arrays.push(Scalar::Text(b"a")).unwrap();
        arrays.push(Scalar::Null).unwrap();
        arrays.end_row();
        for is_complete in [true, false] {
            arrays.begin_row();
            arrays.push(Scalar::Text(b"lost")).unwrap();
            arrays.push(Scalar::Null).unwrap();
            if is_complete {
                arrays.end_row();
            } else {
                assert!(arrays.push(Scalar::Bool(true)).is_none());
            }
            arrays.roll_back(1);
            arrays.roll_back(1);
        }
        arrays.begin_row();
        arrays.end_row();
        let values = Part::Nullable {
            mask: vec![0, 1],
            values: b"\x01a\0".to_vec(),
        };
        let sizes = [2_u64.to_le_bytes(), 0_u64.to_le_bytes()].concat();
        assert_eq!(
            arrays.cut(),
            Part::Collection {
                sizes,
                columns: vec![values]
            }
        );
    }

    #[test]
    fn a_map_has_each_key_once() {
        let mut maps = Collection::new(Some(Target::String), Target::parse("UInt8").unwrap());
        for _ in 0..2 {
            maps.begin_row();
            for number in 0..MAX_KEYS {
                maps.push_key(format!("key {number}").as_bytes()).unwrap();
                maps.push(Scalar::Integer {
                    negative: false,
                    magnitude: 7,
                })
                .unwrap();
            }
            maps.end_row();
            assert!(maps.push_key(b"one more").is_none());
        }
        maps.begin_row();
        maps.push_key(b"a").unwrap();
        maps.push(Scalar::Integer {
            negative: false,
            magnitude: 7,
        })
        .unwrap();
        assert!(maps.push_key(b"a").is_none());
    }
}
