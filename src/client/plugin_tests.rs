use super::*;

pub(in super::super) fn registry(text: &str) -> Registry {
    let mut registry = Registry::default();
    registry.add(Path::new("x.cfg"), text);
    registry
}

/// Goal: on a reload, a file that is now broken keeps its last good version and says so; a deleted file's plugins are
/// gone.
#[test]
fn a_broken_file_keeps_its_last_good_version() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let write = |name: &str, text: &str| std::fs::write(path(name), text).unwrap();
    write("a.cfg", "[a]\ncommand = one\n");
    write("b.cfg", "[b]\ncommand = one\n[broken]\n");
    let first = Registry::load(folder.path()).unwrap();
    assert_eq!(first.names().collect::<Vec<_>>(), ["a", "b"]);

    write("a.cfg", "[a]\ncommand = two\n[c]\n");
    write("b.cfg", "[b]\ncommand = two\n");
    let second = first.reload(folder.path()).unwrap();
    assert_eq!(second.plugins["a"].program, "one");
    assert_eq!(second.plugins["b"].program, "two");
    let [problem] = &second.problems[..] else {
        panic!("{:?}", second.problems);
    };
    assert!(problem.message.ends_with(KEPT), "{problem}");

    std::fs::remove_file(path("b.cfg")).unwrap();
    write("a.cfg", "[a]\ncommand = three\n");
    let third = second.reload(folder.path()).unwrap();
    assert_eq!(third.plugins["a"].program, "three");
    assert_eq!((third.names().count(), third.problems.len()), (1, 0));
}

/// Goal: a user that this machine does not have is a problem with its line; an existing one is accepted.
#[test]
fn the_user_of_a_plugin_is_known() {
    let registry =
        registry("[a]\ncommand = x\nuser = root\n[b]\ncommand = x\nuser = no-such-one\n");
    if rustix::process::geteuid().is_root() {
        assert_eq!(registry.plugins["a"].user.as_deref(), Some("root"));
    }
    let problem = registry.problems.last().unwrap().to_string();
    assert!(
        problem.starts_with("x.cfg:4: [b]: \"user\" is \"no-such-one\""),
        "{problem}"
    );
}

/// Goal: every key arrives, and missing keys get their defaults.
#[test]
fn a_section_is_a_plugin() {
    let registry = registry(
        "[rpms]\nname = packages\ndescription = All\n  packages\ncommand = rpm -qa --qf '%{NAME} %{VERSION}\\n'\ncommand_alias = x\nresult_format = kv ; lines\nsuccess = 0, 1\ntimeout = 90s\nevery = 6h\nvolatile = /uptime, /load/0\n\n[bare]\ncommand: uptime\n",
    );
    assert_eq!(registry.problems, []);
    let plugin = &registry.plugins["packages"];
    assert_eq!(plugin.description, "All packages");
    assert_eq!(plugin.program, "rpm");
    assert_eq!(plugin.arguments, ["-qa", "--qf", "%{NAME} %{VERSION}\\n"]);
    assert_eq!(plugin.format, Format::Kv);
    assert_eq!(plugin.success, [0, 1]);
    assert_eq!(plugin.timeout, Some(Duration::from_secs(90)));
    assert_eq!(plugin.every, Some(Duration::from_hours(6)));
    assert_eq!(plugin.volatile.len(), 2);
    assert_eq!(plugin.place.to_string(), "x.cfg:1");
    let bare = &registry.plugins["bare"];
    assert_eq!(
        (bare.format, bare.timeout, bare.every),
        (Format::Output, None, None)
    );
}

/// Goal: each mistake is named with file and line, says what is allowed, and costs only its own section.
#[test]
fn mistakes_are_problems_with_file_and_line() {
    let cases = [
        (
            "commnd = x",
            2,
            "key \"commnd\" is not known; allowed are name, description, command",
        ),
        ("command =", 2, "\"command\" is empty"),
        ("command = ''", 2, "\"command\" is empty"),
        ("command = sh -c 'x", 2, "a quote that is not closed"),
        (
            "command = x\nresult_format = pylist",
            3,
            "allowed are json, yaml, output, string, raw, kv, csv",
        ),
        ("command = x\nsuccess = ok", 3, "such as \"0 1\""),
        (
            "command = x\ntimeout = soon",
            3,
            "\"soon\" is not a length of time",
        ),
        ("command = x\nevery = 0s", 3, "allowed are 1s to"),
        ("command = x\nvolatile = uptime", 3, "is not a JSON pointer"),
        ("command = x\nnonsense", 3, "is no \"key = value\""),
        ("description = x", 1, "\"command\" is missing"),
        ("command = x\nname = _id", 1, "may not start with '_'"),
        ("command = x\nname = client", 1, "is the client's own"),
        ("command = x\nname = vogeler", 1, "reserved"),
    ];
    for (lines, line, expected) in cases {
        let registry = registry(&format!("[bad]\n{lines}\n[good]\ncommand = true\n"));
        let problem = registry.problems[0].to_string();
        assert!(
            problem.starts_with(&format!("x.cfg:{line}: ")),
            "{lines}: {problem}"
        );
        assert!(problem.contains(expected), "{lines}: {problem}");
        assert_eq!(registry.names().collect::<Vec<_>>(), ["good"], "{lines}");
    }
}

/// Goal: of two plugins of one name the first stays, and the problem names both places.
#[test]
fn the_first_of_two_plugins_stays() {
    let mut registry = Registry::default();
    registry.add(Path::new("a.cfg"), "[x]\ncommand = one\n");
    registry.add(Path::new("b.cfg"), "\n[x]\ncommand = two\n");
    assert_eq!(registry.plugins["x"].program, "one");
    let problem = registry.problems[0].to_string();
    assert!(
        problem.starts_with("b.cfg:2: ") && problem.contains("a.cfg:1"),
        "{problem}"
    );
}

/// Goal: a folder is read in the order of names; unreadable files are problems, a missing folder is an error.
#[test]
fn a_folder_is_read_in_order() {
    let folder = tempfile::tempdir().unwrap();
    let write =
        |name: &str, content: &[u8]| std::fs::write(folder.path().join(name), content).unwrap();
    write("20.cfg", b"[x]\ncommand = later\n");
    write("10.cfg", b"[x]\ncommand = first\n");
    write("30.cfg", b"[y]\ncommand = \xff\n");
    write("readme.txt", b"[z]\ncommand = not-read\n");
    write(".hidden.cfg", b"[z]\ncommand = not-read\n");
    std::fs::create_dir(folder.path().join("40.cfg")).unwrap();
    let registry = Registry::load(folder.path()).unwrap();
    assert_eq!(registry.plugins["x"].program, "first");
    assert_eq!(registry.names().count(), 1);
    let lines: Vec<_> = registry
        .problems
        .iter()
        .map(|problem| problem.line)
        .collect();
    assert_eq!(lines, [1, 2, 1]);
    assert!(registry.problems[1].message.contains("not UTF-8"));

    let missing = Registry::load(&folder.path().join("none"))
        .unwrap_err()
        .to_string();
    assert!(
        missing.contains("/none cannot be read") && missing.contains("client.plugins"),
        "{missing}"
    );
}
