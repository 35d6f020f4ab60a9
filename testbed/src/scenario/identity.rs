//! Who a scenario's server says that it is: a certificate for its address that vouches for itself, made anew for each run.
//!
//! Everything about it has the same length each time, so that what goes over the wire has, too: the signature is Ed25519's,
//! and the serial number is no random one.

use std::io;
use std::net::IpAddr;
use std::path::Path;

use rcgen::{CertificateParams, DnType, KeyPair, PKCS_ED25519, SerialNumber};

/// Writes a certificate for `server` and its key (PEM).
pub(super) fn make(server: IpAddr, certificate: &Path, key: &Path) -> io::Result<()> {
    let pair = KeyPair::generate_for(&PKCS_ED25519).map_err(io::Error::other)?;
    let mut params = CertificateParams::new([server.to_string()]).map_err(io::Error::other)?;
    params.distinguished_name.push(DnType::CommonName, "testbed");
    params.serial_number = Some(SerialNumber::from(1_u64));
    let made = params.self_signed(&pair).map_err(io::Error::other)?;
    std::fs::write(certificate, made.pem())?;
    std::fs::write(key, pair.serialize_pem())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_certificate_is_as_long_as_the_last_one() {
        let folder = tempfile::tempdir().unwrap();
        let (certificate, key) = (folder.path().join("certificate.pem"), folder.path().join("key.pem"));
        let mut lengths = (0..20).map(|_| {
            make("10.10.0.1".parse().unwrap(), &certificate, &key).unwrap();
            std::fs::metadata(&certificate).unwrap().len()
        });
        let first = lengths.next().unwrap();
        assert!(lengths.all(|length| length == first));
        assert!(rdma_http::tls::ServerTls::from_files(&certificate, &key).is_ok());
    }
}
