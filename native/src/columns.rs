//! Column buffers: JSON values → the bytes that the converter of the Python reference returns for them.

use std::mem;
use std::net::Ipv4Addr;

use crate::dictionaries::low_cardinality;
use crate::targets::Target;
use crate::timestamps::Clock;
use crate::values::{
    Scalar, day, float, instant, ipv6, parse, push_number, push_string, signed, uuid,
};

const DATE_LAST_DAY: u64 = 65_535;
const DATE32_LAST_DAY: u64 = 120_529;

/// The values of one field for some consecutive rows.
#[derive(Debug, PartialEq)]
pub enum Part {
    Bytes(Vec<u8>),
    Nullable {
        mask: Vec<u8>,
        values: Vec<u8>,
    },
    /// An Array or a Map: the number of elements of each row, then the columns of all elements.
    Collection {
        sizes: Vec<u8>,
        columns: Vec<Part>,
    },
    Tuple(Vec<Part>),
}

/// The sizes of a column's buffers.
#[derive(Clone, Copy, Default)]
pub struct Mark {
    data: usize,
    mask: usize,
    ends: usize,
    rows: usize,
}

/// A buffer that grows by one value per row.
pub struct Column {
    target: Target,
    nullable: bool,
    clock: Clock,
    data: Vec<u8>,
    mask: Vec<u8>,  // of a Nullable: 1 for NULL
    ends: Vec<End>, // of texts whose part is made of all rows together
    rows: usize,
    size_of_others: usize, // of `data`, before the last row
}

#[derive(Clone, Copy)]
struct End {
    end: usize, // of the text in `data`
    is_null: bool,
}

impl Column {
    pub fn new(target: Target) -> Self {
        let (target, nullable) = match target {
            Target::Nullable(inner) => (*inner, true),
            other => (other, false),
        };
        Self {
            target,
            nullable,
            clock: Clock::default(),
            data: Vec::new(),
            mask: Vec::new(),
            ends: Vec::new(),
            rows: 0,
            size_of_others: 0,
        }
    }

    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Append a value; None, and nothing appended, where this code does not decide that the reference accepts it.
    #[inline]
    pub fn push(&mut self, value: Scalar) -> Option<()> {
        let size = self.data.len();
        if self.nullable && matches!(value, Scalar::Null) {
            self.push_null();
        } else {
            self.push_value(value)?;
        }
        if self.nullable {
            self.mask.push(matches!(value, Scalar::Null).into());
        }
        self.size_of_others = size;
        self.rows += 1;
        Some(())
    }

    /// Remove the last value if there are more than `rows`.
    pub fn roll_back(&mut self, rows: usize) {
        if self.rows > rows {
            self.rows = rows;
            self.data.truncate(self.size_of_others);
            self.mask.truncate(rows);
            self.ends.truncate(rows);
        }
    }

    pub fn mark(&self) -> Mark {
        Mark {
            data: self.data.len(),
            mask: self.mask.len(),
            ends: self.ends.len(),
            rows: self.rows,
        }
    }

    /// Remove all values since a mark.
    pub fn truncate(&mut self, mark: Mark) {
        self.data.truncate(mark.data);
        self.mask.truncate(mark.mask);
        self.ends.truncate(mark.ends);
        self.rows = mark.rows;
    }

    /// Return the values so far and begin again.
    pub fn cut(&mut self) -> Part {
        let rows = mem::take(&mut self.rows);
        let values = match self.target {
            Target::LowCardinality { nullable } => {
                self.cut_texts(|texts| low_cardinality(texts, nullable))
            }
            _ => {
                let expected = self.data.len() + self.data.len() / 16;
                mem::replace(&mut self.data, Vec::with_capacity(expected))
            }
        };
        if self.nullable {
            let mask = mem::replace(&mut self.mask, Vec::with_capacity(rows));
            return Part::Nullable { mask, values };
        }
        Part::Bytes(values)
    }

    fn cut_texts(&mut self, encode: impl Fn(&[Option<&[u8]>]) -> Vec<u8>) -> Vec<u8> {
        let mut start = 0;
        let texts: Vec<Option<&[u8]>> = self
            .ends
            .iter()
            .map(|end| {
                let text = &self.data[mem::replace(&mut start, end.end)..end.end];
                (!end.is_null).then_some(text)
            })
            .collect();
        let part = encode(&texts);
        self.data.clear();
        self.ends.clear();
        part
    }

    fn push_null(&mut self) {
        let size = match &self.target {
            Target::Enum(size, members) => {
                let number = members.first().to_le_bytes();
                return self.data.extend_from_slice(&number[..*size]);
            }
            Target::Signed(size) | Target::Unsigned(size) | Target::FixedString(size) => *size,
            Target::Decimal(decimal) => decimal.size(),
            Target::String | Target::Bool => 1, // the length of an empty string; false
            Target::Date => 2,
            Target::Float32 | Target::Ipv4 | Target::DateTime | Target::Date32 => 4,
            Target::Float64 | Target::DateTime64(_) => 8,
            Target::Uuid | Target::Ipv6 => 16,
            Target::LowCardinality { .. }
            | Target::Nullable(_)
            | Target::Array(_)
            | Target::Map(..)
            | Target::Tuple(_)
            | Target::Devices
            | Target::Identities => {
                unreachable!("not inside Nullable")
            }
        };
        self.data.resize(self.data.len() + size, 0);
    }

    #[inline]
    fn push_value(&mut self, value: Scalar) -> Option<()> {
        let data = &mut self.data;
        match (&self.target, value) {
            (Target::String | Target::Devices | Target::Identities, Scalar::Text(text)) => {
                push_string(data, text);
            }
            (Target::DateTime64(precision), value) => {
                let number = instant(&mut self.clock, value)?.to_precision(*precision)?;
                data.extend_from_slice(&number.to_le_bytes());
            }
            (
                Target::Signed(size),
                Scalar::Integer {
                    negative,
                    magnitude,
                },
            ) => {
                let number = signed(negative, magnitude)?;
                let unused = 64 - 8 * *size as u32;
                if number << unused >> unused != number {
                    return None;
                }
                push_number(data, number.to_le_bytes(), *size);
            }
            (
                Target::Unsigned(size),
                Scalar::Integer {
                    negative: false,
                    magnitude,
                },
            ) => {
                let unused = 64 - 8 * *size as u32;
                if magnitude << unused >> unused != magnitude {
                    return None;
                }
                push_number(data, magnitude.to_le_bytes(), *size);
            }
            (Target::LowCardinality { nullable: true }, Scalar::Null) => {
                self.ends.push(End {
                    end: data.len(),
                    is_null: true,
                });
            }
            (Target::LowCardinality { .. }, Scalar::Text(text)) => {
                data.extend_from_slice(text);
                self.ends.push(End {
                    end: data.len(),
                    is_null: false,
                });
            }
            (
                Target::Identities,
                Scalar::Integer {
                    negative,
                    magnitude,
                },
            ) => {
                let sign = if negative { "-" } else { "" };
                push_string(data, format!("{sign}{magnitude}").as_bytes());
            }
            _ => return self.push_rarer_value(value),
        }
        Some(())
    }

    fn push_rarer_value(&mut self, value: Scalar) -> Option<()> {
        let data = &mut self.data;
        match (&self.target, value) {
            (Target::Float64, value) => data.extend_from_slice(&float(value)?.to_le_bytes()),
            (Target::Float32, value) => {
                let number = float(value)? as f32; // rounded to the nearest, as C does
                if number.is_infinite() {
                    return None;
                }
                data.extend_from_slice(&number.to_le_bytes());
            }
            (Target::Decimal(decimal), value) => {
                push_number(data, decimal.whole(value)?.to_le_bytes(), decimal.size());
            }
            (Target::Bool, Scalar::Bool(value)) => data.push(value.into()),
            (Target::Enum(size, members), Scalar::Text(name)) => {
                data.extend_from_slice(&members.by_name(name)?.to_le_bytes()[..*size]);
            }
            (
                Target::Enum(size, members),
                Scalar::Integer {
                    negative,
                    magnitude,
                },
            ) => {
                let number = signed(negative, magnitude)?;
                if !members.has_number(number) {
                    return None;
                }
                data.extend_from_slice(&number.to_le_bytes()[..*size]);
            }
            (Target::FixedString(size), Scalar::Text(text)) => {
                if text.len() > *size {
                    return None;
                }
                data.extend_from_slice(text);
                data.resize(data.len() + size - text.len(), 0);
            }
            (Target::Uuid, Scalar::Text(text)) => data.extend_from_slice(&uuid(text)?),
            (Target::Ipv4, Scalar::Text(text)) => {
                data.extend_from_slice(&u32::from(parse::<Ipv4Addr>(text)?).to_le_bytes());
            }
            (Target::Ipv6, Scalar::Text(text)) => data.extend_from_slice(&ipv6(text)?.octets()),
            (Target::DateTime, value) => {
                let seconds = u32::try_from(instant(&mut self.clock, value)?.to_seconds()).ok()?;
                data.extend_from_slice(&seconds.to_le_bytes());
            }
            (Target::Date, value) => {
                let day = u16::try_from(day(&mut self.clock, value, DATE_LAST_DAY)?).ok()?;
                data.extend_from_slice(&day.to_le_bytes());
            }
            (Target::Date32, value) => {
                let day = i32::try_from(day(&mut self.clock, value, DATE32_LAST_DAY)?).ok()?;
                data.extend_from_slice(&day.to_le_bytes());
            }
            _ => return None,
        }
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn column(target: &str) -> Column {
        Column::new(Target::parse(target).unwrap())
    }

    fn integer(value: i64) -> Scalar<'static> {
        Scalar::Integer {
            negative: value < 0,
            magnitude: value.unsigned_abs(),
        }
    }

    fn is_accepted(target: &str, value: Scalar) -> bool {
        column(target).push(value).is_some()
    }

    #[test]
    fn integers_at_the_edges() {
        for (target, low, high) in [
            ("Int8", -128, 127),
            ("Int16", -32_768, 32_767),
            ("Int32", i64::from(i32::MIN), i64::from(i32::MAX)),
            ("UInt8", 0, 255),
            ("UInt32", 0, i64::from(u32::MAX)),
        ] {
            assert!(is_accepted(target, integer(low)) && is_accepted(target, integer(high)));
            assert!(
                !is_accepted(target, integer(low - 1)) && !is_accepted(target, integer(high + 1))
            );
        }
        let largest = Scalar::Integer {
            negative: false,
            magnitude: u64::MAX,
        };
        assert!(is_accepted("UInt64", largest) && !is_accepted("Int64", largest));
        assert!(is_accepted("Int64", integer(i64::MIN)));
        assert!(
            !is_accepted("Int64", Scalar::Float(5.0)) && !is_accepted("Int8", Scalar::Bool(true))
        );
    }

    #[test]
    fn floats_at_the_edges() {
        let limit = 3.402_823_567_797_336_6e38_f64; // halfway from the largest to what would be next
        assert!(is_accepted(
            "Float32",
            Scalar::Float(f64::from_bits(limit.to_bits() - 1))
        ));
        assert!(!is_accepted("Float32", Scalar::Float(limit)));
        let mut floats = column("Float64");
        floats.push(integer(i64::MIN)).unwrap();
        assert_eq!(
            floats.cut(),
            Part::Bytes((i64::MIN as f64).to_le_bytes().into())
        );
    }

    #[test]
    fn a_value_that_is_rolled_back_leaves_nothing() {
        for (target, value) in [
            ("Nullable(String)", Scalar::Text(b"abc")),
            ("Nullable(UInt32)", Scalar::Null),
            ("LowCardinality(Nullable(String))", Scalar::Text(b"new")),
            ("devices", Scalar::Text(b"new")),
            ("DateTime64(3)", integer(0)),
        ] {
            let kept = if target.contains("Int") || target.contains("Time") {
                integer(7)
            } else {
                Scalar::Text(b"kept")
            };
            let (mut expected, mut column) = (column(target), column(target));
            expected.push(kept).unwrap();
            column.push(kept).unwrap();
            column.push(value).unwrap();
            column.roll_back(1);
            column.roll_back(1);
            assert_eq!(column.rows(), 1);
            assert_eq!(column.cut(), expected.cut(), "{target}");
            assert_eq!(column.rows(), 0);
        }
    }

    #[test]
    fn a_value_that_is_refused_leaves_nothing() {
        let mut column = column("Nullable(UInt8)");
        assert!(column.push(integer(256)).is_none());
        column.push(Scalar::Null).unwrap();
        column.push(integer(255)).unwrap();
        let (mask, values) = (vec![1, 0], vec![0, 255]);
        assert_eq!(column.cut(), Part::Nullable { mask, values });
    }

    #[test]
    fn a_dictionary_has_each_text_once() {
        let mut column = column("LowCardinality(Nullable(String))");
        for text in [
            Scalar::Text(b"b"),
            Scalar::Null,
            Scalar::Text(b""),
            Scalar::Text(b"b"),
        ] {
            column.push(text).unwrap();
        }
        let mut expected = Vec::new();
        for number in [0x600, 3] {
            expected.extend_from_slice(&u64::to_le_bytes(number));
        }
        expected.extend_from_slice(b"\0\x01b\0"); // NULL, "b", ""
        expected.extend_from_slice(&4_u64.to_le_bytes());
        expected.extend_from_slice(&[1, 0, 2, 1]);
        assert_eq!(column.cut(), Part::Bytes(expected));
        assert_eq!(column.cut(), Part::Bytes(Vec::new()));
    }

    #[test]
    fn devices_are_strings() {
        let mut column = column("identities");
        for value in [
            Scalar::Text(b"5"),
            integer(-5),
            integer(5),
            Scalar::Text(b""),
        ] {
            column.push(value).unwrap();
        }
        assert_eq!(column.cut(), Part::Bytes(b"\x015\x02-5\x015\0".to_vec()));
        assert!(!is_accepted("devices", integer(5)) && !is_accepted("identities", Scalar::Null));
    }

    #[test]
    fn long_strings_have_long_lengths() {
        let mut column = column("String");
        column
            .push(Scalar::Text("x".repeat(300).as_bytes()))
            .unwrap();
        let Part::Bytes(bytes) = column.cut() else {
            panic!("not a Nullable")
        };
        assert_eq!((&bytes[..2], bytes.len()), (&[0xac, 0x02][..], 302));
    }
}
