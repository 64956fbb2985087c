//! What a hub says of a model: the commit that a revision is, and the files that it has.

use super::{
    client::{Answer, Client, Failure},
    id::Id,
    words,
};
use diffaug::Error;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;

/// Bytes of the longest description, and the most files of a model.
const LONGEST: usize = 16 << 20;
const MOST_FILES: usize = 100_000;
/// What is written as it is in a part of an address.
const ADDRESS: AsciiSet = NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'_')
    .remove(b'.')
    .remove(b'~');

/// A revision of a model as the hub describes it.
#[derive(Debug)]
pub(super) struct Revision {
    pub commit: String,
    /// The names of its files, which stay in its folder.
    pub files: Vec<String>,
}

#[derive(Deserialize)]
struct Description {
    sha: String,
    #[serde(default)]
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
struct Sibling {
    rfilename: String,
}

impl Revision {
    /// Asks the hub for `id`, `tries` times at most.
    pub fn ask(client: &Client, id: &Id, tries: usize) -> Result<Self, Failure> {
        let path = format!("api/models/{}/revision/{}", id.repo, encoded(&id.revision));
        let text = client
            .patiently(tries, || {
                let answer = accept(client.get(&path, None)?, id, None)?;
                answer.body.read_all(LONGEST, &client.patience)
            })
            .map_err(|failure| failure.context(format!("cannot ask for `{id}`")))?;
        Self::parse(&text, id)
    }

    fn parse(text: &[u8], id: &Id) -> Result<Self, Failure> {
        let described: Description = serde_json::from_slice(text).map_err(|error| {
            let error = words::plain(error.into());
            let message = format!("the hub's description of `{id}` cannot be used");
            Failure::Unreachable(error.context(message))
        })?;
        let refused = |message: String| Err(Failure::Refused(Error::model(message)));
        let Some(commit) = words::commit(&described.sha) else {
            return refused(format!(
                "the hub says that `{id}` is at `{}`, expected a commit of 40 digits",
                words::shown(&described.sha)
            ));
        };
        if id.is_pinned() && commit != id.revision {
            return refused(format!(
                "the hub says that `{id}` is at another commit, `{commit}`"
            ));
        }
        let files: Vec<String> = described
            .siblings
            .into_iter()
            .map(|s| s.rfilename)
            .collect();
        if files.len() > MOST_FILES {
            return refused(format!(
                "the hub lists {} files of `{id}`, expected at most {MOST_FILES}",
                files.len()
            ));
        }
        if let Some(name) = files.iter().find(|name| !words::is_file_name(name)) {
            return refused(format!(
                "the hub lists a file `{}` of `{id}`, expected a name inside its folder",
                words::shown(name)
            ));
        }
        Ok(Revision { commit, files })
    }

    pub fn has(&self, file: &str) -> bool {
        self.files.iter().any(|name| name == file)
    }
}

/// The address of `file` of `id` at `commit`, from the hub's on.
pub(super) fn address(id: &Id, commit: &str, file: &str) -> String {
    let parts: Vec<String> = file.split('/').map(encoded).collect();
    format!("{}/resolve/{commit}/{}", id.repo, parts.join("/"))
}

fn encoded(text: &str) -> String {
    utf8_percent_encode(text, &ADDRESS).to_string()
}

/// `answer` if it gives what was asked for: `file` of `id`, or the description of `id`. That there
/// are no such bytes of a file (416) is for the caller.
pub(super) fn accept(answer: Answer, id: &Id, file: Option<&str>) -> Result<Answer, Failure> {
    let status = answer.status;
    let refused = |message: String| Failure::Refused(Error::model(message));
    let odd = || Error::model(format!("the hub answered with status {status} for `{id}`"));
    Err(match (status, file) {
        (200 | 206, _) | (416, Some(_)) => return Ok(answer),
        (401 | 403, _) => refused(format!(
            "the hub refuses `{id}` (status {status}): it is gated, private or not there; accept its terms in a browser and set HF_TOKEN"
        )),
        (404 | 410, None) => refused(format!(
            "the hub has no revision `{}` of `{}`",
            id.revision, id.repo
        )),
        (404 | 410, Some(file)) => refused(missing(id, file)),
        (408 | 425 | 429 | 500..=599, _) => Failure::Passing(odd(), answer.retry_after()),
        (300..=399, _) => Failure::Unreachable(odd().context("it sends on, but not where to")),
        _ => Failure::Unreachable(odd()),
    })
}

/// That the hub has no `file`.
pub(super) fn missing(id: &Id, file: &str) -> String {
    format!("`{id}` has no file `{}` on the hub", words::shown(file))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use serde_json::json;

    const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

    #[test]
    fn addresses_have_nothing_but_plain_letters() {
        let id = Id::parse("org/name@refs/pr/1").unwrap();
        assert_eq!(encoded(&id.revision), "refs%2Fpr%2F1");
        let expected = format!("org/name/resolve/{COMMIT}/a%20b/%3F%23%25%C3%B6.json");
        assert_eq!(address(&id, COMMIT, "a b/?#%ö.json"), expected);
    }

    #[test]
    fn a_description_is_checked() {
        let id = Id::parse("org/name").unwrap();
        let parse = |id: &Id, value: serde_json::Value| {
            Revision::parse(value.to_string().as_bytes(), id).map_err(|failure| match failure {
                Failure::Refused(error) => error.to_string(),
                other => panic!("{other:?}"),
            })
        };
        let file = |name: &str| json!({"sha": COMMIT, "siblings": [{"rfilename": name}]});
        assert_eq!(parse(&id, file("a/b.json")).unwrap().files, ["a/b.json"]);
        assert_eq!(parse(&id, json!({"sha": COMMIT})).unwrap().commit, COMMIT);
        for sha in ["main", "../../x", "/etc", "", "\u{1b}[2J"] {
            let error = parse(&id, json!({"sha": sha})).unwrap_err();
            let shown = words::shown(sha);
            let expected = format!(
                "the hub says that `org/name` is at `{shown}`, expected a commit of 40 digits"
            );
            assert_eq!(error, expected);
        }
        let pinned = Id::parse(&format!("org/name@{}", "f".repeat(40))).unwrap();
        let error = parse(&pinned, json!({"sha": COMMIT})).unwrap_err();
        assert!(error.contains("is at another commit"), "{error}");
        for name in ["../x", "/x", "a\\b", "a\0", "", ".", "a//b", "a\u{1b}[2J"] {
            let error = parse(&id, file(name)).unwrap_err();
            let shown = words::shown(name);
            let expected = format!(
                "the hub lists a file `{shown}` of `org/name`, expected a name inside its folder"
            );
            assert_eq!(error, expected);
        }
        let many: Vec<_> = (0..=MOST_FILES)
            .map(|i| json!({"rfilename": i.to_string()}))
            .collect();
        let error = parse(&id, json!({"sha": COMMIT, "siblings": many})).unwrap_err();
        assert!(
            error.contains("lists 100001 files of `org/name`"),
            "{error}"
        );
    }

    #[test]
    fn a_description_that_is_none_is_no_hub() {
        let id = Id::parse("org/name").unwrap();
        let deep = "[".repeat(100_000);
        for text in ["", "<html>", "{}", "{\"sha\": 1}", "null", &deep] {
            let failure = Revision::parse(text.as_bytes(), &id).unwrap_err();
            assert!(matches!(failure, Failure::Unreachable(_)), "{failure:?}");
        }
    }
}
