//! Checks field tables (AMQP 0-9-1 §4.2.5.5) before the AMQP library parses them: the library recurses for each level,
//! so that the levels that fit into a frame would overflow its stack, and it makes sixty bytes out of one. Pure;
//! decodes no value.

/// Tables and arrays in one another, at most; brokers nest three or four.
const MAX_DEPTH: u32 = 16;

/// How many values a table holds, those of inner tables and arrays included; `None` when the table can't be read or is
/// nested too deep. `bytes` begin with the table's length; bytes after the table are ignored.
pub(super) fn count_values(bytes: &[u8]) -> Option<u64> {
    let mut bytes = bytes;
    let mut count = 0;
    add_values(long_string(&mut bytes)?, true, 1, &mut count)?;
    Some(count)
}

/// Removes a short string from the front.
pub(super) fn short_string<'a>(bytes: &mut &'a [u8]) -> Option<&'a [u8]> {
    let [length] = *bytes.split_off(..1)? else { return None };
    bytes.split_off(..usize::from(length))
}

/// Removes a long string from the front: a length of four bytes, and so many bytes.
fn long_string<'a>(bytes: &mut &'a [u8]) -> Option<&'a [u8]> {
    let length = u32::from_be_bytes(bytes.split_off(..4)?.try_into().ok()?);
    bytes.split_off(..usize::try_from(length).ok()?)
}

fn add_values(mut bytes: &[u8], keyed: bool, depth: u32, count: &mut u64) -> Option<()> {
    if depth > MAX_DEPTH {
        return None;
    }
    while !bytes.is_empty() {
        *count += 1;
        if keyed {
            short_string(&mut bytes)?;
        }
        let [kind] = *bytes.split_off(..1)? else { return None };
        // As RabbitMQ and the library read the letters; the standard's differ in some.
        let length = match kind {
            b'V' => 0,
            b't' | b'b' | b'B' => 1,
            b's' | b'U' | b'u' => 2,
            b'I' | b'i' | b'f' => 4,
            b'D' => 5,
            b'L' | b'l' | b'd' | b'T' => 8,
            b'S' | b'x' => long_string(&mut bytes).map(|_| 0)?,
            b'A' | b'F' => {
                add_values(long_string(&mut bytes)?, kind == b'F', depth + 1, count)?;
                0
            }
            _ => return None,
        };
        bytes.split_off(..length)?;
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(entries: &[u8]) -> Vec<u8> {
        [&u32::try_from(entries.len()).unwrap_or(u32::MAX).to_be_bytes(), entries].concat()
    }

    fn nested(levels: u32) -> Vec<u8> {
        (1..levels).fold(table(b""), |inner, _| table(&[b"\x01kF".as_slice(), &inner].concat()))
    }

    #[test]
    fn every_value_is_counted_and_bytes_after_the_table_are_ignored() {
        let array = [b"\x01aA".as_slice(), &table(b"VVt\x01")].concat();
        let rest = b"\x01bS\x00\x00\x00\x02xy\x01cl12345678\x01dD12345\x01es12\x01fI1234";
        let all = [table(&[array.as_slice(), rest].concat()).as_slice(), b"behind"].concat();
        assert_eq!(count_values(&all), Some(9));
        assert_eq!(count_values(&table(b"")), Some(0));
    }

    #[test]
    fn tables_nested_too_deep_or_cut_short_are_refused() {
        assert_eq!(count_values(&nested(MAX_DEPTH)), Some(u64::from(MAX_DEPTH) - 1));
        assert_eq!(count_values(&nested(MAX_DEPTH + 1)), None);
        assert_eq!(count_values(&nested(10_000)), None);
        let whole = table(b"\x01bS\x00\x00\x00\x02xy\x01cl12345678");
        assert_eq!(count_values(&whole), Some(2));
        for end in 0..whole.len() {
            assert_eq!(count_values(&whole[..end]), None, "{end}");
        }
        // The table is complete by its length, but a value isn't.
        assert_eq!(count_values(&table(b"\x01cl1234")), None);
        assert_eq!(count_values(&table(b"\x01c?")), None);
    }
}
