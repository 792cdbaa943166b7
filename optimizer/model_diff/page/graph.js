"use strict";
/* One of the two graphs: its nodes, the tree of groups (modules, bodies, functions), and which edges run where. */

class Graph {
  constructor(side, index, matches) {
    this.title = side.title;
    this.index = index;
    this.count = side.count;
    this.constants = side.constants;
    this.groups = side.groups.map((g, id) => ({ id, isGroup: true, label: g[0], parent: g[1], isPart: Boolean(g[2]), path: g[3], children: [], total: 0, kinds: {} }));
    this.nodes = side.nodes.map((n, id) => ({
      id, label: n.l, op: n.o, parent: n.g, attributes: n.a || {}, inputs: n.i, outputs: n.t, makers: n.m || [], ends: n.b || [],
      match: matches[n.k], kind: matches[n.k].kind, isPort: matches[n.k].isPort,
    }));
    this.weights = side.weights;
    for (const group of this.groups) if (group.parent >= 0) this.groups[group.parent].children.push(group);
    for (const node of this.nodes) this._count(node);
    this.inner = this.groups.map(() => new Map());
    this.consumers = this.nodes.map(() => []);
    for (const node of this.nodes) {
      for (const input of node.inputs) if (input[1] >= 0) this._edge(input[1], node.id);
      for (const end of node.ends) this._edge(end, node.id);
    }
    for (const group of this.groups) group.children.sort((a, b) => this.first(a) - this.first(b));
  }

  get root() { return this.groups[0]; }

  /* The number of the first node in a group: the order of execution. */
  first(item) {
    if (!item.isGroup) return item.id;
    if (item.firstNode === undefined) item.firstNode = Math.min(Infinity, ...item.children.map((child) => this.first(child)));
    return item.firstNode;
  }

  ancestors(item) {
    const path = [];
    for (let id = item.parent; id >= 0; id = this.groups[id].parent) path.push(id);
    return path.reverse();
  }

  _count(node) {
    this.groups[node.parent].children.push(node);
    if (node.isPort) return;
    for (let id = node.parent; id >= 0; id = this.groups[id].parent) {
      const group = this.groups[id];
      group.total += 1;
      group.kinds[node.kind] = (group.kinds[node.kind] || 0) + 1;
    }
  }

  /* An edge belongs to the innermost group around both ends, where it joins two of the children. */
  _edge(from, to) {
    this.consumers[from].push(to);
    const up = [...this.ancestors(this.nodes[from])], down = [...this.ancestors(this.nodes[to])];
    let depth = 0;
    while (depth + 1 < up.length && depth + 1 < down.length && up[depth + 1] === down[depth + 1]) depth += 1;
    const ends = [[up, from], [down, to]].map(([path, id]) => (depth + 1 < path.length ? "g" + path[depth + 1] : "n" + id));
    if (ends[0] === ends[1]) return;
    const edges = this.inner[up[depth]], key = ends.join(">");
    if (!edges.has(key)) edges.set(key, { from: ends[0], to: ends[1], pairs: [] });
    edges.get(key).pairs.push([from, to]);
  }
}

const keyOf = (item) => (item.isGroup ? "g" : "n") + item.id;
