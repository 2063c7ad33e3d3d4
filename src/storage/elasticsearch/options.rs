//! The options that say where the server is and who asks.

use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ureq::http::HeaderValue;

use crate::authorities;
use crate::http::{Trust, Url};
use crate::options::Options;
use crate::secret::Secret;

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
    let authorities = file.and_then(|file| match authorities::read(Path::new(&file)) {
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

/// Who asks: the header that says so, and what must not be shown.
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

/// A string that is there and not empty: the existing configurations have empty ones.
fn given(options: &mut Options, key: &str) -> Option<String> {
    options.string(key).filter(|text| !text.trim().is_empty())
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
