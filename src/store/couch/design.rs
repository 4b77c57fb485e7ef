//! Design documents: read from a folder in the layout of CouchApp, and written if they differ from those in the
//! database.
//!
//! The layout: `<ddoc>/views/<view>/{map,reduce}.js`, `<ddoc>/language`, `<ddoc>/validate_doc_update.js`, and
//! `<ddoc>/autoupdate.json`, which is `false` if CouchDB must not build indexes before somebody asks. An unchanged
//! design document is not written: CouchDB would build its indexes again.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use reqwest::Method;
use serde_json::{Map, Value};

use super::StoreError;
use super::client::Client;
use crate::store::Designs;

/// Attempts to read and write a design document, since another set-up may write it in between.
const TRIES_MAX: u32 = 3;

/// A design document as in its folder.
#[derive(Debug, PartialEq)]
pub(super) struct Design {
    name: String,
    members: Map<String, Value>,
}

/// Reads the design documents to load, by name.
pub(super) fn read(designs: Designs<'_>) -> Result<Vec<Design>, StoreError> {
    match designs {
        Designs::None => Ok(Vec::new()),
        Designs::Shipped => Ok(shipped()),
        Designs::Folder(folder) => read_folder(folder),
    }
}

/// The design documents that ship in the program. Their files have the same layout.
fn shipped() -> Vec<Design> {
    let mut designs: BTreeMap<&str, Map<String, Value>> = BTreeMap::new();
    for file in crate::shipped::below("_design") {
        let Some((name, rest)) = file.path.split_once('/') else {
            continue;
        };
        let members = designs.entry(name).or_default();
        let parts: Vec<_> = rest
            .split('/')
            .map(|part| part.trim_end_matches(".js"))
            .collect();
        let text = file.text.trim();
        match parts[..] {
            ["views", view, part] => {
                let views = members.entry("views");
                views.or_insert_with(|| Value::Object(Map::new()))[view][part] = text.into();
            }
            ["autoupdate.json"] => {
                members.insert("autoupdate".to_owned(), (text == "true").into());
            }
            _ => {
                members.insert(rest.to_owned(), text.into());
            }
        }
    }
    let of = |(name, members): (&str, _)| Design {
        name: name.to_owned(),
        members,
    };
    designs.into_iter().map(of).collect()
}

fn read_folder(folder: &Path) -> Result<Vec<Design>, StoreError> {
    let mut designs = Vec::new();
    for (name, path) in folders(folder)? {
        let mut members = Map::new();
        let mut views = Map::new();
        for (view, path) in optional(folders(&path.join("views")), &path.join("views"))? {
            views.insert(view, Value::Object(read_view(&path)?));
        }
        if !views.is_empty() {
            members.insert("views".to_owned(), Value::Object(views));
        }
        for (file, member) in [
            ("language", "language"),
            ("validate_doc_update.js", "validate_doc_update"),
        ] {
            if let Some(text) = read_text(&path.join(file))? {
                members.insert(member.to_owned(), text.into());
            }
        }
        let autoupdate = path.join("autoupdate.json");
        if let Some(text) = read_text(&autoupdate)? {
            let is_on: bool = serde_json::from_str(&text)
                .map_err(|_| file_error(&autoupdate, "it must be true or false"))?;
            members.insert("autoupdate".to_owned(), is_on.into());
        }
        designs.push(Design { name, members });
    }
    Ok(designs)
}

fn read_view(path: &Path) -> Result<Map<String, Value>, StoreError> {
    let mut view = Map::new();
    for part in ["map", "reduce"] {
        if let Some(text) = read_text(&path.join(part).with_extension("js"))? {
            view.insert(part.to_owned(), text.into());
        }
    }
    if view.contains_key("map") {
        Ok(view)
    } else {
        Err(file_error(path, "a view needs a map.js"))
    }
}

/// The folders in `path`, by name, without hidden ones.
fn folders(path: &Path) -> Result<Vec<(String, PathBuf)>, StoreError> {
    let mut found = Vec::new();
    for entry in fs::read_dir(path).map_err(|error| file_error(path, error))? {
        let path = entry.map_err(|error| file_error(path, error))?.path();
        let name = path
            .file_name()
            .map(|name| name.to_string_lossy().into_owned());
        match name {
            Some(name) if path.is_dir() && !name.starts_with('.') => found.push((name, path)),
            _ => {}
        }
    }
    found.sort();
    Ok(found)
}

/// A folder that need not be there.
fn optional<T>(found: Result<Vec<T>, StoreError>, path: &Path) -> Result<Vec<T>, StoreError> {
    if path.exists() { found } else { Ok(Vec::new()) }
}

fn read_text(path: &Path) -> Result<Option<String>, StoreError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text.trim().to_owned())),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(file_error(path, error)),
    }
}

fn file_error(path: &Path, reason: impl std::fmt::Display) -> StoreError {
    StoreError::File {
        path: path.display().to_string(),
        reason: reason.to_string(),
    }
}

/// Writes `design` if it differs from the one in the database, and returns what it did.
pub(super) async fn load(client: &Client, design: &Design) -> Result<String, StoreError> {
    let path = ["_design", design.name.as_str()];
    let mut tries = 0;
    loop {
        tries += 1;
        let reply = client.send(Method::GET, &path, &[], None).await?;
        let mut there: Map<String, Value> = match reply.status {
            404 if !super::client::is_database_missing(&reply.error()) => Map::new(),
            _ => client.parse(&reply)?,
        };
        let revision = there.remove("_rev");
        there.remove("_id");
        if revision.is_some() && there == design.members {
            return Ok(format!("_design/{} is up to date", design.name));
        }
        let mut body = design.members.clone();
        if let Some(revision) = &revision {
            body.insert("_rev".to_owned(), revision.clone());
        }
        let json = Value::Object(body).to_string().into_bytes();
        let reply = client.send(Method::PUT, &path, &[], Some(json)).await?;
        if reply.status == 409 && tries < TRIES_MAX {
            continue;
        }
        if !reply.is_success() {
            return Err(client.error(&reply));
        }
        return Ok(design.report(revision.is_some()));
    }
}

impl Design {
    fn report(&self, was_there: bool) -> String {
        let did = if was_there { "updated" } else { "loaded" };
        let views = self.members.get("views").and_then(Value::as_object);
        let views = views.map_or(0, Map::len);
        let noun = if views == 1 { "view" } else { "views" };
        format!("{did} _design/{} ({views} {noun})", self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: the shipped design documents are the same read from the program and from the folder, and every view has a
    /// map function.
    #[test]
    fn shipped_design_documents_are_read() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("etc/vogeler/_design");
        let designs = read_folder(&folder).unwrap();
        assert_eq!(shipped(), designs);
        let names: Vec<_> = designs.iter().map(|design| design.name.as_str()).collect();
        assert_eq!(names, ["items", "packages", "plugins", "values"]);
        for design in &designs {
            let views = design.members["views"].as_object().unwrap();
            for view in views.values() {
                // Engines differ in how they read a text that does not start with the function.
                let map = view["map"].as_str().unwrap();
                assert!(map.starts_with("function"), "{}: {map}", design.name);
            }
        }
    }

    /// Goal: a folder that is not there, and a view without a map, are errors that name the path.
    #[test]
    fn bad_folders_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let missing = folder.path().join("nothing");
        let error = read_folder(&missing).unwrap_err().to_string();
        assert!(error.starts_with(&missing.display().to_string()), "{error}");
        let view = folder.path().join("d/views/v");
        fs::create_dir_all(&view).unwrap();
        let error = read_folder(folder.path()).unwrap_err().to_string();
        assert!(
            error.ends_with("d/views/v: a view needs a map.js"),
            "{error}"
        );
    }

    /// Goal: language and validate_doc_update are optional parts, read with the blank ends cut off.
    #[test]
    fn optional_parts_are_read() {
        let folder = tempfile::tempdir().unwrap();
        let design = folder.path().join("guard");
        fs::create_dir_all(&design).unwrap();
        fs::write(design.join("language"), "javascript\n").unwrap();
        fs::write(design.join("validate_doc_update.js"), "function(n){}\n").unwrap();
        let designs = read_folder(folder.path()).unwrap();
        assert_eq!(designs[0].members["language"], "javascript");
        assert_eq!(designs[0].members["validate_doc_update"], "function(n){}");
        assert_eq!(designs[0].report(false), "loaded _design/guard (0 views)");
    }
}
