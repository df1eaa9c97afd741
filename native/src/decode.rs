//! One strict pass over each payload: the values of the wanted paths go to column buffers.
//!
//! A payload is decided if it is certain that the Python reference makes a row of it, and which. Any other payload is
//! undecided: nothing of it remains in the columns, and the reference decodes it.

use crate::collections::Collection;
use crate::columns::{Column, Part};
use crate::json::{MAX_DEPTH, Scanner};
use crate::paths::{Next, Node};
use crate::targets::Target;
use crate::values::Scalar;

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
    collections: Vec<Collection>,
    fields: Vec<Source>,
    event: u64,    // counts events
    rows: usize,   // complete in all columns
    values: usize, // of this event in the columns
}

/// Where the part of a field comes from.
enum Source {
    Column(usize),
    Collection(usize),
    Tuple(Vec<Source>),
}

impl Decoder {
    /// None if a path is empty.
    pub fn new(fields: Vec<FieldPlan>) -> Option<Self> {
        let mut decoder = Self {
            nodes: vec![Node::default()],
            columns: Vec::with_capacity(fields.len()),
            required: Vec::with_capacity(fields.len()),
            collections: Vec::new(),
            fields: Vec::with_capacity(fields.len()),
            event: 0,
            rows: 0,
            values: 0,
        };
        for field in fields {
            if field.path.is_empty() {
                return None;
            }
            let node = field
                .path
                .into_iter()
                .fold(0, |parent, key| decoder.child(parent, key));
            let source = decoder.add(node, field.target, field.required);
            decoder.fields.push(source);
        }
        Some(decoder)
    }

    fn add(&mut self, node: usize, target: Target, required: bool) -> Source {
        let (keys, values) = match target {
            Target::Array(values) => (None, *values),
            Target::Map(keys, values) => (Some(*keys), *values),
            Target::Tuple(members) => {
                let members = members.into_iter().map(|(name, target)| {
                    let member = self.child(node, name);
                    self.add(member, target, true)
                });
                return Source::Tuple(members.collect());
            }
            target => {
                self.nodes[node].columns.push(self.columns.len());
                self.columns.push(Column::new(target));
                self.required.push(required);
                return Source::Column(self.columns.len() - 1);
            }
        };
        self.nodes[node].collections.push(self.collections.len());
        self.collections.push(Collection::new(keys, values));
        Source::Collection(self.collections.len() - 1)
    }

    fn child(&mut self, parent: usize, key: String) -> usize {
        if let Some(node) = self.nodes[parent].wanted(key.as_bytes()) {
            return node;
        }
        let node = self.nodes.len();
        self.nodes.push(Node::default());
        self.nodes[parent].add(key.as_bytes(), Some(node));
        node
    }

    /// Decode a batch. The buffers keep their size for the next.
    pub fn decode_all<'a>(&mut self, payloads: impl IntoIterator<Item = &'a [u8]>) -> Outcome {
        let mut outcome = Outcome {
            runs: Vec::new(),
            undecided: Vec::new(),
        };
        let (mut start, mut count) = (0, 0);
        for payload in payloads {
            let index = count;
            count += 1;
            if self.decode(payload).is_some() {
                self.rows += 1;
                continue;
            }
            for column in &mut self.columns {
                column.roll_back(self.rows);
            }
            for collection in &mut self.collections {
                collection.roll_back(self.rows);
            }
            self.cut(start, index, &mut outcome.runs);
            outcome.undecided.push(index);
            start = index + 1;
        }
        self.cut(start, count, &mut outcome.runs);
        outcome
    }

    fn cut(&mut self, start: usize, stop: usize, runs: &mut Vec<Run>) {
        if start < stop {
            self.rows = 0;
            let (columns, collections) = (&mut self.columns, &mut self.collections);
            let parts = self
                .fields
                .iter()
                .map(|source| source.cut(columns, collections))
                .collect();
            runs.push(Run { start, stop, parts });
        }
    }

    /// Append one payload's values to the columns; None if it is undecided, and then some values may remain.
    fn decode(&mut self, payload: &[u8]) -> Option<()> {
        self.event += 1;
        self.values = 0;
        let mut json = Scanner::new(payload);
        let mut unescaped = String::new(); // allocates only for a text with escapes
        json.skip(b'{')
            .then(|| self.object(&mut json, &mut unescaped, 0, 1))??;
        (json.is_at_end() && self.fill_missing()).then_some(())
    }

    /// Read the object at a node after its opening brace.
    fn object(
        &mut self,
        json: &mut Scanner,
        unescaped: &mut String,
        node: usize,
        depth: usize,
    ) -> Option<()> {
        let mut step = 0;
        loop {
            let next = match self.nodes[node].following.get(step) {
                Some(expected) if json.skip_exactly(&expected.bytes) => expected.next,
                _ => self.unexpected_step(json, unescaped, node, step)?,
            };
            let Next::Value { step: after, node } = next else {
                return Some(());
            };
            step = after;
            match node {
                Some(node) => self.wanted_value(json, unescaped, node, depth)?,
                None => json.skip_value(depth)?,
            }
        }
    }

    /// Read to the next value of an object or behind the object. Step 0 begins behind the opening brace.
    #[inline(never)]
    fn unexpected_step(
        &mut self,
        json: &mut Scanner,
        unescaped: &mut String,
        node: usize,
        step: usize,
    ) -> Option<Next> {
        let start = json.position();
        let parent = &mut self.nodes[node];
        let next = if json.skip(b'}') {
            Next::End
        } else {
            (step == 0 || json.skip(b',')).then_some(())?;
            let next = parent.after_key(json.key(unescaped)?);
            json.next_token()?;
            next
        };
        parent.learn(step, json.since(start), next);
        Some(next)
    }

    #[inline]
    fn wanted_value(
        &mut self,
        json: &mut Scanner,
        unescaped: &mut String,
        node: usize,
        depth: usize,
    ) -> Option<()> {
        if std::mem::replace(&mut self.nodes[node].last_event, self.event) == self.event {
            return None; // a key that occurs twice
        }
        match json.next_token()? {
            b'"' => {
                json.advance();
                self.push(node, Scalar::Text(json.string(unescaped)?))
            }
            b'-' | b'0'..=b'9' => {
                let value = json.number()?.value()?;
                self.push(node, value)
            }
            b'{' if self.nodes[node].is_only_parent() && depth < MAX_DEPTH => {
                json.advance();
                self.object(json, unescaped, node, depth + 1)
            }
            bracket @ (b'[' | b'{') => {
                let collection = self.nodes[node].only_collection()?;
                self.values += 1;
                json.advance();
                read_collection(&mut self.collections[collection], json, unescaped, bracket)
            }
            _ => {
                let value = json.literal()?;
                self.push(node, value)
            }
        }
    }

    /// Append NULL for each field that the event lacks; false if one of them is required or has no NULL.
    fn fill_missing(&mut self) -> bool {
        if self.values == self.columns.len() + self.collections.len() {
            return true;
        }
        let rows = self.rows;
        if self
            .collections
            .iter()
            .any(|collection| collection.rows() == rows)
        {
            return false;
        }
        let mut fields = self.columns.iter_mut().zip(&self.required);
        fields.all(|(column, required)| {
            column.rows() > rows || !*required && column.push(Scalar::Null).is_some()
        })
    }

    /// Append the value at a wanted key to all of its columns.
    fn push(&mut self, node: usize, value: Scalar) -> Option<()> {
        let node = &self.nodes[node];
        if node.is_parent && !matches!(value, Scalar::Null) || !node.collections.is_empty() {
            return None; // neither an object nor an array
        }
        for column in &node.columns {
            self.columns[*column].push(value)?;
        }
        self.values += node.columns.len();
        Some(())
    }
}

impl Source {
    fn cut(&self, columns: &mut [Column], collections: &mut [Collection]) -> Part {
        match self {
            Self::Column(index) => columns[*index].cut(),
            Self::Collection(index) => collections[*index].cut(),
            Self::Tuple(members) => {
                let parts = members
                    .iter()
                    .map(|member| member.cut(columns, collections));
                Part::Tuple(parts.collect())
            }
        }
    }
}

/// Read an array, or an object as a map, of scalars, after its bracket.
fn read_collection(
    collection: &mut Collection,
    json: &mut Scanner,
    unescaped: &mut String,
    bracket: u8,
) -> Option<()> {
    let is_map = bracket == b'{';
    if collection.is_map() != is_map {
        return None;
    }
    collection.begin_row();
    let end = if is_map { b'}' } else { b']' };
    if !json.skip(end) {
        loop {
            if is_map {
                collection.push_key(json.key(unescaped)?)?;
            }
            collection.push(json.scalar(unescaped)?)?;
            if !json.skip(b',') {
                json.skip(end).then_some(())?;
                break;
            }
        }
    }
    collection.end_row();
    Some(())
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
        let payloads = payloads.iter().map(|payload| payload.as_bytes());
        decoder.decode_all(payloads).undecided
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
        let outcome = decoder.decode_all(payloads.map(str::as_bytes));
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
            decoder
                .decode_all([&b"{\"x\":\"\xed\xa0\x80\"}"[..]])
                .undecided,
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
    fn integers_that_python_has_otherwise_are_undecided() {
        let mut decoder = decoder(&[(&["a"], "Float64", true)]);
        let payloads = [
            r#"{"a":-0}"#,
            r#"{"a":-0.0}"#,
            r#"{"a":18446744073709551616}"#,
            r#"{"a":18446744073709551615}"#,
        ];
        assert_eq!(undecided(&mut decoder, &payloads), [0, 2]);
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
        let outcome = decoder.decode_all(payloads.map(str::as_bytes));
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

    #[test]
    fn an_earlier_event_makes_no_invalid_one_valid() {
        let long = "x".repeat(100); // such a key is not remembered
        let valid = [
            r#"{"a":1,"b":2}"#.to_owned(),
            r#"{ "b" : 2 , "a" : 1 }"#.to_owned(),
            r#"{"u":"ü","a":1}"#.to_owned(),
            format!(r#"{{"{long}":0,"a":1}}"#),
            "{}".to_owned(),
        ];
        let invalid = [
            r#"{"a":1"b":2}"#.to_owned(),
            r#"{,"a":1}"#.to_owned(),
            r#"{"a":1,}"#.to_owned(),
            r#"{"a":1,,"b":2}"#.to_owned(),
            r#"{"a":1,"b":2,"b":2}"#.to_owned(),
            r#"{"a":1,"b":2"#.to_owned(),
            r#"{"a":1,"b":"#.to_owned(),
            r#"{"a"}"#.to_owned(),
            format!(r#"{{"{long}":0"a":1}}"#),
            format!(r#"{{"{long}":0{}"a":1}}"#, " ".repeat(300)),
        ];
        let mut decoder = decoder(&[
            (&["a"], "Nullable(UInt8)", false),
            (&["b"], "Nullable(UInt8)", false),
        ]);
        for first in &valid {
            for second in &invalid {
                for third in &valid {
                    let payloads = [first.as_str(), second, third];
                    assert_eq!(undecided(&mut decoder, &payloads), [1], "{payloads:?}");
                }
            }
        }
    }

    #[test]
    fn invalid_utf8_is_undecided_wherever_it_is() {
        let mut decoder = decoder(&[(&["a"], "Nullable(String)", false)]);
        let text = r#"{"a":"ü1234567","b":"ü","ü":1}"#;
        assert!(undecided(&mut decoder, &[text]).is_empty());
        let mut payload = text.as_bytes().to_vec();
        for index in 0..payload.len() {
            for byte in [0x80, 0xc3, 0xff] {
                let before = std::mem::replace(&mut payload[index], byte);
                let is_valid = std::str::from_utf8(&payload).is_ok();
                let outcome = decoder.decode_all([&payload[..]]);
                assert_eq!(outcome.undecided.is_empty(), is_valid, "{index} {byte}");
                payload[index] = before;
            }
        }
    }
}
