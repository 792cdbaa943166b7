"use strict";
/* The column at the right: all differences, or all about the chosen node. */

function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

const dot = (kind) => element("span", { className: "dot", style: `background: var(--${kind})` });

function badge(kind) {
  return element("span", { className: "badge", style: `background: var(--${kind})` , textContent: KINDS[kind] });
}

class Panel {
  constructor(root, app) {
    this.root = root;
    this.app = app;
  }

  overview(kinds) {
    const { app } = this, parts = [];
    const matches = kinds.length ? app.nodeMatches.filter((match) => kinds.includes(match.kind)) : app.differences;
    const alike = this._alike(matches), limit = 300;
    const title = kinds.length ? kinds.map((kind) => KINDS[kind]).join(", ") : matches.length === 1 ? "difference" : "differences";
    parts.push(element("h3", { textContent: matches.length ? `${matches.length} ${title}` : "No node differs" }));
    parts.push(...alike.slice(0, limit).map((group) => this._row(group)));
    if (alike.length > limit) parts.push(element("p", { className: "dim", textContent: `and ${alike.length - limit} more: choose a kind above, or search` }));
    const { weights, interface: outside } = app.data;
    if (outside.length) parts.push(element("h3", { textContent: "Inputs, outputs, opsets" }), ...outside.map((text) => element("p", { textContent: text })));
    if (weights.length) parts.push(element("h3", { textContent: `${weights.length} weights` }), ...this._weights(weights));
    this.root.replaceChildren(...parts);
    this.root.scrollTop = 0;
  }

  details(side, node) {
    const { app } = this, graph = app.graphs[side], match = node.match;
    const parts = [
      element("p", {}, element("button", { className: "link", textContent: "‹ All differences", onclick: () => app.select(null) })),
      element("p", { className: "big", textContent: node.op }),
      element("p", { textContent: node.label }),
      element("p", { className: "dim", textContent: `${graph.title} · ${graph.groups[node.parent].path || "top level"}` }),
      element("p", {}, badge(match.kind), match.by ? element("span", { className: "dim", textContent: `  matched by ${match.by}` }) : ""),
    ];
    const passes = match.passes.length ? match.passes : node.makers;
    if (passes.length) parts.push(element("h3", { textContent: match.kind === "removed" ? "Removed by" : "Made by" }), element("p", {}, ...passes.flatMap((name) => [element("span", { className: "pass", textContent: name }), " "])));
    parts.push(...this._counterparts(side, match));
    if (match.changes.length) parts.push(element("h3", { textContent: "What changed" }), ...match.changes.map(changeLine));
    parts.push(...this._values("Inputs", node.inputs.map((input) => this._input(graph, input))));
    parts.push(...this._values("Outputs", node.outputs.map(([name, type]) => [name, document.createTextNode(type || "unknown type")])));
    parts.push(...this._values("Attributes", Object.entries(node.attributes).map(([name, text]) => [name, document.createTextNode(text)])));
    this.root.replaceChildren(...parts);
    this.root.scrollTop = 0;
  }

  _counterparts(side, match) {
    const parts = [], groups = [[side, "With it here"], [1 - side, side ? "Counterparts in the first model" : "Counterparts in the second model"]];
    for (const [where, title] of groups) {
      const ids = (where ? match.after : match.before).filter((id) => where !== side || id !== this.app.chosen.id);
      if (where !== side) parts.push(element("h3", { textContent: title }));
      else if (ids.length) parts.push(element("h3", { textContent: title }));
      if (!ids.length && where !== side) parts.push(element("p", { className: "dim", textContent: "none" }));
      parts.push(...ids.slice(0, 60).map((id) => this._link(where, id)));
      if (ids.length > 60) parts.push(element("p", { className: "dim", textContent: `and ${ids.length - 60} more` }));
    }
    return parts;
  }

  _link(side, id) {
    const node = this.app.graphs[side].nodes[id];
    return element("p", {}, element("button", { className: "link", textContent: `${node.op}  ${node.label}`, onclick: () => this.app.select(side, id) }));
  }

  _input(graph, [name, source, slot, weight, type]) {
    if (weight) return [name, document.createTextNode(`weight ${graph.weights[weight] || ""}`)];
    if (source >= 0 && !graph.nodes[source].isPort) return [name, element("span", {}, this._link(graph.index, source).firstChild, type ? ` ${type}` : "")];
    return [name || "left out", document.createTextNode(name ? `of the model ${type || ""}` : "")];
  }

  _values(title, rows) {
    if (!rows.length) return [];
    const table = element("table", {}, ...rows.map(([name, value]) => element("tr", {}, element("td", { textContent: name, title: name }), element("td", {}, value))));
    return [element("h3", { textContent: title }), table];
  }

  _weights(weights) {
    const parts = weights.slice(0, 200).map(([kind, text]) => element("p", {}, element("span", { className: "dim", textContent: kind + " " }), text));
    if (weights.length > 200) parts.push(element("p", { className: "dim", textContent: `and ${weights.length - 200} more (the JSON has all)` }));
    return parts;
  }

  /* Differences that say the same, together; each click goes to the next of them. */
  _alike(matches) {
    const groups = new Map();
    for (const match of matches) {
      const changes = match.changes.map(([what, name]) => (what === "attribute" || what === "operator" ? `${what} ${name}`.trim() : what));
      const said = [...new Set(changes)].join(", ");
      const key = [match.kind, this.app.describe(match), said, ...match.passes].join("|");
      if (!groups.has(key)) groups.set(key, { said, matches: [] });
      groups.get(key).matches.push(match);
    }
    return [...groups.values()];
  }

  _row({ said, matches }) {
    let next = 0;
    const [first] = matches, place = (match) => (match.after.length ? [1, match.after[0]] : [0, match.before[0]]);
    const [side, id] = place(first), name = this.app.graphs[side].nodes[id].label;
    const detail = [matches.length > 1 ? `${name} and ${matches.length - 1} more` : name, said, ...first.passes].filter(Boolean).join(" · ");
    const times = matches.length > 1 ? element("b", { className: "times", textContent: `${matches.length}×` }) : null;
    return element("button", { className: "row", onclick: () => this.app.select(...place(matches[next++ % matches.length])) }, dot(first.kind),
      element("span", {}, times, this.app.describe(first), element("small", { textContent: detail })));
  }
}

function changeLine([what, name, before, after]) {
  return element("p", {}, element("span", { className: "dim", textContent: `${what} ${name} ` }),
    element("del", { textContent: before || "none" }), " → ", element("ins", { textContent: after || "none" }));
}
