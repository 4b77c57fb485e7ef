function (doc) {
  // All nodes by name, with their plugins and groups: `vogeler node list`. The reduce counts them.
  // Costs one small row a node.
  var own = { doc_type: 1, system_name: 1, created_at: 1, updated_at: 1, last_error: 1, vogeler: 1, syskey: 1, format: 1 };
  // The plugins whose value is there; a document of 2010 has no bookkeeping, so every other member counts.
  function pluginsOf(doc) {
    var booked = doc.vogeler && doc.vogeler.plugins;
    var names = [];
    for (var name in doc) {
      if (name.charAt(0) !== "_" && name.charAt(0) !== "@" && !own.hasOwnProperty(name) &&
          (!booked || Object.prototype.hasOwnProperty.call(booked, name))) {
        names.push(name);
      }
    }
    return names.sort();
  }
  if (doc.doc_type === "SystemRecord") {
    var groups = doc.client && doc.client.groups;
    emit(doc.system_name, {
      updated_at: doc.updated_at || null,
      plugins: pluginsOf(doc),
      groups: Array.isArray(groups) ? groups : []
    });
  }
}
