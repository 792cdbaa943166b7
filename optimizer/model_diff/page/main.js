"use strict";
/* Reads the data, makes the two panes and the panel, and keeps them in step. */

const DATA = JSON.parse(document.getElementById("data").textContent);
const KINDS = DATA.kinds;
const FIRST_VIEW = 160;  /* Groups are opened, outermost first, until about so many boxes are visible. */
const FIRST_PARTS = 600;  /* A graph without modules is shown whole up to this size. */

class App {
  constructor(data) {
    this.data = data;
    this.matches = data.matches.map(([kind, before, after, by, passes, changes, isPort], id) => ({ id, kind, before, after, by, passes, changes, isPort: Boolean(isPort) }));
    this.nodeMatches = this.matches.filter((match) => !match.isPort);
    this.differences = this.nodeMatches.filter((match) => match.kind !== "same");
    this.graphs = data.sides.map((side, i) => new Graph(side, i, this.matches));
    this.open = firstOpen(this.graphs);
    this.kinds = [];
    this.chosen = null;
    const sections = document.querySelectorAll(".pane");
    this.panes = this.graphs.map((graph, i) => new Pane(sections[i], graph, this));
    this.panel = new Panel(document.getElementById("panel"), this);
    this.arrange();
    for (const pane of this.panes) pane.fit();
    this.panel.overview([]);
    this._chips();
  }

  arrange(anchor, side) {
    this.panes.forEach((pane, i) => pane.arrange(this.open, i === side ? anchor : this._twin(anchor, side)));
  }

  /* Open or close a group on both sides. */
  toggle(pane, group) {
    if (!this.open.delete(group.path)) this.open.add(group.path);
    this.arrange(keyOf(group), pane.graph.index);
    this._mark();
  }

  openAll(all) {
    this.open = new Set(all ? this.graphs.flatMap((graph) => graph.groups.map((group) => group.path)) : []);
    this.arrange();
    this._mark();
    for (const pane of this.panes) pane.fit();
  }

  /* Choose a node, and show what it became or was. */
  select(side, id) {
    this.chosen = side === null ? null : { side, id };
    if (!this.chosen) { this._mark(); this.panel.overview(this.kinds); return; }
    const match = this.graphs[side].nodes[id].match;
    const ids = [match.before, match.after], before = this.open.size;
    ids.forEach((nodes, i) => nodes.forEach((node) => this._reveal(this.graphs[i], node)));
    if (this.open.size !== before) this.arrange(null);
    this._mark();
    this.panes.forEach((pane, i) => {
      const boxes = (i === side ? [id] : ids[i]).map((node) => pane.scene.byKey.get("n" + node));
      if (boxes.length) pane.show(boxes);
      else this._near(pane, 1 - i, ids[1 - i]);
    });
    this.panel.details(side, this.graphs[side].nodes[id]);
  }

  /* The next difference of the kinds that are chosen. */
  step(by) {
    const list = this.kinds.length ? this.nodeMatches.filter((match) => this.kinds.includes(match.kind)) : this.differences;
    if (!list.length) return;
    const now = this.chosen ? list.indexOf(this.graphs[this.chosen.side].nodes[this.chosen.id].match) : by > 0 ? -1 : 0;
    const match = list[(now + by + list.length) % list.length];
    this.select(match.after.length ? 1 : 0, match.after.length ? match.after[0] : match.before[0]);
  }

  describe(match) {
    const ops = [match.before, match.after].map((ids, side) => {
      const counts = new Map();
      for (const id of ids) { const { op } = this.graphs[side].nodes[id]; counts.set(op, (counts.get(op) || 0) + 1); }
      return [...counts].map(([op, number]) => (number > 1 ? `${number} ${op}` : op)).join(" + ");
    });
    return ops[0] === ops[1] ? ops[0] : ops.filter(Boolean).join(" → ");
  }

  _twin(anchor, side) {
    if (!anchor || !anchor.startsWith("g")) return null;
    const { path } = this.graphs[side].groups[Number(anchor.slice(1))];
    const twin = this.graphs[1 - side].groups.find((group) => group.path === path);
    return twin ? keyOf(twin) : null;
  }

  _reveal(graph, id) {
    for (const group of graph.ancestors(graph.nodes[id])) this.open.add(graph.groups[group].path);
  }

  /* Of a node without counterpart the other side shows the counterpart of a neighbour. */
  _near(pane, other, ids) {
    const graph = this.graphs[other], around = [];
    for (const id of ids) around.push(...graph.nodes[id].inputs.map((input) => input[1]).filter((source) => source >= 0), ...graph.consumers[id]);
    for (const neighbour of around) {
      const match = graph.nodes[neighbour].match, there = other ? match.before : match.after;
      const box = there.length ? visible(pane.graph, there[0], pane.scene) : null;
      if (box) { pane.show([box]); return; }
    }
  }

  _mark() {
    const match = this.chosen ? this.graphs[this.chosen.side].nodes[this.chosen.id].match : null;
    this.panes.forEach((pane, i) => {
      pane.marks.selected = new Set(match ? (i ? match.after : match.before) : []);
      pane.marks.groups = new Set();
      pane.marks.kinds = this.kinds;
      pane.marks.dimmed = this.kinds.length > 0;
      pane.draw();
    });
  }

  _chips() {
    const counts = {};
    for (const match of this.nodeMatches) counts[match.kind] = (counts[match.kind] || 0) + 1;
    const chips = Object.keys(KINDS).filter((kind) => counts[kind]).map((kind) => {
      const chip = element("button", { className: "chip" }, dot(kind), KINDS[kind], element("b", { textContent: counts[kind] }));
      chip.setAttribute("aria-pressed", "false");
      chip.onclick = () => {
        this.kinds = this.kinds.includes(kind) ? this.kinds.filter((other) => other !== kind) : [...this.kinds, kind];
        chip.setAttribute("aria-pressed", String(this.kinds.includes(kind)));
        this.chosen = null;
        this._mark();
        this.panel.overview(this.kinds);
      };
      return chip;
    });
    document.getElementById("kinds").replaceChildren(...chips);
  }
}

/* Which groups are open at first: level by level, as long as both graphs stay small. */
function firstOpen(graphs) {
  const open = new Set(), parts = new Set();
  for (const graph of graphs) for (const group of graph.groups) if (group.isPart) parts.add(group.path);
  if (graphs.every((graph) => visibleCount(graph, graph.root, parts) <= FIRST_PARTS)) parts.forEach((path) => open.add(path));
  for (let depth = 0; depth < 12; depth += 1) {
    const next = new Set(open);
    for (const graph of graphs) for (const group of graph.groups) if (graph.ancestors(group).length <= depth) next.add(group.path);
    if (graphs.some((graph) => visibleCount(graph, graph.root, next) > FIRST_VIEW)) break;
    next.forEach((path) => open.add(path));
  }
  return open;
}

function visibleCount(graph, group, open) {
  return group.children.reduce((sum, child) => sum + (child.isGroup && open.has(child.path) ? visibleCount(graph, child, open) : 1), 0);
}

function listenToSearch(app) {
  const input = document.getElementById("query"), list = document.getElementById("results");
  let found = [], at = 0;
  const pick = (i) => { if (found[i]) { app.select(found[i].side, found[i].node.id); list.replaceChildren(); input.blur(); } };
  const paint = () => [...list.children].forEach((row, i) => { row.setAttribute("aria-selected", String(i === at)); if (i === at) row.scrollIntoView({ block: "nearest" }); });
  input.addEventListener("input", () => {
    found = search(app.graphs, input.value);
    at = 0;
    const rows = found.map(({ side, node }, i) => element("li", { role: "option", onmousedown: (event) => { event.preventDefault(); pick(i); } },
      dot(node.kind), ` ${node.op}  ${node.label} `, element("small", { className: "dim", textContent: side ? "in the second" : "in the first" })));
    if (!rows.length && input.value.trim()) rows.push(element("li", { className: "none", textContent: "nothing is called so" }));
    list.replaceChildren(...rows);
    paint();
  });
  input.addEventListener("keydown", (event) => {
    if (event.key === "Enter") pick(at);
    if (event.key === "Escape") { list.replaceChildren(); input.blur(); }
    if (event.key === "ArrowDown" || event.key === "ArrowUp") {
      at = Math.min(Math.max(at + (event.key === "ArrowDown" ? 1 : -1), 0), found.length - 1);
      paint();
      event.preventDefault();
    }
  });
  input.addEventListener("blur", () => list.replaceChildren());
}

/* Nodes that have all words in their operator, name, module or passes; what begins with the words comes first. */
function search(graphs, text) {
  const words = text.toLowerCase().split(/\s+/).filter(Boolean);
  if (!words.length) return [];
  const found = [];
  graphs.forEach((graph, side) => graph.nodes.forEach((node) => {
    if (node.text === undefined) node.text = [node.op, node.label, graph.groups[node.parent].path, ...node.makers].join(" ").toLowerCase();
    if (words.every((word) => node.text.includes(word))) {
      const starts = node.label.toLowerCase() === words[0] ? 0 : node.op.toLowerCase().startsWith(words[0]) ? 1 : 2;
      found.push({ side, node, rank: starts + (node.kind === "same" ? 0.5 : 0) });
    }
  }));
  return found.sort((a, b) => a.rank - b.rank).slice(0, 50);
}

function listen(app) {
  const on = (id, act) => document.getElementById(id).addEventListener("click", act);
  const fit = () => app.panes.forEach((pane) => pane.fit());
  on("expand", () => app.openAll(true));
  on("collapse", () => app.openAll(false));
  on("fit", fit);
  on("next", () => app.step(1));
  on("previous", () => app.step(-1));
  const keys = { "/": () => document.getElementById("query").focus(), n: () => app.step(1), p: () => app.step(-1), f: fit, Escape: () => app.select(null) };
  document.addEventListener("keydown", (event) => {
    if (event.target.tagName === "INPUT" || event.ctrlKey || event.metaKey || event.altKey || !(event.key in keys)) return;
    event.preventDefault();
    keys[event.key]();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => app.panes.forEach((pane) => { pane.painter.colours = colours(); pane.draw(); }));
  listenToSearch(app);
}

window.app = new App(DATA);
listen(window.app);
requestAnimationFrame(() => requestAnimationFrame(() => performance.mark("shown")));
