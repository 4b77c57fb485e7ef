//! The key `user =`: the user that a plugin runs as, looked up in the system's user database (files, LDAP, …).
//!
//! Invariant: a program started for a user has that user's number, group and further groups, and none of ours.

use std::ffi::CString;
use std::io;
use std::path::PathBuf;
use std::process::{Child, Command};

use rustix::process::geteuid;
use rustix::thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid};
use rustix::{process::Gid, process::Uid};

/// A user of this machine.
#[derive(Debug)]
pub(super) struct User {
    name: String,
    uid: Uid,
    gid: Gid,
    groups: Vec<Gid>,
    home: PathBuf,
}

/// Why nothing can run as a user.
#[derive(Debug, thiserror::Error)]
pub(super) enum UserError {
    /// There is no user of this name.
    #[error("\"user\" is {0:?}: this machine has no such user")]
    Unknown(String),
    /// The database cannot be asked.
    #[error("\"user\" is {name:?}: the system cannot be asked about that user: {source}")]
    Lookup {
        /// The user's name.
        name: String,
        /// What the system said.
        #[source]
        source: nix::Error,
    },
    /// Only root may become another user.
    #[error("\"user\" is {0:?}: only a client that runs as root can run a plugin as another user")]
    NotRoot(String),
}

impl User {
    /// Looks the user up, who must be one that this process may become.
    pub(super) fn find(name: &str) -> Result<Self, UserError> {
        let lookup = |source| UserError::Lookup {
            name: name.to_owned(),
            source,
        };
        let unknown = || UserError::Unknown(name.to_owned());
        let known = nix::unistd::User::from_name(name).map_err(lookup)?;
        let known = known.ok_or_else(unknown)?;
        let uid = Uid::from_raw(known.uid.as_raw());
        let own = geteuid();
        if !own.is_root() && own != uid {
            return Err(UserError::NotRoot(name.to_owned()));
        }
        let c_name = CString::new(name).map_err(|_| unknown())?;
        let groups = nix::unistd::getgrouplist(&c_name, known.gid).map_err(lookup)?;
        Ok(Self {
            name: known.name,
            uid,
            gid: Gid::from_raw(known.gid.as_raw()),
            groups: groups
                .iter()
                .map(|gid| Gid::from_raw(gid.as_raw()))
                .collect(),
            home: known.dir,
        })
    }

    /// Starts `command` as this user. The kernel keeps the user per thread. So a separate thread becomes the user, and
    /// the program it starts inherits that; the rest of this process keeps its own user.
    pub(super) fn spawn(self, mut command: Command) -> io::Result<Child> {
        command
            .env("HOME", &self.home)
            .env("USER", &self.name)
            .env("LOGNAME", &self.name);
        let spawn = move || {
            self.become_in_this_thread()?;
            command.spawn()
        };
        let spawned = std::thread::spawn(spawn).join();
        spawned.unwrap_or_else(|_| Err(io::Error::other("the thread that starts it failed")))
    }

    fn become_in_this_thread(&self) -> io::Result<()> {
        if geteuid().is_root() {
            set_thread_groups(&self.groups)?;
            set_thread_res_gid(self.gid, self.gid, self.gid)?;
        }
        Ok(set_thread_res_uid(self.uid, self.uid, self.uid)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: an unknown user is an error that says so.
    #[test]
    fn an_unknown_user_is_an_error() {
        let error = User::find("nobody-of-this-name").unwrap_err().to_string();
        assert!(error.contains("no such user"), "{error}");
    }
}
