//! Who may talk: TLS 1.3 with raw public keys (RFC 7250) on both sides, and nobody whose key is not trusted.
//!
//! There are no certificates, hence no names, dates or authorities to get wrong: a peer is its key. Sessions are not
//! resumed, so that a key which is trusted no more has no way in.

use super::key::{KeyPair, PublicKey};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{AlwaysResolvesClientRawPublicKeys, Resumption};
use rustls::crypto::{
    CryptoProvider, WebPkiSupportedAlgorithms, ring, verify_tls13_signature_with_raw_key,
};
use rustls::pki_types::{CertificateDer, ServerName, SubjectPublicKeyInfoDer, UnixTime};
use rustls::server::AlwaysResolvesServerRawPublicKeys;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::sign::CertifiedKey;
use rustls::version::TLS13;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, Error, ServerConfig,
    SignatureScheme,
};
use std::sync::Arc;

/// Accepts these keys and no others.
#[derive(Debug)]
struct Pinned {
    keys: Vec<PublicKey>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl Pinned {
    fn check(&self, presented: &CertificateDer<'_>) -> Result<(), Error> {
        match PublicKey::from_spki(presented) {
            Some(key) if self.keys.contains(&key) => Ok(()),
            _ => Err(CertificateError::ApplicationVerificationFailure.into()),
        }
    }

    fn verify(
        &self,
        message: &[u8],
        presented: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let key = SubjectPublicKeyInfoDer::from(presented.as_ref());
        verify_tls13_signature_with_raw_key(message, &key, signature, &self.algorithms)
    }
}

fn no_tls12() -> Error {
    Error::General("only TLS 1.3 is spoken".into())
}

/// What both sides of a handshake ask of signatures, and answer alike.
macro_rules! signatures {
    () => {
        fn verify_tls12_signature(
            &self,
            _message: &[u8],
            _cert: &CertificateDer<'_>,
            _signature: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            Err(no_tls12())
        }

        fn verify_tls13_signature(
            &self,
            message: &[u8],
            cert: &CertificateDer<'_>,
            signature: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            self.verify(message, cert, signature)
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            vec![SignatureScheme::ED25519]
        }

        fn requires_raw_public_keys(&self) -> bool {
            true
        }
    };
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.check(end_entity)
            .map(|()| ServerCertVerified::assertion())
    }

    signatures!();
}

impl ClientCertVerifier for Pinned {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.check(end_entity)
            .map(|()| ClientCertVerified::assertion())
    }

    signatures!();
}

/// What both sides need.
struct Parts {
    provider: Arc<CryptoProvider>,
    /// This side.
    identity: Arc<CertifiedKey>,
    /// The check of the other one.
    pinned: Arc<Pinned>,
}

fn parts(own: &KeyPair, keys: Vec<PublicKey>) -> Result<Parts, Error> {
    let provider = ring::default_provider();
    let private = provider
        .key_provider
        .load_private_key(own.private().into())?;
    let identity = CertifiedKey::new(vec![own.public.spki().into()], private);
    let pinned = Pinned {
        keys,
        algorithms: provider.signature_verification_algorithms,
    };
    Ok(Parts {
        provider: Arc::new(provider),
        identity: Arc::new(identity),
        pinned: Arc::new(pinned),
    })
}

/// For who listens.
pub(super) fn server(own: &KeyPair, trusted: Vec<PublicKey>) -> Result<Arc<ServerConfig>, Error> {
    let parts = parts(own, trusted)?;
    let mut config = ServerConfig::builder_with_provider(parts.provider)
        .with_protocol_versions(&[&TLS13])?
        .with_client_cert_verifier(parts.pinned)
        .with_cert_resolver(Arc::new(AlwaysResolvesServerRawPublicKeys::new(
            parts.identity,
        )));
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

/// For who connects.
pub(super) fn client(own: &KeyPair, trusted: Vec<PublicKey>) -> Result<Arc<ClientConfig>, Error> {
    let parts = parts(own, trusted)?;
    let mut config = ClientConfig::builder_with_provider(parts.provider)
        .with_protocol_versions(&[&TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(parts.pinned)
        .with_client_cert_resolver(Arc::new(AlwaysResolvesClientRawPublicKeys::new(
            parts.identity,
        )));
    config.enable_sni = false;
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}

/// What is sent in place of a server's name, which nobody looks at.
pub(super) fn nameless() -> ServerName<'static> {
    ServerName::from(std::net::IpAddr::from([0, 0, 0, 0]))
}
