"use strict";
const $ = (id) => document.getElementById(id);
const TYPES = { png: "image/png", jpg: "image/jpeg", jpeg: "image/jpeg", csv: "text/csv", npy: "application/x-npy", json: "application/json" };
const SHOWN = 500; // rows of a table
let about = null;

function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

function say(text, wrong = false) {
  $("said").textContent = text;
  $("said").className = wrong ? "wrong" : "";
}

async function begin() {
  about = await (await fetch("about")).json();
  const size = about.shape.join(" × ");
  const columns = about.columns ? `: ${about.columns.join(", ")}` : "";
  $("about").textContent = `A ${about.model} of ${about.kind} data, ${size}${columns}.`;
  $("asks").hidden = !about.token;
  const first = about.does.includes("reconstruct") && about.kind === "image" ? "reconstruct" : about.does[0];
  for (const name of about.does) {
    const radio = element("input", { type: "radio", name: "does", value: name, checked: name === first });
    $("choice").append(element("label", {}, radio, " " + name));
  }
}

async function ask(name, file, accept) {
  const type = TYPES[file.name.split(".").pop().toLowerCase()];
  if (!type) throw new Error(`${file.name} is none of ${Object.keys(TYPES).join(", ")}.`);
  const headers = { "Content-Type": type, "Accept": accept };
  if (about.token) headers["Authorization"] = "Bearer " + $("token").value;
  const answer = await fetch(name, { method: "POST", headers, body: file });
  if (!answer.ok) throw new Error((await answer.json()).error);
  const note = answer.headers.get("x-note");
  return [answer, note ? " " + note : ""];
}

function picture(blob, caption) {
  const image = element("img", { src: URL.createObjectURL(blob), alt: caption });
  return element("figure", {}, image, element("figcaption", {}, caption));
}

function heat(rows) {
  const largest = rows.reduce((most, row) => Math.max(most, ...row), 1e-12);
  const canvas = element("canvas", { width: rows[0].length, height: rows.length });
  const context = canvas.getContext("2d");
  const pixels = context.createImageData(canvas.width, canvas.height);
  rows.flat().forEach((value, i) => {
    const part = value / largest;
    pixels.data.set([255 * Math.min(1, 2 * part), 255 * Math.max(0, 2 * part - 1), 40 * (1 - part), 255], 4 * i);
  });
  context.putImageData(pixels, 0, 0);
  return element("figure", {}, canvas, element("figcaption", {}, "where it is strange"));
}

function map(codes) {
  const side = 480, canvas = element("canvas", { width: side, height: side }), context = canvas.getContext("2d");
  const ranges = [0, 1].map((k) => codes.reduce(([low, high], z) => [Math.min(low, z[k]), Math.max(high, z[k])], [Infinity, -Infinity]));
  context.fillStyle = "#36c";
  for (const z of codes) {
    const [x, y] = [0, 1].map((k) => 10 + ((side - 20) * (z[k] - ranges[k][0])) / (ranges[k][1] - ranges[k][0] || 1));
    context.fillRect(x - 2, side - y - 2, 4, 4);
  }
  return element("figure", {}, canvas, element("figcaption", {}, "the first two numbers of the code"));
}

function table(columns, order) {
  const names = Object.keys(columns);
  const head = element("tr", {}, element("th", {}, "row"), ...names.map((name) => element("th", {}, name)));
  const shown = (value) => (typeof value === "number" && !Number.isInteger(value) ? value.toPrecision(4) : String(value));
  const rows = order.slice(0, SHOWN).map((i) => {
    const cells = names.map((name) => element("td", {}, shown(columns[name][i])));
    const strange = columns.anomalous && columns.anomalous[i];
    return element("tr", { className: strange ? "strange" : "" }, element("td", {}, String(i)), ...cells);
  });
  return element("div", { className: "scroll" }, element("table", {}, element("thead", {}, head), element("tbody", {}, ...rows)));
}

async function show(name, file) {
  const isPicture = /\.(png|jpe?g)$/i.test(file.name);
  if (isPicture && name === "reconstruct") {
    const [answer, note] = await ask(name, file, "image/png");
    $("result").append(picture(file, "given"), picture(await answer.blob(), "reconstruction"));
    return "Done." + note;
  }
  const [answer, note] = await ask(name, file, "application/json");
  const made = await answer.json();
  if (isPicture) $("result").append(picture(file, "given"));
  if (name === "score") {
    const { heat: heats, ...columns } = made;
    if (heats && heats.length === 1) $("result").append(heat(heats[0]));
    const order = made.score.map((_, i) => i).sort((a, b) => made.score[b] - made.score[a]);
    $("result").append(table(columns, order));
    return `${made.anomalous.filter(Boolean).length} of ${made.score.length} are anomalous; the strangest first.` + note;
  }
  if (made.code && made.code.length > 1 && made.code[0].length > 1 && typeof made.code[0][0] === "number") {
    $("result").append(map(made.code));
  }
  const rows = made.reconstruction || made.code;
  const columns = rows ? columnsOf(rows) : made;
  $("result").append(table(columns, Object.values(columns)[0].map((_, i) => i)));
  return "Done." + note;
}

function columnsOf(rows) {
  const flat = rows.map((row) => (Array.isArray(row) ? row.flat(Infinity) : row));
  return Object.fromEntries(Object.keys(flat[0]).slice(0, 50).map((key) => [key, flat.map((row) => row[key])]));
}

async function take(file) {
  if (!file) return;
  $("result").replaceChildren();
  say(`${file.name} …`);
  try {
    say(await show(document.querySelector("input[name=does]:checked").value, file));
  } catch (error) {
    say(error.message, true);
  }
}

const drop = $("drop");
$("file").addEventListener("change", (event) => take(event.target.files[0]));
drop.addEventListener("dragover", (event) => { event.preventDefault(); drop.classList.add("over"); });
drop.addEventListener("dragleave", () => drop.classList.remove("over"));
drop.addEventListener("drop", (event) => { event.preventDefault(); drop.classList.remove("over"); take(event.dataTransfer.files[0]); });
begin().catch((error) => say(error.message, true));
