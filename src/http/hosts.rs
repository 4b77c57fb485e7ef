//! Which `Host` a request may name. Pure.
//!
//! A stranger's page can make its own name point at this machine (DNS rebinding). The browser of somebody who can reach
//! us then sends us that page's requests. Such a request has the stranger's name in `Host`, so it is refused.
//! Invariant: no name is accepted that is not the machine's own, listed in `http.hosts`, or `localhost`.

use std::net::IpAddr;

use axum::http::uri::Authority;
use axum::http::{HeaderMap, Uri, Version, header};

use crate::config::HttpHost;

/// What is accepted.
#[derive(Debug, Clone)]
pub struct Hosts {
    /// We listen on loopback: only this machine can ask, so no other address is accepted.
    is_loopback: bool,
    /// The machine's own name, in lower case.
    machine: String,
    listed: Vec<HttpHost>,
}

impl Hosts {
    /// For a socket on `listen`, on a machine called `machine`.
    pub fn new(listen: IpAddr, machine: &str, listed: Vec<HttpHost>) -> Self {
        Self {
            is_loopback: listen.to_canonical().is_loopback(),
            machine: machine.to_ascii_lowercase(),
            listed,
        }
    }

    /// Whether a request with this head may be answered. Only HTTP/1.0, which does not require `Host`, may omit it:
    /// probes of load balancers do, browsers do not.
    pub(super) fn accepts(&self, version: Version, uri: &Uri, headers: &HeaderMap) -> bool {
        let mut named = headers.get_all(header::HOST).iter();
        let (first, second) = (named.next(), named.next());
        let is_ours = |authority: &str| self.is_ours(authority);
        match (uri.authority(), first) {
            _ if second.is_some() => false,
            (None, None) => version <= Version::HTTP_10,
            (of_uri, of_header) => {
                of_uri.is_none_or(|authority| is_ours(authority.as_str()))
                    && of_header.is_none_or(|value| value.to_str().is_ok_and(is_ours))
            }
        }
    }

    /// Whether `authority`, a host with or without a port, is us. The port does not count: a tunnel may use another.
    fn is_ours(&self, authority: &str) -> bool {
        let Ok(authority) = authority.parse::<Authority>() else {
            return false;
        };
        if authority.as_str().contains('@') {
            return false;
        }
        let host = authority.host().trim_end_matches('.').to_ascii_lowercase();
        if self.listed.iter().any(|listed| listed.matches(&host)) || host == "localhost" {
            return true;
        }
        match host.trim_matches(['[', ']']).parse::<IpAddr>() {
            // Rebinding needs a name: a page loaded from an address can ask only that address.
            Ok(address) => !self.is_loopback || address.to_canonical().is_loopback(),
            Err(_) => !self.is_loopback && !host.is_empty() && host == self.machine,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hosts(listen: &str, listed: &[&str]) -> Hosts {
        let listed = listed.iter().map(|text| text.parse().unwrap()).collect();
        Hosts::new(listen.parse().unwrap(), "Db1", listed)
    }

    /// Goal: on loopback only loopback and listed hosts are ours; elsewhere any address and the machine's name are,
    /// too.
    #[test]
    fn strangers_names_are_refused() {
        let local = [
            "localhost",
            "localhost:9877",
            "LOCALHOST.",
            "127.0.0.1:1",
            "127.8.8.8",
            "[::1]:9877",
            "[::ffff:127.0.0.1]",
        ];
        let remote = [
            "10.0.0.5:9877",
            "192.168.1.1",
            "[fe80::1]",
            "db1",
            "DB1:9877",
        ];
        let listed = [
            "vogeler.example.com",
            "a.metrics.example.com:80",
            "B.METRICS.EXAMPLE.COM.",
        ];
        let strange = [
            "evil.example",
            "localhost.evil.example",
            "metrics.example.com",
            "db1.evil.example",
            "",
            ":80",
            "a b",
            "u@localhost",
            "127.0.0.1.evil.example",
            "0x7f.1",
        ];
        let names = ["vogeler.example.com.", "*.metrics.example.com"];
        for (listen, is_remote_ours) in [
            ("127.0.0.1", false),
            ("::1", false),
            ("0.0.0.0", true),
            ("10.0.0.5", true),
        ] {
            let (bare, with_names) = (hosts(listen, &[]), hosts(listen, &names));
            for host in local {
                assert!(bare.is_ours(host), "{listen} {host}");
            }
            for host in remote {
                assert_eq!(bare.is_ours(host), is_remote_ours, "{listen} {host}");
            }
            for host in listed {
                assert!(
                    !bare.is_ours(host) && with_names.is_ours(host),
                    "{listen} {host}"
                );
            }
            for host in strange {
                assert!(
                    !bare.is_ours(host) && !with_names.is_ours(host),
                    "{listen} {host}"
                );
            }
        }
        assert!(hosts("127.0.0.1", &["*"]).is_ours("evil.example"));
    }

    /// Goal: only HTTP/1.0 may omit `Host`, two `Host` headers are refused, and the host in the request line counts
    /// too.
    #[test]
    fn every_way_to_name_a_host_is_looked_at() {
        let ours = hosts("127.0.0.1", &[]);
        let accepts = |version, uri: &str, named: &[&str]| {
            let mut headers = HeaderMap::new();
            for host in named {
                headers.append(header::HOST, host.parse().unwrap());
            }
            ours.accepts(version, &uri.parse().unwrap(), &headers)
        };
        assert!(accepts(Version::HTTP_10, "/", &[]));
        assert!(!accepts(Version::HTTP_11, "/", &[]));
        assert!(accepts(Version::HTTP_11, "/", &["localhost"]));
        assert!(!accepts(Version::HTTP_11, "/", &["localhost", "localhost"]));
        assert!(accepts(
            Version::HTTP_11,
            "http://localhost/",
            &["localhost"]
        ));
        assert!(!accepts(
            Version::HTTP_11,
            "http://evil.example/",
            &["localhost"]
        ));
        assert!(!accepts(
            Version::HTTP_10,
            "http://localhost/",
            &["evil.example"]
        ));
    }
}
