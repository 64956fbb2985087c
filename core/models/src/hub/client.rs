//! Requests to a hub: with limits on time, headers and redirects, and with the token for nobody but
//! the hub itself.

use super::words;
use diffaug::{Error, Result};
use std::{
    fmt,
    io::Read,
    thread,
    time::{Duration, Instant},
};
use ureq::{
    Agent, Timeout,
    http::{HeaderMap, HeaderValue, Uri, header, uri::Scheme},
};

/// Redirects that one request may take.
const REDIRECTS: usize = 10;
/// A body of which fewer bytes than this come in [`WINDOW`] times the longest pause does not come.
const TRICKLE: u64 = 64 << 10;
const WINDOW: u32 = 3;

/// How long the hub is waited for, and how often it is asked.
#[derive(Clone, Copy, Debug)]
pub(super) struct Patience {
    /// For the address of a host, and for a connection to it.
    pub connect: Duration,
    /// For an answer to begin, and between two bytes of it.
    pub answer: Duration,
    /// Tries of one request, and of a download without progress.
    pub tries: usize,
    /// The same for the first request where the cache would do.
    pub tries_if_cached: usize,
    /// Before the second try; doubled before each further one.
    pub pause: Duration,
    /// The longest pause, whatever the hub asks for.
    pub longest_pause: Duration,
    /// For another process that fetches the same file and does not get on.
    pub lock: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Patience {
            connect: Duration::from_secs(10),
            answer: Duration::from_secs(10),
            tries: 4,
            tries_if_cached: 2,
            pause: Duration::from_millis(500),
            longest_pause: Duration::from_secs(30),
            lock: Duration::from_secs(60),
        }
    }
}

/// A secret word for the hub, which is never shown.
#[derive(Clone)]
pub(super) struct Token(HeaderValue);

impl Token {
    /// # Errors
    /// When the text has characters that no token has; the error does not repeat it.
    pub fn parse(text: &str, source: &str) -> Result<Self> {
        let text = text.trim();
        let plain = !text.is_empty() && text.bytes().all(|b| b.is_ascii_graphic());
        let value = HeaderValue::from_str(&format!("Bearer {text}")).ok();
        let mut value = value.filter(|_| plain).ok_or_else(|| {
            Error::model(format!(
                "the token in {source} has a space, a control character or a letter outside ASCII: it is no token"
            ))
        })?;
        value.set_sensitive(true);
        Ok(Token(value))
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(..)")
    }
}

/// Why the hub did not give what was asked for.
#[derive(Debug)]
pub(super) enum Failure {
    /// It was not reached, broke off or is busy; another try may do, after the time it asked for.
    Passing(Error, Option<Duration>),
    /// It was reached, but what answers does not answer like a hub.
    Unreachable(Error),
    /// It answered, and this is what is wrong.
    Refused(Error),
}

impl Failure {
    /// Puts `message` in front of its error, unless that is a refusal, which says what it is about.
    pub fn context(self, message: impl fmt::Display) -> Self {
        match self {
            Failure::Passing(error, wait) => Failure::Passing(error.context(message), wait),
            Failure::Unreachable(error) => Failure::Unreachable(error.context(message)),
            Failure::Refused(error) => Failure::Refused(error),
        }
    }
}

/// Whatever goes wrong on this machine.
impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Failure::Refused(error)
    }
}

/// An answer, its body not yet read.
pub(super) struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Body,
    /// The headers of those answers on the way that came from the hub itself, the first one first.
    pub from_hub: Vec<HeaderMap>,
}

impl Answer {
    /// How long the hub asks to wait.
    pub fn retry_after(&self) -> Option<Duration> {
        let seconds = text(&self.headers, "retry-after")?.trim().parse().ok()?;
        Some(Duration::from_secs(seconds))
    }
}

/// The value of a header, if it is text.
pub(super) fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    std::str::from_utf8(headers.get(name)?.as_bytes()).ok()
}

/// A hub.
pub(super) struct Client {
    agent: Agent,
    endpoint: String,
    origin: Origin,
    token: Option<Token>,
    pub patience: Patience,
}

impl Client {
    /// # Errors
    /// When `endpoint` is no address of a hub.
    pub fn new(endpoint: &str, token: Option<Token>, patience: Patience) -> Result<Self> {
        let endpoint = endpoint.trim_end_matches('/');
        // The address is not repeated: it may hold a password.
        let no_address =
            || Error::model("HF_ENDPOINT is no address of a hub, expected `https://HOST`");
        let uri: Uri = endpoint.parse().map_err(|_| no_address())?;
        let origin = Origin::of(&uri).ok_or_else(no_address)?;
        if uri.query().is_some() {
            return Err(no_address());
        }
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .accept_encoding("identity")
            .user_agent(concat!("diffaug/", env!("CARGO_PKG_VERSION")))
            .timeout_resolve(Some(patience.connect))
            .timeout_connect(Some(patience.connect))
            .timeout_send_request(Some(patience.answer))
            .timeout_recv_response(Some(patience.answer))
            .timeout_per_read(Some(patience.answer))
            .timeout_per_write(Some(patience.answer))
            .build();
        Ok(Client {
            agent: config.into(),
            endpoint: endpoint.to_owned(),
            origin,
            token,
            patience,
        })
    }

    /// Asks for `path` of the hub, of which only the bytes in `range` are wanted, and follows where it
    /// sends on to. One try.
    pub fn get(&self, path: &str, range: Option<&str>) -> Result<Answer, Failure> {
        let address = format!("{}/{path}", self.endpoint);
        let mut uri: Uri = address
            .parse()
            .map_err(|_| Failure::Refused(Error::model("its name is too long for an address")))?;
        let mut from_hub = Vec::new();
        for _ in 0..=REDIRECTS {
            let own = Origin::of(&uri).is_some_and(|origin| origin == self.origin);
            let mut request = self.agent.get(&uri);
            if let Some(range) = range {
                request = request.header(header::RANGE, range);
            }
            if let Some(token) = self.token.as_ref().filter(|_| own) {
                request = request.header(header::AUTHORIZATION, token.0.clone());
            }
            let response = request.call().map_err(|error| self.broken(error, &uri))?;
            let (parts, body) = response.into_parts();
            let (status, headers) = (parts.status.as_u16(), parts.headers);
            let next = match (status, headers.get(header::LOCATION)) {
                (301 | 302 | 303 | 307 | 308, Some(place)) => Some(onward(&uri, place)?),
                _ => None,
            };
            if own {
                from_hub.push(headers.clone());
            }
            let Some(next) = next else {
                return Ok(Answer {
                    status,
                    headers,
                    body: Body::new(Box::new(body.into_reader()), self.patience.answer),
                    from_hub,
                });
            };
            uri = next;
        }
        Err(Failure::Unreachable(Error::model(format!(
            "the hub sends on more than {REDIRECTS} times"
        ))))
    }

    /// Calls `work` until it does, `tries` times at most, with growing pauses.
    pub fn patiently<T>(
        &self,
        tries: usize,
        mut work: impl FnMut() -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let mut tried = 0;
        loop {
            tried += 1;
            match work() {
                Err(Failure::Passing(error, wait)) if tried < tries => {
                    self.pause(tried, error, wait)?
                }
                other => return other,
            }
        }
    }

    /// Waits before another try, after `tried` ones of which the last ended with `error`, for as long
    /// as the hub asked for, if it did.
    pub fn pause(&self, tried: usize, error: Error, wait: Option<Duration>) -> Result<(), Failure> {
        let longest = self.patience.longest_pause;
        if let Some(wait) = wait.filter(|wait| *wait > longest) {
            let seconds = wait.as_secs();
            return Err(Failure::Unreachable(
                error.context(format!("the hub asks to come back in {seconds} s")),
            ));
        }
        let doubled = self.patience.pause * 2u32.saturating_pow(tried.saturating_sub(1) as u32);
        let wait = wait.unwrap_or(doubled).min(longest);
        tracing::info!("{}; it is asked again", words::plain(error));
        thread::sleep(wait);
        Ok(())
    }

    /// What an error of a request to `uri` means.
    fn broken(&self, error: ureq::Error, uri: &Uri) -> Failure {
        let host = words::shown(uri.host().unwrap_or_default());
        let said = describe(&error, &self.patience);
        Failure::Passing(Error::model(format!("`{host}`: {said}")), None)
    }
}

/// Where a hub is: its scheme, host and port.
#[derive(Debug, PartialEq, Eq)]
struct Origin {
    https: bool,
    host: String,
    port: u16,
}

impl Origin {
    fn of(uri: &Uri) -> Option<Self> {
        let https = match uri.scheme() {
            Some(scheme) if *scheme == Scheme::HTTPS => true,
            Some(scheme) if *scheme == Scheme::HTTP => false,
            _ => return None,
        };
        Some(Origin {
            https,
            host: uri.host().filter(|host| !host.is_empty())?.to_lowercase(),
            port: uri.port_u16().unwrap_or(if https { 443 } else { 80 }),
        })
    }
}

/// The address that an answer from `from` sends on to by `place`.
fn onward(from: &Uri, place: &HeaderValue) -> Result<Uri, Failure> {
    let strange = || {
        Failure::Unreachable(Error::model(
            "the hub sends on to what is no address of the web",
        ))
    };
    let place = std::str::from_utf8(place.as_bytes()).map_err(|_| strange())?;
    let next = resolve(from, place.trim()).ok_or_else(strange)?;
    let (here, there) = (Origin::of(from), Origin::of(&next).ok_or_else(strange)?);
    if here.is_some_and(|here| here.https) && !there.https {
        return Err(Failure::Refused(Error::model(format!(
            "the hub sends on from https to http, to `{}`, where anybody could change what comes",
            words::shown(&there.host)
        ))));
    }
    Ok(next)
}

/// `place`, which may be relative, as seen from `from`.
fn resolve(from: &Uri, place: &str) -> Option<Uri> {
    let (scheme, authority) = (from.scheme_str()?, from.authority()?);
    let place = place.split('#').next().unwrap_or_default();
    let before = place.split(['/', '?']).next().unwrap_or_default();
    let whole = if before.contains(':') {
        place.to_owned()
    } else if let Some(rest) = place.strip_prefix("//") {
        format!("{scheme}://{rest}")
    } else if place.starts_with('/') {
        format!("{scheme}://{authority}{place}")
    } else {
        let folder = from
            .path()
            .rsplit_once('/')
            .map_or("", |(folder, _)| folder);
        format!("{scheme}://{authority}{folder}/{place}")
    };
    whole.parse().ok()
}

/// An error of a request in words that repeat neither an address nor a header, either of which may
/// hold a secret.
fn describe(error: &ureq::Error, patience: &Patience) -> String {
    let seconds = |time: Duration| match time.as_millis() {
        millis if millis.is_multiple_of(1000) => format!("{} s", millis / 1000),
        millis => format!("{millis} ms"),
    };
    let (connect, answer) = (seconds(patience.connect), seconds(patience.answer));
    match error {
        ureq::Error::Timeout(Timeout::Resolve) => format!("no address within {connect}"),
        ureq::Error::Timeout(Timeout::Connect) => format!("no connection within {connect}"),
        ureq::Error::Timeout(_) => format!("no answer within {answer}"),
        ureq::Error::HostNotFound => "there is no host of this name".to_owned(),
        ureq::Error::Io(error) => error.to_string(),
        ureq::Error::Protocol(error) => format!("the answer is no HTTP: {error}"),
        ureq::Error::LargeResponseHeader(..) => "the header of the answer is too long".to_owned(),
        ureq::Error::Tls(error) => format!("no secure connection: {error}"),
        ureq::Error::Rustls(error) => format!("no secure connection: {error}"),
        ureq::Error::ConnectProxyFailed(_) | ureq::Error::InvalidProxyUrl => {
            "no connection through the proxy".to_owned()
        }
        ureq::Error::Http(_) | ureq::Error::BadUri(_) => "the address cannot be asked".to_owned(),
        _ => "no connection".to_owned(),
    }
}

/// The bytes of an answer, which have to keep coming.
pub(super) struct Body {
    reader: Box<dyn Read>,
    longest_pause: Duration,
    since: Instant,
    came: u64,
}

impl Body {
    fn new(reader: Box<dyn Read>, longest_pause: Duration) -> Self {
        Body {
            reader,
            longest_pause,
            since: Instant::now(),
            came: 0,
        }
    }

    /// Reads what has come into `buffer`; 0 bytes at the end.
    pub fn read(&mut self, buffer: &mut [u8], patience: &Patience) -> Result<usize, Failure> {
        let count = self.reader.read(buffer).map_err(|error| {
            let said = describe(&ureq::Error::from(error), patience);
            Failure::Passing(Error::model(format!("the answer broke off: {said}")), None)
        })?;
        self.came += count as u64;
        if count > 0 && self.since.elapsed() > self.longest_pause * WINDOW {
            if self.came < TRICKLE {
                let error = "the answer broke off: it came too slowly";
                return Err(Failure::Passing(Error::model(error), None));
            }
            (self.since, self.came) = (Instant::now(), 0);
        }
        Ok(count)
    }

    /// All of it, if it is at most `longest` bytes.
    pub fn read_all(mut self, longest: usize, patience: &Patience) -> Result<Vec<u8>, Failure> {
        let (mut all, mut buffer) = (Vec::new(), vec![0; 64 << 10]);
        loop {
            match self.read(&mut buffer, patience)? {
                0 => return Ok(all),
                count => all.extend_from_slice(&buffer[..count]),
            }
            if all.len() > longest {
                let error = format!("the answer has more than {longest} bytes");
                return Err(Failure::Unreachable(Error::model(error)));
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn places_are_seen_from_where_they_were_named() {
        let from: Uri = "https://hub:8/a/b?c".parse().unwrap();
        for (place, expected) in [
            ("https://other/x?y=1#z", "https://other/x?y=1"),
            ("//other/x", "https://other/x"),
            ("/x", "https://hub:8/x"),
            ("x/y", "https://hub:8/a/x/y"),
            ("?q=a:b", "https://hub:8/a/?q=a:b"),
        ] {
            assert_eq!(resolve(&from, place).unwrap().to_string(), expected);
        }
        for place in [
            "file:///etc/passwd",
            "ftp://x/y",
            "https://",
            "javascript:1",
            "http://a b/",
        ] {
            let place = HeaderValue::from_str(place).unwrap();
            assert!(matches!(
                onward(&from, &place),
                Err(Failure::Unreachable(_))
            ));
        }
        let place = HeaderValue::from_static("http://hub:8/x");
        assert!(matches!(onward(&from, &place), Err(Failure::Refused(_))));
    }

    #[test]
    fn an_origin_is_scheme_host_and_port() {
        let origin = |text: &str| Origin::of(&text.parse().unwrap()).unwrap();
        assert_eq!(origin("https://Hub/x"), origin("https://hub:443/y"));
        assert_eq!(origin("http://hub"), origin("http://hub:80"));
        for other in [
            "http://hub",
            "https://hub:444",
            "https://hub.evil",
            "https://a.hub",
        ] {
            assert_ne!(origin("https://hub"), origin(other));
        }
    }

    #[test]
    fn a_token_is_not_shown() {
        let token = Token::parse(" hf_secret\n", "HF_TOKEN").unwrap();
        assert_eq!(format!("{token:?}"), "Token(..)");
        for text in ["", "hf secret", "hf\u{1b}secret", "hf\nsecret", "hf_sécret"] {
            let error = Token::parse(text, "HF_TOKEN").unwrap_err().to_string();
            assert!(error.starts_with("the token in HF_TOKEN has"), "{error}");
            assert!(!error.contains("secret"));
        }
    }

    #[test]
    fn an_endpoint_is_an_address_and_never_repeated() {
        for text in [
            "",
            "hub",
            "ftp://hub",
            "https://",
            "https://hub?x=secret",
            "http://a secret",
        ] {
            let error = Client::new(text, None, Patience::default()).err().unwrap();
            let expected = "HF_ENDPOINT is no address of a hub, expected `https://HOST`";
            assert_eq!(error.to_string(), expected);
        }
    }
}
