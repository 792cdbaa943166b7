"use strict";
/* One canvas with a graph: moving, zooming, pointing, and the choice of what is open. */

const TITLE = 40;  /* The height of what lies over the top of the canvas. */

function sizeText({ count, constants }) {
  return `${count} node${count === 1 ? "" : "s"}` + (constants ? `, ${constants} constants` : "");
}

class Pane {
  constructor(section, graph, app) {
    this.graph = graph;
    this.app = app;
    this.canvas = section.querySelector("canvas");
    this.painter = new Painter(this.canvas);
    this.view = { scale: 1, x: 0, y: 0 };
    this.marks = { selected: new Set(), groups: new Set(), kinds: [], dimmed: false, hover: null };
    const title = section.querySelector("h2");
    title.textContent = graph.title + " ";
    title.append(Object.assign(document.createElement("span"), { textContent: sizeText(graph) }));
    this.canvas.setAttribute("aria-label", `The graph of ${graph.title}; every node is found by the search`);
    this._listen();
    new ResizeObserver(() => this.draw()).observe(this.canvas);
  }

  /* Lay out again, and keep a box where it is on the screen. */
  arrange(open, anchor) {
    const before = anchor && this.scene && this.scene.byKey.get(anchor);
    this.scene = sceneOf(this.graph, open);
    const after = before && this.scene.byKey.get(anchor);
    if (after) {
      this.view.x += after.x + after.width / 2 - before.x - before.width / 2;
      this.view.y += after.y - before.y;
    }
    this.draw();
  }

  draw() {
    if (this.queued || !this.scene) return;
    this.queued = true;
    requestAnimationFrame(() => {
      this.queued = false;
      this.painter.paint(this.scene, this.view, this.marks);
    });
  }

  fit() {
    const [width, height] = [this.canvas.clientWidth, this.canvas.clientHeight - TITLE];
    const whole = Math.min(width / (this.scene.width + 40), height / (this.scene.height + 30), 1);
    const scale = Math.max(whole, Math.min(0.5, width / (this.scene.width + 40)));  /* A tall graph starts at its top. */
    this.view = { scale, x: this.scene.width / 2 - width / 2 / scale, y: -TITLE / scale };
    this.draw();
  }

  /* Show these boxes: in the middle, and not too small. */
  show(boxes) {
    const edges = boxes.map((box) => [box.x, box.y, box.x + box.width, box.y + box.height]);
    const [left, top] = [0, 1].map((i) => Math.min(...edges.map((edge) => edge[i])));
    const [right, bottom] = [2, 3].map((i) => Math.max(...edges.map((edge) => edge[i])));
    const [width, height] = [this.canvas.clientWidth, this.canvas.clientHeight - TITLE];
    const whole = Math.min((width * 0.8) / (right - left), (height * 0.8) / (bottom - top));
    const scale = Math.min(Math.max(this.view.scale, 0.8), Math.max(whole, 0.05), 1.5);
    this._glide({ scale, x: (left + right) / 2 - width / 2 / scale, y: (top + bottom) / 2 - (TITLE + height / 2) / scale });
  }

  zoom(factor, x = this.canvas.clientWidth / 2, y = this.canvas.clientHeight / 2) {
    const view = this.view, scale = Math.min(Math.max(view.scale * factor, 0.02), 4);
    this.view = { scale, x: view.x + x / view.scale - x / scale, y: view.y + y / view.scale - y / scale };
    this.draw();
  }

  at(event) {
    const frame = this.canvas.getBoundingClientRect(), view = this.view;
    const [x, y] = [view.x + (event.clientX - frame.left) / view.scale, view.y + (event.clientY - frame.top) / view.scale];
    const hit = (box) => x >= box.x && x <= box.x + box.width && y >= box.y && y <= box.y + box.height;
    const frames = this.scene.frames.filter((box) => hit(box) && y <= box.y + SIZES.header);
    return this.scene.boxes.find(hit) || frames[frames.length - 1] || null;
  }

  _glide(goal) {
    if (matchMedia("(prefers-reduced-motion: reduce)").matches) { this.view = goal; this.draw(); return; }
    const from = { ...this.view }, start = performance.now(), gliding = (this.gliding = {});
    const step = (now) => {
      if (this.gliding !== gliding) return;
      const part = Math.min((now - start) / 220, 1), eased = 1 - (1 - part) ** 3;
      this.view = Object.fromEntries(["scale", "x", "y"].map((key) => [key, from[key] + (goal[key] - from[key]) * eased]));
      this.draw();
      if (part < 1) requestAnimationFrame(step);
    };
    requestAnimationFrame(step);
  }

  _listen() {
    const canvas = this.canvas, fingers = new Map();
    let moved = 0;
    canvas.addEventListener("wheel", (event) => {
      event.preventDefault();
      this.gliding = null;
      const frame = canvas.getBoundingClientRect(), lines = event.deltaMode === 1 ? 16 : 1;
      if (event.shiftKey) { this.view.x += (event.deltaY * lines) / this.view.scale; this.draw(); }
      else this.zoom(Math.exp((-event.deltaY * lines) / 400), event.clientX - frame.left, event.clientY - frame.top);
    }, { passive: false });
    canvas.addEventListener("pointerdown", (event) => {
      this.gliding = null;
      moved = 0;
      canvas.setPointerCapture(event.pointerId);
      fingers.set(event.pointerId, event);
    });
    canvas.addEventListener("pointermove", (event) => {
      const last = fingers.get(event.pointerId);
      if (!last) { this._hover(event); return; }
      const frame = canvas.getBoundingClientRect(), others = [...fingers.values()].filter((other) => other !== last);
      if (others.length) {
        const gap = (a, b) => Math.hypot(a.clientX - b.clientX, a.clientY - b.clientY) || 1;
        const [x, y] = [(event.clientX + others[0].clientX) / 2 - frame.left, (event.clientY + others[0].clientY) / 2 - frame.top];
        this.zoom(gap(event, others[0]) / gap(last, others[0]), x, y);
      }
      this.view.x -= (event.clientX - last.clientX) / this.view.scale;
      this.view.y -= (event.clientY - last.clientY) / this.view.scale;
      moved += Math.abs(event.clientX - last.clientX) + Math.abs(event.clientY - last.clientY);
      fingers.set(event.pointerId, event);
      canvas.classList.toggle("dragging", moved > 4);
      this.draw();
    });
    const up = (event) => {
      fingers.delete(event.pointerId);
      canvas.classList.remove("dragging");
      if (event.type === "pointerup" && moved <= 4) this._click(event);
    };
    canvas.addEventListener("pointerup", up);
    canvas.addEventListener("pointercancel", up);
    canvas.addEventListener("keydown", (event) => {
      const step = 60 / this.view.scale;
      const moves = { ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, -step], ArrowDown: [0, step] };
      if (event.key in moves) { this.view.x += moves[event.key][0]; this.view.y += moves[event.key][1]; this.draw(); event.preventDefault(); }
      if (event.key === "+" || event.key === "=") this.zoom(1.25);
      if (event.key === "-") this.zoom(0.8);
    });
  }

  _hover(event) {
    const box = this.at(event);
    if (box === this.marks.hover) return;
    this.marks.hover = box;
    this.canvas.classList.toggle("over", Boolean(box));
    this.canvas.title = box ? (box.item.isGroup ? `${box.item.path}: click to ${box.open ? "close" : "open"}` : `${box.item.op} ${box.item.label}`) : "";
    this.draw();
  }

  _click(event) {
    const box = this.at(event);
    if (!box) this.app.select(null);
    else if (box.item.isGroup) this.app.toggle(this, box.item);
    else this.app.select(this.graph.index, box.item.id);
  }
}
