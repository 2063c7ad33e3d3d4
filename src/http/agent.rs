//! The agent that makes requests: connections, time limits, certificates.

use super::one_write::OneWrite;
use super::resolver::Remembering;
use rustls::pki_types::CertificateDer;
use ureq::Agent;
use ureq::config::Config;
use ureq::tls::{Certificate, RootCerts, TlsConfig, TlsProvider};
use ureq::unversioned::transport::{Connector, DefaultConnector};

/// Whose certificates are taken.
pub enum Trust {
    /// Those of the authorities that the system trusts.
    System,
    /// Those of these authorities.
    Authorities(Vec<CertificateDer<'static>>),
    /// Anybody's.
    Anyone,
}

/// An agent that keeps its connections, trusts what the system trusts, and follows no redirect: a
/// redirected POST loses its body. Each request brings its own time limit.
pub fn agent() -> Agent {
    agent_that_trusts(&Trust::System)
}

/// The same, with other certificates.
pub fn agent_that_trusts(trust: &Trust) -> Agent {
    let roots = match trust {
        Trust::System | Trust::Anyone => RootCerts::PlatformVerifier,
        Trust::Authorities(authorities) => {
            let owned = |der: &CertificateDer<'static>| Certificate::from_der(der).to_owned();
            RootCerts::from(authorities.iter().map(owned))
        }
    };
    let tls = TlsConfig::builder()
        .provider(TlsProvider::Rustls)
        .root_certs(roots)
        .disable_verification(matches!(trust, Trust::Anyone))
        .build();
    let config = Agent::config_builder()
        .tls_config(tls)
        .max_redirects(0)
        .max_redirects_will_error(false)
        .http_status_as_error(false)
        .user_agent(concat!("conserver/", env!("CARGO_PKG_VERSION")))
        .build();
    with_parts(config)
}

/// An agent that does not look up its host for every request, and sends each in one piece.
pub fn with_parts(config: Config) -> Agent {
    let connector = DefaultConnector::default().chain(OneWrite);
    Agent::with_parts(config, connector, Remembering::default())
}
