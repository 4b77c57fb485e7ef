//! Reads INI text as Python's `ConfigParser` does, and records the line of every element.
//!
//! Goes in: text. Comes out: sections and problems. Invariant: a line that cannot be read breaks its own section and
//! no other.
//!
//! A line is `key = value` or `key: value`; an indented line continues the value before it. A line that starts with
//! `#` or `;` is a comment. So is the rest of a line from a `;` after white space, unless the `;` is in quotes.

/// A section: the lines from its heading to the next heading.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Section {
    pub(super) name: String,
    /// Line of the heading, from 1.
    pub(super) line: usize,
    pub(super) entries: Vec<Entry>,
    /// Its lines that are not entries. A section with problems must not be used.
    pub(super) problems: Vec<LineProblem>,
}

/// A key and its value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    /// In lower case.
    pub(super) key: String,
    pub(super) value: String,
    /// Line of the key, from 1.
    pub(super) line: usize,
}

/// What is wrong with a line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct LineProblem {
    /// From 1.
    pub(super) line: usize,
    pub(super) message: String,
}

impl LineProblem {
    pub(super) fn new(line: usize, message: impl Into<String>) -> Self {
        Self {
            line,
            message: message.into(),
        }
    }
}

/// The sections of a file in order, and the problems that belong to none.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Ini {
    pub(super) sections: Vec<Section>,
    pub(super) problems: Vec<LineProblem>,
}

/// Reads `text`. Never fails as a whole.
pub(super) fn parse(text: &str) -> Ini {
    let mut ini = Ini::default();
    for (index, raw) in text.lines().enumerate() {
        let line = index + 1;
        let content = raw.trim();
        if content.is_empty() || content.starts_with(['#', ';']) {
            continue;
        }
        let is_indented = raw.starts_with([' ', '\t']);
        if content.starts_with('[') && !is_indented {
            ini.sections.push(heading(content, line));
            continue;
        }
        let Some(section) = ini.sections.last_mut() else {
            let message = format!("{content:?} stands before the first [section]");
            ini.problems.push(LineProblem::new(line, message));
            continue;
        };
        section.read(without_comment(content), is_indented, line);
    }
    ini
}

/// Reads a heading. A malformed one still opens a section, so its lines do not end up in the section before.
fn heading(content: &str, line: usize) -> Section {
    let bare = without_comment(content);
    let name = bare
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'))
        .map(str::trim);
    let problem = match name {
        None => Some(format!("the heading {content:?} does not end with ']'")),
        Some("") => Some("the heading names no section".to_owned()),
        Some(_) => None,
    };
    Section {
        name: name.unwrap_or_default().to_owned(),
        line,
        entries: Vec::new(),
        problems: problem
            .map(|message| LineProblem::new(line, message))
            .into_iter()
            .collect(),
    }
}

impl Section {
    fn read(&mut self, content: &str, is_indented: bool, line: usize) {
        if let (true, Some(entry)) = (is_indented, self.entries.last_mut()) {
            entry.value.push('\n');
            entry.value.push_str(content);
            return;
        }
        let (key, value) = match content.split_once(['=', ':']) {
            Some((key, value)) if !key.trim().is_empty() => {
                (key.trim().to_lowercase(), value.trim())
            }
            _ => {
                let message = format!("{content:?} is no \"key = value\"");
                self.problems.push(LineProblem::new(line, message));
                return;
            }
        };
        if let Some(first) = self.entries.iter().find(|entry| entry.key == key) {
            let message = format!("{key:?} is set a second time, first in line {}", first.line);
            self.problems.push(LineProblem::new(line, message));
        }
        self.entries.push(Entry {
            key,
            value: value.to_owned(),
            line,
        });
    }
}

/// Cuts the comment that starts with `;` after white space, outside of quotes: `sh -c 'a ; b'` stays whole.
fn without_comment(content: &str) -> &str {
    let mut quote = None;
    let mut previous = ' ';
    for (at, character) in content.char_indices() {
        match quote {
            Some(open) if character == open && previous != '\\' => quote = None,
            None if character == ';' && previous.is_whitespace() => {
                return content[..at].trim_end();
            }
            // An apostrophe inside a word ("machine's") opens nothing.
            None if matches!(character, '\'' | '"') && !previous.is_alphanumeric() => {
                quote = Some(character);
            }
            _ => {}
        }
        previous = character;
    }
    content
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn only(text: &str) -> Section {
        let mut ini = parse(text);
        assert!(ini.problems.is_empty(), "{:?}", ini.problems);
        assert_eq!(ini.sections.len(), 1);
        ini.sections.remove(0)
    }

    fn values(section: &Section) -> Vec<(&str, &str, usize)> {
        let entries = section.entries.iter();
        entries
            .map(|entry| (entry.key.as_str(), entry.value.as_str(), entry.line))
            .collect()
    }

    /// Goal: both delimiters, comments of all kinds, empty values and continuation lines, with their lines.
    #[test]
    fn reads_what_configparser_reads() {
        let section = only(
            "# top\n\n[rpms]  ; why\nDescription: The machine's packages ; here\ncommand = sh -c 'a ; b'\n  \"c\"\n; note\n\n\td\nempty =\n",
        );
        assert_eq!(section.name, "rpms");
        assert_eq!(section.line, 3);
        assert_eq!(
            values(&section),
            [
                ("description", "The machine's packages", 4),
                ("command", "sh -c 'a ; b'\n\"c\"\nd", 5),
                ("empty", "", 10),
            ]
        );
        assert!(section.problems.is_empty());
    }

    /// Goal: each problem names its line and stays in its own section.
    #[test]
    fn a_broken_section_takes_no_other_with_it() {
        let ini = parse("lost = 1\n[a]\nx = 1\n[b\ny = 2\n[c]\nnonsense\nz = 3\nz = 4\n[]\n[d]\n");
        assert_eq!(ini.problems[0].line, 1);
        let names: Vec<_> = ini
            .sections
            .iter()
            .map(|section| section.name.as_str())
            .collect();
        assert_eq!(names, ["a", "", "c", "", "d"]);
        let lines = |index: usize| {
            let problems = ini.sections[index].problems.iter();
            problems.map(|problem| problem.line).collect::<Vec<_>>()
        };
        assert_eq!(
            [lines(0), lines(1), lines(2), lines(3), lines(4)],
            [vec![], vec![4], vec![7, 9], vec![10], vec![]]
        );
        assert_eq!(values(&ini.sections[0]), [("x", "1", 3)]);
    }

    proptest! {
        /// Any text is read without a crash, and lines are lines of the text.
        #[test]
        fn any_text_is_read(text in "[\\[\\]a-c=:;#'\" \t\né\\\\]{0,200}") {
            let lines = text.lines().count();
            let ini = parse(&text);
            prop_assert!(ini.problems.iter().all(|problem| (1..=lines).contains(&problem.line)));
            prop_assert!(ini.sections.iter().all(|section| (1..=lines).contains(&section.line)));
        }
    }
}
