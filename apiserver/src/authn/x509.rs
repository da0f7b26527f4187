//! Users by client certificate: the common name is the user, the organizations are
//! the groups. The TLS handshake has verified the chain already.

use sha2::{Digest, Sha256};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::user::{AUTHENTICATED, User};

/// The extra field that tells two credentials of one user apart.
pub const CREDENTIAL_ID: &str = "authentication.kubernetes.io/credential-id";

/// Reads the user from the leaf certificate; `None` without a common name.
pub fn user(der: &[u8]) -> Option<User> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    let subject = certificate.subject();
    let name = subject.iter_common_name().find_map(|name| name.as_str().ok()).filter(|name| !name.is_empty())?;
    let mut groups: Vec<String> =
        subject.iter_organization().filter_map(|group| group.as_str().ok()).map(str::to_owned).collect();
    groups.push(AUTHENTICATED.to_owned());
    let digest: String = Sha256::digest(der).iter().map(|byte| format!("{byte:02x}")).collect();
    Some(User {
        name: name.to_owned(),
        groups,
        extra: [(CREDENTIAL_ID.to_owned(), vec![format!("X509SHA256={digest}")])].into(),
        ..User::default()
    })
}

/// Whether the leaf is within its validity at `now`, in seconds since 1970: a
/// connection may outlive the certificate that opened it.
pub fn is_valid_at(der: &[u8], now: i64) -> bool {
    X509Certificate::from_der(der).is_ok_and(|(_, certificate)| {
        let validity = certificate.validity();
        (validity.not_before.timestamp()..=validity.not_after.timestamp()).contains(&now)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_that_are_no_certificate_name_nobody() {
        assert_eq!(user(b""), None);
        assert_eq!(user(b"0\x82\xff\xff"), None);
        assert!(!is_valid_at(b"x", 0));
    }
}
