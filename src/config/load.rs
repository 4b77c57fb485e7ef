//! Loading: file, environment and flags laid over each other, then checked as a whole.

use std::path::Path;

use super::Config;

/// Why there is no usable configuration. Names the key, the value and what is allowed.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// To be filled by the helper.
    #[error("todo")]
    Todo,
}

/// Settings from flags: dotted key and value, as text.
pub type Overrides = Vec<(String, String)>;

/// Loads the configuration.
pub fn load(_file: Option<&Path>, _flags: &Overrides) -> Result<Config, ConfigError> {
    todo!("helper: config")
}
