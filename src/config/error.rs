//! What is wrong with a configuration, and where: every error names the key, the value unless it may hold a password,
//! what is allowed, and the file and line, variable or flag it came from.

use std::fmt;
use std::path::PathBuf;

/// Where a setting came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// Nobody set it.
    Default,
    /// The file, at this line (from 1).
    File {
        /// Which file.
        path: PathBuf,
        /// Which line, from 1.
        line: usize,
    },
    /// An environment variable, by name.
    Variable(String),
    /// A flag, as it is spelled.
    Flag(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File { path, line } => write!(f, "{}:{line}", path.display()),
            Self::Variable(name) => f.write_str(name),
            Self::Flag(flag) => f.write_str(flag),
        }
    }
}

/// Why there is no usable configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration {}: {source}{}", path.display(), read_hint(source))]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is not TOML.
    #[error("{}:{line}: not TOML: {problem}", path.display())]
    Syntax {
        /// Which file.
        path: PathBuf,
        /// Which line, from 1.
        line: usize,
        /// What the parser says, without the line's text: it may hold a password.
        problem: String,
    },
    /// A key that does not exist.
    #[error("{origin}: there is no setting {key}; {hint}")]
    UnknownKey {
        /// The key found, dotted.
        key: String,
        /// Where.
        origin: Origin,
        /// The nearest key, or all there are.
        hint: String,
    },
    /// An environment variable that has our prefix but belongs to no setting.
    #[error("the environment variable {name} sets nothing; {hint}")]
    UnknownVariable {
        /// Its name.
        name: String,
        /// The nearest variable.
        hint: String,
    },
    /// A section's name with a value instead of keys.
    #[error("{origin}: {section} is a section: write [{section}] and its keys below it")]
    NotASection {
        /// Which section.
        section: String,
        /// Where.
        origin: Origin,
    },
    /// A value that is not allowed.
    #[error("{origin}: {key}{}: {problem}", shown(value.as_deref()))]
    Value {
        /// The key, dotted.
        key: String,
        /// The value as it was written; none where it may hold a password.
        value: Option<String>,
        /// What is wrong or allowed.
        problem: String,
        /// Where.
        origin: Origin,
    },
    /// Values that do not go together.
    #[error("{problem}")]
    Relation {
        /// Which keys, their values, and why.
        problem: String,
    },
    /// `--set` without `=`.
    #[error("{flag} takes SECTION.KEY=VALUE, such as server.prefetch=200")]
    FlagShape {
        /// Which flag.
        flag: String,
    },
}

/// What to do when the file may not be read: the packages let only root and the group read it, since it holds passwords.
fn read_hint(source: &std::io::Error) -> &'static str {
    match source.kind() {
        std::io::ErrorKind::PermissionDenied => {
            "; join its group (usermod -aG vogeler NAME, then log in again), or name another file with --config"
        }
        _ => "",
    }
}

fn shown(value: Option<&str>) -> String {
    value.map_or_else(String::new, |value| format!(" = {value}"))
}
