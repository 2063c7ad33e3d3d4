//! The client of Elasticsearch: the options for its address and login, one request, and its answer, read
//! as it comes.
//!
//! An answer is never kept as a tree: one of a few megabytes with many small values would take twenty
//! times that. The reader picks out what it wants. A value of an unexpected form counts as absent, as
//! servers and their versions differ.

use std::fmt;
use std::io::{self, BufReader, Read};
use std::path::Path;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::de::{DeserializeOwned, DeserializeSeed, IgnoredAny, MapAccess, SeqAccess, Visitor};
use ureq::Agent;
use ureq::http::header::{AUTHORIZATION, CONTENT_TYPE};
use ureq::http::{HeaderValue, Request};

use super::errors::Reason;
use crate::deadline::Limit;
use crate::http_client::{self, Cut, EXPLANATION, Trust, Url, read_authorities};
use crate::options::Options;
use crate::secret::Secret;
use crate::visible::printable;

/// The server's address: `url`, or what `cloud_id` says.
pub(super) fn url(options: &mut Options) -> Option<Url> {
    let url = given(options, "url");
    let cloud_id = given(options, "cloud_id");
    match (url, cloud_id) {
        (Some(_), Some(_)) => {
            options.fault("cloud_id", "cannot stand beside `url`");
            None
        }
        (None, None) => {
            options.fault("url", "is required, or `cloud_id`");
            None
        }
        (Some(url), None) => {
            let parsed: Result<Url, _> = url.parse();
            if let Err(error) = &parsed {
                options.fault("url", error.to_string());
            }
            if url.contains(['?', '#']) {
                options.fault("url", "must have no query");
            }
            parsed.ok()
        }
        (None, Some(cloud_id)) => {
            let url = cloud_url(&cloud_id);
            if url.is_none() {
                options.fault(
                    "cloud_id",
                    "is not of the form name:code, as Elastic Cloud shows it",
                );
            }
            url
        }
    }
}

/// `name:` and the base64 of `host[:port]$elasticsearch[:port]$kibana`.
fn cloud_url(cloud_id: &str) -> Option<Url> {
    let code = cloud_id.trim().rsplit(':').next()?;
    let text = String::from_utf8(STANDARD.decode(code).ok()?).ok()?;
    let mut parts = text.split('$');
    let (host, server) = (parts.next()?, parts.next()?);
    let (host, host_port) = with_port(host);
    let (server, server_port) = with_port(server);
    let is_name = |text: &str| {
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.');
        !text.is_empty() && text.chars().all(allowed)
    };
    if !is_name(host) || !is_name(server) {
        return None;
    }
    let port = server_port.or(host_port).unwrap_or("443");
    format!("https://{server}.{host}:{port}").parse().ok()
}

fn with_port(text: &str) -> (&str, Option<&str>) {
    match text.split_once(':') {
        Some((name, port)) => (name, Some(port)),
        None => (text, None),
    }
}

/// Whose certificates are taken.
pub(super) fn trust(options: &mut Options) -> Trust {
    let verified = options.bool_or("verify_certs", true);
    let file = given(options, "ca_certs");
    let authorities = file.and_then(|file| match read_authorities(Path::new(&file)) {
        Ok(authorities) => Some(authorities),
        Err(why) => {
            options.fault("ca_certs", why);
            None
        }
    });
    match authorities {
        _ if !verified => Trust::Anyone,
        Some(authorities) => Trust::Authorities(authorities),
        None => Trust::System,
    }
}

/// The header for the login, and the secrets that must not be shown.
pub(super) fn login(options: &mut Options) -> (Option<HeaderValue>, Vec<Secret>) {
    let [username, password, api_key] = ["username", "password", "api_key"].map(|key| {
        let secret = options.secret(key);
        secret.filter(|secret| !secret.reveal().is_empty())
    });
    let header = match (&username, &password, &api_key) {
        (None, None, None) => None,
        (Some(user), Some(password), None) => {
            let login = format!("{}:{}", user.reveal(), password.reveal());
            Some(("password", format!("Basic {}", STANDARD.encode(login))))
        }
        (None, None, Some(key)) if key.reveal().contains(':') => {
            let key = STANDARD.encode(key.reveal().trim());
            Some(("api_key", format!("ApiKey {key}")))
        }
        (None, None, Some(key)) => Some(("api_key", format!("ApiKey {}", key.reveal().trim()))),
        (_, _, Some(_)) => {
            options.fault("api_key", "cannot stand beside `username` and `password`");
            None
        }
        (Some(_), None, None) => {
            options.fault("password", "is required with `username`");
            None
        }
        (None, Some(_), None) => {
            options.fault("username", "is required with `password`");
            None
        }
    };
    let header = header.and_then(|(key, text)| match HeaderValue::from_str(&text) {
        Ok(mut value) => {
            value.set_sensitive(true);
            Some(value)
        }
        Err(_) => {
            options.fault(key, "is not one line of text");
            None
        }
    });
    let secrets = [password, api_key, username].into_iter().flatten();
    (header, secrets.collect())
}

/// A string that is given and not empty: existing configurations have empty ones.
fn given(options: &mut Options, key: &str) -> Option<String> {
    options.string(key).filter(|text| !text.trim().is_empty())
}

/// The server, and how it is asked.
#[derive(Clone)]
pub(super) struct ElasticServer {
    pub(super) url: Url,
    pub(super) agent: Agent,
    pub(super) authorization: Option<HeaderValue>,
    /// Secrets that must not be shown, even if the server quotes them.
    pub(super) secrets: Vec<Secret>,
}

/// The body of a request.
#[derive(Clone, Copy)]
pub(super) enum RequestBody<'a> {
    Get,
    /// JSON.
    Post(&'a str),
    /// A JSON object on each line.
    PostLines(&'a str),
}

/// The server's answer.
pub(super) enum Reply<T> {
    /// It did the request; its answer, if that is JSON.
    Done(Option<T>),
    /// It refused the request, with this status.
    Refused(u16, Reason),
}

/// How an answer is read.
pub(super) struct ReplyReader<F> {
    /// The most bytes that it may have.
    pub(super) most: u64,
    pub(super) read: F,
}

impl ElasticServer {
    /// Asks, and waits for the whole answer, for at most `own` and what the limit of the whole call
    /// leaves. The error says why there is no answer.
    pub(super) fn ask<T>(
        &self,
        path: &str,
        question: RequestBody<'_>,
        reading: ReplyReader<impl FnOnce(&mut dyn Read) -> serde_json::Result<T>>,
        own: Duration,
        limit: Limit,
    ) -> Result<Reply<T>, String> {
        let left = limit.left();
        self.request(path, question, reading, own.min(left))
            .map_err(|error| match error {
                ureq::Error::Timeout(_) if left < own => format!("no answer within {limit}"),
                ureq::Error::Timeout(_) => format!("no answer within {own:?}"),
                // Its text shows the URL.
                ureq::Error::BadUri(_) => "bad URL".to_owned(),
                ureq::Error::BodyExceedsLimit(most) => {
                    format!("the answer is longer than {most} bytes, the most that it may have")
                }
                ureq::Error::Io(error) => error.to_string(),
                error => error.to_string(),
            })
    }

    fn request<T>(
        &self,
        path: &str,
        question: RequestBody<'_>,
        reading: ReplyReader<impl FnOnce(&mut dyn Read) -> serde_json::Result<T>>,
        limit: Duration,
    ) -> Result<Reply<T>, ureq::Error> {
        let mut request = Request::builder().uri(self.url.below(path)?);
        let of_url = || self.url.authorization();
        if let Some(authorization) = self.authorization.clone().or_else(of_url) {
            request = request.header(AUTHORIZATION, authorization);
        }
        let (kind, body) = match question {
            RequestBody::Get => ("", None),
            RequestBody::Post(body) => ("application/json", Some(body)),
            RequestBody::PostLines(body) => ("application/x-ndjson", Some(body)),
        };
        let mut response = match body {
            None => {
                let request = request.method("GET").body(())?;
                let request = self.agent.configure_request(request);
                self.agent
                    .run(request.timeout_global(Some(limit)).build())?
            }
            Some(body) => {
                let request = request
                    .method("POST")
                    .header(CONTENT_TYPE, kind)
                    .body(body)?;
                let request = self.agent.configure_request(request);
                self.agent
                    .run(request.timeout_global(Some(limit)).build())?
            }
        };
        let status = response.status();
        if !status.is_success() {
            let (body, cut) = http_client::read(&mut response, EXPLANATION);
            if let Some(Cut::Broken(error)) = cut {
                return Err(error.into());
            }
            return Ok(Reply::Refused(status.as_u16(), Reason::of_answer(&body)));
        }
        let body = response.body_mut().with_config().limit(reading.most);
        match (reading.read)(&mut body.reader()) {
            Ok(said) => Ok(Reply::Done(Some(said))),
            Err(error) if error.is_io() => Err(io::Error::from(error).into()),
            Err(_) => Ok(Reply::Done(None)),
        }
    }

    /// The text without the secrets.
    pub(super) fn without_secrets(&self, text: &str) -> String {
        let secrets = self.secrets.iter();
        secrets.fold(text.to_owned(), |text, secret| secret.hide_in(text))
    }
}

/// A text from the server or the vCon, for a message: on one line, and not too long.
pub(super) fn shown(text: &str) -> String {
    let shown: String = text.chars().take(300).collect();
    printable(&shown).into_owned()
}

/// The most bytes that are kept of one text.
const MOST_OF_A_TEXT: usize = 8 << 10;

/// A reader that picks what it wants out of a value. It skips everything unless a method does otherwise.
pub(super) trait Pick {
    /// It is neither an object nor a list.
    fn single(&mut self, _: Scalar) {}

    /// Reads the value of a field, wanted or not.
    fn field<'de, A: MapAccess<'de>>(&mut self, _: &str, map: &mut A) -> Result<(), A::Error> {
        pass_over(map)
    }

    /// Reads the next item of a list; false if there is none.
    fn item<'de, A: SeqAccess<'de>>(&mut self, list: &mut A) -> Result<bool, A::Error> {
        Ok(list.next_element::<IgnoredAny>()?.is_some())
    }
}

/// The form of a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ValueForm {
    Object,
    List,
    Scalar,
}

/// A value that is neither an object nor a list.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Scalar {
    /// The beginning of a text.
    Text(String),
    Number(u64),
    Switch(bool),
    Other,
}

/// Reads a whole answer, which must be JSON.
pub(super) fn read_json(
    reader: &mut dyn Read,
    pick: &mut impl Pick,
) -> serde_json::Result<ValueForm> {
    let mut json = serde_json::Deserializer::from_reader(BufReader::new(reader));
    let form = Picking(pick).deserialize(&mut json)?;
    json.end()?;
    Ok(form)
}

/// Reads the value of a field.
pub(super) fn value<'de, A: MapAccess<'de>>(
    map: &mut A,
    pick: &mut impl Pick,
) -> Result<ValueForm, A::Error> {
    map.next_value_seed(Picking(pick))
}

/// Passes over the value of a field.
pub(super) fn pass_over<'de, A: MapAccess<'de>>(map: &mut A) -> Result<(), A::Error> {
    map.next_value::<IgnoredAny>().map(|_| ())
}

/// Reads the value of a field if that is neither an object nor a list.
pub(super) fn single<'de, A: MapAccess<'de>>(map: &mut A) -> Result<Scalar, A::Error> {
    struct Only(Scalar);
    impl Pick for Only {
        fn single(&mut self, single: Scalar) {
            self.0 = single;
        }
    }
    let mut only = Only(Scalar::Other);
    value(map, &mut only)?;
    Ok(only.0)
}

/// Reads the value of a field; returns an empty text if it is none.
pub(super) fn text<'de, A: MapAccess<'de>>(map: &mut A) -> Result<String, A::Error> {
    Ok(match single(map)? {
        Scalar::Text(text) => text,
        _ => String::new(),
    })
}

/// Passes on each item of a list.
pub(super) struct Each<'a, T>(pub(super) &'a mut dyn FnMut(T));

impl<T: DeserializeOwned> Pick for Each<'_, T> {
    fn item<'de, A: SeqAccess<'de>>(&mut self, list: &mut A) -> Result<bool, A::Error> {
        let item = list.next_element()?;
        Ok(item.map(&mut *self.0).is_some())
    }
}

/// Deserializes a value by a [`Pick`].
pub(super) struct Picking<'a, P>(pub(super) &'a mut P);

impl<'de, P: Pick> DeserializeSeed<'de> for Picking<'_, P> {
    type Value = ValueForm;

    fn deserialize<D: serde::Deserializer<'de>>(self, value: D) -> Result<ValueForm, D::Error> {
        value.deserialize_any(self)
    }
}

impl<P: Pick> Picking<'_, P> {
    fn single(self, single: Scalar) -> ValueForm {
        self.0.single(single);
        ValueForm::Scalar
    }
}

impl<'de, P: Pick> Visitor<'de> for Picking<'_, P> {
    type Value = ValueForm;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<ValueForm, A::Error> {
        while let Some(name) = map.next_key::<String>()? {
            self.0.field(&name, &mut map)?;
        }
        Ok(ValueForm::Object)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<ValueForm, A::Error> {
        while self.0.item(&mut list)? {}
        Ok(ValueForm::List)
    }

    fn visit_str<E>(self, text: &str) -> Result<ValueForm, E> {
        let beginning = &text[..text.floor_char_boundary(MOST_OF_A_TEXT)];
        Ok(self.single(Scalar::Text(beginning.to_owned())))
    }

    fn visit_u64<E>(self, number: u64) -> Result<ValueForm, E> {
        Ok(self.single(Scalar::Number(number)))
    }

    fn visit_bool<E>(self, switch: bool) -> Result<ValueForm, E> {
        Ok(self.single(Scalar::Switch(switch)))
    }

    fn visit_i64<E>(self, _: i64) -> Result<ValueForm, E> {
        Ok(self.single(Scalar::Other))
    }

    fn visit_f64<E>(self, _: f64) -> Result<ValueForm, E> {
        Ok(self.single(Scalar::Other))
    }

    fn visit_unit<E>(self) -> Result<ValueForm, E> {
        Ok(self.single(Scalar::Other))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_cloud_id_is_an_address() {
        let id = |text: &str| format!("calls:{}", STANDARD.encode(text));
        for (text, url) in [
            ("eu.example.com$abc$def", "https://abc.eu.example.com:443/"),
            (
                "eu.example.com:9243$abc$def",
                "https://abc.eu.example.com:9243/",
            ),
            (
                "eu.example.com:9243$abc:9244",
                "https://abc.eu.example.com:9244/",
            ),
        ] {
            assert_eq!(cloud_url(&id(text)).unwrap().to_string(), url, "{text}");
        }
        for bad in [
            "",
            "eu.example.com",
            "$abc",
            "eu.example.com$",
            "a@b$c$",
            "h/x$c",
            "h$c:x",
        ] {
            assert!(cloud_url(&id(bad)).is_none(), "{bad}");
        }
        assert!(cloud_url("calls:!").is_none());
    }

    #[test]
    fn logins_become_headers() {
        for (text, header) in [
            ("{}", None),
            ("{username: '', password: '', api_key: ''}", None),
            ("{username: u, password: p}", Some("Basic dTpw")),
            ("{api_key: a2V5}", Some("ApiKey a2V5")),
            ("{api_key: 'id:key'}", Some("ApiKey aWQ6a2V5")),
        ] {
            let mut options = Options::from_yaml(text);
            let (found, _) = login(&mut options);
            let found = found.as_ref().map(|value| value.to_str().unwrap());
            assert_eq!((found, options.faults()), (header, Vec::new()), "{text}");
        }
        for text in [
            "{username: u}",
            "{password: p}",
            "{username: u, password: p, api_key: k}",
            "{api_key: \"a\\nb\"}",
        ] {
            let mut options = Options::from_yaml(text);
            assert_eq!(login(&mut options).0, None);
            assert_eq!(options.faults().len(), 1, "{text}");
        }
    }
}
