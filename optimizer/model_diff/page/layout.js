"use strict";
/* Places: each open group is laid out by itself (d3-dag), and is a box in the layout of the group around it. So opening one
   group lays out that group and those around it, and groups that look alike are laid out once. */

const SIZES = { node: 38, group: 58, pad: 14, header: 26, across: 18, down: 30, character: 7.4, small: 5.9 };
const LONGEST_SPAN = 14;  /* Edges over more layers are drawn beside the layout: they would widen every layer between. */

const layouts = new Map();

function sizeOf(item) {
  const text = item.isGroup ? Math.max((item.label.length + 2) * SIZES.character, 92)
    : Math.max(item.op.length * SIZES.character, Math.min(item.label.length, 24) * SIZES.small);
  return [Math.min(Math.max(text + 24, 80), 240), item.isGroup ? SIZES.group : SIZES.node];
}

/* The tree of boxes of a group and what is open in it. */
function boxOf(graph, group, open) {
  const boxes = group.children.map((child) =>
    child.isGroup && open.has(child.path) ? boxOf(graph, child, open) : leafOf(child));
  const places = new Map(group.children.map((child, i) => [keyOf(child), i]));
  const edges = [...graph.inner[group.id].values()].map((edge) => [places.get(edge.from), places.get(edge.to)]);
  const plan = placed(boxes.map((box) => [box.width, box.height]), edges);
  boxes.forEach((box, i) => { box.x = plan.places[i][0]; box.y = plan.places[i][1]; });
  const isRoot = group.parent < 0;
  const [left, top] = isRoot ? [0, 0] : [SIZES.pad, SIZES.header + SIZES.pad];
  return {
    item: group, boxes, open: true, left, top, routes: plan.routes, edges: [...graph.inner[group.id].values()],
    width: Math.max(plan.width + 2 * left, isRoot ? 0 : group.label.length * SIZES.character + 60),
    height: plan.height + top + (isRoot ? 0 : SIZES.pad),
  };
}

function leafOf(item) {
  const [width, height] = sizeOf(item);
  return { item, width, height, open: false };
}

/* Places (left, top) of boxes, and the points of the edges between; null for an edge beside the layout. */
function placed(sizes, edges) {
  const key = sizes.join(";") + "|" + edges.join(";");
  if (!layouts.has(key)) layouts.set(key, arrange(sizes, edges));
  return layouts.get(key);
}

function arrange(sizes, edges) {
  if (!sizes.length) return { places: [], routes: [], width: 0, height: 0 };
  const kept = shortEdges(sizes.length, edges);
  const small = sizes.length <= 60;
  const best = laidOut(sizes, edges, kept, small ? d3.coordSimplex() : d3.coordGreedy());
  /* Chains with side branches can drift off to one side: then each layer is centred. */
  return best.width > 1.5 * best.widest + 200 ? laidOut(sizes, edges, kept, d3.coordCenter()) : best;
}

function laidOut(sizes, edges, kept, coord) {
  const graph = d3.graph();
  const nodes = sizes.map((size, i) => graph.node(i));
  const links = edges.map(([from, to], i) => (kept[i] ? graph.link(nodes[from], nodes[to]) : null));
  const count = sizes.length;
  const layout = d3.sugiyama()
    .layering(count <= 60 ? d3.layeringSimplex() : d3.layeringLongestPath().topDown(false))
    .decross(count <= 60 ? d3.decrossTwoLayer() : count <= 500 ? d3.decrossTwoLayer().passes(6) : d3.decrossDfs())
    .coord(coord)
    .nodeSize((node) => sizes[node.data])
    .gap([SIZES.across, SIZES.down]);
  const { width, height } = layout(graph);
  const places = nodes.map((node, i) => [node.x - sizes[i][0] / 2, node.y - sizes[i][1] / 2]);
  const layers = layersOf(nodes, sizes);
  const widest = Math.max(...[...layers.values()].map((layer) => layer.width));
  return { places, width, height, widest, routes: links.map((link) => (link ? route(link.points, layers) : null)) };
}

/* Which edges the layout knows: none that closes a circle of groups, none that is very long. */
function shortEdges(count, edges) {
  const out = Array.from({ length: count }, () => []), degree = new Array(count).fill(0), level = new Array(count).fill(0);
  const kept = edges.map(([from, to]) => from !== to);
  edges.forEach(([from, to], i) => { if (kept[i]) { out[from].push(i); degree[to] += 1; } });
  const done = new Array(count).fill(false);
  const queue = [...degree.keys()].filter((i) => !degree[i]);
  const order = [];
  for (let next = 0, left = count; left > 0; left -= 1) {
    if (next >= queue.length) queue.push(done.indexOf(false));  /* A circle: open it at its first member. */
    let at = queue[next++];
    while (done[at]) { if (next >= queue.length) queue.push(done.indexOf(false)); at = queue[next++]; }
    done[at] = true;
    order.push(at);
    for (const i of out[at]) {
      const to = edges[i][1];
      if (done[to]) { kept[i] = false; continue; }
      level[to] = Math.max(level[to], level[at] + 1);
      if (--degree[to] === 0) queue.push(to);
    }
  }
  lower(order, level, edges, kept);
  edges.forEach(([from, to], i) => { if (level[to] - level[from] > LONGEST_SPAN) kept[i] = false; });
  return kept;
}

/* What depends on nothing stands right before what needs it, not at the top. */
function lower(order, level, edges, kept) {
  const late = [...level], out = level.map(() => []), into = level.map(() => []);
  edges.forEach(([from, to], i) => { if (kept[i]) { out[from].push(to); into[to].push(from); } });
  for (const at of [...order].reverse()) if (out[at].length) late[at] = Math.min(...out[at].map((to) => late[to] - 1));
  for (const at of order) {
    if (into[at].length) level[at] = Math.max(...into[at].map((from) => level[from] + 1));
    else level[at] = late[at];
  }
}

function layersOf(nodes, sizes) {
  const layers = new Map();
  nodes.forEach((node, i) => {
    const key = Math.round(node.y), layer = layers.get(key) || { width: 0, height: 0 };
    layer.width += sizes[i][0] + SIZES.across;
    layer.height = Math.max(layer.height, sizes[i][1]);
    layers.set(key, layer);
  });
  return layers;
}

/* An edge that passes a layer goes straight through it, beside boxes that may be tall. */
function route(points, layers) {
  const route = [];
  points.slice(1, -1).forEach(([x, y]) => {
    const layer = layers.get(Math.round(y)), half = layer ? layer.height / 2 : 0;
    route.push([x, y - half]);
    if (half) route.push([x, y + half]);
  });
  return route;
}

/* Everything visible, with places in the whole picture. */
function sceneOf(graph, open) {
  const scene = { boxes: [], frames: [], lines: [], byKey: new Map(), width: 0, height: 0 };
  const root = boxOf(graph, graph.root, open);
  scene.width = root.width;
  scene.height = root.height;
  put(graph, root, 0, 0, scene, 0);
  return scene;
}

function put(graph, box, x, y, scene, depth) {
  const mine = { item: box.item, x, y, width: box.width, height: box.height, depth, open: box.open };
  scene.byKey.set(keyOf(box.item), mine);
  if (!box.open) { scene.boxes.push(mine); return; }
  if (box.item.parent >= 0) scene.frames.push(mine);
  const [left, top] = [x + box.left, y + box.top];
  for (const inner of box.boxes) put(graph, inner, left + inner.x, top + inner.y, scene, depth + 1);
  box.edges.forEach((edge, i) => lines(graph, edge, box.routes[i], left, top, scene));
}

/* The visible box that stands for a node. */
function visible(graph, id, scene) {
  const node = graph.nodes[id];
  const own = scene.byKey.get("n" + id);
  if (own) return own;
  for (const group of graph.ancestors(node)) {
    const place = scene.byKey.get("g" + group);
    if (place && !place.open) return place;
  }
  return null;
}

/* One line between two boxes, and inside open ones short ones from its end to the nodes that it is of. */
function lines(graph, edge, route, left, top, scene) {
  const from = scene.byKey.get(edge.from), to = scene.byKey.get(edge.to);
  const starts = new Set(edge.pairs.map(([id]) => visible(graph, id, scene)));
  const ends = new Set(edge.pairs.map(([, id]) => visible(graph, id, scene)));
  const middle = (boxes) => [...boxes].reduce((sum, box) => sum + box.x + box.width / 2, 0) / boxes.size;
  const exit = [middle(starts), from.y + from.height], entry = [middle(ends), to.y];
  const line = { points: [], beside: route === null, pairs: edge.pairs };
  if (route === null) line.points = [[from.x + from.width, from.y + from.height / 2], [to.x + to.width, to.y + to.height / 2]];
  else line.points = [exit, ...route.map(([x, y]) => [left + x, top + y]), entry];
  scene.lines.push(line);
  if (route === null) return;
  for (const box of starts) if (box !== from) scene.lines.push({ points: [[box.x + box.width / 2, box.y + box.height], exit], pairs: edge.pairs, part: box });
  for (const box of ends) if (box !== to) scene.lines.push({ points: [entry, [box.x + box.width / 2, box.y]], pairs: edge.pairs, part: box });
}
