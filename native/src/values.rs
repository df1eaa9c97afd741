//! JSON values → what columns store of them; None where the reference does not certainly accept them.

use std::net::{Ipv4Addr, Ipv6Addr};

use crate::timestamps::{Clock, Instant, bare_date, is_day_in_range};

/// A JSON value that is neither an array nor an object.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Scalar<'a> {
    Null,
    Bool(bool),
    Integer { negative: bool, magnitude: u64 },
    Float(f64),
    Text(&'a str),
}

/// Append the lowest `size` bytes of a number: 1, 2, 4 or 8.
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
        Scalar::Text(text) => clock.read(text.as_bytes()),
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
            let bytes = text.as_bytes();
            let is_number = !bytes.is_empty() && bytes.iter().all(u8::is_ascii_digit);
            if is_number && text.parse::<u64>().is_ok_and(|number| number <= last_day) {
                return None; // days or seconds
            }
            match bare_date(bytes) {
                Some(day) => is_day_in_range(day).then_some(day),
                None => clock.read(bytes).map(Instant::to_days),
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

pub fn ipv6(text: &str) -> Option<Ipv6Addr> {
    if text.contains(':') {
        return text.parse().ok();
    }
    Some(text.parse::<Ipv4Addr>().ok()?.to_ipv6_mapped())
}
