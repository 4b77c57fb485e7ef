function (doc) {
  // Nodes by the time their document last changed, in milliseconds of Unix time: the server counts those that were
  // heard of lately. Costs one small row a node.
  if (doc.doc_type === "SystemRecord") {
    var time = Date.parse(doc.updated_at);
    emit(isNaN(time) ? null : time, null);
  }
}
