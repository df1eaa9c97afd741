//! Distinct devices → PFADD commands in RESP, the protocol of Redis.

use foldhash::{HashSet, HashSetExt};

use crate::values::split_string;

/// PFADD commands of at most `elements` elements each, duplicates removed; none without elements.
///
/// A part is strings as a column has them, each after its length. None: a part has another form.
pub fn commands(key: &[u8], parts: &[impl AsRef<[u8]>], elements: usize) -> Option<Vec<Vec<u8>>> {
    let mut known = HashSet::new();
    let mut distinct = Vec::new();
    for part in parts {
        let mut rest = part.as_ref();
        while !rest.is_empty() {
            let string;
            (string, rest) = split_string(rest)?;
            if known.insert(string) {
                distinct.push(string);
            }
        }
    }
    let chunks = distinct.chunks(elements.max(1));
    Some(chunks.map(|chunk| command(key, chunk)).collect())
}

fn command(key: &[u8], strings: &[&[u8]]) -> Vec<u8> {
    let size: usize = strings.iter().map(|string| string.len() + 24).sum(); // at most: `$`, length, two line ends
    let mut out = Vec::with_capacity(size + key.len() + 64);
    header(&mut out, b'*', strings.len() + 2);
    for string in [&b"PFADD"[..], key].iter().chain(strings) {
        header(&mut out, b'$', string.len());
        out.extend_from_slice(string);
        out.extend_from_slice(b"\r\n");
    }
    out
}

fn header(out: &mut Vec<u8>, kind: u8, number: usize) {
    out.push(kind);
    if number < 10 {
        out.push(b'0' + number as u8);
    } else if number < 100 {
        out.extend_from_slice(&[b'0' + (number / 10) as u8, b'0' + (number % 10) as u8]);
    } else {
        out.extend_from_slice(number.to_string().as_bytes());
    }
    out.extend_from_slice(b"\r\n");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_have_each_device_once() {
        assert_eq!(
            commands(b"k", &[&b"\x01a\x02b\n"[..], b"", b"\x01a\0"], 2).unwrap(),
            [
                b"*4\r\n$5\r\nPFADD\r\n$1\r\nk\r\n$1\r\na\r\n$2\r\nb\n\r\n".to_vec(),
                b"*3\r\n$5\r\nPFADD\r\n$1\r\nk\r\n$0\r\n\r\n".to_vec(),
            ]
        );
        assert_eq!(commands(b"k", &[b""], 2), Some(Vec::new()));
    }

    #[test]
    fn other_bytes_are_refused() {
        for part in [
            &b"\x01"[..],
            b"\x01a\x02b",
            b"\x80",
            b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01a",
            b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01a",
        ] {
            assert_eq!(commands(b"k", &[part], 2), None, "{part:?}");
        }
    }

    #[test]
    fn headers_have_decimal_numbers() {
        for number in [0, 9, 10, 99, 100, 1234567890, usize::MAX] {
            let mut out = Vec::new();
            header(&mut out, b'$', number);
            assert_eq!(out, format!("${number}\r\n").into_bytes());
        }
    }
}
