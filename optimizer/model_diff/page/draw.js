"use strict";
/* Paints what of a scene is in view. */

const FONT = "system-ui, 'Segoe UI', sans-serif";
const READABLE = 0.45;  /* Below this scale text is left out. */

function colours() {
  const style = getComputedStyle(document.documentElement);
  const names = ["paper", "card", "ink", "dim", "line", "edge", "accent", "shade", ...Object.keys(KINDS)];
  return Object.fromEntries(names.map((name) => [name, style.getPropertyValue("--" + name).trim()]));
}

class Painter {
  constructor(canvas) {
    this.canvas = canvas;
    this.context = canvas.getContext("2d");
    this.colours = colours();
  }

  /* view: { scale, x, y } - the point (x, y) of the scene is at the corner of the canvas. */
  paint(scene, view, marks) {
    const c = this.context, ratio = window.devicePixelRatio || 1;
    const [width, height] = [this.canvas.clientWidth, this.canvas.clientHeight];
    if (this.canvas.width !== Math.round(width * ratio) || this.canvas.height !== Math.round(height * ratio)) {
      this.canvas.width = Math.round(width * ratio);
      this.canvas.height = Math.round(height * ratio);
    }
    c.setTransform(ratio, 0, 0, ratio, 0, 0);
    c.fillStyle = this.colours.paper;
    c.fillRect(0, 0, width, height);
    c.scale(view.scale, view.scale);
    c.translate(-view.x, -view.y);
    const seen = { left: view.x, top: view.y, right: view.x + width / view.scale, bottom: view.y + height / view.scale };
    this.scale = view.scale;
    for (const frame of scene.frames) if (inside(frame, seen)) this.frame(frame, marks);
    this.lines(scene.lines, seen, marks);
    for (const box of scene.boxes) if (inside(box, seen)) this.box(box, marks);
  }

  frame(box, marks) {
    const c = this.context;
    c.beginPath();
    c.roundRect(box.x, box.y, box.width, box.height, 9);
    c.fillStyle = this.colours.shade;
    c.fill();
    c.lineWidth = (marks.hover === box ? 2 : 1) / Math.min(this.scale, 1);
    c.strokeStyle = marks.hover === box ? this.colours.accent : this.colours.line;
    c.stroke();
    if (this.scale < READABLE * 0.6) return;
    c.font = `600 12px ${FONT}`;
    c.fillStyle = this.colours.dim;
    c.textAlign = "left";
    c.textBaseline = "middle";
    c.fillText("− " + fitted(c, box.item.label, box.width - 34), box.x + 10, box.y + 14);
  }

  lines(lines, seen, marks) {
    const c = this.context, plain = new Path2D(), beside = new Path2D(), marked = new Path2D();
    for (const line of lines) {
      const bounds = line.bounds || (line.bounds = boundsOf(line));
      if (!inside(bounds, seen)) continue;
      const path = line.path || (line.path = pathOf(line));
      if (marks.selected.size && line.pairs.some(([a, b]) => marks.selected.has(a) || marks.selected.has(b)) && touches(line, marks)) marked.addPath(path);
      else (line.beside ? beside : plain).addPath(path);
    }
    const thin = Math.min(1.2 / this.scale, 2.4);
    c.globalAlpha = marks.dimmed ? 0.4 : 0.9;
    c.strokeStyle = this.colours.edge;
    c.lineWidth = thin;
    c.stroke(plain);
    c.globalAlpha *= 0.45;
    c.stroke(beside);
    c.globalAlpha = 1;
    c.strokeStyle = this.colours.accent;
    c.lineWidth = 2 * thin;
    c.stroke(marked);
  }

  box(box, marks) {
    const c = this.context, item = box.item;
    const chosen = item.isGroup ? marks.groups.has(item.id) : marks.selected.has(item.id);
    const shown = !marks.dimmed || (item.isGroup ? marks.kinds.some((kind) => item.kinds[kind]) : marks.kinds.includes(item.kind));
    c.globalAlpha = shown ? 1 : 0.22;
    const kind = item.isGroup ? null : item.kind;
    if (item.isGroup) {  /* A pile, so that one sees that there is more. */
      c.beginPath();
      c.roundRect(box.x + 4, box.y + 4, box.width, box.height, 8);
      c.fillStyle = this.colours.card;
      c.fill();
      c.lineWidth = 1;
      c.strokeStyle = this.colours.line;
      c.stroke();
    }
    c.beginPath();
    c.roundRect(box.x, box.y, box.width, box.height, item.isGroup ? 8 : item.isPort ? box.height / 2 : 6);
    c.fillStyle = item.isPort ? this.colours.paper : this.colours.card;
    c.fill();
    if (kind && kind !== "same") {
      c.globalAlpha *= 0.16;
      c.fillStyle = this.colours[kind];
      c.fill();
      c.globalAlpha = shown ? 1 : 0.22;
    }
    c.lineWidth = chosen ? 3 : marks.hover === box ? 2 : 1.2;
    c.strokeStyle = chosen || marks.hover === box ? this.colours.accent : kind && kind !== "same" ? this.colours[kind] : this.colours.line;
    c.stroke();
    if (kind && kind !== "same" && !item.isPort) {
      c.beginPath();
      c.roundRect(box.x, box.y, 5, box.height, [6, 0, 0, 6]);
      c.fillStyle = this.colours[kind];
      c.fill();
    }
    if (item.isGroup) this.kinds(box);
    if (this.scale >= READABLE) this.text(box);
    c.globalAlpha = 1;
  }

  /* How many of the nodes in a closed group are of which kind. */
  kinds(box) {
    const c = this.context, width = box.width - 20;
    let x = box.x + 10;
    for (const kind of Object.keys(KINDS)) {
      const part = (width * (box.item.kinds[kind] || 0)) / box.item.total;
      if (!part) continue;
      c.fillStyle = this.colours[kind];
      c.fillRect(x, box.y + box.height - 12, Math.max(part, 1.5), 5);
      x += part;
    }
  }

  text(box) {
    const c = this.context, item = box.item, middle = box.x + box.width / 2;
    c.textAlign = "center";
    c.textBaseline = "middle";
    c.fillStyle = item.isPort ? this.colours.dim : this.colours.ink;
    c.font = `${item.isPort ? "italic " : "600 "}12px ${FONT}`;
    const first = item.isGroup ? "+ " + item.label : item.op;
    if (box.first === undefined) box.first = fitted(c, first, box.width - 16);
    c.fillText(box.first, middle, box.y + (item.isGroup ? 15 : 13));
    c.font = `10px ${FONT}`;
    c.fillStyle = this.colours.dim;
    const count = `${item.total} node${item.total === 1 ? "" : "s"}`;
    const second = item.isGroup ? count : item.label;
    if (box.second === undefined) box.second = fitted(c, second, box.width - 16);
    c.fillText(box.second, middle, box.y + (item.isGroup ? 32 : 27));
  }
}

function touches(line, marks) {
  return !line.part || line.part.item.isGroup || line.pairs.some(([a, b]) =>
    (marks.selected.has(a) && (line.part.item.id === a || line.part.item.id === b)) ||
    (marks.selected.has(b) && (line.part.item.id === a || line.part.item.id === b)));
}

function inside(box, seen) {
  return box.x < seen.right && box.x + box.width > seen.left && box.y < seen.bottom && box.y + box.height > seen.top;
}

function boundsOf(line) {
  let [left, top, right, bottom] = [Infinity, Infinity, -Infinity, -Infinity];
  for (const [x, y] of line.points) {
    left = Math.min(left, x); right = Math.max(right, x + (line.beside ? 90 : 0));
    top = Math.min(top, y); bottom = Math.max(bottom, y);
  }
  return { x: left - 2, y: top - 2, width: right - left + 4, height: bottom - top + 4 };
}

function pathOf(line) {
  const path = new Path2D(), points = line.points;
  path.moveTo(...points[0]);
  if (line.beside) {
    const [[x0, y0], [x1, y1]] = points, out = Math.max(x0, x1) + Math.min(40 + Math.abs(y1 - y0) / 20, 80);
    path.bezierCurveTo(out, y0, out, y1, x1, y1);
    return path;
  }
  for (let i = 1; i < points.length; i += 1) {
    const [[x0, y0], [x1, y1]] = [points[i - 1], points[i]], middle = (y0 + y1) / 2;
    if (Math.abs(x0 - x1) < 0.5) path.lineTo(x1, y1);
    else path.bezierCurveTo(x0, middle, x1, middle, x1, y1);
  }
  return path;
}

function fitted(context, text, width) {
  if (context.measureText(text).width <= width) return text;
  let [low, high] = [0, text.length];
  while (low < high) {
    const half = (low + high + 1) >> 1;
    if (context.measureText(text.slice(0, half) + "…").width <= width) low = half;
    else high = half - 1;
  }
  return text.slice(0, low) + "…";
}
