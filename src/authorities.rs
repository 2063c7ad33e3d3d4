//! Files of the authorities whose certificates are trusted.

use std::path::Path;

use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

/// Reads a file in PEM form: at least one certificate, all of them such that they can be used.
///
/// # Errors
/// What is wrong with the file, with its name.
pub fn read(file: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let shown = file.display();
    let unreadable = |error| format!("could not read {shown}: {error}");
    let mut authorities = Vec::new();
    for certificate in CertificateDer::pem_file_iter(file).map_err(unreadable)? {
        let certificate = certificate.map_err(unreadable)?;
        RootCertStore::empty()
            .add(certificate.clone())
            .map_err(|e| format!("{shown} holds a certificate that cannot be used: {e}"))?;
        authorities.push(certificate);
    }
    if authorities.is_empty() {
        return Err(format!("{shown} holds no certificate in PEM form"));
    }
    Ok(authorities)
}
