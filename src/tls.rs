//! TLS: one crypto provider for the whole process (ring), named here and nowhere else.

/// Makes ring the process's crypto provider. Idempotent: the first call wins, later ones change nothing.
pub fn install_crypto_provider() {
    // An error means that a provider is installed already, which is all that is needed.
    drop(rustls::crypto::ring::default_provider().install_default());
}
