//! The types that columns can have, by ClickHouse's names.

use crate::decimals::Decimal;

/// What a column holds. Integers and enumerations have their size in bytes.
#[derive(Clone, Debug, PartialEq)]
pub enum Target {
    Signed(usize),
    Unsigned(usize),
    Float32,
    Float64,
    Bool,
    Enum(usize, Members),
    String,
    LowCardinality { nullable: bool },
    FixedString(usize),
    Uuid,
    Ipv4,
    Ipv6,
    DateTime,
    DateTime64(u32),
    Date,
    Date32,
    Decimal(Decimal),
    Nullable(Box<Target>),
    Array(Box<Target>),
    Map(Box<Target>, Box<Target>),
    Tuple(Vec<(String, Target)>),
    Devices,
    Identities,
}

/// The names and numbers of an enumeration, in the order of the type.
#[derive(Clone, Debug, PartialEq)]
pub struct Members(Vec<(String, i16)>);

impl Members {
    pub fn by_name(&self, name: &[u8]) -> Option<i16> {
        let member = self.0.iter().find(|member| member.0.as_bytes() == name)?;
        Some(member.1)
    }

    pub fn has_number(&self, number: i64) -> bool {
        self.0.iter().any(|member| i64::from(member.1) == number)
    }

    /// What is written where a Nullable is NULL.
    pub fn first(&self) -> i16 {
        self.0[0].1
    }
}

impl Target {
    /// None if the type is not supported.
    pub fn parse(text: &str) -> Option<Self> {
        match split(text) {
            ("devices", None) => Some(Self::Devices),
            ("identities", None) => Some(Self::Identities),
            ("SimpleAggregateFunction", Some(arguments)) => {
                let (function, inner) = arguments.split_once(", ")?;
                let is_name = function.bytes().all(|byte| byte.is_ascii_alphanumeric());
                is_name.then(|| Self::element(inner))?
            }
            ("Array", Some(inner)) => Some(Self::Array(Box::new(Self::element(inner)?))),
            ("Map", Some(arguments)) => {
                let (key, value) = arguments.split_once(", ")?;
                let key = Self::element(key).filter(|key| {
                    matches!(key, Self::String | Self::LowCardinality { nullable: false })
                })?;
                Some(Self::Map(Box::new(key), Box::new(Self::element(value)?)))
            }
            ("Tuple", Some(members)) => {
                let members = arguments(members)?.into_iter().map(|member| {
                    let (name, inner) = member.split_once(' ')?;
                    Some((name.to_owned(), Self::element(inner)?))
                });
                members.collect::<Option<_>>().map(Self::Tuple)
            }
            _ => Self::element(text),
        }
    }

    /// A type that can be inside Array, Map and Tuple.
    fn element(text: &str) -> Option<Self> {
        match text {
            "LowCardinality(String)" => return Some(Self::LowCardinality { nullable: false }),
            "LowCardinality(Nullable(String))" => {
                return Some(Self::LowCardinality { nullable: true });
            }
            _ => {}
        }
        match split(text) {
            ("Nullable", Some(inner)) => Some(Self::Nullable(Box::new(Self::plain(inner)?))),
            _ => Self::plain(text),
        }
    }

    /// A type that can be inside Nullable.
    fn plain(text: &str) -> Option<Self> {
        let (name, arguments) = split(text);
        Some(match (name, arguments) {
            ("Int8", None) => Self::Signed(1),
            ("Int16", None) => Self::Signed(2),
            ("Int32", None) => Self::Signed(4),
            ("Int64", None) => Self::Signed(8),
            ("UInt8", None) => Self::Unsigned(1),
            ("UInt16", None) => Self::Unsigned(2),
            ("UInt32", None) => Self::Unsigned(4),
            ("UInt64", None) => Self::Unsigned(8),
            ("Float32", None) => Self::Float32,
            ("Float64", None) => Self::Float64,
            ("Bool", None) => Self::Bool,
            ("String", None) => Self::String,
            ("UUID", None) => Self::Uuid,
            ("IPv4", None) => Self::Ipv4,
            ("IPv6", None) => Self::Ipv6,
            ("Date", None) => Self::Date,
            ("Date32", None) => Self::Date32,
            ("DateTime", None) => Self::DateTime,
            ("DateTime", Some(zone)) if is_quoted(zone) => Self::DateTime,
            ("DateTime64", Some(arguments)) => {
                let (precision, zone) = arguments.split_once(", ").unwrap_or((arguments, "''"));
                let precision = precision
                    .parse()
                    .ok()
                    .filter(|digits| *digits <= 9 && is_quoted(zone));
                Self::DateTime64(precision?)
            }
            ("Decimal", Some(arguments)) => {
                let (precision, scale) = arguments.split_once(", ")?;
                let decimal = Decimal {
                    precision: precision.parse().ok()?,
                    scale: scale.parse().ok()?,
                };
                let is_valid =
                    (1..=18).contains(&decimal.precision) && decimal.scale <= decimal.precision;
                is_valid.then_some(Self::Decimal(decimal))?
            }
            ("FixedString", Some(size)) => Self::FixedString(size.parse::<u32>().ok()? as usize),
            ("Enum8", Some(members)) => Self::Enum(1, parse_members(members, -128..=127)?),
            ("Enum16", Some(members)) => Self::Enum(2, parse_members(members, -32768..=32767)?),
            _ => return None,
        })
    }
}

fn split(text: &str) -> (&str, Option<&str>) {
    let inner = text
        .split_once('(')
        .and_then(|(name, rest)| Some((name, rest.strip_suffix(')')?)));
    inner.map_or((text, None), |(name, arguments)| (name, Some(arguments)))
}

/// Split at the commas that are not in parentheses; None where there are quotes.
fn arguments(text: &str) -> Option<Vec<&str>> {
    if text.contains(['\'', '`']) {
        return None;
    }
    let mut depth = 0;
    let is_comma = |character| {
        depth += i32::from(character == '(') - i32::from(character == ')');
        character == ',' && depth == 0
    };
    Some(text.split(is_comma).map(str::trim).collect())
}

fn is_quoted(text: &str) -> bool {
    let inner = text
        .strip_prefix('\'')
        .and_then(|rest| rest.strip_suffix('\''));
    inner.is_some_and(|zone| !zone.contains(['\'', '\\']))
}

/// `'a' = 1, 'b' = 2`; None where a name has an escape or occurs twice.
fn parse_members(text: &str, range: std::ops::RangeInclusive<i64>) -> Option<Members> {
    let mut members: Vec<(String, i16)> = Vec::new();
    let mut rest = text;
    if text.contains('\\') {
        return None;
    }
    loop {
        let (name, after) = rest.strip_prefix('\'')?.split_once('\'')?;
        let after = after.strip_prefix(" = ")?;
        let (number, next) = after
            .split_once(", ")
            .map_or((after, None), |(number, next)| (number, Some(next)));
        let number: i64 = number.parse().ok()?;
        if !range.contains(&number) || members.iter().any(|member| member.0 == name) {
            return None;
        }
        members.push((name.to_owned(), number as i16));
        match next {
            Some(next) => rest = next,
            None => return Some(Members(members)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_by_name() {
        assert_eq!(Target::parse("UInt16"), Some(Target::Unsigned(2)));
        assert_eq!(
            Target::parse("DateTime('Europe/Berlin')"),
            Some(Target::DateTime)
        );
        assert_eq!(
            Target::parse("Nullable(DateTime64(9, 'UTC'))"),
            Some(Target::Nullable(Box::new(Target::DateTime64(9))))
        );
        assert_eq!(
            Target::parse("SimpleAggregateFunction(anyLast, Nullable(String))"),
            Some(Target::Nullable(Box::new(Target::String)))
        );
        assert_eq!(
            Target::parse("Tuple(a Decimal(9, 2), b Nullable(Bool))"),
            Some(Target::Tuple(vec![
                ("a".to_owned(), Target::parse("Decimal(9, 2)").unwrap()),
                ("b".to_owned(), Target::parse("Nullable(Bool)").unwrap()),
            ]))
        );
        let Some(Target::Enum(1, members)) = Target::parse("Enum8('a' = -1, 'b, c' = 2)") else {
            panic!("not an Enum8");
        };
        assert_eq!(members.by_name(b"b, c"), Some(2));
        assert!(members.has_number(-1) && !members.has_number(0));
    }

    #[test]
    fn other_types_are_not_supported() {
        for name in [
            "",
            "Int128",
            "int8",
            "Nullable(Nullable(String))",
            "Nullable(LowCardinality(String))",
            "Nullable(devices)",
            "LowCardinality(UInt8)",
            "Array(Array(String))",
            "Map(UInt8, String)",
            "Tuple(String)",
            "Tuple(a Array(String))",
            "Decimal(19, 2)",
            "Nullable(Array(String))",
            "DateTime64",
            "DateTime64(10)",
            "DateTime64(3",
            "Enum8('a' = 128)",
            "Enum8('a\\'' = 1)",
            "Enum8('a' = 1, 'a' = 2)",
            "Enum8()",
            "String()",
        ] {
            assert_eq!(Target::parse(name), None, "{name}");
        }
    }
}
