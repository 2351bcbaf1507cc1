"use strict";
const root = document.documentElement;
const preference = matchMedia("(prefers-color-scheme: dark)");
const redraws = [];
const redraw = () => redraws.forEach((draw) => draw());

function show(theme) {
  root.dataset.theme = theme;
  document.getElementById("theme").textContent = theme === "dark" ? "Light" : "Dark";
  redraw();
}
document.getElementById("theme").onclick = () => show(root.dataset.theme === "dark" ? "light" : "dark");
preference.onchange = () => show(preference.matches ? "dark" : "light");

const data = JSON.parse(document.getElementById("data").textContent);
const sprite = document.getElementById("sprite");
const colours = ["#2f6fde", "#d9651a", "#0f9d58", "#a24fd6", "#c9a000", "#d6336c"];
const css = (name) => getComputedStyle(root).getPropertyValue(name).trim();
let wanted = "";

// Pictures: cut out of the sprite, on a rounded tile with a rim in the colour of their kind.
function put(ctx, i, x, y, side, faded) {
  const column = i % data.columns, row = Math.floor(i / data.columns), tile = data.tile;
  ctx.globalAlpha = faded ? 0.12 : 1;
  ctx.beginPath();
  ctx.roundRect(x, y, side, side, side * 0.18);
  ctx.fillStyle = css_tile;
  ctx.fill();
  ctx.drawImage(sprite, column * tile, row * tile, tile, tile, x + side * 0.06, y + side * 0.06, side * 0.88, side * 0.88);
  if (data.kinds.length > 1) {
    ctx.strokeStyle = colours[data.kind[i] % colours.length];
    ctx.lineWidth = Math.max(1, side * 0.045);
    ctx.stroke();
  }
  ctx.globalAlpha = 1;
}
let css_tile = "#fff";

const tip = document.getElementById("tip");
function tell(i, event) {
  if (i < 0) { tip.style.display = "none"; return; }
  const ctx = tip.querySelector("canvas").getContext("2d");
  ctx.clearRect(0, 0, 224, 224);
  put(ctx, i, 6, 6, 212, false);
  tip.querySelector("span").textContent = data.captions[i];
  tip.style.display = "block";
  tip.style.left = Math.min(event.clientX + 16, innerWidth - 180) + "px";
  tip.style.top = Math.max(8, Math.min(event.clientY + 16, innerHeight - tip.offsetHeight - 8)) + "px";
}

// A canvas at the screen's resolution; `paint` gets its context and size, `at` finds the picture at a point.
function board(id, height, paint, at) {
  const canvas = document.getElementById(id), ctx = canvas.getContext("2d");
  const draw = () => {
    const ratio = devicePixelRatio || 1, width = canvas.clientWidth;
    canvas.style.height = height(width) + "px";
    if (canvas.width !== Math.round(width * ratio)) canvas.width = Math.round(width * ratio);
    if (canvas.height !== Math.round(height(width) * ratio)) canvas.height = Math.round(height(width) * ratio);
    css_tile = css("--tile");
    ctx.setTransform(ratio, 0, 0, ratio, 0, 0);
    ctx.clearRect(0, 0, width, height(width));
    ctx.imageSmoothingQuality = "high";
    paint(ctx, width, height(width));
  };
  canvas.addEventListener("pointermove", (event) => { if (!event.buttons) tell(at(event.offsetX, event.offsetY), event); });
  canvas.addEventListener("pointerleave", () => tell(-1));
  redraws.push(draw);
  return { canvas, draw };
}
const faded = (i) => wanted !== "" && !data.captions[i].toLowerCase().includes(wanted);

// The plane: drag to move, wheel to zoom.
const view = { x: 0, y: 0, zoom: 1 };
const extent = [0, 1].map((axis) => Math.max(...data.plane.map((point) => point[axis])) + 1);
const tall = (width) => Math.min(920, 24 + (width - 24) / extent[0] * extent[1]);
const unit = (width) => Math.min((width - 24) / extent[0], (tall(width) - 24) / extent[1]);
const spot = (i, width) => {
  const scale = unit(width) * view.zoom, left = (width - unit(width) * extent[0]) / 2 * view.zoom;
  return [left + data.plane[i][0] * scale + view.x, 12 * view.zoom + data.plane[i][1] * scale + view.y, scale * 0.96];
};
const map = board("map", tall, (ctx, width) => {
  for (let i = 0; i < data.plane.length; i++) put(ctx, i, ...spot(i, width), faded(i));
}, (x, y) => data.plane.findIndex((_, i) => {
  const [left, top, side] = spot(i, map.canvas.clientWidth);
  return x >= left && x < left + side && y >= top && y < top + side;
}));
map.canvas.addEventListener("pointermove", (event) => {
  if (!event.buttons) return;
  view.x += event.movementX; view.y += event.movementY;
  tell(-1); map.draw();
});
map.canvas.addEventListener("wheel", (event) => {
  if (!event.ctrlKey && view.zoom === 1 && event.deltaY > 0) return;  // nothing to zoom out of: the page scrolls
  event.preventDefault();
  const factor = Math.max(1 / view.zoom, Math.min(12 / view.zoom, Math.exp(-event.deltaY * 0.0015)));
  view.x = event.offsetX - (event.offsetX - view.x) * factor;
  view.y = event.offsetY - (event.offsetY - view.y) * factor;
  view.zoom *= factor;
  if (view.zoom <= 1.001) Object.assign(view, { x: 0, y: 0, zoom: 1 });
  tell(-1); map.draw();
}, { passive: false });
document.getElementById("whole").onclick = () => { Object.assign(view, { x: 0, y: 0, zoom: 1 }); map.draw(); };
document.getElementById("find").oninput = (event) => { wanted = event.target.value.trim().toLowerCase(); redraw(); };

// Space: drag to turn.
const turn = { across: 0.6, down: 0.35, moving: !matchMedia("(prefers-reduced-motion: reduce)").matches, visible: false };
let shown = [];
const ball = board("ball", (width) => Math.min(640, width * 0.7), (ctx, width, height) => {
  const [ca, sa, cd, sd] = [Math.cos(turn.across), Math.sin(turn.across), Math.cos(turn.down), Math.sin(turn.down)];
  const radius = Math.min(width, height) * 0.47;
  shown = data.solid.map(([x, y, z], i) => {
    const [u, w] = [ca * x + sa * z, ca * z - sa * x];
    const [v, depth] = [cd * y - sd * w, sd * y + cd * w];
    const near = 2.6 / (2.6 - depth);
    return { i, depth, x: width / 2 + u * radius * near * 1.15, y: height / 2 + v * radius * near, side: radius * 0.062 * near };
  }).sort((a, b) => a.depth - b.depth);
  for (const p of shown) {
    ctx.filter = "none";
    put(ctx, p.i, p.x - p.side / 2, p.y - p.side / 2, p.side, faded(p.i));
    if (!faded(p.i) && p.depth < 0.2) {  // what lies behind fades into the paper
      ctx.globalAlpha = Math.min(0.75, (0.2 - p.depth) * 0.7);
      ctx.fillStyle = css_panel;
      ctx.fill();
      ctx.globalAlpha = 1;
    }
  }
}, (x, y) => {
  const hit = shown.findLast((p) => Math.abs(x - p.x) < p.side / 2 && Math.abs(y - p.y) < p.side / 2);
  return hit ? hit.i : -1;
});
let css_panel = "#fff";
redraws.unshift(() => { css_panel = css("--panel"); });
ball.canvas.addEventListener("pointerdown", (event) => { turn.moving = false; ball.canvas.setPointerCapture(event.pointerId); });
ball.canvas.addEventListener("pointermove", (event) => {
  if (!event.buttons) return;
  turn.across += event.movementX * 0.006;
  turn.down = Math.max(-1.5, Math.min(1.5, turn.down + event.movementY * 0.006));
  tell(-1); ball.draw();
});
document.getElementById("turning").onclick = () => { turn.moving = !turn.moving; };
new IntersectionObserver(([entry]) => { turn.visible = entry.isIntersecting; }).observe(ball.canvas);
let last = 0;
function tick(now) {
  if (turn.moving && turn.visible && tip.style.display !== "block" && now - last > 40) {
    last = now; turn.across += 0.006; ball.draw();
  }
  requestAnimationFrame(tick);
}

function painted({ canvas }) {
  const pixels = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
  let count = 0;
  for (let i = 3; i < pixels.length; i += 4) count += pixels[i] > 0;
  return (4 * count / pixels.length).toFixed(4);
}

addEventListener("resize", redraw);
const asked = new URLSearchParams(location.search).get("theme");
const start = () => {
  show(["dark", "light"].includes(asked) ? asked : preference.matches ? "dark" : "light");
  requestAnimationFrame(tick);
  // For whoever opens the page without looking at it: pictures that are there, and how much of the canvases is painted.
  root.dataset.painted = [map, ball].map(painted).join(" ");
  root.dataset.ready = String([...document.images].filter((image) => image.naturalWidth > 0).length);
};
addEventListener("load", start);  // by then every picture is there
