//! Comma-separated text as records that know on which line they begin, so that errors can name it.

use crate::error::{Error, Result};

/// The fields of a line; of several lines where a field in quotes contains line ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// The line that it begins on, counted from 1.
    pub line: u64,
    /// Its fields, without spaces around them.
    pub fields: Vec<String>,
}

/// The records of `text`, the header among them; blank lines are passed over, and so is a byte order mark.
/// `name` is what errors call the text. Records may have different numbers of fields.
///
/// As in RFC 4180, a field stands in double quotes when it begins with one, right behind the comma, and a
/// quote elsewhere is a character like others. Lines end in `\n`, `\r\n` or `\r`.
///
/// # Errors
/// Those of the reader.
pub fn records(name: &str, text: &str) -> Result<Vec<Record>> {
    let text = text.trim_start_matches('\u{feff}').as_bytes();
    let mut reader = csv::ReaderBuilder::new()
        .has_headers(false)
        .flexible(true)
        .trim(csv::Trim::All)
        .from_reader(text);
    let mut records = Vec::new();
    let (mut line, mut counted) = (1, 0);
    for record in reader.records() {
        let record = record.map_err(|e| Error::data(format!("`{name}` is no CSV file: {e}")))?;
        let start = begin(&record, text);
        line += line_ends(text.get(counted..start).unwrap_or_default());
        counted = start;
        if record.len() > 1 || record.iter().any(|field| !field.is_empty()) {
            let fields = record.iter().map(str::to_owned).collect();
            records.push(Record { line, fields });
        }
    }
    Ok(records)
}

/// Where a record begins: the reader counts the line ends before it as its own.
fn begin(record: &csv::StringRecord, text: &[u8]) -> usize {
    let byte = record.position().map_or(0, csv::Position::byte);
    let start = usize::try_from(byte).unwrap_or(usize::MAX);
    let rest = text.get(start..).unwrap_or_default();
    start + rest.iter().take_while(|c| b"\r\n".contains(c)).count()
}

/// How many lines end in `text`.
fn line_ends(text: &[u8]) -> u64 {
    let next = text.iter().skip(1).chain([&0]);
    let ends = text.iter().zip(next).filter(|(this, next)| match **this {
        b'\n' => true,
        b'\r' => **next != b'\n',
        _ => false,
    });
    ends.count() as u64
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn read(text: &str) -> Vec<(u64, Vec<String>)> {
        let records = records("t.csv", text).unwrap();
        records.into_iter().map(|r| (r.line, r.fields)).collect()
    }

    fn lines(text: &str) -> Vec<u64> {
        read(text).into_iter().map(|(line, _)| line).collect()
    }

    fn fields(text: &str) -> Vec<Vec<String>> {
        read(text).into_iter().map(|(_, fields)| fields).collect()
    }

    #[test]
    fn records_know_their_lines() {
        let text = "\u{feff}\n\na,b\n  \n\"c\nd\",e\n\n\nf,g\n\"\"\n\nlast";
        for end in ["\n", "\r\n", "\r"] {
            assert_eq!(lines(&text.replace('\n', end)), [3, 5, 9, 12], "{end:?}");
        }
        assert_eq!(lines("a\n"), [1]);
        assert!(lines("").is_empty() && lines("\u{feff}").is_empty() && lines(" \n\t").is_empty());
    }

    #[test]
    fn quotes_count_where_a_field_begins() {
        assert_eq!(
            fields("\"a, \"\"b\"\"\" , c \n5\" x 7\",d\n\"e\"f,,\n"),
            [
                vec!["a, \"b\"", "c"],
                vec!["5\" x 7\"", "d"],
                vec!["ef", "", ""]
            ]
        );
        assert_eq!(
            fields("a, \"b\"\n\"open,\nc"),
            [vec!["a", "\"b\""], vec!["open,\nc"]]
        );
    }

    #[test]
    fn anything_is_answered() {
        let seeds = [b"id,group\r\n\"a\nb\",1\n\nc,\"x, \"\"y\"\"\"\n".to_vec()];
        let read = crate::mutate::each("records", &seeds, 3_000, |bytes| {
            let text = String::from_utf8_lossy(bytes);
            let most = text.split(['\n', '\r']).count() as u64;
            let read = records("t.csv", &text).unwrap();
            assert!(read.iter().all(|record| (1..=most).contains(&record.line)));
            assert!(read.is_sorted_by(|a, b| a.line < b.line));
        });
        assert!(read > 0);
    }
}
