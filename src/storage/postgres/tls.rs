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
//!
//! A server may ask for the password in clear text, and so may an impostor. It gets the password in three
//! cases: the host is local (its address is a loopback one); its certificate is verified, by `verify-full`
//! or against the file `sslrootcert`; or `disable` or `prefer` is written in the options. With SCRAM it
//! never gets the password, and with channel binding, the exchange is valid for no other connection.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
};
use rustls_platform_verifier::Verifier;
use tokio_postgres_rustls::MakeRustlsConnect;

use super::wire::{CallLimits, Wire};
use crate::http_client;
use crate::options::Options;

const MODES: &[(&str, TlsMode)] = &[
    ("disable", TlsMode::Disable),
    ("prefer", TlsMode::Prefer),
    ("require", TlsMode::Require),
    ("verify-ca", TlsMode::VerifyCa),
    ("verify-full", TlsMode::VerifyFull),
];

/// How much TLS there is, and what it must prove.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd)]
enum TlsMode {
    Disable,
    Prefer,
    Require,
    VerifyCa,
    VerifyFull,
}

/// The options `sslmode` and `sslrootcert`.
#[derive(Debug, Clone)]
pub(super) struct Tls {
    mode: TlsMode,
    /// The mode is given in the options; otherwise it is the default.
    is_written: bool,
    authorities: Option<PathBuf>,
}

impl Tls {
    /// Reads the options.
    pub(super) fn read(options: &mut Options) -> Self {
        let known: Vec<&str> = MODES.iter().map(|(name, _)| *name).collect();
        let name = options.word_or("sslmode", "prefer", &known);
        let found = MODES.iter().find(|(known, _)| Some(*known) == name);
        let mut mode = found.map_or(TlsMode::Prefer, |(_, mode)| *mode);
        let authorities = options.filled_string("sslrootcert").map(PathBuf::from);
        if let Some(file) = &authorities {
            if let Err(why) = read_authorities(file) {
                options.fault("sslrootcert", why);
            }
            if mode == TlsMode::Require {
                mode = TlsMode::VerifyCa;
            }
        }
        Self {
            mode,
            is_written: options.is_given("sslmode"),
            authorities,
        }
    }

    /// Returns the wire to a server. The error says what is wrong with the authorities.
    pub(super) fn wire(&self, is_local: bool, limits: &CallLimits) -> Result<Wire, String> {
        let tls = match self.mode {
            TlsMode::Disable => None,
            _ => Some(self.connector()?),
        };
        Ok(Wire {
            tls,
            is_optional: self.is_optional(),
            allows_clear_text: is_local || self.allows_clear_text() || self.is_verified(),
            limits: limits.clone(),
        })
    }

    /// Whether the options allow any server to get the password in clear text.
    pub(super) fn allows_clear_text(&self) -> bool {
        self.is_written && self.mode <= TlsMode::Prefer
    }

    /// Whether nobody else can have the server's certificate. From an authority that the system trusts,
    /// anybody can get one for another name.
    fn is_verified(&self) -> bool {
        self.mode == TlsMode::VerifyFull
            || (self.mode == TlsMode::VerifyCa && self.authorities.is_some())
    }

    /// Describes the way to a server that is not local, for `check`.
    pub(super) fn described(&self) -> &'static str {
        match self.mode {
            _ if self.is_verified() => "TLS with a verified certificate",
            TlsMode::Disable => "without TLS, and it may have the password in clear text",
            TlsMode::Prefer if self.is_written => {
                "TLS where it has it, its certificate not verified, and it may have the password in \
                 clear text"
            }
            TlsMode::Prefer => {
                "by default, TLS where it has it, its certificate not verified, and no password in \
                 clear text; `sslmode: verify-full` verifies it"
            }
            TlsMode::Require | TlsMode::VerifyCa | TlsMode::VerifyFull => {
                "TLS, its certificate not verified as that of this server, and no password in clear \
                 text; `sslmode: verify-full` verifies it"
            }
        }
    }

    /// Whether a connection without TLS is acceptable if one with TLS fails.
    pub(super) fn is_optional(&self) -> bool {
        self.mode == TlsMode::Prefer
    }

    /// Returns the connector for TLS. The error says what is wrong with the authorities.
    fn connector(&self) -> Result<MakeRustlsConnect, String> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier = Arc::new(CertificateVerifier {
            trusted: self.trusted(&provider)?,
            name_counts: self.mode == TlsMode::VerifyFull,
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
        if self.mode < TlsMode::VerifyCa {
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
    roots.add_parsable_certificates(http_client::read_authorities(file)?);
    Ok(roots)
}

/// Verifies a server's certificate as far as the mode asks.
///
/// Always verifies that the server has the certificate's key: the exchange of the password may be bound
/// to the certificate, which is worth nothing without the key.
#[derive(Debug)]
struct CertificateVerifier {
    /// `None`: any certificate will do.
    trusted: Option<Arc<dyn ServerCertVerifier>>,
    name_counts: bool,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for CertificateVerifier {
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
        for (text, has_tls, judged, optional) in [
            ("disable", false, false, false),
            ("prefer", true, false, true),
            ("require", true, false, false),
            ("verify-ca", true, true, false),
            ("verify-full", true, true, false),
        ] {
            let mut options = Options::from_yaml(&format!("sslmode: {text}"));
            let tls = Tls::read(&mut options);
            assert_eq!(options.faults(), [""; 0]);
            let wire = tls.wire(false, &CallLimits::default()).unwrap();
            assert_eq!(wire.tls.is_some(), has_tls, "{text}");
            assert_eq!(wire.is_optional, optional, "{text}");
            let provider = Arc::new(rustls::crypto::ring::default_provider());
            let trusted = tls.trusted(&provider);
            assert_eq!(trusted.unwrap().is_some(), judged, "{text}");
        }
        let mut options = Options::from_yaml("{}");
        assert_eq!(Tls::read(&mut options).mode, TlsMode::Prefer);
        let mut options = Options::from_yaml("sslmode: yes please");
        Tls::read(&mut options);
        assert_eq!(
            options.faults(),
            [r#"sslmode: "yes please" is not disable, prefer, require, verify-ca or verify-full"#]
        );
    }

    #[test]
    fn the_password_goes_in_clear_text_only_to_who_is_local_or_verified_or_where_that_is_written() {
        let mut tls = Tls {
            mode: TlsMode::Prefer,
            is_written: false,
            authorities: None,
        };
        for (mode, is_written, has_authorities, expected) in [
            (TlsMode::Prefer, false, false, false),
            (TlsMode::Prefer, true, false, true),
            (TlsMode::Disable, true, false, true),
            (TlsMode::Require, true, false, false),
            (TlsMode::VerifyCa, true, false, false),
            (TlsMode::VerifyCa, true, true, true),
            (TlsMode::VerifyFull, true, false, true),
        ] {
            (tls.mode, tls.is_written) = (mode, is_written);
            tls.authorities = has_authorities.then(PathBuf::new);
            let allows = tls.allows_clear_text() || tls.is_verified();
            assert_eq!(allows, expected, "{mode:?} {has_authorities}");
            let says_no = tls.described().contains("no password in clear text");
            assert_eq!(says_no, !expected, "{mode:?} {has_authorities}");
        }
        let tls = Tls::read(&mut Options::from_yaml("{}"));
        for (is_local, expected) in [(true, true), (false, false)] {
            let wire = tls.wire(is_local, &CallLimits::default()).unwrap();
            assert_eq!(wire.allows_clear_text, expected);
        }
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
