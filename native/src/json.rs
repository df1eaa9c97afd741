//! A strict scanner of JSON. It accepts less than orjson: RFC 8259, to MAX_DEPTH levels, and no number beyond a float.
//!
//! Each method reads from the current position and moves behind what it read; None means that the text is not decided.

use crate::values::{HIGH_BITS, ONES, Scalar, leading_digits, parse};

/// Levels of arrays and objects; orjson accepts 1024.
pub const MAX_DEPTH: usize = 128;

const FINITE_DIGITS: usize = 300; // so many digits without an exponent are a finite float

/// Outside of strings JSON is ASCII, so the bytes are valid UTF-8 if all strings are: each is checked when it is read.
pub struct Scanner<'a> {
    bytes: &'a [u8],
    at: usize,
}

/// A number as it is written.
#[derive(Clone, Copy)]
pub enum Number<'a> {
    /// An integer of at most 19 digits.
    Short {
        negative: bool,
        magnitude: u64,
    },
    /// An integer of more digits.
    Long(&'a [u8]),
    Float(&'a [u8]),
}

impl<'a> Scanner<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    #[inline]
    fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    #[inline]
    pub fn position(&self) -> usize {
        self.at
    }

    /// The bytes between a position and the current one.
    pub fn since(&self, position: usize) -> &'a [u8] {
        self.bytes.get(position..self.at).unwrap_or_default()
    }

    /// Return the first byte that is not whitespace, without moving behind it.
    #[inline]
    pub fn next_token(&mut self) -> Option<u8> {
        loop {
            match self.peek()? {
                byte if byte > b' ' => return Some(byte),
                b' ' | b'\n' | b'\r' | b'\t' => self.at += 1,
                _ => return None,
            }
        }
    }

    /// Whether nothing but whitespace is left.
    pub fn is_at_end(&mut self) -> bool {
        self.next_token().is_none() && self.at == self.bytes.len()
    }

    /// Move behind the byte that next_token returned.
    #[inline]
    pub fn advance(&mut self) {
        self.at += 1;
    }

    /// Move behind `token` if it comes next.
    #[inline]
    pub fn skip(&mut self, token: u8) -> bool {
        let is_next = self.next_token() == Some(token);
        self.at += usize::from(is_next);
        is_next
    }

    /// Move behind `bytes` if exactly they come next.
    #[inline]
    pub fn skip_exactly(&mut self, bytes: &[u8]) -> bool {
        let end = self.at.saturating_add(bytes.len());
        let is_next = self.bytes.get(self.at..end) == Some(bytes);
        if is_next {
            self.at = end;
        }
        is_next
    }

    /// Read a key and its colon; `unescaped` takes it if it has escapes.
    pub fn key<'s>(&mut self, unescaped: &'s mut String) -> Option<&'s [u8]>
    where
        'a: 's,
    {
        let key = self.skip(b'"').then(|| self.string(unescaped))??;
        self.skip(b':').then_some(key)
    }

    /// Read a string after its opening quote; `unescaped` takes it if it has escapes. The result is valid UTF-8.
    #[inline]
    pub fn string<'s>(&mut self, unescaped: &'s mut String) -> Option<&'s [u8]>
    where
        'a: 's,
    {
        let (text, special) = self.plain_text()?;
        if special == b'"' {
            self.at += 1;
            return Some(text);
        }
        unescaped.clear();
        unescaped.push_str(std::str::from_utf8(text).ok()?);
        self.rest_of_string(unescaped)?;
        Some(unescaped.as_bytes())
    }

    fn rest_of_string(&mut self, unescaped: &mut String) -> Option<()> {
        while self.peek()? == b'\\' {
            unescaped.push(self.escape()?);
            let (text, _) = self.plain_text()?;
            unescaped.push_str(std::str::from_utf8(text).ok()?);
        }
        self.skip_exactly(b"\"").then_some(())
    }

    /// Read to the next quote, backslash or control character: return the text before it, valid UTF-8, and that byte.
    #[inline(always)]
    fn plain_text(&mut self) -> Option<(&'a [u8], u8)> {
        let rest = self.bytes.get(self.at..)?;
        let (length, is_ascii) = find_special(rest)?;
        let (text, special) = (rest.get(..length)?, *rest.get(length)?);
        if !is_ascii {
            simdutf8::basic::from_utf8(text).ok()?;
        }
        self.at += length;
        Some((text, special))
    }

    /// Read a backslash and what it stands for; lone surrogates stand for nothing.
    fn escape(&mut self) -> Option<char> {
        let kind = *self.bytes.get(self.at + 1)?;
        self.at += 2;
        Some(match kind {
            b'"' | b'\\' | b'/' => char::from(kind),
            b'b' => '\u{8}',
            b'f' => '\u{c}',
            b'n' => '\n',
            b'r' => '\r',
            b't' => '\t',
            b'u' => {
                let unit = self.four_hex_digits()?;
                if !(0xd800..0xdc00).contains(&unit) {
                    return char::from_u32(unit);
                }
                let low = self
                    .skip_exactly(b"\\u")
                    .then(|| self.four_hex_digits())??;
                let low = low.checked_sub(0xdc00).filter(|low| *low < 0x400)?;
                return char::from_u32(0x1_0000 + ((unit - 0xd800) << 10 | low));
            }
            _ => return None,
        })
    }

    fn four_hex_digits(&mut self) -> Option<u32> {
        let digits = self.bytes.get(self.at..self.at + 4)?;
        self.at += 4;
        digits.iter().try_fold(0, |value, byte| {
            Some(value << 4 | char::from(*byte).to_digit(16)?)
        })
    }

    /// Read a number, which must be finite.
    #[inline(always)]
    pub fn number(&mut self) -> Option<Number<'a>> {
        let start = self.at;
        let negative = self.peek() == Some(b'-');
        self.at += usize::from(negative);
        let rest = self.bytes.get(self.at..)?;
        let (magnitude, digits) = leading_digits(rest);
        self.at += digits;
        if digits == 0 || digits > 1 && rest[0] == b'0' {
            return None;
        }
        if digits < 20 && !matches!(self.peek(), Some(b'.' | b'e' | b'E')) {
            return Some(Number::Short {
                negative,
                magnitude,
            });
        }
        self.long_number(start, digits)
    }

    /// Read the rest of a number that is no integer of at most 19 digits.
    #[cold]
    fn long_number(&mut self, start: usize, digits: usize) -> Option<Number<'a>> {
        let is_integer = !matches!(self.peek(), Some(b'.' | b'e' | b'E'));
        let has_exponent = !is_integer && self.fraction_and_exponent()?;
        let text = self.since(start);
        let is_finite = !has_exponent && digits <= FINITE_DIGITS || parse::<f64>(text)?.is_finite();
        is_finite.then_some(if is_integer {
            Number::Long(text)
        } else {
            Number::Float(text)
        })
    }

    /// Return whether there is an exponent.
    fn fraction_and_exponent(&mut self) -> Option<bool> {
        if self.skip_exactly(b".") {
            self.digits()?;
        }
        let has_exponent = matches!(self.peek(), Some(b'e' | b'E'));
        if has_exponent {
            self.at += 1;
            self.at += usize::from(matches!(self.peek(), Some(b'+' | b'-')));
            self.digits()?;
        }
        Some(has_exponent)
    }

    /// Read at least one digit.
    fn digits(&mut self) -> Option<()> {
        let start = self.at;
        while self.peek().is_some_and(|byte| byte.is_ascii_digit()) {
            self.at += 1;
        }
        (self.at > start).then_some(())
    }

    /// Read a value that is neither an array nor an object; `unescaped` takes a text with escapes.
    pub fn scalar<'s>(&mut self, unescaped: &'s mut String) -> Option<Scalar<'s>>
    where
        'a: 's,
    {
        match self.next_token()? {
            b'"' => {
                self.advance();
                self.string(unescaped).map(Scalar::Text)
            }
            b'-' | b'0'..=b'9' => self.number()?.value(),
            _ => self.literal(),
        }
    }

    /// Read `true`, `false` or `null`.
    pub fn literal(&mut self) -> Option<Scalar<'static>> {
        if self.skip_exactly(b"true") {
            Some(Scalar::Bool(true))
        } else if self.skip_exactly(b"false") {
            Some(Scalar::Bool(false))
        } else {
            self.skip_exactly(b"null").then_some(Scalar::Null)
        }
    }

    /// Read any value that is not wanted, inside of `depth` arrays and objects.
    pub fn skip_value(&mut self, depth: usize) -> Option<()> {
        match self.next_token()? {
            b'"' => {
                self.at += 1;
                self.skip_string()
            }
            b'-' | b'0'..=b'9' => self.number().map(|_| ()),
            b'[' if depth < MAX_DEPTH => {
                self.at += 1;
                self.skip_array(depth + 1)
            }
            b'{' if depth < MAX_DEPTH => {
                self.at += 1;
                self.skip_object(depth + 1)
            }
            _ => self.literal().map(|_| ()),
        }
    }

    fn skip_string(&mut self) -> Option<()> {
        let (_, mut special) = self.plain_text()?;
        while special == b'\\' {
            self.escape()?;
            (_, special) = self.plain_text()?;
        }
        self.at += 1;
        (special == b'"').then_some(())
    }

    fn skip_array(&mut self, depth: usize) -> Option<()> {
        if self.skip(b']') {
            return Some(());
        }
        loop {
            self.skip_value(depth)?;
            if !self.skip(b',') {
                return self.skip(b']').then_some(());
            }
        }
    }

    fn skip_object(&mut self, depth: usize) -> Option<()> {
        if self.skip(b'}') {
            return Some(());
        }
        loop {
            self.skip(b'"').then(|| self.skip_string())??;
            self.skip(b':').then(|| self.skip_value(depth))??;
            if !self.skip(b',') {
                return self.skip(b'}').then_some(());
            }
        }
    }
}

impl Number<'_> {
    /// The number as Python has it; None for -0 and for integers beyond 64 bits.
    #[inline(always)]
    pub fn value(self) -> Option<Scalar<'static>> {
        let (negative, magnitude) = match self {
            Self::Short {
                negative,
                magnitude,
            } => (negative, magnitude),
            Self::Long(text) => {
                let number = parse::<i128>(text)?;
                (number < 0, u64::try_from(number.unsigned_abs()).ok()?)
            }
            Self::Float(text) => return Some(Scalar::Float(parse(text)?)),
        };
        let is_decided = !negative || magnitude != 0 && magnitude <= 1 << 63;
        is_decided.then_some(Scalar::Integer {
            negative,
            magnitude,
        })
    }
}

/// Return the index of the first quote, backslash or control character, sought eight bytes at a time; and whether the
/// bytes up to it, and maybe a few after it, are ASCII.
#[inline(always)]
fn find_special(bytes: &[u8]) -> Option<(usize, bool)> {
    let (mut at, mut all) = (0, 0);
    while let Some(chunk) = bytes[at..].first_chunk::<8>() {
        let word = u64::from_le_bytes(*chunk);
        all |= word;
        let found = special(word);
        if found != 0 {
            return Some((
                at + found.trailing_zeros() as usize / 8,
                all & HIGH_BITS == 0,
            ));
        }
        at += 8;
    }
    let rest = &bytes[at..];
    let is_special = |byte: &u8| matches!(byte, b'"' | b'\\' | 0..b' ');
    let index = rest.iter().position(is_special)?;
    Some((at + index, all & HIGH_BITS == 0 && rest.is_ascii()))
}

/// Set the high bit of the first byte that is a quote, a backslash or a control character; it may set bits above it.
#[inline]
fn special(word: u64) -> u64 {
    let quote_as_space = word ^ (ONES * 0x02); // and a space as a quote: only what is sought is below 0x21
    let is_backslash = word ^ (ONES * u64::from(b'\\'));
    let below = quote_as_space.wrapping_sub(ONES * 0x21) & !quote_as_space;
    let zero = is_backslash.wrapping_sub(ONES) & !is_backslash;
    (below | zero) & HIGH_BITS
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_accepted(text: &str) -> bool {
        let mut json = Scanner::new(text.as_bytes());
        json.skip_value(0).is_some() && json.is_at_end()
    }

    fn string(text: &str) -> Option<String> {
        let mut json = Scanner::new(text.as_bytes());
        let mut unescaped = "from the last string".to_owned();
        let value = json.skip(b'"').then(|| json.string(&mut unescaped))??;
        json.is_at_end()
            .then(|| String::from_utf8(value.to_owned()).unwrap())
    }

    #[test]
    fn values_of_all_kinds_are_accepted() {
        for text in [
            "0",
            "-0",
            "10",
            "-1.5e+3",
            "1E5",
            "1e-999",
            "0e9999",
            "true",
            "false",
            "null",
            "[]",
            "{}",
            "[ ]",
            "{ }",
            " [1 , \"a\" ,\n{\"a\" :\t[ { } ]\r} ] ",
            "\"\"",
            "\"\\\"\\\\\\/\\b\\f\\n\\r\\t\\u00e9\\ud83d\\ude00\"",
            "\"ü\u{7f}\u{2028}\"",
            "9223372036854775808000",
        ] {
            assert!(is_accepted(text), "{text}");
        }
    }

    #[test]
    fn anything_else_is_not() {
        for text in [
            "",
            " ",
            "01",
            "-",
            "+1",
            "1.",
            ".5",
            "1e",
            "1e+",
            "-01",
            "1.e1",
            "NaN",
            "Infinity",
            "1e999",
            "tru",
            "nulll",
            "[",
            "]",
            "[1",
            "[1,]",
            "[,1]",
            "[1 2]",
            "{",
            "{,}",
            "{\"a\"}",
            "{\"a\":}",
            "{\"a\":1,}",
            "{a:1}",
            "{1:2}",
            "{\"a\" 1}",
            "{\"a\":1 \"b\":2}",
            "\"",
            "\"a",
            "\"\\",
            "\"\\\"",
            "\"\\x\"",
            "\"\\u12\"",
            "\"\\u00zz\"",
            "\"\\u+123\"",
            "\"\\ud800\"",
            "\"\\udc00\"",
            "\"\\ud800\\u0041\"",
            "\"\\ud800\\n\"",
            "\"\n\"",
            "\"\0\"",
            "\"12345678\u{1f}\"",
            "'a'",
            "//\n1",
            "\u{feff}1",
            "\u{a0}1",
            "1 1",
            "1\0",
            "\u{1}1",
            "1 \u{b}",
            "{}{}",
        ] {
            assert!(!is_accepted(text), "{text}");
        }
        assert!(!is_accepted(&"9".repeat(400)) && is_accepted(&"9".repeat(300)));
    }

    #[test]
    fn depth_has_a_limit() {
        for (depth, expected) in [
            (MAX_DEPTH, true),
            (MAX_DEPTH + 1, false),
            (1_000_000, false),
        ] {
            assert_eq!(
                is_accepted(&("[".repeat(depth) + &"]".repeat(depth))),
                expected
            );
            assert_eq!(
                is_accepted(&("{\"a\":".repeat(depth - 1) + "{}" + &"}".repeat(depth - 1))),
                expected
            );
        }
    }

    #[test]
    fn strings_end_at_their_quote_wherever_it_is() {
        for length in 0..40 {
            for special in ["\"", "\\\"", "\\u0000\"", "ü\"", "\\ud83d\\ude00x\""] {
                let plain = "ÿ~".repeat(length) + &"x".repeat(length % 3);
                let expected = match special {
                    "\\\"" => None,
                    "\"" => Some(plain.clone()),
                    "\\u0000\"" => Some(plain.clone() + "\0"),
                    "ü\"" => Some(plain.clone() + "ü"),
                    _ => Some(plain.clone() + "\u{1f600}x"),
                };
                assert_eq!(string(&format!("\"{plain}{special}")), expected);
                assert_eq!(string(&format!("\"{plain}{special}         ")), expected);
            }
        }
    }

    #[test]
    fn specials_are_found_among_all_bytes() {
        for byte in 0..=255_u8 {
            let word = u64::from_le_bytes([b'a', 0x80, byte, 0xff, b'"', 0, b'\\', 0x1f]);
            let found = special(word);
            let is_special = byte < b' ' || byte == b'"' || byte == b'\\';
            assert_eq!(
                found.trailing_zeros() / 8,
                if is_special { 2 } else { 4 },
                "{byte}"
            );
        }
    }

    #[test]
    fn numbers_have_the_value_that_python_has() {
        let value = |text: &'static str| {
            Scanner::new(text.as_bytes())
                .number()
                .and_then(|number| number.value())
        };
        for (text, negative, magnitude) in [
            ("0", false, 0),
            ("18446744073709551615", false, u64::MAX),
            ("9999999999999999999", false, 9_999_999_999_999_999_999),
            ("-9223372036854775808", true, 1 << 63),
        ] {
            assert_eq!(
                value(text),
                Some(Scalar::Integer {
                    negative,
                    magnitude
                })
            );
        }
        for text in [
            "-0",
            "18446744073709551616",
            "-9223372036854775809",
            "100000000000000000000",
        ] {
            assert_eq!(value(text), None);
        }
        assert_eq!(value("1.1e1"), Some(Scalar::Float(11.0)));
        assert_eq!(value("5.0"), Some(Scalar::Float(5.0)));
    }
}
