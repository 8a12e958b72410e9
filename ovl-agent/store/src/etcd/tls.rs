//! The files for TLS, and a closer look at an endpoint that closes the connection.
//!
//! In TLS 1.3 a server looks at the client's certificate when the client already takes the connection for made. Its word
//! about it can be lost, because the connection ends while requests are under way to it. So, when a connection broke like
//! that, another one is made that sends nothing and only listens.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use etcd_client::{Certificate, Identity, TlsOptions};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use super::trouble::{Kind, NOT_TLS, Trouble, deepest, tls};
use crate::target::{EtcdConf, FLAG_CA, FLAG_CERT, FLAG_KEY, is_https};

/// How long a server is listened to that may have a word about the client's certificate.
const LISTEN: Duration = Duration::from_millis(500);

/// The files, read and found to fit together.
pub(super) struct Files {
    ca: Vec<u8>,
    /// Certificate and key.
    own: Option<(Vec<u8>, Vec<u8>)>,
    config: ClientConfig,
}

fn bad(flag: &'static str, why: impl Into<String>) -> Trouble {
    Trouble::new(Kind::Setting(flag), why)
}

fn read(flag: &'static str, file: &Path) -> Result<Vec<u8>, Trouble> {
    base::file::read_regular(file, base::file::LIMIT).map_err(|e| bad(flag, format!("cannot be read: {e}")))
}

fn certificates(flag: &'static str, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, Trouble> {
    let found = CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>();
    let found = found.map_err(|e| bad(flag, format!("is no PEM file: {e}")))?;
    if found.is_empty() { Err(bad(flag, "has no certificate (PEM)")) } else { Ok(found) }
}

impl Files {
    /// Reads the files. None: they are not needed.
    pub(super) fn read(conf: &EtcdConf) -> Result<Option<Files>, Trouble> {
        let Some(ca) = conf.ca.as_ref().filter(|_| conf.endpoints.iter().any(|e| is_https(e))) else {
            return Ok(None);
        };
        let ca = read(FLAG_CA, ca)?;
        let mut roots = RootCertStore::empty();
        for certificate in certificates(FLAG_CA, &ca)? {
            roots
                .add(certificate)
                .map_err(|e| bad(FLAG_CA, format!("has a certificate that is none: {e}")))?;
        }
        let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|e| Trouble::new(Kind::Tls, e.to_string()))?
            .with_root_certificates(roots);
        let (Some(cert), Some(key)) = (&conf.cert, &conf.key) else {
            return Ok(Some(Files { ca, own: None, config: builder.with_no_client_auth() }));
        };
        let (cert, key) = (read(FLAG_CERT, cert)?, read(FLAG_KEY, key)?);
        let chain = certificates(FLAG_CERT, &cert)?;
        let private = PrivateKeyDer::from_pem_slice(&key).map_err(|e| {
            bad(FLAG_KEY, format!("has no private key (PEM): {}", without_content(&e.to_string())))
        })?;
        let config = builder
            .with_client_auth_cert(chain, private)
            .map_err(|e| bad(FLAG_KEY, format!("is not the key of {FLAG_CERT}: {e}")))?;
        Ok(Some(Files { ca, own: Some((cert, key)), config }))
    }

    pub(super) fn options(&self, conf: &EtcdConf) -> TlsOptions {
        let mut tls = TlsOptions::new().ca_certificate(Certificate::from_pem(&self.ca));
        if let Some((cert, key)) = &self.own {
            tls = tls.identity(Identity::from_pem(cert, key));
        }
        match &conf.server_name {
            Some(name) => tls.domain_name(name),
            None => tls,
        }
    }
}

/// A parser's word about a key file, as far as it has nothing of the key.
fn without_content(text: &str) -> &str {
    text.split(':').next().unwrap_or_default()
}

/// What an endpoint says about the client's certificate. None: nothing, or there is no TLS.
pub(super) async fn diagnose(conf: &EtcdConf, endpoint: &str) -> Option<Trouble> {
    let address = endpoint.strip_prefix("https://")?;
    let host = address.rsplit_once(':')?.0.trim_start_matches('[').trim_end_matches(']');
    let name = conf.server_name.as_deref().unwrap_or(host).to_owned();
    let mut config = Files::read(conf).ok()??.config;
    config.alpn_protocols = vec![b"h2".to_vec()];
    let listen = async {
        let stream = TcpStream::connect(address).await?;
        let name = ServerName::try_from(name).map_err(std::io::Error::other)?;
        let mut stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await?;
        stream.read(&mut [0; 64]).await
    };
    let error = timeout(LISTEN, listen).await.ok()?.err()?;
    let why = tls(&error.to_string()).or_else(|| tls(&deepest(&error)))?;
    Some(Trouble::new(Kind::Tls, why))
}

/// Whether TLS is spoken at an endpoint that was given without it.
pub(super) async fn is_spoken(endpoint: &str) -> bool {
    let Some(address) = endpoint.strip_prefix("http://") else { return false };
    let Some((host, _)) = address.rsplit_once(':') else { return false };
    let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
    let Ok(builder) = builder.with_safe_default_protocol_versions() else { return false };
    // No certificate is trusted: that it shows one is enough.
    let config = builder.with_root_certificates(RootCertStore::empty()).with_no_client_auth();
    let listen = async {
        let stream = TcpStream::connect(address).await?;
        let name = ServerName::try_from(host).map_err(std::io::Error::other)?;
        TlsConnector::from(Arc::new(config)).connect(name, stream).await
    };
    match timeout(LISTEN, listen).await {
        Ok(Ok(_)) => true,
        Ok(Err(error)) => tls(&error.to_string()).is_some_and(|why| why != NOT_TLS),
        Err(_) => false,
    }
}
