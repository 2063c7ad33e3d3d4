//! TLS to PostgreSQL, in the modes of its own clients.
//!
//! | `sslmode` | TLS | the server's certificate |
//! |---|---|---|
//! | `disable` | no | |
//! | `prefer` | where the server has it, else plain | not judged |
//! | `require` | yes | not judged; with `sslrootcert` as in `verify-ca` |
//! | `verify-ca` | yes | from an authority that we trust |
//! | `verify-full` | yes | and for the name of the host |
//!
//! Trusted are the authorities in the file `sslrootcert`, which is read again at each connection;
//! without it, those of the system. Over a Unix socket there is no TLS.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use postgres::config::SslMode as Wire;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
};
use rustls_platform_verifier::Verifier;
use tokio_postgres_rustls::MakeRustlsConnect;

use crate::authorities;
use crate::config::Options;

const MODES: &[(&str, Mode)] = &[
    ("disable", Mode::Disable),
    ("prefer", Mode::Prefer),
    ("require", Mode::Require),
    ("verify-ca", Mode::VerifyCa),
    ("verify-full", Mode::VerifyFull),
];

/// How much TLS there is, and what it must prove.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd)]
enum Mode {
    Disable,
    Prefer,
    Require,
    VerifyCa,
    VerifyFull,
}

/// The options `sslmode` and `sslrootcert`.
#[derive(Debug, Clone)]
pub(super) struct Tls {
    mode: Mode,
    authorities: Option<PathBuf>,
}

impl Tls {
    /// Reads the options.
    pub(super) fn read(options: &mut Options) -> Self {
        let name = options.string_or("sslmode", "prefer");
        let found = MODES.iter().find(|(known, _)| *known == name);
        if found.is_none() {
            let known: Vec<&str> = MODES.iter().map(|(name, _)| *name).collect();
            options.fault("sslmode", format!("must be one of {}", known.join(", ")));
        }
        let mut mode = found.map_or(Mode::Prefer, |(_, mode)| *mode);
        let authorities = options.filled_string("sslrootcert").map(PathBuf::from);
        if let Some(file) = &authorities {
            if let Err(why) = read_authorities(file) {
                options.fault("sslrootcert", why);
            }
            if mode == Mode::Require {
                mode = Mode::VerifyCa;
            }
        }
        Self { mode, authorities }
    }

    /// What is asked of the server.
    pub(super) fn wire(&self) -> Wire {
        match self.mode {
            Mode::Disable => Wire::Disable,
            Mode::Prefer => Wire::Prefer,
            Mode::Require | Mode::VerifyCa | Mode::VerifyFull => Wire::Require,
        }
    }

    /// Whether a connection without TLS will do where one with it fails.
    pub(super) fn is_optional(&self) -> bool {
        self.mode == Mode::Prefer
    }

    /// What makes a connection a TLS connection. The error says what is wrong with the
    /// authorities.
    pub(super) fn connector(&self) -> Result<MakeRustlsConnect, String> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier = Arc::new(Judge {
            trusted: self.trusted(&provider)?,
            name_counts: self.mode == Mode::VerifyFull,
            provider: Arc::clone(&provider),
        });
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|e| e.to_string())?
            .dangerous()
            .with_custom_certificate_verifier(verifier)
            .with_no_client_auth();
        Ok(MakeRustlsConnect::new(config))
    }

    fn trusted(
        &self,
        provider: &Arc<CryptoProvider>,
    ) -> Result<Option<Arc<dyn ServerCertVerifier>>, String> {
        if self.mode < Mode::VerifyCa {
            return Ok(None);
        }
        let Some(file) = &self.authorities else {
            let verifier = Verifier::new(Arc::clone(provider))
                .map_err(|e| format!("the system's certificates cannot be read: {e}"))?;
            return Ok(Some(Arc::new(verifier)));
        };
        let roots = Arc::new(read_authorities(file)?);
        let verifier = WebPkiServerVerifier::builder_with_provider(roots, Arc::clone(provider))
            .build()
            .map_err(|e| format!("{}: {e}", file.display()))?;
        Ok(Some(verifier))
    }
}

fn read_authorities(file: &Path) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(authorities::read(file)?);
    Ok(roots)
}

/// Judges a server's certificate as far as the mode asks.
///
/// That the server has the certificate's key is always asked: the password's exchange may be
/// bound to the certificate, which is worth nothing without.
#[derive(Debug)]
struct Judge {
    /// `None`: any certificate will do.
    trusted: Option<Arc<dyn ServerCertVerifier>>,
    name_counts: bool,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Judge {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let Some(trusted) = &self.trusted else {
            return Ok(ServerCertVerified::assertion());
        };
        let judged =
            trusted.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now);
        match judged {
            // The name is judged last, after the chain.
            Err(Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) if !self.name_counts => Ok(ServerCertVerified::assertion()),
            judged => judged,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, cert, dss, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_modes_are_those_of_postgresqls_own_clients() {
        for (text, wire, judged, optional) in [
            ("disable", Wire::Disable, false, false),
            ("prefer", Wire::Prefer, false, true),
            ("require", Wire::Require, false, false),
            ("verify-ca", Wire::Require, true, false),
            ("verify-full", Wire::Require, true, false),
        ] {
            let mut options = Options::from_yaml(&format!("sslmode: {text}"));
            let tls = Tls::read(&mut options);
            assert_eq!(options.faults(), [""; 0]);
            assert_eq!((tls.wire(), tls.is_optional()), (wire, optional), "{text}");
            let provider = Arc::new(rustls::crypto::ring::default_provider());
            let trusted = tls.trusted(&provider);
            assert_eq!(trusted.unwrap().is_some(), judged, "{text}");
        }
        let mut options = Options::from_yaml("{}");
        assert_eq!(Tls::read(&mut options).mode, Mode::Prefer);
        let mut options = Options::from_yaml("sslmode: yes please");
        Tls::read(&mut options);
        assert_eq!(
            options.faults(),
            ["sslmode: must be one of disable, prefer, require, verify-ca, verify-full"]
        );
    }

    #[test]
    fn a_file_that_holds_no_certificate_is_a_fault_of_the_option() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("ca.pem");
        let shown = file.display().to_string();
        let fault = || {
            let mut options = Options::from_yaml(&format!("sslrootcert: {shown}"));
            Tls::read(&mut options);
            options.faults().concat()
        };
        assert!(fault().contains("could not read"), "{}", fault());
        std::fs::write(&file, "no certificate").unwrap();
        assert!(fault().contains("holds no certificate"), "{}", fault());
        let spoilt = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        std::fs::write(&file, spoilt).unwrap();
        assert!(fault().contains("cannot be used"), "{}", fault());
        assert!(fault().contains(&shown), "{}", fault());
    }
}
