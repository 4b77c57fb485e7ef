function (doc) {
  // Values by plugin: key "facter" gives every node's facter. Nothing in vogeler needs it.
  // Costs a copy of every value on disk, as much again as the documents: leave this folder out if that is too much.
  var own = { doc_type: 1, system_name: 1, created_at: 1, updated_at: 1, last_error: 1, vogeler: 1, syskey: 1, format: 1 };
  if (doc.doc_type === "SystemRecord") {
    var booked = doc.vogeler && doc.vogeler.plugins;
    for (var name in doc) {
      if (name.charAt(0) !== "_" && name.charAt(0) !== "@" && !own.hasOwnProperty(name) &&
          (!booked || Object.prototype.hasOwnProperty.call(booked, name))) {
        emit(name, doc[name]);
      }
    }
  }
}
