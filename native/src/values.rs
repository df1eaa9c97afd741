//! JSON values → what columns store of them; None where the reference does not certainly accept them.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use crate::timestamps::{Clock, Instant, bare_date, is_day_in_range};

// In each of eight bytes.
pub const ONES: u64 = u64::from_ne_bytes([1; 8]);
pub const HIGH_BITS: u64 = ONES << 7;

/// A JSON value that is neither an array nor an object.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Scalar<'a> {
    Null,
    Bool(bool),
    Integer { negative: bool, magnitude: u64 },
    Float(f64),
    Text(&'a [u8]), // valid UTF-8
}

/// The value of the decimal digits that come first, modulo 2^64, and how many they are.
#[inline]
pub fn leading_digits(bytes: &[u8]) -> (u64, usize) {
    let (mut value, mut count) = (0_u64, 0);
    while let Some(eight) = bytes[count..].first_chunk().and_then(eight_digits) {
        value = value.wrapping_mul(100_000_000).wrapping_add(eight);
        count += 8;
    }
    while let Some(digit @ b'0'..=b'9') = bytes.get(count) {
        value = value.wrapping_mul(10).wrapping_add(u64::from(digit - b'0'));
        count += 1;
    }
    (value, count)
}

/// The value of eight decimal digits: neighbours are joined to pairs, to fours, and to all.
#[inline]
fn eight_digits(bytes: &[u8; 8]) -> Option<u64> {
    let digits = u64::from_le_bytes(*bytes) ^ (ONES * u64::from(b'0'));
    let above_nine = digits.wrapping_add(ONES * (0x80 - 10));
    if (digits | above_nine) & HIGH_BITS != 0 {
        return None;
    }
    let pairs = (digits * 10 + (digits >> 8)) & 0x00ff_00ff_00ff_00ff;
    let fours = (pairs * 100 + (pairs >> 16)) & 0x0000_ffff_0000_ffff;
    Some((fours * 10_000 + (fours >> 32)) & 0xffff_ffff)
}

/// Append the lowest `size` bytes of a number: 1, 2, 4 or 8.
#[inline(always)]
pub fn push_number(data: &mut Vec<u8>, number: [u8; 8], size: usize) {
    match size {
        1 => data.push(number[0]),
        2 => data.extend_from_slice(&number[..2]),
        4 => data.extend_from_slice(&number[..4]),
        _ => data.extend_from_slice(&number),
    }
}

/// The length as a varint, then the text.
#[inline]
pub fn push_string(data: &mut Vec<u8>, text: &[u8]) {
    let mut length = text.len();
    while length >= 0x80 {
        data.push(length as u8 | 0x80);
        length >>= 7;
    }
    data.push(length as u8);
    data.extend_from_slice(text);
}

/// Split the first string that `push_string` has written from the rest; None if there is none.
#[inline]
pub fn split_string(data: &[u8]) -> Option<(&[u8], &[u8])> {
    let (mut length, mut shift) = (0, 0);
    for (index, byte) in data.iter().enumerate() {
        length |= usize::from(byte & 0x7f) << shift;
        if *byte < 0x80 {
            return data[index + 1..].split_at_checked(length);
        }
        shift += 7;
        if shift >= usize::BITS {
            return None;
        }
    }
    None
}

pub fn signed(negative: bool, magnitude: u64) -> Option<i64> {
    if negative {
        0_i64.checked_sub_unsigned(magnitude)
    } else {
        i64::try_from(magnitude).ok()
    }
}

pub fn float(value: Scalar) -> Option<f64> {
    match value {
        Scalar::Float(value) => Some(value),
        Scalar::Integer {
            negative: false,
            magnitude,
        } => Some(magnitude as f64),
        Scalar::Integer {
            negative: true,
            magnitude,
        } => Some(-(magnitude as f64)),
        _ => None,
    }
}

#[inline]
pub fn instant(clock: &mut Clock, value: Scalar) -> Option<Instant> {
    match value {
        Scalar::Text(text) => clock.read(text),
        Scalar::Integer {
            negative,
            magnitude,
        } => Instant::from_unix(negative, magnitude),
        Scalar::Float(value) => Instant::from_float(value),
        _ => None,
    }
}

/// `YYYY-MM-DD`, a number of days up to `last_day`, or the day of a timestamp.
pub fn day(clock: &mut Clock, value: Scalar, last_day: u64) -> Option<i64> {
    match value {
        Scalar::Integer {
            negative,
            magnitude,
        } if magnitude <= last_day => {
            signed(negative, magnitude).filter(|day| is_day_in_range(*day))
        }
        Scalar::Float(number) if number.abs() <= last_day as f64 => None,
        Scalar::Text(text) => {
            let is_number = !text.is_empty() && text.iter().all(u8::is_ascii_digit);
            if is_number && parse::<u64>(text).is_some_and(|number| number <= last_day) {
                return None; // days or seconds
            }
            match bare_date(text) {
                Some(day) => is_day_in_range(day).then_some(day),
                None => clock.read(text).map(Instant::to_days),
            }
        }
        _ => instant(clock, value).map(Instant::to_days),
    }
}

/// 8-4-4-4-12 hexadecimal digits → two 64-bit numbers, little-endian, the higher half first.
pub fn uuid(text: &[u8]) -> Option<[u8; 16]> {
    if text.len() != 36 {
        return None;
    }
    let mut number = 0_u128;
    for (index, byte) in text.iter().enumerate() {
        if matches!(index, 8 | 13 | 18 | 23) {
            if *byte != b'-' {
                return None;
            }
            continue;
        }
        number = number << 4 | u128::from(char::from(*byte).to_digit(16)?);
    }
    let mut bytes = number.to_be_bytes();
    bytes[..8].reverse();
    bytes[8..].reverse();
    Some(bytes)
}

pub fn ipv6(text: &[u8]) -> Option<Ipv6Addr> {
    if text.contains(&b':') {
        return parse(text);
    }
    Some(parse::<Ipv4Addr>(text)?.to_ipv6_mapped())
}

/// What Rust reads in a text.
pub fn parse<T: FromStr>(text: &[u8]) -> Option<T> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_end_at_any_other_byte() {
        let digits = "12345678901234567890";
        for count in 0..=20 {
            for end in 0..=255_u8 {
                if !end.is_ascii_digit() {
                    let mut text = digits.as_bytes()[..count].to_vec();
                    text.extend_from_slice(&[end, b'1', b'2', b'3', b'4', b'5', b'6', b'7', b'8']);
                    let value = digits[..count].parse::<u64>().unwrap_or_default();
                    assert_eq!(leading_digits(&text), (value, count));
                    assert_eq!(leading_digits(&text[..count]), (value, count));
                }
            }
        }
    }
}
