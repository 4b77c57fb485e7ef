//! Loading: file, environment and flags laid over each other, then checked as a whole.
//!
//! Each layer adds text or TOML values to one table and remembers where every key came from, so that an error can name
//! the place. Invariant: values that may hold a password (DSNs) are never repeated in an error.

mod layers;

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use layers::Layers;

use super::{Config, ConfigError, Origin};

/// The file that is read if it is there and no other is named.
pub const DEFAULT_FILE: &str = "/etc/vogeler/vogeler.toml";
/// Names the file, like `--config`.
const FILE_VARIABLE: &str = "VOGELER_CONFIG";

/// A setting from a flag.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Override {
    /// The flag as the operator spelled it, such as `--set` or `--broker`, for errors.
    pub flag: String,
    /// Dotted key.
    pub key: String,
    /// Value, as text; lists are separated by commas.
    pub value: String,
}

impl Override {
    /// Reads the argument of `--set`, `SECTION.KEY=VALUE`. The error does not repeat it: it may hold a password.
    pub fn parse_set(argument: &str) -> Result<Self, ConfigError> {
        let error = || ConfigError::FlagShape {
            flag: "--set".to_owned(),
        };
        let (key, value) = argument.split_once('=').ok_or_else(error)?;
        let key = key.trim();
        if !key
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
        {
            return Err(error());
        }
        Ok(Self {
            flag: format!("--set {key}"),
            key: key.to_owned(),
            value: value.trim().to_owned(),
        })
    }
}

/// A configuration, and what its operator should hear about it.
#[derive(Debug)]
pub struct Loaded {
    /// The settings, checked.
    pub config: Config,
    /// The file that was read, if one was.
    pub file: Option<PathBuf>,
    /// What is allowed but should be changed; to be logged once.
    pub warnings: Vec<String>,
}

/// Loads the configuration: `file`, or what `VOGELER_CONFIG` names, or [`DEFAULT_FILE`] if it is there; then the
/// environment; then `flags`.
pub fn load(file: Option<&Path>, flags: &[Override]) -> Result<Loaded, ConfigError> {
    load_from(
        Path::new(DEFAULT_FILE),
        file,
        &std::env::vars_os().collect::<Vec<_>>(),
        flags,
    )
}

/// [`load`] with everything that comes from outside as an argument.
fn load_from(
    default_file: &Path,
    file: Option<&Path>,
    variables: &[(OsString, OsString)],
    flags: &[Override],
) -> Result<Loaded, ConfigError> {
    let named = |name: &OsString| name.to_str() == Some(FILE_VARIABLE);
    let file = file.map(Path::to_path_buf).or_else(|| {
        let variable = variables.iter().find(|(name, _)| named(name));
        variable.map(|(_, value)| PathBuf::from(value))
    });
    let file = file.or_else(|| default_file.exists().then(|| default_file.to_path_buf()));

    let mut layers = Layers::new();
    if let Some(path) = &file {
        layers.add_file(path)?;
    }
    for (name, value) in variables {
        layers.add_variable(&name.to_string_lossy(), value.to_str())?;
    }
    for flag in flags {
        let origin = Origin::Flag(flag.flag.clone());
        layers.add_text(&flag.key, &flag.value, origin)?;
    }
    let config = layers.resolve()?;
    let warnings = file
        .iter()
        .filter_map(|path| layers.exposed(path, &config))
        .collect();
    Ok(Loaded {
        config,
        file,
        warnings,
    })
}

#[cfg(test)]
mod tests;
