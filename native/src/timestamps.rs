//! Timestamps as `worker/decoding/timestamps.py` defines them; None wherever this code does not decide.
//!
//! A result is exact: milliseconds, rounded towards the past, and the nanoseconds after them.

use std::fmt;
use std::io::Write;

use crate::values::{leading_digits, parse};

const FIRST: i64 = -2_208_988_800_000; // 1900-01-01T00:00:00.000Z
const LAST: i64 = 10_413_791_999_999; // 2299-12-31T23:59:59.999Z
const DAY: i64 = 86_400_000;
const MILLI: u64 = 1_000_000; // nanoseconds
const SECONDS_BELOW: u64 = 100_000_000_000;
const MILLIS_BELOW: u64 = 100_000_000_000_000;
const MICROS_BELOW: u64 = 100_000_000_000_000_000;
const POWERS_OF_TEN: [u32; 10] = [
    1,
    10,
    100,
    1_000,
    10_000,
    100_000,
    1_000_000,
    10_000_000,
    100_000_000,
    1_000_000_000,
];
const DIGITS_WITH_TIES: i128 = 1_000_000_000_000_000; // 16 digits: fewer identify one float only
const DECIMAL_DIGITS: usize = 28; // Python's Decimal rounds a product to so many

/// A point in time from FIRST to LAST.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Instant {
    millis: i64,
    nanos: u32, // 0 to 999_999
}

impl Instant {
    fn new(millis: i64, nanos: u32) -> Option<Self> {
        (FIRST..=LAST)
            .contains(&millis)
            .then_some(Self { millis, nanos })
    }

    fn from_nanos(nanos: i128) -> Option<Self> {
        let millis = i64::try_from(nanos.div_euclid(MILLI.into())).ok()?;
        Self::new(millis, nanos.rem_euclid(MILLI.into()) as u32)
    }

    /// A Unix time whose unit follows from its magnitude.
    pub fn from_unix(negative: bool, magnitude: u64) -> Option<Self> {
        if negative {
            return Self::from_nanos(-(i128::from(magnitude) * i128::from(unit(magnitude))));
        }
        let (millis, nanos) = if magnitude < SECONDS_BELOW {
            (magnitude * 1000, 0)
        } else if magnitude < MILLIS_BELOW {
            (magnitude, 0)
        } else if magnitude < MICROS_BELOW {
            (magnitude / 1000, magnitude % 1000 * 1000)
        } else {
            (magnitude / MILLI, magnitude % MILLI)
        };
        Self::new(millis as i64, nanos as u32)
    }

    /// A Unix time by the shortest decimal digits of the float, as Python's repr has them.
    pub fn from_float(value: f64) -> Option<Self> {
        if !value.is_finite() || value.abs() >= 1e20 || value == 0.0 {
            return None;
        }
        let (digits, exponent) = shortest_digits(value.abs())?;
        if digits >= DIGITS_WITH_TIES && is_tie(value.abs(), digits.ilog10() + 1)? {
            return None;
        }
        let unit = unit(value.abs() as u64); // all limits are whole numbers: rounding down keeps the side
        let power = exponent + unit.ilog10() as i32;
        let digits = if value < 0.0 { -digits } else { digits };
        Self::from_nanos(if power >= 0 {
            digits.checked_mul(10_i128.checked_pow(power.unsigned_abs())?)?
        } else {
            match 10_i128.checked_pow(power.unsigned_abs()) {
                Some(divisor) => digits.div_euclid(divisor),
                None => i128::from(digits >= 0) - 1,
            }
        })
    }

    /// Units of 10^-precision seconds, as DateTime64(precision) stores them; None beyond 64 bits.
    pub fn to_precision(self, precision: u32) -> Option<i64> {
        if precision == 3 {
            return Some(self.millis);
        }
        if precision < 3 {
            return Some(self.millis.div_euclid(10_i64.pow(3 - precision)));
        }
        let fraction = i64::from(self.nanos) / 10_i64.pow(9 - precision);
        self.millis
            .checked_mul(10_i64.pow(precision - 3))?
            .checked_add(fraction)
    }

    pub fn to_seconds(self) -> i64 {
        self.millis.div_euclid(1000)
    }

    pub fn to_days(self) -> i64 {
        self.millis.div_euclid(DAY)
    }
}

/// Whether a day is in the range of timestamps.
pub fn is_day_in_range(day: i64) -> bool {
    day.checked_mul(DAY)
        .is_some_and(|millis| (FIRST..=LAST).contains(&millis))
}

/// The day of `YYYY-MM-DD`, counted from 1970-01-01.
pub fn bare_date(text: &[u8]) -> Option<i64> {
    match text {
        [date @ .., d, e] if date.len() == 8 && date[4] == b'-' && date[7] == b'-' => days(
            digits(&date[..4])?,
            digits(&date[5..7])?,
            digits(&[*d, *e])?,
        ),
        _ => None,
    }
}

/// Reads timestamps as text. It remembers the last minute, because events mostly come in the order of time.
#[derive(Default)]
pub struct Clock {
    minute: [u8; 16],
    millis: i64, // of that minute
}

impl Clock {
    /// ISO 8601, or a Unix time in decimal digits.
    pub fn read(&mut self, text: &[u8]) -> Option<Instant> {
        let Some((minute, rest)) = text.split_first_chunk::<16>() else {
            return unix_text(text);
        };
        if minute[4] != b'-' {
            return unix_text(text);
        }
        if *minute != self.minute {
            self.millis = minute_millis(minute)?;
            self.minute = *minute;
        }
        let ([colon, ten, one], rest) = rest.split_first_chunk::<3>()?;
        let second = digits(&[*ten, *one]).filter(|second| *colon == b':' && *second < 60)?;
        let (fraction, zone) = fraction_nanos(rest)?;
        let millis = self.millis + second * 1000 - zone_minutes(zone)? * 60_000;
        Instant::new(
            millis + i64::from(fraction / MILLI as u32),
            fraction % MILLI as u32,
        )
    }
}

/// The nanoseconds of one unit of a Unix time.
fn unit(magnitude: u64) -> u64 {
    if magnitude < SECONDS_BELOW {
        1_000_000_000
    } else if magnitude < MILLIS_BELOW {
        MILLI
    } else if magnitude < MICROS_BELOW {
        1000
    } else {
        1
    }
}

/// `-?[0-9]{1,20}(\.[0-9]{1,9})?`
fn unix_text(text: &[u8]) -> Option<Instant> {
    let (negative, number) = match text {
        [b'-', rest @ ..] => (true, rest),
        _ => (false, text),
    };
    let point = number.iter().position(|byte| *byte == b'.');
    let whole_digits = &number[..point.unwrap_or(number.len())];
    let whole = match leading_digits(whole_digits) {
        (whole, digits @ 1..20) if digits == whole_digits.len() => whole,
        (_, 20) if whole_digits.len() == 20 => parse(whole_digits)?,
        _ => return None,
    };
    let Some(point) = point else {
        return Instant::from_unix(negative, whole);
    };
    let (fraction, rest) = fraction_nanos(&number[point..])?;
    if !rest.is_empty() || number.len() - 1 > DECIMAL_DIGITS {
        return None;
    }
    let billionths = i128::from(whole) * 1_000_000_000 + i128::from(fraction); // of the unit
    let signed = if negative { -billionths } else { billionths };
    Instant::from_nanos(signed.div_euclid(i128::from(1_000_000_000 / unit(whole))))
}

/// Split `.123…` or `,123…`, or nothing, from the text before a zone; the fraction in nanoseconds.
fn fraction_nanos(text: &[u8]) -> Option<(u32, &[u8])> {
    let [b'.' | b',', rest @ ..] = text else {
        return Some((0, text));
    };
    let mut value = 0;
    let mut length = 0;
    while let Some(digit) = rest.get(length).and_then(|byte| digit(*byte)) {
        if length == 9 {
            return None;
        }
        value = value * 10 + digit as u32;
        length += 1;
    }
    (length > 0).then(|| (value * POWERS_OF_TEN[9 - length], &rest[length..]))
}

/// `Z`, `z`, `±hh:mm`, `±hhmm`, `±hh` or nothing; east of Greenwich is positive.
fn zone_minutes(zone: &[u8]) -> Option<i64> {
    let (sign, digits_of_zone) = match zone {
        [] | [b'Z' | b'z'] => return Some(0),
        [b'+', rest @ ..] => (1, rest),
        [b'-', rest @ ..] => (-1, rest),
        _ => return None,
    };
    let (hours, minutes) = match digits_of_zone {
        [a, b] => (digits(&[*a, *b])?, 0),
        [a, b, c, d] | [a, b, b':', c, d] => (digits(&[*a, *b])?, digits(&[*c, *d])?),
        _ => return None,
    };
    (hours < 24 && minutes < 60).then_some(sign * (hours * 60 + minutes))
}

/// The Unix milliseconds of `YYYY-MM-DDTHH:MM`.
fn minute_millis(text: &[u8; 16]) -> Option<i64> {
    let separators = [text[4], text[7], text[13]];
    if separators != *b"--:" || !matches!(text[10], b'T' | b't' | b' ') {
        return None;
    }
    let day = days(
        digits(&text[..4])?,
        digits(&text[5..7])?,
        digits(&text[8..10])?,
    )?;
    let (hour, minute) = (digits(&text[11..13])?, digits(&text[14..])?);
    (hour < 24 && minute < 60).then_some(day * DAY + (hour * 60 + minute) * 60_000)
}

/// Days since 1970-01-01 in the Gregorian calendar; None for a date that does not exist.
fn days(year: i64, month: i64, day: i64) -> Option<i64> {
    let is_leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let length = match month {
        4 | 6 | 9 | 11 => 30,
        2 => 28 + i64::from(is_leap),
        1..=12 => 31,
        _ => return None,
    };
    if day < 1 || day > length {
        return None;
    }
    // Years begin in March here, so that the leap day is the last.
    let (year, month) = if month > 2 {
        (year, month - 3)
    } else {
        (year - 1, month + 9)
    };
    let in_years = year * 365 + year / 4 - year / 100 + year / 400;
    Some(in_years + (153 * month + 2) / 5 + day - 1 - 719_468)
}

fn digit(byte: u8) -> Option<u64> {
    byte.is_ascii_digit().then(|| u64::from(byte - b'0'))
}

/// The value of a few decimal digits; None for any other character.
fn digits(text: &[u8]) -> Option<i64> {
    text.iter()
        .try_fold(0, |value, byte| Some(value * 10 + digit(*byte)? as i64))
}

fn write_number<'a>(buffer: &'a mut [u8; 64], number: fmt::Arguments) -> Option<&'a str> {
    let size = buffer.len();
    let mut rest = &mut buffer[..];
    rest.write_fmt(number).ok()?;
    let length = size - rest.len();
    std::str::from_utf8(&buffer[..length]).ok()
}

/// The fewest decimal digits that identify a positive float, and the exponent of the last: 1234 and 6 of 1.234e9.
pub fn shortest_digits(value: f64) -> Option<(i128, i32)> {
    let mut buffer = [0; 64];
    split_exponent(write_number(&mut buffer, format_args!("{value:e}"))?)
}

fn split_exponent(text: &str) -> Option<(i128, i32)> {
    let (mantissa, exponent) = text.split_once('e')?;
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let mut value = 0;
    for byte in whole.bytes().chain(fraction.bytes()) {
        value = value * 10 + i128::from(digit(byte)?);
    }
    Some((value, exponent.parse::<i32>().ok()? - fraction.len() as i32))
}

/// Whether two decimals of so many digits are equally near: Python takes the even one, Rust the larger.
fn is_tie(value: f64, count: u32) -> Option<bool> {
    let mut buffer = [0; 64];
    let exact = write_number(&mut buffer, format_args!("{value:.40e}"))?;
    let after = exact.get(count as usize + 1..)?; // the point is one character
    Some(after.starts_with('5') && after[1..].trim_start_matches('0').starts_with('e'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nanos(text: &str) -> Option<i128> {
        Clock::default().read(text.as_bytes()).map(in_nanos)
    }

    fn in_nanos(instant: Instant) -> i128 {
        i128::from(instant.millis) * 1_000_000 + i128::from(instant.nanos)
    }

    #[test]
    fn all_forms_of_an_instant_are_equal() {
        let expected = Some(1_726_668_850_124_000_000);
        for text in [
            "2024-09-18T14:14:10.124Z",
            "2024-09-18t14:14:10,124z",
            "2024-09-18 14:14:10.124",
            "2024-09-18T16:14:10.124000000+02:00",
            "2024-09-18T09:44:10.124-0430",
            "2024-09-18T15:14:10.124+01",
            "1726668850.124",
            "1726668850124",
            "1726668850124000",
            "1726668850124000000",
        ] {
            assert_eq!(nanos(text), expected, "{text}");
        }
        assert_eq!(
            Instant::from_float(1_726_668_850.124).map(in_nanos),
            expected
        );
    }

    #[test]
    fn invalid_texts_are_undecided() {
        for text in [
            "",
            "-",
            ".5",
            "5.",
            "2024-09-18",
            "2024-09-18T14:14",
            "2024-09-18T24:14:10",
            "2024-09-18T14:14:60",
            "2024-02-30T00:00:00",
            "2023-02-29T00:00:00",
            "0000-01-01T00:00:00",
            "2024-09-18T14:14:10.",
            "2024-09-18T14:14:10.1234567890",
            "2024-09-18T14:14:10+24:00",
            "2024-09-18T14:14:10+01:60",
            "2024-09-18T14:14:10ZZ",
            "2024-09-18T14:14:10 Z",
            "1899-12-31T23:59:59.999999999Z",
            "2300-01-01T00:00:00Z",
            "10413792000000000001",
            "99999999999999999999",
            "123456789012345678901",
            "1e9",
            "２０２４-09-18T14:14:10",
        ] {
            assert_eq!(nanos(text), None, "{text}");
        }
    }

    #[test]
    fn limits_of_the_range_are_inside() {
        assert_eq!(
            nanos("1900-01-01T00:00:00Z"),
            Some(-2_208_988_800_000_000_000)
        );
        assert_eq!(
            nanos("2299-12-31T23:59:59.999999999Z"),
            Some(10_413_791_999_999_999_999)
        );
        assert_eq!(
            nanos("2300-01-01T00:00:00+00:01"),
            nanos("2299-12-31T23:59:00Z")
        );
        assert!(Instant::from_unix(true, u64::MAX).is_none());
        assert!(Instant::from_unix(false, u64::MAX).is_none());
    }

    #[test]
    fn finer_digits_are_rounded_towards_the_past() {
        assert_eq!(nanos("-1.000000001"), Some(-1_000_000_001));
        assert_eq!(
            nanos("-1.0000000015"),
            None,
            "more than nine digits of a fraction"
        );
        assert_eq!(
            Instant::from_float(-1e-300).map(in_nanos),
            Some(-1),
            "before 1970"
        );
        assert_eq!(Instant::from_float(1e-300).map(in_nanos), Some(0));
        assert_eq!(
            Instant::from_float(1.001).map(in_nanos),
            Some(1_001_000_000)
        );
        assert_eq!(
            Instant::from_float(120_197_969_185_855.0 + 0.625),
            None,
            "a tie: Python writes .62, Rust .63"
        );
        let before = Clock::default().read(b"1969-12-31T23:59:59.9999Z");
        assert_eq!(before.and_then(|instant| instant.to_precision(3)), Some(-1));
        assert_eq!(before.and_then(|instant| instant.to_precision(0)), Some(-1));
        assert_eq!(
            before.and_then(|instant| instant.to_precision(9)),
            Some(-100_000)
        );
    }

    #[test]
    fn what_does_not_fit_64_bits_is_undecided() {
        let late = Clock::default().read(b"2262-04-11T23:47:16.854775807Z");
        assert_eq!(
            late.and_then(|instant| instant.to_precision(9)),
            Some(i64::MAX)
        );
        let later = Clock::default().read(b"2262-04-11T23:47:16.854775808Z");
        assert_eq!(later.and_then(|instant| instant.to_precision(9)), None);
        assert!(later.and_then(|instant| instant.to_precision(8)).is_some());
    }

    #[test]
    fn a_remembered_minute_changes_nothing() {
        let mut clock = Clock::default();
        for text in [
            "2024-09-18T14:14:10Z",
            "2024-09-18T14:14:11Z",
            "2024-09-18T14:15:10Z",
            "2024-09-18T14:61:10Z",
            "2024-09-18T14:61:10Z",
            "2024-09-18T14:15:10Z",
        ] {
            assert_eq!(clock.read(text.as_bytes()).map(in_nanos), nanos(text));
        }
    }

    #[test]
    fn days_count_from_1970() {
        assert_eq!(bare_date(b"1970-01-01"), Some(0));
        assert_eq!(bare_date(b"2024-02-29"), Some(19_782));
        assert_eq!(bare_date(b"1900-01-01"), Some(-25_567));
        assert_eq!(bare_date(b"1900-02-29"), None);
        assert_eq!(bare_date(b"2024-2-29"), None);
    }
}
