//! A strict scanner of JSON. It accepts less than orjson: RFC 8259, to MAX_DEPTH levels, and no number beyond a float.
//!
//! Each method reads from the current position and moves behind what it read; None means that the text is not decided.

use crate::values::Scalar;

/// Levels of arrays and objects; orjson accepts 1024.
pub const MAX_DEPTH: usize = 128;

const FINITE_DIGITS: usize = 300; // so many digits without an exponent are a finite float
const ONES: u64 = u64::from_ne_bytes([1; 8]);

pub struct Scanner<'a> {
    text: &'a str,
    at: usize,
}

/// A number as it is written.
pub struct Number<'a> {
    text: &'a str,
    magnitude: u64, // of an integer of at most 19 digits
    digits: usize,  // before the point
    is_integer: bool,
}

impl<'a> Scanner<'a> {
    pub fn new(text: &'a str) -> Self {
        Self { text, at: 0 }
    }

    #[inline]
    fn bytes(&self) -> &'a [u8] {
        self.text.as_bytes()
    }

    #[inline]
    fn peek(&self) -> Option<u8> {
        self.bytes().get(self.at).copied()
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
        self.next_token().is_none() && self.at == self.text.len()
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
        let rest = self.bytes().get(self.at..).unwrap_or_default();
        let is_next = rest.starts_with(bytes);
        self.at += if is_next { bytes.len() } else { 0 };
        is_next
    }

    /// Read a key and its colon; `unescaped` takes it if it has escapes.
    pub fn key<'s>(&mut self, unescaped: &'s mut String) -> Option<&'s str>
    where
        'a: 's,
    {
        let key = self.skip(b'"').then(|| self.string(unescaped))??;
        self.skip(b':').then_some(key)
    }

    /// Read a string after its opening quote; `unescaped` takes it if it has escapes.
    #[inline]
    pub fn string<'s>(&mut self, unescaped: &'s mut String) -> Option<&'s str>
    where
        'a: 's,
    {
        let start = self.at;
        let special = self.find_special()?;
        let text = self.text.get(start..self.at)?;
        if special == b'"' {
            self.at += 1;
            return Some(text);
        }
        unescaped.clear();
        unescaped.push_str(text);
        self.rest_of_string(unescaped)?;
        Some(unescaped)
    }

    fn rest_of_string(&mut self, unescaped: &mut String) -> Option<()> {
        while self.peek()? == b'\\' {
            unescaped.push(self.escape()?);
            let start = self.at;
            self.find_special()?;
            unescaped.push_str(self.text.get(start..self.at)?);
        }
        self.skip_exactly(b"\"").then_some(())
    }

    /// Move to the next quote, backslash or control character, eight bytes at a time, and return it.
    #[inline]
    fn find_special(&mut self) -> Option<u8> {
        let bytes = self.bytes();
        while let Some(chunk) = bytes.get(self.at..)?.first_chunk::<8>() {
            let found = special(u64::from_le_bytes(*chunk));
            if found != 0 {
                let index = found.trailing_zeros() as usize / 8;
                self.at += index;
                return chunk.get(index).copied();
            }
            self.at += 8;
        }
        let is_special = |byte: &u8| matches!(byte, b'"' | b'\\' | 0..b' ');
        self.at += bytes.get(self.at..)?.iter().position(is_special)?;
        self.peek()
    }

    /// Read a backslash and what it stands for; lone surrogates stand for nothing.
    fn escape(&mut self) -> Option<char> {
        let kind = *self.bytes().get(self.at + 1)?;
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
        let digits = self.bytes().get(self.at..self.at + 4)?;
        self.at += 4;
        digits.iter().try_fold(0, |value, byte| {
            Some(value << 4 | char::from(*byte).to_digit(16)?)
        })
    }

    /// Read a number, which must be finite.
    #[inline]
    pub fn number(&mut self) -> Option<Number<'a>> {
        let start = self.at;
        self.at += usize::from(self.peek() == Some(b'-'));
        let first = self.at;
        let mut magnitude = 0_u64;
        while let Some(digit @ b'0'..=b'9') = self.peek() {
            magnitude = magnitude
                .wrapping_mul(10)
                .wrapping_add(u64::from(digit - b'0'));
            self.at += 1;
        }
        let digits = self.at - first;
        if digits == 0 || digits > 1 && self.bytes()[first] == b'0' {
            return None;
        }
        let is_integer = !matches!(self.peek(), Some(b'.' | b'e' | b'E'));
        let has_exponent = !is_integer && self.fraction_and_exponent()?;
        let text = self.text.get(start..self.at)?;
        if (has_exponent || digits > FINITE_DIGITS) && !text.parse::<f64>().ok()?.is_finite() {
            return None;
        }
        Some(Number {
            text,
            magnitude,
            digits,
            is_integer,
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
        let mut special = self.find_special()?;
        while special == b'\\' {
            self.escape()?;
            special = self.find_special()?;
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
    #[inline]
    pub fn value(&self) -> Option<Scalar<'static>> {
        let negative = self.text.starts_with('-');
        if !self.is_integer {
            return Some(Scalar::Float(self.text.parse().ok()?));
        }
        let magnitude = match self.digits {
            ..20 => self.magnitude,
            20 => self.text.trim_start_matches('-').parse().ok()?,
            _ => return None,
        };
        let is_decided = !negative || magnitude != 0 && magnitude <= 1 << 63;
        is_decided.then_some(Scalar::Integer {
            negative,
            magnitude,
        })
    }
}

/// Set the high bit of the first byte that is a quote, a backslash or a control character; it may set bits above it.
#[inline]
fn special(word: u64) -> u64 {
    let quote_as_space = word ^ (ONES * 0x02); // and a space as a quote: only what is sought is below 0x21
    let is_backslash = word ^ (ONES * u64::from(b'\\'));
    let below = quote_as_space.wrapping_sub(ONES * 0x21) & !quote_as_space;
    let zero = is_backslash.wrapping_sub(ONES) & !is_backslash;
    (below | zero) & (ONES << 7)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_accepted(text: &str) -> bool {
        let mut json = Scanner::new(text);
        json.skip_value(0).is_some() && json.is_at_end()
    }

    fn string(text: &str) -> Option<String> {
        let mut json = Scanner::new(text);
        let mut unescaped = "from the last string".to_owned();
        let value = json.skip(b'"').then(|| json.string(&mut unescaped))??;
        json.is_at_end().then(|| value.to_owned())
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
            Scanner::new(text)
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
