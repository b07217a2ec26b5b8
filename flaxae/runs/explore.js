"use strict";
// The map of a page: zoom, pan, look at examples, their reconstructions and neighbours, select rows to save.
// Names come from outside: they are only set as textContent.
(() => {
  const data = JSON.parse(document.getElementById("explore-data").textContent);
  const section = document.getElementById("explore");
  const find = (name) => section.querySelector(`[data-part="${name}"]`);
  const canvas = find("map"), detail = find("detail"), colourBy = find("colour"), mode = find("mode");
  const context = canvas.getContext("2d");
  const points = data.points, count = points.length, axes = count ? points[0].length : 2;
  const PALETTE = ["#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#ee8866", "#44bb99", "#999933", "#777777"];
  let view = { x: 0, y: 0, scale: 1 }, current = -1, near = [], selected = new Set(), box = null, colours = [];
  section.hidden = false;

  // ---- pictures
  const sheets = {};
  for (const name of ["examples", "made", "decoded"]) {
    if (!data[name]) continue;
    sheets[name] = new Image();
    sheets[name].src = data[name].source;
  }
  const tile = (name, index, size, label) => {
    const { across, width, height } = data[name], figure = document.createElement("canvas");
    figure.width = width; figure.height = height;
    figure.style.width = `${size}px`;
    figure.setAttribute("role", "img");
    figure.setAttribute("aria-label", label);
    const draw = () => figure.getContext("2d").drawImage(sheets[name], (index % across) * width,
      Math.floor(index / across) * height, width, height, 0, 0, width, height);
    if (sheets[name].complete) draw(); else sheets[name].addEventListener("load", draw);
    return figure;
  };
  const text = (tag, content) => {
    const made = document.createElement(tag);
    made.textContent = content;
    return made;
  };

  // ---- colours
  const recolour = () => {
    const values = data.colours[colourBy.value] || [];
    const legend = find("legend");
    legend.replaceChildren();
    const numbers = values.filter((value) => typeof value === "number");
    if (numbers.length || !values.length) {
      const low = Math.min(...numbers), high = Math.max(...numbers);
      const shade = (part) => `hsl(${250 - 200 * part} 70% ${35 + 20 * part}%)`;
      colours = points.map((_, i) => typeof values[i] !== "number" ? "#888" :
        shade(high > low ? (values[i] - low) / (high - low) : 0.5));
      if (numbers.length) for (const [value, part] of [[low, 0], [high, 1]]) legend.append(key(String(value), shade(part)));
    } else {
      const names = [...new Set(values)].sort((a, b) => a.localeCompare(b, undefined, { numeric: true }));
      const of = new Map(names.map((name, i) => [name, PALETTE[i % PALETTE.length]]));
      colours = values.map((name) => of.get(name));
      for (const name of names.slice(0, 20)) legend.append(key(name, of.get(name)));
    }
    draw();
  };
  const key = (name, colour) => {
    const item = text("li", name), dot = document.createElement("i");
    dot.style.background = colour;
    item.prepend(dot);
    return item;
  };

  // ---- the view: three coordinates are turned around the second, and seen from the front
  const range = (axis) => [Math.min(...points.map((p) => p[axis])), Math.max(...points.map((p) => p[axis]))];
  let reach = [range(0), range(1)], flat = points, depth = points.map(() => 0);
  if (axes === 3) {
    const middle = [0, 1, 2].map((axis) => (range(axis)[0] + range(axis)[1]) / 2);
    const centred = points.map((p) => p.map((value, axis) => value - middle[axis]));
    const radius = Math.max(...centred.map((p) => Math.hypot(...p))) || 1;
    reach = [[-radius, radius], [-radius, radius]];
    find("turned").hidden = false;
    const turn = () => {
      const angle = Number(find("turn").value) * Math.PI / 180, cos = Math.cos(angle), sin = Math.sin(angle);
      flat = centred.map((p) => [p[0] * cos + p[2] * sin, p[1]]);
      depth = centred.map((p) => (p[2] * cos - p[0] * sin) / radius);
    };
    turn();
    find("turn").addEventListener("input", () => { turn(); draw(); });
  }
  const reset = () => {
    const { width, height } = canvas, [[left, right], [low, high]] = reach;
    view.scale = 0.92 * Math.min(width / (right - left || 1), height / (high - low || 1));
    view.x = width / 2 - view.scale * (left + right) / 2;
    view.y = height / 2 + view.scale * (low + high) / 2;
  };
  const place = (i) => [view.x + view.scale * flat[i][0], view.y - view.scale * flat[i][1]];
  const zoom = (factor, x = canvas.width / 2, y = canvas.height / 2) => {
    view.x = x + (view.x - x) * factor; view.y = y + (view.y - y) * factor; view.scale *= factor;
    draw();
  };
  const fit = () => {
    const ratio = window.devicePixelRatio || 1, width = canvas.clientWidth;
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(Math.min(width, 560) * ratio);
    canvas.style.height = `${canvas.height / ratio}px`;
    reset(); draw();
  };
  const disc = (i, radius) => {
    const [x, y] = place(i);
    context.beginPath(); context.arc(x, y, radius, 0, 7); context.fill();
    return [x, y];
  };
  function draw() {
    const ratio = window.devicePixelRatio || 1, ink = getComputedStyle(section).color;
    context.clearRect(0, 0, canvas.width, canvas.height);
    context.globalAlpha = 0.75;
    for (let i = 0; i < count; i++) { context.fillStyle = colours[i] || "#888"; disc(i, (2.6 + depth[i]) * ratio); }
    context.globalAlpha = 1; context.strokeStyle = ink; context.lineWidth = 1.5 * ratio;
    for (const i of selected) { context.fillStyle = ink; disc(i, 2 * ratio); }
    for (const i of near) { context.fillStyle = colours[i]; disc(i, 5 * ratio); context.stroke(); }
    if (current >= 0) { context.fillStyle = colours[current]; disc(current, 8 * ratio); context.stroke(); }
    if (box) context.strokeRect(box[0], box[1], box[2] - box[0], box[3] - box[1]);
  }

  // ---- looking at an example
  const nearest = (x, y, within = Infinity) => {
    let best = -1, least = within * within;
    for (let i = 0; i < count; i++) {
      const [px, py] = place(i), apart = (px - x) ** 2 + (py - y) ** 2;
      if (apart < least) { least = apart; best = i; }
    }
    return best;
  };
  const neighbours = (i) => points.map((p, j) => [Math.hypot(...p.map((value, axis) => value - points[i][axis])), j])
    .filter(([, j]) => j !== i).sort((a, b) => a[0] - b[0]).slice(0, 8).map(([, j]) => j);
  const captioned = (figure, caption) => {
    const made = document.createElement("figure");
    made.append(figure, text("figcaption", caption));
    return made;
  };
  const show = (i) => {
    current = i;
    if (i < 0) return draw();
    const said = Object.entries(data.colours).map(([name, values]) => `${name}: ${values[i]}`);
    detail.replaceChildren(text("p", [data.rows[i], ...said].join(" · ")));
    if (data.examples) {
      const pair = document.createElement("div");
      pair.append(captioned(tile("examples", i, 96, "example"), "example"), captioned(tile("made", i, 96, "reconstruction"), "reconstruction"));
      detail.append(pair);
    } else if (data.columns) {
      const table = document.createElement("table");
      const head = document.createElement("tr");
      for (const name of ["", "example", "reconstruction"]) head.append(text("th", name));
      table.append(head);
      data.values[0][i].forEach((value, column) => {
        const row = document.createElement("tr");
        row.append(text("th", data.columns[column] ?? String(column)), text("td", value), text("td", data.values[1][i][column]));
        table.append(row);
      });
      detail.append(table);
    }
    if (near.length) {
      const list = document.createElement("div");
      for (const j of near) {
        const button = document.createElement("button");
        button.type = "button"; button.title = data.rows[j];
        button.append(data.examples ? tile("examples", j, 40, data.rows[j]) : text("span", data.rows[j]));
        button.addEventListener("click", () => pick(j));
        list.append(button);
      }
      detail.append(text("p", "Neighbours"), list);
    }
    draw();
  };
  const pick = (i) => { near = i < 0 ? [] : neighbours(i); show(i); };

  // ---- selecting
  const told = () => {
    find("selected").textContent = `${selected.size} selected`;
    find("save").disabled = !selected.size;
  };
  const quoted = (value) => {
    const plain = String(value ?? "");
    const safe = /^[=+@\t\r]/.test(plain) || (/^-/.test(plain) && isNaN(Number(plain))) ? `'${plain}` : plain; // no formula
    return `"${safe.replaceAll('"', '""')}"`;
  };
  find("save").addEventListener("click", () => {
    const names = Object.keys(data.colours);
    const lines = [["row", ...names, ...points[0].map((_, axis) => `z${axis}`)], ...[...selected].sort((a, b) => a - b).map((i) =>
      [data.rows[i], ...names.map((name) => data.colours[name][i]), ...points[i]])];
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([lines.map((line) => line.map(quoted).join(",")).join("\n") + "\n"], { type: "text/csv" }));
    link.download = "selected.csv";
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  });
  find("clear").addEventListener("click", () => { selected.clear(); told(); draw(); });
  mode.addEventListener("click", () => mode.setAttribute("aria-pressed", String(mode.getAttribute("aria-pressed") !== "true")));

  // ---- pointers: one drags or selects, two pinch
  const at = (event) => {
    const frame = canvas.getBoundingClientRect(), ratio = canvas.width / frame.width;
    return [(event.clientX - frame.left) * ratio, (event.clientY - frame.top) * ratio];
  };
  const down = new Map();
  let moved = 0;
  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    down.set(event.pointerId, at(event));
    moved = 0;
    if (mode.getAttribute("aria-pressed") === "true" && down.size === 1) box = [...at(event), ...at(event)];
  });
  canvas.addEventListener("pointermove", (event) => {
    const [x, y] = at(event), before = down.get(event.pointerId);
    if (!before) {
      const found = nearest(x, y, 14 * (window.devicePixelRatio || 1));
      if (found >= 0 && found !== current && !near.length) show(found);
      return;
    }
    moved += Math.abs(x - before[0]) + Math.abs(y - before[1]);
    if (down.size === 2) {
      const [, other] = [...down.entries()].find(([id]) => id !== event.pointerId);
      const then = Math.hypot(before[0] - other[0], before[1] - other[1]), now = Math.hypot(x - other[0], y - other[1]);
      zoom(now / (then || 1), other[0], other[1]);
    } else if (box) { box[2] = x; box[3] = y; draw(); }
    else if (moved > 3) { view.x += x - before[0]; view.y += y - before[1]; draw(); }
    down.set(event.pointerId, [x, y]);
  });
  const up = (event) => {
    if (!down.delete(event.pointerId)) return;
    if (box) {
      const [left, right] = [Math.min(box[0], box[2]), Math.max(box[0], box[2])];
      const [top, bottom] = [Math.min(box[1], box[3]), Math.max(box[1], box[3])];
      for (let i = 0; i < count; i++) {
        const [x, y] = place(i);
        if (left <= x && x <= right && top <= y && y <= bottom) selected.add(i);
      }
      box = null; told(); draw();
    } else if (moved <= 3 && event.type === "pointerup") pick(nearest(...at(event), 24 * (window.devicePixelRatio || 1)));
  };
  canvas.addEventListener("pointerup", up);
  canvas.addEventListener("pointercancel", up);
  canvas.addEventListener("wheel", (event) => {
    event.preventDefault();
    zoom(Math.exp(-event.deltaY / 400), ...at(event));
  }, { passive: false });
  for (const [name, factor] of [["in", 1.5], ["out", 1 / 1.5]]) find(name).addEventListener("click", () => zoom(factor));
  find("reset").addEventListener("click", () => { reset(); draw(); });

  // ---- keys: arrows go from example to example, Enter shows neighbours, space selects
  const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  canvas.addEventListener("keydown", (event) => {
    const way = ARROWS[event.key];
    if (way) {
      const [x, y] = current < 0 ? [canvas.width / 2, canvas.height / 2] : place(current);
      let best = -1, least = Infinity;
      for (let i = 0; i < count; i++) {
        const [px, py] = place(i), along = (px - x) * way[0] + (py - y) * way[1];
        const across = Math.abs((px - x) * way[1]) + Math.abs((py - y) * way[0]);
        if (i !== current && along > 0 && along + 3 * across < least) { least = along + 3 * across; best = i; }
      }
      near = [];
      if (best >= 0) show(best);
    } else if (event.key === "+" || event.key === "=") zoom(1.5);
    else if (event.key === "-") zoom(1 / 1.5);
    else if (event.key === "0") { reset(); draw(); }
    else if (event.key === "Enter") pick(current);
    else if (event.key === " " && current >= 0) {
      if (!selected.delete(current)) selected.add(current);
      told(); draw();
    } else if (event.key === "Escape") { near = []; show(-1); }
    else return;
    event.preventDefault();
  });

  // ---- decoded codes
  if (data.decoded) {
    const side = data.side, sliders = ["z0", "z1", "z2"].slice(0, axes).map(find), shown = find("decoded");
    find("codes").hidden = false;
    find("third").hidden = axes < 3;
    const decode = () => {
      const steps = sliders.map((slider) => Number(slider.value));
      const code = steps.map((step, axis) => data.reach[0][axis] + step / (side - 1) * (data.reach[1][axis] - data.reach[0][axis]));
      const index = steps.reduceRight((sum, step) => sum * side + step, 0);
      shown.replaceChildren(captioned(tile("decoded", index, 128, "decoded"), `decoded from ${code.map((z) => z.toFixed(2)).join(", ")}`));
    };
    for (const slider of sliders) { slider.max = String(side - 1); slider.value = String(side >> 1); slider.addEventListener("input", decode); }
    decode();
  }

  for (const name of Object.keys(data.colours)) {
    const option = text("option", name);
    option.value = name;
    colourBy.append(option);
  }
  colourBy.addEventListener("change", recolour);
  window.addEventListener("resize", fit);
  fit(); recolour(); told();
})();
