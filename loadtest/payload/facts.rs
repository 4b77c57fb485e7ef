//! Facts as `facter -j` prints them. The same things make them large here as on real machines: interfaces and mount
//! points of containers.

use super::words::{self, Words};
use super::{Machine, push};
use crate::rng::Draws;

pub(super) fn text(machine: &Machine, version: u64, bytes: usize, draws: &mut Draws) -> String {
    let words = words::of(machine.distribution);
    let mut text = String::with_capacity(bytes + 1024);
    let cores = 1 << draws.below(6);
    os(&mut text, words);
    machine_facts(&mut text, cores, draws);
    moving(&mut text, version, cores);
    identity(&mut text, machine, draws);
    // The facts of containers: each of the two kinds gets half of the bytes that are left.
    let middle = usize::midpoint(text.len(), bytes);
    text.push_str(
        r#","mountpoints":{"/":{"device":"/dev/sda2","filesystem":"xfs","size_bytes":53660876800}"#,
    );
    let mut number = 0;
    while text.len() < middle {
        mount_point(&mut text, number, draws);
        number += 1;
    }
    text.push_str(r#"},"networking":{"#);
    push(
        &mut text,
        format_args!(
            r#""fqdn":"{}","primary":"eth0","interfaces":{{"#,
            machine.name
        ),
    );
    interface(&mut text, "eth0", draws);
    let mut number = 0;
    while text.len() + 320 < bytes {
        text.push(',');
        interface(&mut text, &format!("veth{number:04x}"), draws);
        number += 1;
    }
    text.push_str("}}}");
    text
}

fn os(text: &mut String, words: &Words) {
    let Words {
        os,
        family,
        release: [major, minor],
        codename,
        kernel,
        ..
    } = words;
    push(
        text,
        format_args!(
            concat!(
                r#"{{"os":{{"name":"{}","family":"{}","architecture":"x86_64","release":{{"full":"{}.{}","major":"{}","#,
                r#""minor":"{}"}},"distro":{{"id":"{}","codename":"{}"}},"selinux":{{"enabled":{}}}}},"#,
                r#""kernel":"Linux","kernelrelease":"{}","#
            ),
            os,
            family,
            major,
            minor,
            major,
            minor,
            os,
            codename,
            *family == "RedHat",
            kernel
        ),
    );
}

fn machine_facts(text: &mut String, cores: u64, draws: &mut Draws) {
    let memory = (1 << draws.between(1, 8)) * 1_073_741_824_u64;
    let serial = draws.next();
    push(
        text,
        format_args!(
            concat!(
                r#""virtual":"kvm","is_virtual":true,"dmi":{{"manufacturer":"QEMU","product":{{"name":"Standard PC","#,
                r#""serial_number":"{:016x}"}},"bios":{{"vendor":"SeaBIOS","version":"1.16.3"}}}},"#,
                r#""memory":{{"system":{{"total_bytes":{}}},"swap":{{"total_bytes":2147479552}}}},"#,
                r#""processors":{{"count":{},"isa":"x86_64","models":["#
            ),
            serial, memory, cores
        ),
    );
    for core in 0..cores {
        text.push_str(if core == 0 { "" } else { "," });
        text.push_str(r#""Intel(R) Xeon(R) Gold 6338 CPU @ 2.00GHz""#);
    }
    text.push_str("]},");
}

/// The facts that change from one collection to the next.
fn moving(text: &mut String, version: u64, cores: u64) {
    let seconds = 86_400 + version * 900;
    push(
        text,
        format_args!(
            r#""collections":{version},"system_uptime":{{"seconds":{seconds},"days":{}}},"load_averages":{{"1m":"{}.{:02}"}},"#,
            seconds / 86_400,
            version % (cores + 1),
            version * 37 % 100
        ),
    );
}

fn identity(text: &mut String, machine: &Machine, draws: &mut Draws) {
    let (host, domain) = machine.name.split_once('.').unwrap_or((&machine.name, ""));
    push(
        text,
        format_args!(
            concat!(
                r#""hostname":"{}","domain":"{}","identity":{{"user":"root","uid":0,"privileged":true}},"timezone":"UTC","#,
                r#""path":"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin","facterversion":"4.7.0","#,
                r#""ssh":{{"ed25519":{{"fingerprints":{{"sha256":"SSHFP 4 2 {:016x}{:016x}"}},"type":"ssh-ed25519"}}}}"#
            ),
            host,
            domain,
            draws.next(),
            draws.next()
        ),
    );
}

fn mount_point(text: &mut String, number: u32, draws: &mut Draws) {
    push(
        text,
        format_args!(
            concat!(
                r#","/var/lib/containers/storage/overlay/{:016x}{:04x}/merged":{{"device":"overlay","filesystem":"overlay","#,
                r#""options":["rw","relatime","lowerdir=/var/lib/containers/storage/overlay/l/{:012X}"],"size_bytes":{}}}"#
            ),
            draws.next(),
            number,
            draws.next() >> 16,
            1_073_741_824 * draws.between(1, 200)
        ),
    );
}

fn interface(text: &mut String, name: &str, draws: &mut Draws) {
    let [_, subnet, third, host, ..] = draws.next().to_le_bytes();
    push(
        text,
        format_args!(
            concat!(
                r#""{}":{{"ip":"10.{}.{}.{}","netmask":"255.255.0.0","network":"10.{}.0.0","mac":"52:54:00:{:02x}:{:02x}:{:02x}","#,
                r#""mtu":1500,"bindings":[{{"address":"10.{}.{}.{}","netmask":"255.255.0.0","network":"10.{}.0.0"}}],"scope6":"link"}}"#
            ),
            name, subnet, third, host, subnet, subnet, third, host, subnet, third, host, subnet
        ),
    );
}
