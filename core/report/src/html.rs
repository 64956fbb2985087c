//! Parts of a page that every section uses: texts from files, numbers, tables, figures.

use diffaug_run::escape;
use maud::{Markup, html};
use std::borrow::Cow;

/// Text of others within a line: what a browser would obey or hide (control characters, turned directions of
/// writing) is shown as in source code. Markup is escaped where the text is set.
pub fn plain(text: &str) -> Cow<'_, str> {
    escape::line(text)
}

/// A figure as people write it; a dash where it is not defined.
pub fn figure(value: Option<f64>) -> String {
    value.map_or_else(|| "–".to_owned(), |value| format!("{value:.3}"))
}

/// A share in percent; a dash where there is nothing that it is a share of.
pub fn share(part: u64, whole: u64) -> String {
    match whole {
        0 => "–".to_owned(),
        _ => format!("{:.1} %", 100.0 * part as f64 / whole as f64),
    }
}

/// A table: the first cell of each row is its heading, the others are figures. It scrolls in itself where it is
/// wider than the page.
pub fn table(caption: &str, header: &[&str], rows: &[Vec<String>]) -> Markup {
    html! {
        div.scroll tabindex="0" role="region" aria-label=(caption) {
            table {
                caption { span { (caption) } }
                thead { tr { @for cell in header { th scope="col" { (cell) } } } }
                tbody {
                    @for row in rows {
                        tr {
                            @for (place, cell) in row.iter().enumerate() {
                                @if place == 0 {
                                    th scope="row" { (plain(cell)) }
                                } @else {
                                    td { (plain(cell)) }
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

/// A drawing with its title and what may be said below it.
pub fn drawing(title: &str, svg: &Markup, note: &str) -> Markup {
    html! {
        figure.drawing {
            figcaption { (plain(title)) }
            (svg)
            @if !note.is_empty() { p.note { (note) } }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_files_say_is_text() {
        let rows = [vec!["<b>&".to_owned(), "\u{202e}\"x".to_owned()]];
        let text = table("<c>", &["<h>"], &rows).into_string();
        for expected in [
            "&lt;b&gt;&amp;",
            "&lt;c&gt;",
            "&lt;h&gt;",
            "\\u{202e}&quot;x",
        ] {
            assert!(text.contains(expected), "{expected} in {text}");
        }
        assert!(!text.contains("<b>") && !text.contains("<c>"), "{text}");
    }

    #[test]
    fn what_is_not_defined_is_a_dash() {
        assert_eq!(
            (figure(None), figure(Some(0.5))),
            ("–".into(), "0.500".into())
        );
        assert_eq!((share(0, 0), share(1, 3)), ("–".into(), "33.3 %".into()));
    }
}
