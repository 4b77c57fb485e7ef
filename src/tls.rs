//! TLS: one crypto provider for the whole process (ring), named here and nowhere else.

/// Makes ring the process's crypto provider. Idempotent: the first call wins, later ones change nothing.
pub fn install_crypto_provider() {
    // An error says that a provider is installed already, which is what was asked for.
    drop(rustls::crypto::ring::default_provider().install_default());
}
