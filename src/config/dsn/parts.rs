//! The parts of a DSN. Each is checked; its error says what is allowed and never repeats a password.

use std::path::PathBuf;

use percent_encoding::percent_decode_str;
use url::Url;

use super::{DsnError, STORE_FORMS};

/// Longest name of a CouchDB database, in bytes: CouchDB's own limit.
const DATABASE_BYTES_MAX: usize = 238;

/// The scheme, if the text has one. It is safe to print, since no password comes before the first `:`.
pub(super) fn scheme(text: &str) -> Option<&str> {
    let (scheme, _) = text.split_once(':')?;
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.');
    (!scheme.is_empty() && scheme.chars().all(plain)).then_some(scheme)
}

pub(super) fn unknown_scheme(
    scheme: Option<&str>,
    text: &str,
    what: &str,
    forms: &str,
) -> DsnError {
    // `user:password@host` has a user in the scheme's place: the error repeats only what stands before `://`.
    match scheme.filter(|scheme| text[scheme.len()..].starts_with("://")) {
        Some(scheme) => DsnError(format!(
            "{scheme:?} is not a kind of {what}; allowed are {forms}"
        )),
        None => DsnError(format!(
            "it does not start with a kind of {what} such as {forms}"
        )),
    }
}

pub(super) fn memory(text: &str, forms: &str) -> Result<(), DsnError> {
    match text {
        "memory:" | "memory://" => Ok(()),
        _ => Err(DsnError(format!(
            "nothing may follow \"memory:\"; allowed are {forms}"
        ))),
    }
}

pub(super) fn sqlite(text: &str) -> Result<PathBuf, DsnError> {
    let path = text.strip_prefix("sqlite:").unwrap_or_default();
    let path = path.strip_prefix("//").unwrap_or(path);
    match path {
        "" => Err(DsnError(
            "the path is missing: sqlite:/PATH/TO/FILE".to_owned(),
        )),
        ":memory:" => Err(DsnError(
            "a store in memory is written \"memory:\", a file sqlite:/PATH/TO/FILE".to_owned(),
        )),
        path => Ok(PathBuf::from(path)),
    }
}

pub(super) fn parse_url(text: &str, forms: &str) -> Result<Url, DsnError> {
    let url = Url::parse(text).map_err(|error| match error {
        url::ParseError::InvalidPort => DsnError(
            "the port is not a number from 1 to 65535 (in a password, '/' is written %2f, '#' %23, '?' %3f)"
                .to_owned(),
        ),
        error => DsnError(format!("{error}: write it as {forms}")),
    })?;
    if url.host_str().is_none_or(str::is_empty) {
        return Err(DsnError(format!(
            "the host is missing: write it as {forms}"
        )));
    }
    // In such a URL part of the password stands in the path, query or fragment, where it would be printed.
    let misplaced = url.query().is_some_and(|query| query.contains('@'));
    if url.path().contains('@') || misplaced || url.fragment().is_some() {
        return Err(DsnError(
            "there is a '@' or '#' after the host (in a password, '/' is written %2f, '#' %23, '?' %3f, '@' %40)"
                .to_owned(),
        ));
    }
    if url.port() == Some(0) {
        return Err(DsnError(
            "the port is not a number from 1 to 65535".to_owned(),
        ));
    }
    Ok(url)
}

/// User and password, decoded; a user alone has an empty password.
pub(super) fn credentials(url: &Url) -> Result<Option<(String, String)>, DsnError> {
    let decode = |text: &str, what: &str| {
        percent_decode_str(text)
            .decode_utf8()
            .map(String::from)
            .map_err(|_| DsnError(format!("the {what} is not UTF-8 once its %xx are decoded")))
    };
    if url.username().is_empty() && url.password().is_none() {
        return Ok(None);
    }
    let user = decode(url.username(), "user")?;
    let password = decode(url.password().unwrap_or_default(), "password")?;
    Ok(Some((user, password)))
}

/// The database that a path names, by CouchDB's own rule.
pub(super) fn database(path: &str) -> Result<String, DsnError> {
    let segment = path.trim_start_matches('/').trim_end_matches('/');
    if segment.is_empty() {
        return Err(DsnError(format!(
            "the name of the database is missing: {STORE_FORMS}"
        )));
    }
    let bad = |problem: &str| DsnError(format!("the name of the database {problem}"));
    if segment.contains('/') {
        return Err(bad("is one part of a path; a '/' in it is written %2f"));
    }
    let name = percent_decode_str(segment)
        .decode_utf8()
        .map_err(|_| bad("is not UTF-8 once its %xx are decoded"))?;
    if name.len() > DATABASE_BYTES_MAX {
        return Err(bad(&format!(
            "is {} bytes long, at most {DATABASE_BYTES_MAX} are allowed",
            name.len()
        )));
    }
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "_$()+-/".contains(c);
    if !name.starts_with(|c: char| c.is_ascii_lowercase()) || !name.chars().all(allowed) {
        return Err(bad(
            "starts with a letter a-z and goes on with a-z, 0-9 and _$()+-/ (CouchDB's rule)",
        ));
    }
    Ok(name.into_owned())
}
