//! rustls configurations made from PEM files, and remade when the files change.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use arc_swap::ArcSwap;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme};

/// A DNS name that every certificate of the store carries, so that members are
/// verified by their key and not by the address at which they happen to live.
pub const STORE_SERVER_NAME: &str = "store.quorate.internal";

/// How often [`Reloading`] looks at its files at most.
const LOOK_INTERVAL: Duration = Duration::from_secs(5);

/// One identity on disk: a certificate chain, its key, and the CA that judges the other side.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    pub cert: PathBuf,
    pub key: PathBuf,
    /// Not read where the other side is not judged.
    pub ca: PathBuf,
}

/// What a server demands of its clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientAuth {
    /// A certificate of our CA, or the handshake fails.
    Required,
    /// A certificate of our CA if one is shown.
    Optional,
    /// None is asked for.
    None,
}

/// Whom a client takes for the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trust {
    /// Whoever holds a certificate of this authority for the name that is dialled.
    Authority(PathBuf),
    /// Anyone: the connection is encrypted, but towards whoever answers.
    Anyone,
}

/// Why an identity cannot be used. Display names the file.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("cannot read {}", path.display())]
    Read { path: PathBuf, source: rustls::pki_types::pem::Error },
    #[error("{} holds no certificate", path.display())]
    Empty { path: PathBuf },
    #[error("{} holds a certificate that does not parse", path.display())]
    Authority { path: PathBuf, source: rustls::Error },
    #[error("the certificate {} and the key {} do not make an identity", cert.display(), key.display())]
    Identity { cert: PathBuf, key: PathBuf, source: rustls::Error },
    #[error("clients cannot be verified against {}", path.display())]
    Verifier { path: PathBuf, source: rustls::server::VerifierBuilderError },
}

/// A server's side; `alpn` as `["h2", "http/1.1"]`, most wanted first.
///
/// # Errors
/// When a file is missing, does not parse, or certificate and key do not fit.
pub fn server_config(files: &TlsFiles, client_auth: ClientAuth, alpn: &[&str]) -> Result<Arc<ServerConfig>, TlsError> {
    let builder = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .expect("the provider supports the default protocol versions");
    let builder = match client_auth {
        ClientAuth::None => builder.with_no_client_auth(),
        ClientAuth::Required | ClientAuth::Optional => {
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots(&files.ca)?), provider());
            let verifier =
                if client_auth == ClientAuth::Optional { verifier.allow_unauthenticated() } else { verifier };
            let verifier = verifier.build().map_err(|source| TlsError::Verifier { path: files.ca.clone(), source })?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    let mut config = builder
        .with_single_cert(certificates(&files.cert)?, key(&files.key)?)
        .map_err(|source| identity_error(files, source))?;
    config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
    Ok(Arc::new(config))
}

/// A client's side, showing the identity's certificate.
///
/// # Errors
/// As [`server_config`].
pub fn client_config(files: &TlsFiles, alpn: &[&str]) -> Result<Arc<ClientConfig>, TlsError> {
    client_config_with(Some((&files.cert, &files.key)), &Trust::Authority(files.ca.clone()), alpn)
}

/// A client's side, showing the certificate and key of `identity` if there are any.
///
/// # Errors
/// As [`server_config`].
pub fn client_config_with(
    identity: Option<(&Path, &Path)>,
    trust: &Trust,
    alpn: &[&str],
) -> Result<Arc<ClientConfig>, TlsError> {
    let builder = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .expect("the provider supports the default protocol versions");
    let builder = match trust {
        Trust::Authority(ca) => builder.with_root_certificates(roots(ca)?),
        Trust::Anyone => builder.dangerous().with_custom_certificate_verifier(Arc::new(Anyone(provider()))),
    };
    let mut config = match identity {
        None => builder.with_no_client_auth(),
        Some((cert, key_path)) => {
            let made = builder.with_client_auth_cert(certificates(cert)?, key(key_path)?);
            made.map_err(|source| TlsError::Identity { cert: cert.into(), key: key_path.into(), source })?
        }
    };
    config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
    Ok(Arc::new(config))
}

/// Takes any certificate whose key the server really holds.
#[derive(Debug)]
struct Anyone(Arc<CryptoProvider>);

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// The one crypto provider of every connection.
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// A configuration that follows its files: a renewed certificate or CA serves the
/// next connection, without a restart. Files that do not fit leave the old one in place.
pub struct Reloading<C> {
    files: TlsFiles,
    make: Box<dyn Fn(&TlsFiles) -> Result<Arc<C>, TlsError> + Send + Sync>,
    current: ArcSwap<Loaded<C>>,
}

struct Loaded<C> {
    config: Arc<C>,
    stamps: [Option<SystemTime>; 3],
    looked: Instant,
}

impl<C> Reloading<C> {
    /// # Errors
    /// When `make` fails on the files as they are now.
    pub fn new(
        files: TlsFiles,
        make: impl Fn(&TlsFiles) -> Result<Arc<C>, TlsError> + Send + Sync + 'static,
    ) -> Result<Self, TlsError> {
        let loaded = Loaded { stamps: stamps(&files), config: make(&files)?, looked: Instant::now() };
        Ok(Self { files, make: Box::new(make), current: ArcSwap::from_pointee(loaded) })
    }

    /// The configuration for a connection that begins now.
    pub fn current(&self) -> Arc<C> {
        let loaded = self.current.load();
        if loaded.looked.elapsed() < LOOK_INTERVAL {
            return Arc::clone(&loaded.config);
        }
        let stamps = stamps(&self.files);
        let config = if stamps == loaded.stamps {
            Arc::clone(&loaded.config)
        } else {
            match (self.make)(&self.files) {
                Ok(config) => {
                    tracing::info!(certificate = %self.files.cert.display(), "reloaded a TLS identity");
                    config
                }
                Err(error) => {
                    tracing::warn!(%error, "kept the old TLS identity: its files do not fit now");
                    Arc::clone(&loaded.config)
                }
            }
        };
        self.current.store(Arc::new(Loaded { config: Arc::clone(&config), stamps, looked: Instant::now() }));
        config
    }
}

fn stamps(files: &TlsFiles) -> [Option<SystemTime>; 3] {
    [&files.cert, &files.key, &files.ca].map(|path| fs::metadata(path).and_then(|meta| meta.modified()).ok())
}

fn identity_error(files: &TlsFiles, source: rustls::Error) -> TlsError {
    TlsError::Identity { cert: files.cert.clone(), key: files.key.clone(), source }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let read = |source| TlsError::Read { path: path.to_owned(), source };
    let chain: Vec<_> = CertificateDer::pem_file_iter(path)
        .map_err(read)?
        .collect::<Result<_, _>>()
        .map_err(|source| TlsError::Read { path: path.to_owned(), source })?;
    if chain.is_empty() { Err(TlsError::Empty { path: path.to_owned() }) } else { Ok(chain) }
}

fn key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    PrivateKeyDer::from_pem_file(path).map_err(|source| TlsError::Read { path: path.to_owned(), source })
}

fn roots(path: &Path) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path)? {
        roots.add(certificate).map_err(|source| TlsError::Authority { path: path.to_owned(), source })?;
    }
    Ok(roots)
}

#[cfg(test)]
mod tests {
    use std::error::Error;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::authority::{Authority, Profile};

    fn identity(folder: &Path, authority: &Authority, name: &str) -> TlsFiles {
        let files = TlsFiles {
            cert: folder.join(format!("{name}.crt")),
            key: folder.join(format!("{name}.key")),
            ca: folder.join("ca.crt"),
        };
        let profile = Profile::new(name).dns(STORE_SERVER_NAME).server().client();
        authority.issue(&profile, &files.cert, &files.key).unwrap();
        files
    }

    async fn handshake(server: Arc<ServerConfig>, client: Arc<ClientConfig>) -> Result<Vec<u8>, Box<dyn Error>> {
        let (near, far) = tokio::io::duplex(16 << 10);
        let acceptor = tokio_rustls::TlsAcceptor::from(server);
        let server = tokio::spawn(async move {
            let mut stream = acceptor.accept(far).await?;
            stream.write_all(b"hello").await?;
            stream.shutdown().await
        });
        let connector = tokio_rustls::TlsConnector::from(client);
        let mut stream = connector.connect(STORE_SERVER_NAME.try_into()?, near).await?;
        let mut said = Vec::new();
        stream.read_to_end(&mut said).await?;
        server.await??;
        Ok(said)
    }

    #[tokio::test]
    async fn only_members_of_one_authority_meet() {
        let (ours, theirs) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let authority = Authority::load_or_create(ours.path(), "ca", "ours").unwrap();
        let other = Authority::load_or_create(theirs.path(), "ca", "theirs").unwrap();
        let member = identity(ours.path(), &authority, "m1");
        let friend = identity(ours.path(), &authority, "m2");
        let stranger = identity(theirs.path(), &other, "m3");

        let server = server_config(&member, ClientAuth::Required, &["h2"]).unwrap();
        let friendly = client_config(&friend, &["h2"]).unwrap();
        assert_eq!(handshake(Arc::clone(&server), friendly).await.unwrap(), b"hello");
        let anonymous = client_config_with(None, &Trust::Authority(member.ca.clone()), &["h2"]).unwrap();
        assert!(handshake(Arc::clone(&server), anonymous).await.is_err(), "a certificate is required");
        let strange = client_config(&TlsFiles { ca: member.ca.clone(), ..stranger }, &["h2"]).unwrap();
        assert!(handshake(server, strange).await.is_err());
    }

    #[tokio::test]
    async fn a_client_without_trust_talks_to_anyone() {
        let folder = tempfile::tempdir().unwrap();
        let authority = Authority::load_or_create(folder.path(), "ca", "theirs").unwrap();
        let member = identity(folder.path(), &authority, "m1");
        let server = server_config(&member, ClientAuth::None, &["h2"]).unwrap();
        let client = client_config_with(None, &Trust::Anyone, &["h2"]).unwrap();
        assert_eq!(handshake(server, client).await.unwrap(), b"hello");
    }

    #[test]
    fn errors_name_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let missing = folder.path().join("nowhere.crt");
        let files = TlsFiles { cert: missing.clone(), key: missing.clone(), ca: missing.clone() };
        let error = client_config(&files, &[]).unwrap_err();
        assert!(error.to_string().contains("nowhere.crt"), "{error}");
        fs::write(&missing, "no PEM here").unwrap();
        assert!(matches!(client_config(&files, &[]), Err(TlsError::Empty { .. })));
    }
}
