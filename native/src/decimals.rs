//! Decimal(P, S) of at most 18 digits: an integer multiple of 10^-S, exact or not decided.

use crate::timestamps::shortest_digits;
use crate::values::Scalar;

const FLOAT_DIGITS: i128 = 1_000_000_000_000_000; // 10^15: with fewer digits each decimal is one float
const EXACT_BELOW: f64 = 9_007_199_254_740_992.0; // 2^53: a larger one may have been a whole number that a float rounds
const TEXT_DIGITS: usize = 36; // their value is below 2^127

/// Precision and scale.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Decimal {
    pub precision: u32, // 1 to 18
    pub scale: u32,     // 0 to the precision
}

impl Decimal {
    pub fn size(self) -> usize {
        if self.precision <= 9 { 4 } else { 8 }
    }

    pub fn whole(self, value: Scalar) -> Option<i64> {
        let (digits, exponent) = match value {
            Scalar::Integer {
                negative,
                magnitude,
            } => {
                let magnitude = i128::from(magnitude);
                (if negative { -magnitude } else { magnitude }, 0)
            }
            Scalar::Float(0.0) => (0, 0),
            Scalar::Float(value) if value.abs() >= EXACT_BELOW => return None,
            Scalar::Float(value) => {
                let (digits, exponent) = shortest_digits(value.abs())?;
                let digits = if value < 0.0 { -digits } else { digits };
                (digits.abs() < FLOAT_DIGITS).then_some((digits, exponent))?
            }
            Scalar::Text(text) => from_text(std::str::from_utf8(text).ok()?)?,
            _ => return None,
        };
        let whole = shift(digits, exponent + self.scale as i32)?;
        let is_in_range = whole.abs() < 10_i128.pow(self.precision);
        is_in_range.then(|| i64::try_from(whole).ok())?
    }
}

/// digits × 10^exponent; None unless it is an integer.
fn shift(digits: i128, exponent: i32) -> Option<i128> {
    let power = 10_i128.checked_pow(exponent.unsigned_abs())?;
    if exponent >= 0 {
        return digits.checked_mul(power);
    }
    (digits % power == 0).then_some(digits / power)
}

/// `-?[0-9]+(\.[0-9]+)?` as its digits and the exponent of the last.
fn from_text(text: &str) -> Option<(i128, i32)> {
    let (negative, number) = text
        .strip_prefix('-')
        .map_or((false, text), |rest| (true, rest));
    let (whole, fraction) = number
        .split_once('.')
        .map_or((number, None), |(whole, rest)| (whole, Some(rest)));
    let is_digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if number.len() > TEXT_DIGITS || !is_digits(whole) || !fraction.is_none_or(is_digits) {
        return None;
    }
    let fraction = fraction.unwrap_or_default();
    let digits = whole.bytes().chain(fraction.bytes());
    let value = digits.fold(0, |value, byte| value * 10 + i128::from(byte - b'0'));
    Some((
        if negative { -value } else { value },
        -(fraction.len() as i32),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decimals_are_exact_or_undecided() {
        let cents = Decimal {
            precision: 9,
            scale: 2,
        };
        for (value, expected) in [
            (Scalar::Float(0.1), Some(10)),
            (Scalar::Float(-0.01), Some(-1)),
            (Scalar::Float(-0.0), Some(0)),
            (Scalar::Float(0.001), None),
            (Scalar::Float(1e7), None),
            (Scalar::Float(1e-300), None),
            (Scalar::Float(0.1 + 0.2), None),
            (
                Scalar::Integer {
                    negative: true,
                    magnitude: 5,
                },
                Some(-500),
            ),
            (
                Scalar::Integer {
                    negative: false,
                    magnitude: u64::MAX,
                },
                None,
            ),
            (Scalar::Text(b"9999999.99"), Some(999_999_999)),
            (Scalar::Text(b"10000000"), None),
            (Scalar::Text(b"-0.50000"), Some(-50)),
            (Scalar::Text(b"0.505"), None),
            (Scalar::Text(b"1."), None),
            (Scalar::Text(b".5"), None),
            (Scalar::Text(b"+1"), None),
            (Scalar::Text(b"1e2"), None),
            (Scalar::Text(b""), None),
            (Scalar::Bool(true), None),
        ] {
            assert_eq!(cents.whole(value), expected, "{value:?}");
        }
    }
}
