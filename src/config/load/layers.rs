//! The layers of settings: one table, and where each of its keys came from.
//!
//! Each layer is laid over the earlier ones key by key. Invariant: values that may hold a password (DSNs) are never
//! repeated in an error.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use toml::de::{DeTable, DeValue};

use super::FILE_VARIABLE;
use crate::config::keys::{Keys, VARIABLE_PREFIX};
use crate::config::{Config, ConfigError, Origin, limits};

/// Variables that belong to tests and benches, not to the configuration.
const FOREIGN_PREFIXES: [&str; 3] = ["VOGELER_TEST_", "VOGELER_BENCH_", "VOGELER_LOADTEST_"];
/// The mode bit that lets every user read a file.
const WORLD_READABLE: u32 = 0o004;

/// The table that the layers build, and where each of its keys came from.
pub(super) struct Layers {
    keys: Keys,
    table: toml::Table,
    origins: BTreeMap<String, Origin>,
}

impl Layers {
    pub(super) fn new() -> Self {
        Self {
            keys: Keys::new(),
            table: toml::Table::new(),
            origins: BTreeMap::new(),
        }
    }

    pub(super) fn add_file(&mut self, path: &Path) -> Result<(), ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read {
            path: path.to_path_buf(),
            source,
        })?;
        let syntax = |error: &toml::de::Error| ConfigError::Syntax {
            path: path.to_path_buf(),
            line: line_of(&text, error.span().map_or(0, |span| span.start)),
            problem: error.message().to_owned(),
        };
        let positions = DeTable::parse(&text).map_err(|error| syntax(&error))?;
        let values: toml::Table = toml::from_str(&text).map_err(|error| syntax(&error))?;
        let at = |offset: usize| Origin::File {
            path: path.to_path_buf(),
            line: line_of(&text, offset),
        };
        for (section, content) in positions.get_ref() {
            let origin = at(section.span().start);
            let section = section.get_ref();
            let leaves = match content.get_ref() {
                DeValue::Table(leaves) if self.keys.has_section(section) => leaves,
                _ => return Err(self.no_section(section, origin)),
            };
            for key in leaves.keys() {
                let origin = at(key.span().start);
                let value = &values[section.as_ref()][key.get_ref().as_ref()];
                self.set(section, key.get_ref(), value.clone(), origin)?;
            }
        }
        Ok(())
    }

    fn no_section(&self, section: &str, origin: Origin) -> ConfigError {
        if self.keys.has_section(section) {
            return ConfigError::NotASection {
                section: section.to_owned(),
                origin,
            };
        }
        ConfigError::UnknownKey {
            key: section.to_owned(),
            origin,
            hint: self.keys.hint(section),
        }
    }

    /// Adds a variable if it is one of ours. `value` is none if the variable is not UTF-8.
    pub(super) fn add_variable(
        &mut self,
        name: &str,
        value: Option<&str>,
    ) -> Result<(), ConfigError> {
        if !name.starts_with(VARIABLE_PREFIX)
            || name == FILE_VARIABLE
            || FOREIGN_PREFIXES
                .iter()
                .any(|prefix| name.starts_with(prefix))
        {
            return Ok(());
        }
        let Some((section, key)) = self.keys.of_variable(name) else {
            return Err(ConfigError::UnknownVariable {
                name: name.to_owned(),
                hint: self.keys.variable_hint(name),
            });
        };
        let key = format!("{section}.{key}");
        let origin = Origin::Variable(name.to_owned());
        match value {
            Some(value) => self.add_text(&key, value, origin),
            None => Err(ConfigError::Value {
                key,
                value: None,
                problem: "not UTF-8".to_owned(),
                origin,
            }),
        }
    }

    /// Sets `key` from text. The type of the key's default decides how the text is read.
    pub(super) fn add_text(
        &mut self,
        key: &str,
        text: &str,
        origin: Origin,
    ) -> Result<(), ConfigError> {
        let (section, leaf) = key.split_once('.').unwrap_or((key, ""));
        let default = self.keys.default_of(section, leaf);
        let string = || toml::Value::from(text);
        let value = match default {
            Some(serde_json::Value::Number(_)) => {
                text.parse::<i64>().map_or_else(|_| string(), Into::into)
            }
            Some(serde_json::Value::Bool(_)) => {
                text.parse::<bool>().map_or_else(|_| string(), Into::into)
            }
            Some(serde_json::Value::Array(_)) => {
                let items = text.split(',').map(str::trim);
                items
                    .filter(|item| !item.is_empty())
                    .map(toml::Value::from)
                    .collect::<Vec<_>>()
                    .into()
            }
            _ => string(),
        };
        self.set(section, leaf, value, origin)
    }

    fn set(
        &mut self,
        section: &str,
        leaf: &str,
        value: toml::Value,
        origin: Origin,
    ) -> Result<(), ConfigError> {
        let key = if leaf.is_empty() {
            section.to_owned()
        } else {
            format!("{section}.{leaf}")
        };
        if self.keys.default_of(section, leaf).is_none() {
            return Err(ConfigError::UnknownKey {
                hint: self.keys.hint(&key),
                key,
                origin,
            });
        }
        let content = self
            .table
            .entry(section)
            .or_insert_with(|| toml::Table::new().into());
        if let Some(leaves) = content.as_table_mut() {
            leaves.insert(leaf.to_owned(), value);
        }
        self.origins.insert(key, origin);
        Ok(())
    }

    fn origin(&self, key: &str) -> Origin {
        self.origins.get(key).cloned().unwrap_or(Origin::Default)
    }

    /// The table as a configuration, with every limit and relation checked.
    pub(super) fn resolve(&self) -> Result<Config, ConfigError> {
        let config = serde_path_to_error::deserialize(self.table.clone())
            .map_err(|error| self.bad_value(&error))?;
        limits::check(&config, |key| self.origin(key))?;
        Ok(config)
    }

    fn bad_value(&self, error: &serde_path_to_error::Error<toml::de::Error>) -> ConfigError {
        let path = error.path().to_string();
        // An item of a list counts as the list: `client.groups[1]`.
        let key = path.split('[').next().unwrap_or_default().to_owned();
        let problem = limits::limit_of(&key).map_or_else(
            || error.inner().message().to_owned(),
            limits::Limit::describe,
        );
        ConfigError::Value {
            value: self.shown(&key),
            origin: self.origin(&key),
            key,
            problem,
        }
    }

    /// The value of a key for an error, unless it may hold a password.
    fn shown(&self, key: &str) -> Option<String> {
        let (section, leaf) = key.split_once('.')?;
        let value = self.table.get(section)?.get(leaf)?;
        let text = value.to_string();
        let may_be_secret = leaf == "dsn" || text.contains('@');
        (!may_be_secret).then_some(text)
    }

    /// A warning if the file holds a password and everybody may read it.
    pub(super) fn exposed(&self, path: &Path, config: &Config) -> Option<String> {
        let mode = std::fs::metadata(path).ok()?.permissions().mode();
        let from_file = |key: &str| matches!(self.origin(key), Origin::File { .. });
        let secret = (config.broker.dsn.has_password() && from_file("broker.dsn"))
            || (config.store.dsn.has_password() && from_file("store.dsn"));
        (secret && mode & WORLD_READABLE != 0).then(|| {
            let path = path.display();
            format!("{path} holds a password and everybody on this machine may read it: chmod o-r {path}")
        })
    }
}

/// The line of a byte offset, from 1.
fn line_of(text: &str, offset: usize) -> usize {
    let before = text.as_bytes().iter().take(offset);
    before.filter(|byte| **byte == b'\n').count() + 1
}
