function (doc) {
  // Every distinct item of every plugin's value: `vogeler find --plugin rpms --contains openssl`. An item is a line of
  // a string, an object's key, or another scalar; 256 characters of it count. With group=true: the fleet's distinct items.
  // The dearest of the views, about one row a line that a node reported: leave this folder out to do without --contains.
  var own = { doc_type: 1, system_name: 1, created_at: 1, updated_at: 1, last_error: 1, vogeler: 1, syskey: 1, format: 1 };
  var LENGTH_MAX = 256;
  function addLines(text, seen) {
    var lines = text.split("\n");
    for (var i = 0; i < lines.length; i++) {
      var line = lines[i].replace(/\r$/, "");
      if (line.length > LENGTH_MAX) {
        // Half a character is none.
        var last = line.charCodeAt(LENGTH_MAX - 1);
        line = line.substring(0, last >= 0xd800 && last <= 0xdbff ? LENGTH_MAX - 1 : LENGTH_MAX);
      }
      if (line !== "") {
        seen["$" + line] = true;
      }
    }
  }
  function itemsOf(value) {
    var seen = {};
    var open = [value];
    while (open.length > 0) {
      var next = open.pop();
      if (typeof next === "string") {
        addLines(next, seen);
      } else if (next !== null && typeof next === "object") {
        var isArray = Array.isArray(next);
        for (var key in next) {
          if (!isArray) {
            addLines(key, seen);
          }
          open.push(next[key]);
        }
      } else {
        seen["$" + String(next)] = true;
      }
    }
    return seen;
  }
  if (doc.doc_type === "SystemRecord") {
    var booked = doc.vogeler && doc.vogeler.plugins;
    for (var name in doc) {
      if (name.charAt(0) !== "_" && name.charAt(0) !== "@" && !own.hasOwnProperty(name) &&
          (!booked || Object.prototype.hasOwnProperty.call(booked, name))) {
        for (var item in itemsOf(doc[name])) {
          emit([name, item.substring(1)], null);
        }
      }
    }
  }
}
