//! A server of OpenAI's protocol: where it is, with which credentials, and how it names what it does.
//!
//! | server | options | requests |
//! |---|---|---|
//! | LiteLLM | `LITELLM_PROXY_URL`, `LITELLM_MASTER_KEY` | below the URL as it is given |
//! | Azure OpenAI | `AZURE_OPENAI_ENDPOINT`, `AZURE_OPENAI_API_KEY`, `AZURE_OPENAI_API_VERSION` | `/openai/deployments/<model>/…?api-version=`, header `api-key` |
//! | OpenAI | `OPENAI_API_KEY`, `openai_api_key` or `api_key` | below `https://api.openai.com/v1` |
//! | any other | `base_url`, `openai_base_url` or `OPENAI_BASE_URL`; a key if it wants one | below that URL |
//!
//! The first group that is complete is used. If the options have none, variables of the daemon's environment that
//! have the names in capitals complete one: so a `base_url` without a key never gets one from there.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use ureq::http::HeaderName;

use super::Sent;
use super::server::Server;
use crate::failure::Failure;
use crate::http_client::{NotAUrl, Url};
use crate::options::Options;
use crate::secret::Secret;

/// Where OpenAI itself is.
const OPENAI: &str = "https://api.openai.com/v1";

/// The version of Azure's interface that is asked for if none is given.
const AZURE_VERSION: &str = "2024-10-21";

/// Names of the option for the base URL of any server of the protocol.
const BASE_URLS: [&str; 3] = ["base_url", "openai_base_url", "OPENAI_BASE_URL"];

/// Names of the option for the key of OpenAI or any server like it.
const KEYS: [&str; 3] = ["OPENAI_API_KEY", "openai_api_key", "api_key"];

/// What may also come from the environment.
const VARIABLES: [&str; 7] = [
    "LITELLM_PROXY_URL",
    "LITELLM_MASTER_KEY",
    "AZURE_OPENAI_ENDPOINT",
    "AZURE_OPENAI_API_KEY",
    "AZURE_OPENAI_API_VERSION",
    "OPENAI_API_KEY",
    "OPENAI_BASE_URL",
];

/// What is missing if there are no credentials.
pub(in crate::link) const MISSING: &str = "is required, as in `OPENAI_API_KEY: ${OPENAI_API_KEY}`; or give \
     LITELLM_PROXY_URL and LITELLM_MASTER_KEY, or AZURE_OPENAI_ENDPOINT and AZURE_OPENAI_API_KEY, or the base_url \
     of a server that wants no key";

/// What is encoded in a path or query.
const ENCODED: AsciiSet = NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.');

/// A server of the protocol.
pub(in crate::link) struct OpenAiServer {
    provider: Provider,
    pub(in crate::link) server: Server,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Provider {
    LiteLlm,
    Azure { version: String },
    OpenAi,
    Other,
}

/// A group of credentials that is complete.
struct Credentials {
    provider: Provider,
    /// The option that names the server.
    option: &'static str,
    url: String,
    key: Option<Secret>,
}

impl OpenAiServer {
    /// The server that the options name, to which this is sent; `None` after a fault, and if there are no
    /// credentials, which is a fault if they are `required`.
    pub(in crate::link) fn open(options: &mut Options, sent: Sent, required: bool) -> Option<Self> {
        let of_account = [
            ("organization", "openai-organization"),
            ("project", "openai-project"),
        ];
        let of_account = of_account.map(|(name, header)| {
            let given = options.filled_string(name);
            let other = options.filled_string(&format!("{name}_key"));
            (name, header, given.or(other))
        });
        let Some(credentials) = credentials(options) else {
            if required {
                options.fault(KEYS[0], MISSING);
            }
            return None;
        };
        let option = credentials.option;
        if credentials.url.contains(['?', '#']) {
            options.fault(option, "must have no query");
        }
        let Ok(url) = credentials.url.parse::<Url>() else {
            options.fault(option, NotAUrl.to_string());
            return None;
        };
        let is_azure = matches!(credentials.provider, Provider::Azure { .. });
        let mut server = Server::new(options, url, sent);
        server = match credentials.key {
            Some(key) if is_azure => server.with_key_header(options, KEYS[0], "api-key", key),
            Some(key) => server.with_key(options, KEYS[0], "Bearer", key),
            None => server,
        };
        for (option, header, value) in of_account {
            if let Some(value) = value.filter(|_| !is_azure) {
                server.add_header(options, option, HeaderName::from_static(header), &value);
            }
        }
        Some(Self {
            provider: credentials.provider,
            server,
        })
    }

    /// Whose it is, as analyses name it.
    pub(in crate::link) fn vendor(&self) -> &'static str {
        match self.provider {
            Provider::LiteLlm => "litellm",
            Provider::Azure { .. } => "azure",
            Provider::OpenAi | Provider::Other => "openai",
        }
    }

    /// Whether OpenAI's own limits hold.
    pub(in crate::link) fn has_limits_of_openai(&self) -> bool {
        matches!(self.provider, Provider::OpenAi | Provider::Azure { .. })
    }

    /// Where something is asked for, on Azure of the model that is deployed under this name.
    pub(in crate::link) fn path(&self, what: &str, model: Option<&str>) -> String {
        let Provider::Azure { version } = &self.provider else {
            return format!("/{what}");
        };
        let version = utf8_percent_encode(version, &ENCODED);
        let of = model.map(|model| {
            let model = utf8_percent_encode(model, &ENCODED);
            format!("deployments/{model}/")
        });
        let of = of.unwrap_or_default();
        format!("/openai/{of}{what}?api-version={version}")
    }

    /// Whether the server knows the key, as far as that can be seen without paying: it is asked for its models.
    /// One that does not list them may do all the rest.
    pub(in crate::link) fn probe(&self) -> Result<(), Failure> {
        match self.provider {
            Provider::Azure { .. } => self.server.reach(),
            _ => self.server.probe("/models"),
        }
    }
}

/// The first group of credentials that is complete. What is left of others has no effect.
fn credentials(options: &mut Options) -> Option<Credentials> {
    let mut found = given(options);
    if found.is_none() {
        for name in VARIABLES {
            options.take_variable(name);
        }
        found = given(options);
    }
    for (one, other) in [
        ("LITELLM_PROXY_URL", "LITELLM_MASTER_KEY"),
        ("AZURE_OPENAI_ENDPOINT", "AZURE_OPENAI_API_KEY"),
    ] {
        half(options, one, other);
    }
    found
}

fn given(options: &mut Options) -> Option<Credentials> {
    let litellm_url = options.filled_secret("LITELLM_PROXY_URL");
    let litellm_key = options.filled_secret("LITELLM_MASTER_KEY");
    let azure_url = options.filled_string("AZURE_OPENAI_ENDPOINT");
    let azure_key = options.filled_secret("AZURE_OPENAI_API_KEY");
    let version = options.string_or("AZURE_OPENAI_API_VERSION", AZURE_VERSION);
    let keys = KEYS.map(|name| options.filled_secret(name));
    let urls = BASE_URLS.map(|name| Some((name, options.filled_string(name)?)));

    if let (Some(url), Some(key)) = (litellm_url, litellm_key) {
        return Some(Credentials {
            provider: Provider::LiteLlm,
            option: "LITELLM_PROXY_URL",
            url: url.reveal().to_owned(),
            key: Some(key),
        });
    }
    if let (Some(url), Some(key)) = (azure_url, azure_key) {
        let version = match version.trim() {
            "" => AZURE_VERSION,
            given => given,
        };
        return Some(Credentials {
            provider: Provider::Azure {
                version: version.to_owned(),
            },
            option: "AZURE_OPENAI_ENDPOINT",
            url,
            key: Some(key),
        });
    }
    let key = keys.into_iter().flatten().next();
    let url = urls.into_iter().flatten().next();
    if key.is_none() && url.is_none() {
        return None;
    }
    let provider = match &url {
        Some(_) => Provider::Other,
        None => Provider::OpenAi,
    };
    let (option, url) = url.unwrap_or((BASE_URLS[0], OPENAI.to_owned()));
    Some(Credentials {
        provider,
        option,
        url,
        key,
    })
}

/// Warns of one of two options without the other.
fn half(options: &mut Options, one: &str, other: &str) {
    let [has_one, has_other] = [one, other].map(|name| options.filled_string(name).is_some());
    match (has_one, has_other) {
        (true, false) => options.warn(one, format!("has no effect without `{other}`")),
        (false, true) => options.warn(other, format!("has no effect without `{one}`")),
        _ => {}
    }
}
