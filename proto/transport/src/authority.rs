//! A certificate authority of our own, and the certificates that it issues.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use time::{Duration, OffsetDateTime};

/// Authorities outlive every cluster that is upgraded at all.
const AUTHORITY_DAYS: i64 = 3650;

/// Certificates are renewed at every start of a process that owns the authority, so
/// a year is ample.
const LEAF_DAYS: i64 = 365;

/// Renewed once less than this is left.
const RENEW_BEFORE_DAYS: i64 = 146;

/// Clocks of machines differ: a fresh certificate is valid from that long ago.
const BACKDATE_MINUTES: i64 = 5;

/// Signs certificates with the key beside its own certificate.
pub struct Authority {
    certificate_path: PathBuf,
    certificate: String,
    issuer: Issuer<'static, KeyPair>,
}

/// Who a certificate is for, and what it may be used for.
#[derive(Clone, Debug, Default)]
pub struct Profile {
    common_name: String,
    organizations: Vec<String>,
    dns: Vec<String>,
    addresses: Vec<IpAddr>,
    server: bool,
    client: bool,
}

/// What went wrong with which file.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    #[error("cannot {operation} {}", path.display())]
    File { operation: &'static str, path: PathBuf, source: io::Error },
    #[error("{} is not usable as a certificate or key", path.display())]
    Content { path: PathBuf, source: rcgen::Error },
    #[error("{} exists but {} does not: restore it, or remove both to begin a new authority", present.display(), missing.display())]
    Half { present: PathBuf, missing: PathBuf },
}

impl Profile {
    /// `common_name` is the user name where the certificate serves as a client's.
    pub fn new(common_name: &str) -> Self {
        Self { common_name: common_name.to_owned(), ..Self::default() }
    }

    /// Adds a group of the user.
    #[must_use]
    pub fn organization(mut self, name: &str) -> Self {
        self.organizations.push(name.to_owned());
        self
    }

    #[must_use]
    pub fn dns(mut self, name: &str) -> Self {
        self.dns.push(name.to_owned());
        self
    }

    #[must_use]
    pub fn address(mut self, address: IpAddr) -> Self {
        self.addresses.push(address);
        self
    }

    /// May serve TLS.
    #[must_use]
    pub fn server(mut self) -> Self {
        self.server = true;
        self
    }

    /// May be shown by a client.
    #[must_use]
    pub fn client(mut self) -> Self {
        self.client = true;
        self
    }
}

impl Authority {
    /// Opens `folder/stem.crt` and `.key`, or makes both when neither is there.
    ///
    /// # Errors
    /// When a file cannot be read or written, does not parse, or is there without the other.
    pub fn load_or_create(folder: &Path, stem: &str, common_name: &str) -> Result<Self, AuthorityError> {
        let certificate_path = folder.join(format!("{stem}.crt"));
        let key_path = folder.join(format!("{stem}.key"));
        match (certificate_path.exists(), key_path.exists()) {
            (true, true) => Self::load(certificate_path, &key_path),
            (false, false) => {
                fs::create_dir_all(folder).map_err(file_error("create", folder))?;
                create(common_name, &certificate_path, &key_path)?;
                Self::load(certificate_path, &key_path)
            }
            (true, false) => Err(AuthorityError::Half { present: certificate_path, missing: key_path }),
            (false, true) => Err(AuthorityError::Half { present: key_path, missing: certificate_path }),
        }
    }

    fn load(certificate_path: PathBuf, key_path: &Path) -> Result<Self, AuthorityError> {
        let certificate = read(&certificate_path)?;
        let key = KeyPair::from_pem(&read(key_path)?).map_err(content_error(key_path))?;
        let issuer = Issuer::from_ca_cert_pem(&certificate, key).map_err(content_error(&certificate_path))?;
        Ok(Self { certificate_path, certificate, issuer })
    }

    /// The authority's own certificate, for those who must trust it.
    pub fn certificate_path(&self) -> &Path {
        &self.certificate_path
    }

    /// Writes a certificate and its key, unless a certificate of this authority is
    /// there already that serves the same profile for long enough. The key file is
    /// readable by its owner alone.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn issue(&self, profile: &Profile, certificate: &Path, key: &Path) -> Result<(), AuthorityError> {
        if key.exists() && fs::read_to_string(certificate).is_ok_and(|pem| self.is_current(profile, &pem)) {
            return Ok(());
        }
        let pair = KeyPair::generate().map_err(content_error(key))?;
        let signed = profile.params().signed_by(&pair, &self.issuer).map_err(content_error(certificate))?;
        write(key, &pair.serialize_pem(), 0o600)?;
        write(certificate, &signed.pem(), 0o644)
    }

    fn is_current(&self, profile: &Profile, certificate: &str) -> bool {
        let Ok((_, authority)) = x509_parser::pem::parse_x509_pem(self.certificate.as_bytes()) else { return false };
        let Ok((_, leaf)) = x509_parser::pem::parse_x509_pem(certificate.as_bytes()) else { return false };
        let (Ok(authority), Ok(leaf)) = (authority.parse_x509(), leaf.parse_x509()) else { return false };
        let wanted: Vec<String> = profile.names();
        let held: Vec<String> = leaf
            .subject_alternative_name()
            .ok()
            .flatten()
            .map(|names| names.value.general_names.iter().filter_map(name_text).collect())
            .unwrap_or_default();
        let organizations: Vec<&str> =
            leaf.subject().iter_organization().filter_map(|name| name.as_str().ok()).collect();
        let left = leaf.validity().not_after.timestamp() - OffsetDateTime::now_utc().unix_timestamp();
        leaf.verify_signature(Some(authority.public_key())).is_ok()
            && leaf
                .subject()
                .iter_common_name()
                .filter_map(|name| name.as_str().ok())
                .eq([profile.common_name.as_str()])
            && organizations.iter().eq(profile.organizations.iter())
            && wanted == held
            && left > Duration::days(RENEW_BEFORE_DAYS).whole_seconds()
    }
}

impl Profile {
    fn params(&self) -> CertificateParams {
        let mut params = validity(LEAF_DAYS);
        params.distinguished_name = distinguished_name(&self.common_name);
        for organization in &self.organizations {
            params.distinguished_name.push(DnType::OrganizationName, organization.as_str());
        }
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        if self.server {
            params.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
        }
        if self.client {
            params.extended_key_usages.push(ExtendedKeyUsagePurpose::ClientAuth);
        }
        let dns = self.dns.iter().map(|name| SanType::DnsName(name.as_str().try_into().expect("DNS names are ASCII")));
        params.subject_alt_names =
            dns.chain(self.addresses.iter().map(|address| SanType::IpAddress(*address))).collect();
        params
    }

    fn names(&self) -> Vec<String> {
        self.dns.iter().cloned().chain(self.addresses.iter().map(IpAddr::to_string)).collect()
    }
}

fn name_text(name: &x509_parser::extensions::GeneralName<'_>) -> Option<String> {
    use x509_parser::extensions::GeneralName;
    match name {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        GeneralName::IPAddress(bytes) => match bytes.len() {
            4 => <[u8; 4]>::try_from(*bytes).ok().map(|octets| IpAddr::from(octets).to_string()),
            16 => <[u8; 16]>::try_from(*bytes).ok().map(|octets| IpAddr::from(octets).to_string()),
            _ => None,
        },
        _ => None,
    }
}

fn create(common_name: &str, certificate: &Path, key: &Path) -> Result<(), AuthorityError> {
    let mut params = validity(AUTHORITY_DAYS);
    params.distinguished_name = distinguished_name(common_name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
    let pair = KeyPair::generate().map_err(content_error(key))?;
    let signed = params.self_signed(&pair).map_err(content_error(certificate))?;
    write(key, &pair.serialize_pem(), 0o600)?;
    write(certificate, &signed.pem(), 0o644)
}

fn validity(days: i64) -> CertificateParams {
    let now = OffsetDateTime::now_utc();
    let mut params = CertificateParams::default();
    params.not_before = now - Duration::minutes(BACKDATE_MINUTES);
    params.not_after = now + Duration::days(days);
    params
}

fn distinguished_name(common_name: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common_name);
    name
}

/// Replaces `path` as a whole, so that no reader sees half of it.
fn write(path: &Path, text: &str, mode: u32) -> Result<(), AuthorityError> {
    let fresh = path.with_extension("new");
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(file_error("create", folder))?;
    }
    // A leftover of an interrupted run may have another mode.
    let _ = fs::remove_file(&fresh);
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(&fresh)
        .map_err(file_error("create", &fresh))?;
    file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(file_error("write", &fresh))?;
    fs::rename(&fresh, path).map_err(file_error("replace", path))
}

fn read(path: &Path) -> Result<String, AuthorityError> {
    fs::read_to_string(path).map_err(file_error("read", path))
}

fn file_error(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> AuthorityError + use<> {
    let path = path.to_owned();
    move |source| AuthorityError::File { operation, path, source }
}

fn content_error(path: &Path) -> impl FnOnce(rcgen::Error) -> AuthorityError + use<> {
    let path = path.to_owned();
    move |source| AuthorityError::Content { path, source }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn certificates_are_kept_while_they_serve() {
        let folder = tempfile::tempdir().unwrap();
        let authority = Authority::load_or_create(folder.path(), "ca", "quorate").unwrap();
        let again = Authority::load_or_create(folder.path(), "ca", "quorate").unwrap();
        let (certificate, key) = (folder.path().join("a.crt"), folder.path().join("a.key"));
        let profile = Profile::new("admin").organization("system:masters").dns("a.example").client();
        authority.issue(&profile, &certificate, &key).unwrap();
        let first = fs::read(&certificate).unwrap();
        again.issue(&profile, &certificate, &key).unwrap();
        assert_eq!(fs::read(&certificate).unwrap(), first, "the same profile keeps its certificate");
        again.issue(&profile.clone().address([127, 0, 0, 1].into()), &certificate, &key).unwrap();
        assert_ne!(fs::read(&certificate).unwrap(), first, "a new address needs a new certificate");
        assert_eq!(fs::metadata(&key).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn half_an_authority_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        Authority::load_or_create(folder.path(), "ca", "quorate").unwrap();
        fs::remove_file(folder.path().join("ca.key")).unwrap();
        let error = Authority::load_or_create(folder.path(), "ca", "quorate").err().unwrap();
        assert!(error.to_string().contains("ca.key"), "{error}");
    }
}
