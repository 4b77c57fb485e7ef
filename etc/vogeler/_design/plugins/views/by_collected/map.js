function (doc) {
  // Plugins by the time they last ran: startkey ["rpms"] endkey ["rpms", "2026-01-01"] are the nodes whose
  // rpms are older than that. Costs one small row a plugin and node.
  var own = { doc_type: 1, system_name: 1, created_at: 1, updated_at: 1, last_error: 1, vogeler: 1, syskey: 1, format: 1 };
  if (doc.doc_type === "SystemRecord") {
    var booked = doc.vogeler && doc.vogeler.plugins;
    for (var name in doc) {
      if (name.charAt(0) !== "_" && name.charAt(0) !== "@" && !own.hasOwnProperty(name) &&
          (!booked || Object.prototype.hasOwnProperty.call(booked, name))) {
        emit([name, (booked && booked[name] && booked[name].collected_at) || null], null);
      }
    }
  }
}
