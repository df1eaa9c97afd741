//! Distinct devices → PFADD commands in RESP, the protocol of Redis.

use foldhash::{HashSet, HashSetExt};

/// Append `$len\r\n…\r\n`.
pub fn bulk_string(out: &mut Vec<u8>, text: &[u8]) {
    header(out, b'$', text.len());
    out.extend_from_slice(text);
    out.extend_from_slice(b"\r\n");
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

/// Split a part into its bulk strings, each with its header; None if it has another form.
pub fn bulk_strings(mut part: &[u8]) -> Option<Vec<&[u8]>> {
    let mut strings = Vec::new();
    while !part.is_empty() {
        let line = part.iter().position(|byte| *byte == b'\r')?;
        let digits = std::str::from_utf8(part[..line].strip_prefix(b"$")?).ok()?;
        let end = digits.parse::<usize>().ok()?.checked_add(line + 4)?;
        let string = part.get(..end)?;
        if &string[line..line + 2] != b"\r\n" || !string.ends_with(b"\r\n") {
            return None;
        }
        strings.push(string);
        part = &part[end..];
    }
    Some(strings)
}

/// PFADD commands of at most `elements` elements each, duplicates removed; none without elements.
pub fn commands(key: &[u8], bulk_strings: &[&[u8]], elements: usize) -> Vec<Vec<u8>> {
    let mut known = HashSet::with_capacity(bulk_strings.len());
    let distinct: Vec<&[u8]> = bulk_strings
        .iter()
        .filter(|string| known.insert(**string))
        .copied()
        .collect();
    distinct
        .chunks(elements.max(1))
        .map(|chunk| command(key, chunk))
        .collect()
}

fn command(key: &[u8], strings: &[&[u8]]) -> Vec<u8> {
    let size: usize = strings.iter().map(|string| string.len()).sum();
    let mut out = Vec::with_capacity(size + key.len() + 64);
    header(&mut out, b'*', strings.len() + 2);
    bulk_string(&mut out, b"PFADD");
    bulk_string(&mut out, key);
    for string in strings {
        out.extend_from_slice(string);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_have_each_device_once() {
        let part = b"$1\r\na\r\n$2\r\nb\n\r\n$1\r\na\r\n$0\r\n\r\n";
        let strings = bulk_strings(part).unwrap();
        assert_eq!(strings.len(), 4);
        assert_eq!(
            commands(b"k", &strings, 2),
            [
                b"*4\r\n$5\r\nPFADD\r\n$1\r\nk\r\n$1\r\na\r\n$2\r\nb\n\r\n".to_vec(),
                b"*3\r\n$5\r\nPFADD\r\n$1\r\nk\r\n$0\r\n\r\n".to_vec(),
            ]
        );
        assert!(commands(b"k", &[], 2).is_empty());
    }

    #[test]
    fn other_bytes_are_refused() {
        for part in [
            &b"a"[..],
            b"$1\r\nab\r\n",
            b"$1\r\na\r",
            b"$-1\r\n",
            b"$1\ra\n\r\n",
            b"$18446744073709551615\r\na\r\n",
        ] {
            assert_eq!(bulk_strings(part), None, "{part:?}");
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
