function (doc) {
  // Packages by name, from every package manager: `vogeler find --package bash`. The value names the plugin.
  // Costs one small row a package and node, a few hundred to a few thousand a machine.
  var readers = {
    // name-version-release.arch; a text with one dash is taken for name-version
    rpms: function (line) {
      var at = line.lastIndexOf("-");
      if (at < 0) { return line; }
      var before = line.lastIndexOf("-", at - 1);
      return at > 0 && before >= 0 ? line.substring(0, before) : line.substring(0, at);
    },
    // name:arch version
    dpkg: function (line) { return line.split(/[ \t:]/)[0]; },
    // name==version
    pip: wordOf,
    // name (versions)
    gem: wordOf
  };
  function wordOf(line) {
    var found = /^[A-Za-z0-9][A-Za-z0-9._-]*/.exec(line);
    return found ? found[0] : "";
  }
  function linesOf(value) {
    var texts = typeof value === "string" ? [value] : Array.isArray(value) ? value : [];
    var lines = [];
    for (var i = 0; i < texts.length; i++) {
      if (typeof texts[i] === "string") {
        var parts = texts[i].split("\n");
        for (var j = 0; j < parts.length; j++) {
          lines.push(parts[j]);
        }
      }
    }
    return lines;
  }
  function has(object, key) {
    return Object.prototype.hasOwnProperty.call(object, key);
  }
  if (doc.doc_type === "SystemRecord") {
    var booked = doc.vogeler && doc.vogeler.plugins;
    var isHeld = function (plugin) { return has(doc, plugin) && (!booked || has(booked, plugin)); };
    for (var plugin in readers) {
      if (isHeld(plugin)) {
        var seen = {};
        var lines = linesOf(doc[plugin]);
        for (var i = 0; i < lines.length; i++) {
          var line = lines[i].replace(/\r$/, "");
          var name = line === "" ? "" : readers[plugin](line);
          if (name !== "" && !has(seen, "$" + name)) {
            seen["$" + name] = true;
            emit(name, plugin);
          }
        }
      }
    }
    var listed = isHeld("npm") && doc.npm && doc.npm.dependencies;
    if (listed && typeof listed === "object" && !Array.isArray(listed)) {
      for (var dependency in listed) {
        emit(dependency, "npm");
      }
    }
  }
}
