//! Names that the HTTP side accepts as `Host`: `vogeler.example.com`, `*.example.com`, an address, or `*`.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// One entry of `http.hosts`, in lower case.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct HttpHost(String);

impl HttpHost {
    /// Whether the entry covers `host`, which is in lower case and without its port.
    pub fn matches(&self, host: &str) -> bool {
        match self.0.strip_prefix('*') {
            Some("") => true,
            Some(suffix) => host.len() > suffix.len() && host.ends_with(suffix),
            None => host.trim_matches(['[', ']']) == self.0,
        }
    }
}

impl FromStr for HttpHost {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        // A name may end with the dot of the root; requests are compared without it.
        let mut host = text.trim().to_ascii_lowercase();
        if host.ends_with('.') && host != "*." {
            host.pop();
        }
        let bare = host.trim_matches(['[', ']']);
        if let Ok(address) = bare.parse::<IpAddr>() {
            return Ok(Self(address.to_string()));
        }
        let name = host.strip_prefix("*.").unwrap_or(&host);
        let is_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        if host == "*" || (!name.is_empty() && !name.starts_with('.') && name.chars().all(is_name))
        {
            return Ok(Self(host));
        }
        Err(format!(
            "{text:?} is no host: write a name or an address without a port, \"*.example.com\" for all names of a domain, \
             or \"*\" for any"
        ))
    }
}

impl TryFrom<String> for HttpHost {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<HttpHost> for String {
    fn from(host: HttpHost) -> Self {
        host.0
    }
}

impl fmt::Display for HttpHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: names, domains, addresses and "any" are read; the error for a port, a URL or nothing says what is allowed.
    #[test]
    fn hosts_are_names_or_addresses() {
        let host = |text: &str| text.parse::<HttpHost>();
        assert!(
            host(" Vogeler.Example.com")
                .unwrap()
                .matches("vogeler.example.com")
        );
        assert!(host("[::1]").unwrap().matches("[::1]"));
        let domain = host("*.example.com").unwrap();
        assert!(domain.matches("a.example.com") && domain.matches("a.b.example.com"));
        assert!(
            !domain.matches("example.com")
                && !domain.matches(".example.com")
                && !domain.matches("aexample.com")
        );
        for bad in ["", "a:80", "http://a", "*.", "a.*.b", "*a", "a b", "a/"] {
            assert!(host(bad).unwrap_err().contains("without a port"), "{bad}");
        }
    }
}
