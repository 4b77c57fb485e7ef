//! Plugins: what the `*.cfg` files of the plugin folder allow this node to run.
//!
//! Goes in: a folder. Comes out: a [`Registry`]. Invariant: a plugin is registered exactly if its whole section is
//! understood and only root and we can have written it. Everything else is a [`Problem`] that names file and line, and
//! does not affect the other plugins.

use std::collections::BTreeMap;
use std::fmt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::ini::{self, LineProblem, Section};
use super::trust;
use super::user::{User, UserError};
use crate::config::span;
use crate::hash::Pointer;
use crate::wire::{CLIENT_PLUGIN, Format, PluginName};

/// Largest plugin file, in bytes: far above any that people write.
pub const FILE_BYTES_MAX: u64 = 1024 * 1024;
/// Extension of plugin files.
const FILE_EXTENSION: &str = "cfg";
/// Shortest `timeout` and `every`. With a shorter one a plugin could only be killed, or would never rest.
const SPAN_MIN: Duration = Duration::from_secs(1);
/// Longest `timeout` and `every`. With a longer one somebody mistook the unit.
const SPAN_MAX: Duration = Duration::from_hours(31 * 24);
/// Keys of 2010 that are accepted but no longer mean anything.
const KEYS_IGNORED: [&str; 1] = ["command_alias"];
const KEYS: &str =
    "name, description, command, user, result_format, success, timeout, every, volatile";

/// Appended to the problem of a broken file of which an earlier version is in use.
const KEPT: &str = " (the file's last good version stays in use)";

/// A plugin: a command of this node, and how to read what it prints.
#[derive(Debug, Clone)]
pub struct Plugin {
    /// Its name: the section's, unless the key `name` says otherwise.
    pub name: PluginName,
    /// One line for people; empty where the file has none.
    pub description: String,
    /// The program, absolute or looked up in `execute::PATH`.
    pub program: String,
    /// Its arguments. No shell sees them.
    pub arguments: Vec<String>,
    /// The user it runs as; none for the user of the client.
    pub user: Option<String>,
    /// What the output looks like. Default: lines (`output`).
    pub format: Format,
    /// Exit statuses with which its output counts. Default: 0 alone. Some tools exit with 1 after good output: facter
    /// 4 does if a single fact could not be found out.
    pub success: Vec<i32>,
    /// How long it may run; none for the client's default.
    pub timeout: Option<Duration>,
    /// How often it also runs on schedule; none for never.
    pub every: Option<Duration>,
    /// Parts of the value whose changes do not make a result "changed".
    pub volatile: Vec<Pointer>,
    /// Where it is defined.
    pub place: Place,
}

impl Plugin {
    /// Whether its program is an executable file where the client would look for it.
    pub fn is_runnable(&self) -> bool {
        let is_executable = |path: PathBuf| {
            path.metadata()
                .is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0)
        };
        if self.program.contains('/') {
            return is_executable(PathBuf::from(&self.program));
        }
        super::execute::PATH
            .split(':')
            .any(|folder| is_executable(Path::new(folder).join(&self.program)))
    }
}

/// A line of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The file.
    pub file: PathBuf,
    /// The line, from 1.
    pub line: usize,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file.display(), self.line)
    }
}

/// A part of a plugin file that is not used, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Which file.
    pub file: PathBuf,
    /// Which line, from 1.
    pub line: usize,
    /// What is wrong and what is allowed.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.file.display(), self.line, self.message)
    }
}

/// The plugin folder cannot be read at all.
#[derive(Debug, thiserror::Error)]
#[error(
    "the plugin folder {} cannot be read: {source}; create it or set client.plugins",
    folder.display()
)]
pub struct FolderError {
    /// Which folder.
    pub folder: PathBuf,
    /// What the system said.
    #[source]
    pub source: std::io::Error,
}

/// The plugins of a folder.
#[derive(Debug, Default)]
pub struct Registry {
    /// The plugins that may run.
    pub plugins: BTreeMap<PluginName, Plugin>,
    /// The parts that are not used, in the order of files and lines.
    pub problems: Vec<Problem>,
    /// The files whose last version without problems is in use, and that version.
    sound: BTreeMap<PathBuf, Vec<Plugin>>,
}

impl Registry {
    /// Reads every `*.cfg` of `folder` in the order of names. Hidden files are skipped. Files that somebody else may
    /// change are refused.
    pub fn load(folder: &Path) -> Result<Self, FolderError> {
        Self::default().reload(folder)
    }

    /// Reads the folder again. A file that is now broken keeps its last good version.
    pub fn reload(&self, folder: &Path) -> Result<Self, FolderError> {
        let files = files(folder).map_err(|source| FolderError {
            folder: folder.to_owned(),
            source,
        })?;
        let mut registry = Self::default();
        if let Err(reason) = trust::check(folder) {
            registry.problem(folder, LineProblem::new(1, reason));
            return Ok(self.keep(registry));
        }
        for file in files {
            registry.add_file(&file, self.sound.get(&file));
        }
        Ok(registry)
    }

    /// Keeps the last good versions in use, since nothing can be read now.
    fn keep(&self, mut registry: Self) -> Self {
        for (file, sound) in &self.sound {
            registry.register_sound(file, sound.clone());
        }
        registry
    }

    /// Registers the content of a file. If the file is broken and has an earlier version, registers `before` instead.
    fn add_file(&mut self, file: &Path, before: Option<&Vec<Plugin>>) {
        let (plugins, mut problems) = match read(file) {
            Ok(text) => parse(file, &text),
            Err(problem) => (Vec::new(), vec![problem]),
        };
        if problems.is_empty() {
            return self.register_sound(file, plugins);
        }
        if let Some(before) = before {
            for problem in &mut problems {
                problem.message += KEPT;
            }
            self.register_sound(file, before.clone());
        } else {
            self.register_all(plugins);
        }
        self.problems(file, problems);
    }

    fn register_sound(&mut self, file: &Path, plugins: Vec<Plugin>) {
        self.sound.insert(file.to_owned(), plugins.clone());
        self.register_all(plugins);
    }

    fn register_all(&mut self, plugins: Vec<Plugin>) {
        for plugin in plugins {
            self.register(plugin);
        }
    }

    /// The names, in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.plugins.keys().map(PluginName::as_str)
    }

    /// Registers the plugins in `text`, the content of `file`, whoever wrote it.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(crate) fn add(&mut self, file: &Path, text: &str) {
        let (plugins, problems) = parse(file, text);
        self.register_all(plugins);
        self.problems(file, problems);
    }

    fn register(&mut self, plugin: Plugin) {
        match self.plugins.get(&plugin.name) {
            None => {
                self.plugins.insert(plugin.name.clone(), plugin);
            }
            Some(first) => {
                let message = format!(
                    "plugin {:?} exists already, in {}; this one is not used",
                    plugin.name.as_str(),
                    first.place
                );
                let Place { file, line } = plugin.place;
                self.problem(&file, LineProblem::new(line, message));
            }
        }
    }

    fn problems(&mut self, file: &Path, problems: Vec<LineProblem>) {
        for problem in problems {
            self.problem(file, problem);
        }
    }

    fn problem(&mut self, file: &Path, problem: LineProblem) {
        self.problems.push(Problem {
            file: file.to_owned(),
            line: problem.line,
            message: problem.message,
        });
    }
}

/// The plugin files of a folder, in order.
fn files(folder: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        let is_hidden = path
            .file_name()
            .is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        if path
            .extension()
            .is_some_and(|extension| extension == FILE_EXTENSION)
            && !is_hidden
        {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// The plugins in `text`, the content of `file`, and what is wrong with it.
fn parse(file: &Path, text: &str) -> (Vec<Plugin>, Vec<LineProblem>) {
    let ini = ini::parse(text);
    let mut problems = ini.problems;
    let mut plugins = Vec::new();
    for section in ini.sections {
        match plugin(file, section) {
            Ok(plugin) => plugins.push(plugin),
            Err(found) => problems.extend(found),
        }
    }
    (plugins, problems)
}

fn read(file: &Path) -> Result<String, LineProblem> {
    let problem = |message: String| LineProblem::new(1, message);
    trust::check(file).map_err(problem)?;
    let unreadable = |error: std::io::Error| problem(format!("the file cannot be read: {error}"));
    let metadata = std::fs::metadata(file).map_err(unreadable)?;
    if !metadata.is_file() {
        return Err(problem("this is no regular file".to_owned()));
    }
    if metadata.len() > FILE_BYTES_MAX {
        let message = format!(
            "the file has {} bytes, at most {FILE_BYTES_MAX} are read",
            metadata.len()
        );
        return Err(problem(message));
    }
    let bytes = std::fs::read(file).map_err(unreadable)?;
    String::from_utf8(bytes).map_err(|error| {
        let good = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        let line = good.split(|byte| *byte == b'\n').count();
        LineProblem::new(line, "the file is not UTF-8 from here on")
    })
}

/// The plugin that a section describes, or everything that is wrong with it.
fn plugin(file: &Path, section: Section) -> Result<Plugin, Vec<LineProblem>> {
    let mut draft = Draft::default();
    let mut problems = section.problems;
    for entry in section.entries {
        if let Err(message) = draft.set(&entry.key, &entry.value) {
            problems.push(LineProblem::new(
                entry.line,
                format!("[{}]: {message}", section.name),
            ));
        }
    }
    if !problems.is_empty() {
        problems.sort_by_key(|problem| problem.line);
        return Err(problems);
    }
    let problem = |message: String| vec![LineProblem::new(section.line, message)];
    let name = draft.name.as_deref().unwrap_or(&section.name);
    let name = PluginName::new(name).map_err(|error| problem(error.to_string()))?;
    if name.as_str() == CLIENT_PLUGIN {
        let message =
            format!("the name {CLIENT_PLUGIN:?} is the client's own, call the plugin otherwise");
        return Err(problem(message));
    }
    let Some((program, arguments)) = draft.command else {
        return Err(problem(format!(
            "[{}]: \"command\" is missing",
            section.name
        )));
    };
    if let Some(Err(error @ (UserError::Unknown(_) | UserError::NotRoot(_)))) =
        draft.user.as_deref().map(User::find)
    {
        return Err(problem(format!("[{}]: {error}", section.name)));
    }
    Ok(Plugin {
        name,
        description: draft.description,
        program,
        arguments,
        user: draft.user,
        format: draft.format.unwrap_or(Format::Output),
        success: draft.success.unwrap_or_else(|| vec![0]),
        timeout: draft.timeout,
        every: draft.every,
        volatile: draft.volatile,
        place: Place {
            file: file.to_owned(),
            line: section.line,
        },
    })
}

/// A plugin while its keys are read.
#[derive(Debug, Default)]
struct Draft {
    name: Option<String>,
    description: String,
    command: Option<(String, Vec<String>)>,
    user: Option<String>,
    format: Option<Format>,
    success: Option<Vec<i32>>,
    timeout: Option<Duration>,
    every: Option<Duration>,
    volatile: Vec<Pointer>,
}

impl Draft {
    fn set(&mut self, key: &str, value: &str) -> Result<(), String> {
        match key {
            "name" => self.name = Some(value.to_owned()),
            "description" => {
                self.description = value.split_whitespace().collect::<Vec<_>>().join(" ");
            }
            "command" => self.command = Some(command(value)?),
            "user" => self.user = Some(user(value)?),
            "result_format" => self.format = Some(format(value)?),
            "success" => self.success = Some(statuses(value)?),
            "timeout" => self.timeout = Some(length(key, value)?),
            "every" => self.every = Some(length(key, value)?),
            "volatile" => self.volatile = pointers(value)?,
            _ if KEYS_IGNORED.contains(&key) => {}
            _ => return Err(format!("key {key:?} is not known; allowed are {KEYS}")),
        }
        Ok(())
    }
}

fn command(value: &str) -> Result<(String, Vec<String>), String> {
    let words = shell_words::split(value)
        .map_err(|_| format!("\"command\" has a quote that is not closed: {value}"))?;
    let mut words = words.into_iter();
    match words.next() {
        Some(program) if !program.is_empty() => Ok((program, words.collect())),
        _ => Err("\"command\" is empty".to_owned()),
    }
}

fn user(value: &str) -> Result<String, String> {
    if value.is_empty() {
        return Err("\"user\" is empty".to_owned());
    }
    Ok(value.to_owned())
}

fn format(value: &str) -> Result<Format, String> {
    let known = value.parse::<Format>().ok();
    known
        .filter(|format| Format::OF_PLUGINS.contains(format))
        .ok_or_else(|| {
            let allowed: Vec<_> = Format::OF_PLUGINS
                .iter()
                .map(|format| format.as_str())
                .collect();
            format!(
                "\"result_format\" is {value:?}; allowed are {}",
                allowed.join(", ")
            )
        })
}

fn length(key: &str, value: &str) -> Result<Duration, String> {
    let length = span::parse(value).map_err(|error| format!("\"{key}\": {error}"))?;
    if !(SPAN_MIN..=SPAN_MAX).contains(&length) {
        let (min, max) = (span::format(SPAN_MIN), span::format(SPAN_MAX));
        return Err(format!(
            "\"{key}\" is {value:?}; allowed are {min} to {max}"
        ));
    }
    Ok(length)
}

fn words(value: &str) -> impl Iterator<Item = &str> {
    value
        .split([' ', '\t', '\n', ','])
        .filter(|word| !word.is_empty())
}

fn statuses(value: &str) -> Result<Vec<i32>, String> {
    let status = |word: &str| word.parse::<u8>().map(i32::from);
    match words(value).map(status).collect::<Result<Vec<_>, _>>() {
        Ok(statuses) if !statuses.is_empty() => Ok(statuses),
        _ => Err(format!(
            "\"success\" is {value:?}; allowed are exit statuses, 0 to 255, such as \"0 1\""
        )),
    }
}

fn pointers(value: &str) -> Result<Vec<Pointer>, String> {
    words(value)
        .map(|word| Pointer::parse(word).map_err(|error| format!("\"volatile\": {error}")))
        .collect()
}

#[cfg(test)]
#[path = "plugin_tests.rs"]
pub(super) mod tests;
