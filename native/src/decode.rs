//! One strict pass over each payload: the values of the wanted paths go to column buffers.
//!
//! A payload is decided if it is certain that the Python reference makes a row of it, and which. Any other payload is
//! undecided: nothing of it remains in the columns, and the reference decodes it.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer as _, Error, MapAccess, SeqAccess, Visitor};

use crate::columns::{Column, Part, Scalar};
use crate::targets::Target;

const LIMIT_OF_INTEGERS: f64 = 1e18; // serde_json makes floats of integers beyond 64 bits

/// A field: where its value is in an event, what it becomes, and whether an event without it is invalid.
pub struct FieldPlan {
    pub path: Vec<String>,
    pub target: Target,
    pub required: bool,
}

/// Consecutive decided payloads, from `start` to before `stop`; one part per field.
pub struct Run {
    pub start: usize,
    pub stop: usize,
    pub parts: Vec<Part>,
}

/// What became of a batch of payloads: each is in a run or undecided.
pub struct Outcome {
    pub runs: Vec<Run>,
    pub undecided: Vec<usize>,
}

/// The wanted paths as a tree, and a column per field.
pub struct Decoder {
    nodes: Vec<Node>, // the first is the event itself
    columns: Vec<Column>,
    required: Vec<bool>, // per column
    event: u64,          // counts events
    rows: usize,         // complete in all columns
    values: usize,       // of this event in the columns
}

/// A key on a wanted path. It can have fields, and children on the way to other fields.
#[derive(Default)]
struct Node {
    children: Vec<Child>,
    lengths: u64,          // bit n: a child's key has n bytes; bit 63: 63 or more
    following: Vec<usize>, // the child that came first, then which one came after each child, in earlier events
    columns: Vec<usize>,
    last_event: u64, // that had this key
}

struct Child {
    key: Box<str>,
    node: usize,
}

impl Decoder {
    /// None if a path is empty.
    pub fn new(fields: Vec<FieldPlan>) -> Option<Self> {
        let mut decoder = Self {
            nodes: vec![Node::default()],
            columns: Vec::with_capacity(fields.len()),
            required: Vec::with_capacity(fields.len()),
            event: 0,
            rows: 0,
            values: 0,
        };
        for field in fields {
            if field.path.is_empty() {
                return None;
            }
            let leaf = field
                .path
                .into_iter()
                .fold(0, |parent, key| decoder.child(parent, key));
            decoder.nodes[leaf].columns.push(decoder.columns.len());
            decoder.columns.push(Column::new(field.target));
            decoder.required.push(field.required);
        }
        for node in &mut decoder.nodes {
            node.following = (0..=node.children.len()).collect();
        }
        Some(decoder)
    }

    fn child(&mut self, parent: usize, key: String) -> usize {
        if let Some(position) = self.nodes[parent].find(&key) {
            return self.nodes[parent].children[position].node;
        }
        let node = self.nodes.len();
        self.nodes.push(Node::default());
        let parent = &mut self.nodes[parent];
        parent.lengths |= length_bit(&key);
        parent.children.push(Child {
            key: key.into(),
            node,
        });
        node
    }

    /// Decode a batch. The buffers keep their size for the next.
    pub fn decode_all(&mut self, payloads: &[&[u8]]) -> Outcome {
        let mut outcome = Outcome {
            runs: Vec::new(),
            undecided: Vec::new(),
        };
        let mut start = 0;
        for (index, payload) in payloads.iter().enumerate() {
            if self.decode(payload) {
                self.rows += 1;
                continue;
            }
            for column in &mut self.columns {
                column.roll_back(self.rows);
            }
            self.cut(start, index, &mut outcome.runs);
            outcome.undecided.push(index);
            start = index + 1;
        }
        self.cut(start, payloads.len(), &mut outcome.runs);
        outcome
    }

    fn cut(&mut self, start: usize, stop: usize, runs: &mut Vec<Run>) {
        if start < stop {
            self.rows = 0;
            let parts = self.columns.iter_mut().map(Column::cut).collect();
            runs.push(Run { start, stop, parts });
        }
    }

    /// Append one payload's values to the columns; false if it is undecided, and then some values may remain.
    fn decode(&mut self, payload: &[u8]) -> bool {
        self.event += 1;
        self.values = 0;
        let Ok(text) = simdutf8::basic::from_utf8(payload) else {
            return false;
        };
        let mut json = serde_json::Deserializer::from_str(text);
        let is_object = (&mut json).deserialize_map(Wanted {
            decoder: self,
            node: 0,
        });
        is_object.is_ok() && json.end().is_ok() && self.fill_missing()
    }

    /// Append NULL for each field that the event lacks; false if one of them is required or has no NULL.
    fn fill_missing(&mut self) -> bool {
        if self.values == self.columns.len() {
            return true;
        }
        let rows = self.rows;
        let mut fields = self.columns.iter_mut().zip(&self.required);
        fields.all(|(column, required)| {
            column.rows() > rows || !*required && column.push(Scalar::Null).is_some()
        })
    }

    /// Append the value at a wanted key to all of its columns.
    fn push(&mut self, node: usize, value: Scalar) -> Option<()> {
        let node = &self.nodes[node];
        if !node.children.is_empty() && !matches!(value, Scalar::Null) {
            return None; // not an object
        }
        for column in &node.columns {
            self.columns[*column].push(value)?;
            self.values += 1;
        }
        Some(())
    }

    /// Return the child of a node that a key names. `previous` is the position after that of the last one found.
    fn find(&mut self, node: usize, key: &str, previous: &mut usize) -> Option<usize> {
        let parent = &mut self.nodes[node];
        let expected = parent.following[*previous];
        let position = match parent.children.get(expected) {
            Some(child) if *child.key == *key => expected,
            _ => {
                let position = parent.find(key)?;
                parent.following[*previous] = position;
                position
            }
        };
        *previous = position + 1;
        Some(parent.children[position].node)
    }

    /// Note that the event has a key; false if it has it twice.
    fn visit(&mut self, node: usize) -> bool {
        std::mem::replace(&mut self.nodes[node].last_event, self.event) != self.event
    }
}

impl Node {
    fn find(&self, key: &str) -> Option<usize> {
        if self.lengths & length_bit(key) == 0 {
            return None;
        }
        self.children.iter().position(|child| *child.key == *key)
    }
}

fn length_bit(key: &str) -> u64 {
    1 << key.len().min(63)
}

fn undecided<E: Error>() -> E {
    E::custom("undecided")
}

/// A key in an object on a wanted path → the node that it names, if it names one.
struct Key<'a> {
    decoder: &'a mut Decoder,
    node: usize,
    previous: &'a mut usize,
}

impl<'de> DeserializeSeed<'de> for Key<'_> {
    type Value = Option<usize>;

    fn deserialize<D: serde::Deserializer<'de>>(self, json: D) -> Result<Self::Value, D::Error> {
        json.deserialize_str(self)
    }
}

impl<'de> Visitor<'de> for Key<'_> {
    type Value = Option<usize>;

    fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        formatter.write_str("a key")
    }

    fn visit_str<E: Error>(self, key: &str) -> Result<Self::Value, E> {
        Ok(self.decoder.find(self.node, key, self.previous))
    }
}

/// The value of a wanted key, or the event.
struct Wanted<'a> {
    decoder: &'a mut Decoder,
    node: usize,
}

impl Wanted<'_> {
    fn push<E: Error>(self, value: Scalar) -> Result<(), E> {
        self.decoder.push(self.node, value).ok_or_else(undecided)
    }
}

impl<'de> DeserializeSeed<'de> for Wanted<'_> {
    type Value = ();

    fn deserialize<D: serde::Deserializer<'de>>(self, json: D) -> Result<(), D::Error> {
        json.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Wanted<'_> {
    type Value = ();

    fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        formatter.write_str("a wanted value") // arrays are none
    }

    fn visit_unit<E: Error>(self) -> Result<(), E> {
        self.push(Scalar::Null)
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<(), E> {
        self.push(Scalar::Bool(value))
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<(), E> {
        self.push(Scalar::Integer {
            negative: false,
            magnitude: value,
        })
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<(), E> {
        self.push(Scalar::Integer {
            negative: value < 0,
            magnitude: value.unsigned_abs(),
        })
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<(), E> {
        if value.abs() >= LIMIT_OF_INTEGERS || value == 0.0 && value.is_sign_negative() {
            return Err(undecided());
        }
        self.push(Scalar::Float(value))
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<(), E> {
        self.push(Scalar::Text(value))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let Self { decoder, node } = self;
        if !decoder.nodes[node].columns.is_empty() {
            return Err(undecided());
        }
        let mut previous = 0;
        while let Some(child) = map.next_key_seed(Key {
            decoder,
            node,
            previous: &mut previous,
        })? {
            match child {
                None => map.next_value_seed(Unwanted)?,
                Some(node) if decoder.visit(node) => {
                    map.next_value_seed(Wanted { decoder, node })?
                }
                Some(_) => return Err(undecided()),
            }
        }
        Ok(())
    }
}

/// A value that is parsed as strictly as the others, then dropped. (serde's IgnoredAny accepts what orjson refuses.)
struct Unwanted;

impl<'de> DeserializeSeed<'de> for Unwanted {
    type Value = ();

    fn deserialize<D: serde::Deserializer<'de>>(self, json: D) -> Result<(), D::Error> {
        json.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Unwanted {
    type Value = ();

    fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        formatter.write_str("a value")
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut values: A) -> Result<(), A::Error> {
        while values.next_element_seed(Unwanted)?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while map.next_key_seed(Unwanted)?.is_some() {
            map.next_value_seed(Unwanted)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decoder(fields: &[(&[&str], &str, bool)]) -> Decoder {
        let plans = fields.iter().map(|(path, target, required)| FieldPlan {
            path: path.iter().map(|key| key.to_string()).collect(),
            target: Target::parse(target).unwrap(),
            required: *required,
        });
        Decoder::new(plans.collect()).unwrap()
    }

    fn undecided(decoder: &mut Decoder, payloads: &[&str]) -> Vec<usize> {
        let payloads: Vec<&[u8]> = payloads.iter().map(|payload| payload.as_bytes()).collect();
        decoder.decode_all(&payloads).undecided
    }

    #[test]
    fn an_undecided_payload_leaves_no_value_in_any_column() {
        let mut decoder = decoder(&[(&["a"], "String", true), (&["b"], "UInt8", true)]);
        let payloads = [
            r#"{"a":"x","b":1}"#,
            r#"{"a":"lost","b":256}"#,
            r#"{"a":"y","b":2}"#,
            r#"{"b":3,"a":"z"}"#,
        ];
        let payloads: Vec<&[u8]> = payloads.iter().map(|payload| payload.as_bytes()).collect();
        let outcome = decoder.decode_all(&payloads);
        assert_eq!(outcome.undecided, [1]);
        let runs: Vec<_> = outcome
            .runs
            .iter()
            .map(|run| (run.start, run.stop))
            .collect();
        assert_eq!(runs, [(0, 1), (2, 4)]);
        let parts = [b"\x01x".to_vec(), vec![1]].map(Part::Bytes);
        assert_eq!(outcome.runs[0].parts, parts);
        let parts = [b"\x01y\x01z".to_vec(), vec![2, 3]].map(Part::Bytes);
        assert_eq!(outcome.runs[1].parts, parts);
    }

    #[test]
    fn bytes_after_the_object_undo_the_row() {
        let mut decoder = decoder(&[(&["a"], "String", true)]);
        let payloads = [
            r#"{"a":"x"} {}"#,
            r#"{"a":"x"}]"#,
            r#"{"a":"x"} "#,
            r#"{"a":"x""#,
            "",
        ];
        assert_eq!(undecided(&mut decoder, &payloads), [0, 1, 3, 4]);
    }

    #[test]
    fn unwanted_values_are_parsed_strictly() {
        let mut decoder = decoder(&[(&["a"], "Nullable(String)", false)]);
        let refused = [
            r#"{"x":1e999}"#,
            r#"{"x":01}"#,
            r#"{"x":"\ud800"}"#,
            r#"{"x":[1,]}"#,
            "{\"x\":\"\n\"}",
            "\u{feff}{}",
            r#"{"x":NaN}"#,
        ];
        assert_eq!(undecided(&mut decoder, &refused).len(), refused.len());
        assert!(
            undecided(
                &mut decoder,
                &[r#"{"x":[{"y":[1e9,null,"\u00e9"]}]}"#, "{}"]
            )
            .is_empty()
        );
        assert_eq!(
            decoder.decode_all(&[b"{\"x\":\"\xed\xa0\x80\"}"]).undecided,
            [0]
        );
    }

    #[test]
    fn depth_beyond_the_limit_is_undecided() {
        let mut decoder = decoder(&[]);
        let deep = |depth| format!("{{\"x\":{}{}}}", "[".repeat(depth), "]".repeat(depth));
        assert_eq!(
            undecided(&mut decoder, &[&deep(100), &deep(1000), &deep(1_000_000)]),
            [1, 2]
        );
    }

    #[test]
    fn numbers_that_serde_json_does_not_keep_are_undecided() {
        let mut decoder = decoder(&[(&["a"], "Float64", true)]);
        let payloads = [
            r#"{"a":-0}"#,
            r#"{"a":-0.0}"#,
            r#"{"a":18446744073709551616}"#,
            r#"{"a":18446744073709551615}"#,
        ];
        assert_eq!(undecided(&mut decoder, &payloads), [0, 1, 2]);
    }

    #[test]
    fn keys_may_come_in_any_order() {
        let mut decoder = decoder(&[
            (&["a"], "UInt8", true),
            (&["b"], "UInt8", true),
            (&["c"], "UInt8", true),
        ]);
        let payloads = [
            r#"{"a":1,"b":2,"c":3}"#,
            r#"{"c":3,"x":0,"a":1,"b":2}"#,
            r#"{"b":2,"c":3,"\u0061":1}"#,
        ];
        let payloads: Vec<&[u8]> = payloads.iter().map(|payload| payload.as_bytes()).collect();
        let outcome = decoder.decode_all(&payloads);
        let parts = [vec![1, 1, 1], vec![2, 2, 2], vec![3, 3, 3]].map(Part::Bytes);
        assert_eq!(outcome.runs[0].parts, parts);
    }

    #[test]
    fn a_key_twice_is_undecided_only_on_a_wanted_path() {
        let mut decoder = decoder(&[(&["g", "a"], "Nullable(UInt8)", false)]);
        let payloads = [
            r#"{"g":{"a":1,"a":2}}"#,
            r#"{"g":{},"g":{}}"#,
            r#"{"x":1,"x":2,"g":{"y":1,"y":2}}"#,
        ];
        assert_eq!(undecided(&mut decoder, &payloads), [0, 1]);
    }
}
