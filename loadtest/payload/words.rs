//! The words of the distributions: releases, packages and daemons, by their real names.

use crate::plan::Distribution;

/// A distribution's own words.
#[derive(Debug)]
pub(super) struct Words {
    pub(super) os: &'static str,
    pub(super) family: &'static str,
    pub(super) release: [&'static str; 2],
    pub(super) codename: &'static str,
    pub(super) kernel: &'static str,
    /// The end of a package's version.
    pub(super) suffix: &'static str,
    /// Endings that split a source package into several.
    pub(super) parts: &'static [&'static str],
    /// Packages that only such machines have.
    pub(super) packages: &'static [&'static str],
    /// Processes that only such machines have.
    pub(super) daemons: &'static [&'static str],
}

/// The words of `distribution`.
pub(super) fn of(distribution: Distribution) -> &'static Words {
    match distribution {
        Distribution::Rhel => &RHEL,
        Distribution::Centos => &CENTOS,
        Distribution::Debian => &DEBIAN,
        Distribution::Ubuntu => &UBUNTU,
    }
}

const RPM_PARTS: &[&str] = &[
    "",
    "-libs",
    "-devel",
    "-common",
    "-doc",
    "-selinux",
    "-filesystem",
];
const DEB_PARTS: &[&str] = &[
    "", "-common", "-dev", "-data", "-bin", "-doc", "-dbgsym", "-utils",
];
const RPM_PACKAGES: &[&str] = &[
    "dnf",
    "rpm",
    "selinux-policy",
    "policycoreutils",
    "firewalld",
    "chrony",
    "NetworkManager",
    "redhat-lsb-core",
    "tuned",
    "sssd",
    "authselect",
    "crypto-policies",
    "dracut",
    "kexec-tools",
];
const DEB_PACKAGES: &[&str] = &[
    "apt",
    "dpkg",
    "debconf",
    "apparmor",
    "ifupdown",
    "initramfs-tools",
    "systemd-timesyncd",
    "adduser",
    "base-files",
    "init-system-helpers",
    "libc6",
    "mawk",
    "perl-base",
    "ucf",
];
const RPM_DAEMONS: &[&str] = &[
    "/usr/sbin/chronyd -F 2",
    "/usr/sbin/NetworkManager --no-daemon",
    "/usr/lib/polkit-1/polkitd --no-debug",
    "/usr/bin/python3 -Es /usr/sbin/tuned -l -P",
    "/usr/sbin/sssd -i --logger=files",
];
const DEB_DAEMONS: &[&str] = &[
    "/lib/systemd/systemd-timesyncd",
    "/usr/sbin/cron -f",
    "/usr/bin/dbus-daemon --system",
    "/usr/bin/python3 /usr/bin/unattended-upgrade-shutdown --wait-for-signal",
    "/usr/sbin/rsyslogd -n",
];

const RHEL: Words = Words {
    os: "RedHat",
    family: "RedHat",
    release: ["9", "4"],
    codename: "Plow",
    kernel: "5.14.0-427.13.1.el9_4.x86_64",
    suffix: ".el9_4.x86_64",
    parts: RPM_PARTS,
    packages: RPM_PACKAGES,
    daemons: RPM_DAEMONS,
};
const CENTOS: Words = Words {
    os: "CentOS",
    release: ["9", "0"],
    codename: "Stream",
    kernel: "5.14.0-480.el9.x86_64",
    suffix: ".el9.x86_64",
    ..RHEL
};
const DEBIAN: Words = Words {
    os: "Debian",
    family: "Debian",
    release: ["12", "7"],
    codename: "bookworm",
    kernel: "6.1.0-25-amd64",
    suffix: "+deb12u1",
    parts: DEB_PARTS,
    packages: DEB_PACKAGES,
    daemons: DEB_DAEMONS,
};
const UBUNTU: Words = Words {
    os: "Ubuntu",
    release: ["24.04", "1"],
    codename: "noble",
    kernel: "6.8.0-45-generic",
    suffix: "ubuntu2.1",
    ..DEBIAN
};

/// Source packages that all distributions have.
pub(super) const STEMS: [&str; 84] = [
    "acl",
    "attr",
    "audit",
    "autoconf",
    "bash",
    "bind",
    "binutils",
    "bison",
    "boost",
    "bzip2",
    "ca-certificates",
    "cairo",
    "coreutils",
    "cpio",
    "cronie",
    "cryptsetup",
    "cups",
    "curl",
    "dbus",
    "device-mapper",
    "dmidecode",
    "e2fsprogs",
    "elfutils",
    "ethtool",
    "expat",
    "file",
    "findutils",
    "flex",
    "fontconfig",
    "freetype",
    "gawk",
    "gcc",
    "gdb",
    "gdbm",
    "git",
    "glib2",
    "gmp",
    "gnupg2",
    "gnutls",
    "grep",
    "groff",
    "grub2",
    "gzip",
    "haproxy",
    "iproute",
    "iptables",
    "java-17-openjdk",
    "jq",
    "kmod",
    "krb5",
    "less",
    "libxml2",
    "libxslt",
    "logrotate",
    "lvm2",
    "make",
    "mariadb",
    "ncurses",
    "nettle",
    "nginx",
    "nss",
    "openldap",
    "openssh",
    "openssl",
    "pam",
    "pcre2",
    "perl",
    "php",
    "postgresql",
    "python3",
    "readline",
    "rsync",
    "ruby",
    "samba",
    "sed",
    "sqlite",
    "sudo",
    "systemd",
    "tar",
    "tzdata",
    "util-linux",
    "vim",
    "xz",
    "zlib",
];

/// Families of add-ons, of which a machine may have hundreds.
pub(super) const FAMILIES: [&str; 12] = [
    "python3-",
    "perl-",
    "ruby-",
    "php-",
    "golang-",
    "node-",
    "texlive-",
    "fonts-",
    "lib",
    "rust-",
    "java-",
    "gstreamer1-",
];

/// Processes of servers, whatever the distribution.
pub(super) const DAEMONS: [&str; 14] = [
    "/usr/sbin/sshd -D",
    "nginx: worker process",
    "postgres: checkpointer",
    "postgres: walwriter",
    "/usr/sbin/haproxy -Ws -f /etc/haproxy/haproxy.cfg",
    "php-fpm: pool www",
    "/usr/sbin/mariadbd --basedir=/usr",
    "/usr/bin/node_exporter --web.listen-address=:9100",
    "/usr/bin/containerd",
    "/usr/bin/dockerd -H fd://",
    "/usr/bin/java -Xmx4g -XX:+UseG1GC -jar /opt/app/app.jar",
    "/usr/lib/postfix/sbin/master -w",
    "/usr/bin/redis-server 127.0.0.1:6379",
    "gunicorn: worker [app.wsgi:application]",
];

/// What a machine is for; part of its name.
pub(super) const ROLES: [&str; 6] = ["web", "db", "cache", "build", "queue", "mail"];
