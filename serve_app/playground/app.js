// The page. Its state is one object; `render` displays it.

import { PhotoView, colour } from "./canvas.js";
import { EXAMPLES } from "./examples.js";
import { LOWEST_SCORE, ServiceError, example, info, picture, points, score, typeOf } from "./service.js";
import { curl, requests } from "./snippets.js";

const $ = (id) => document.getElementById(id);
const view = new PhotoView($("canvas"));
const state = { photo: null, objects: [], timing: null, threshold: 0.3, tolerance: 1, hidden: new Set(), hovered: null, picked: null, key: "", tab: "curl", isRotated: true };
let running = new AbortController();

function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

function swatch(fill) { // an attribute of SVG, because the page's security policy allows no inline style
  const box = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  box.classList.add("swatch");
  box.style.background = fill;
  return box;
}

// --- input ---

async function take(photo, more = 0) { // more: files that came with it; the page shows one photo
  if (!photo) return;
  $("left-out").textContent = more ? `${more} more not sent: this page takes one photo at a time. For many: python -m jobs.batch_score` : "";
  Object.assign(state, { photo, objects: [], timing: null, hidden: new Set(), hovered: null, picked: null });
  for (const button of $("examples").querySelectorAll("button")) button.ariaPressed = String(button.dataset.file === photo.name);
  $("result").hidden = $("code").hidden = true;
  delete $("labels").dataset.shown; // all labels are checked again
  await newest(async (signal) => {
    const bitmap = state.isRotated ? await createImageBitmap(photo).catch(() => null) : null; // null: the service has to decode it
    if (signal.aborted) return;
    showPhoto(bitmap);
    await find(signal, bitmap === null);
  });
}

function showPhoto(bitmap) {
  view.setPhoto(bitmap);
  document.body.classList.toggle("empty", !bitmap);
  $("welcome").hidden = Boolean(bitmap);
  $("canvas").ariaLabel = state.photo.name;
}

// Runs `work` instead of what runs; whatever that still brings is dropped.
async function newest(work) {
  running.abort();
  running = new AbortController();
  const { signal } = running;
  $("error").hidden = true;
  $("busy").hidden = false;
  try {
    await work(signal);
  } catch (error) {
    if (!signal.aborted) tell(error);
  } finally {
    if (!signal.aborted) $("busy").hidden = true;
  }
}

async function find(signal, needsPicture = false) {
  const found = await score(state.photo, { ...state, signal });
  const decoded = needsPicture && await createImageBitmap(await picture(state.photo, state.key, signal));
  signal.throwIfAborted();
  if (decoded) showPhoto(decoded);
  Object.assign(state, found);
  $("result").hidden = $("code").hidden = false;
  render();
}

function tell(error) {
  const known = error instanceof ServiceError ? error : new ServiceError("page_error", String(error));
  $("error-code").textContent = known.code;
  $("error-status").textContent = known.status ? `HTTP ${known.status}` : "";
  const request = known.requestId ? ` (request ${known.requestId})` : "";
  $("error-message").textContent = `${state.photo ? `${state.photo.name}: ` : ""}${known.message}${request}`;
  $("error-remedy").textContent = known.remedy;
  $("retry").hidden = !state.photo;
  $("error").hidden = false;
  if (known.code === "unauthorized") askForKey();
}

function askForKey() {
  $("key-form").hidden = false;
  $("key").focus();
}

// --- results ---

function shown() {
  return state.objects
    .map((object, index) => ({ object, index }))
    .filter(({ object }) => object.score >= state.threshold && !state.hidden.has(object.label));
}

function render() {
  const list = shown();
  const names = Object.entries(Object.groupBy(list, ({ object }) => object.label)).map(([label, all]) => `${all.length} × ${label}`);
  $("count").textContent = names.join(", ") || "No objects above this score";
  $("canvas").ariaLabel = `${state.photo.name}: ${names.join(", ") || "no objects"}`;
  $("threshold-value").textContent = state.threshold.toFixed(2);
  $("tolerance-value").textContent = `${state.tolerance} px`;
  const vertices = list.reduce((sum, { object }) => sum + points(object), 0);
  const bytes = new TextEncoder().encode(JSON.stringify(list.map(({ object }) => object))).length;
  $("size").textContent = `${vertices.toLocaleString("en")} points, ${(bytes / 1000).toFixed(1)} kB of JSON`;
  $("objects").replaceChildren(...list.map(row));
  renderLabels();
  renderTiming();
  renderCode(list);
  stress();
}

function row({ object, index }) {
  const button = element("button", { type: "button" },
    swatch(colour(index)), object.label,
    element("span", { className: "points", textContent: `${points(object)} points` }),
    element("strong", { textContent: object.score.toFixed(2) }));
  button.dataset.index = index;
  button.onclick = () => pick(index);
  button.onmouseenter = button.onfocus = () => hover(index);
  button.onmouseleave = button.onblur = () => hover(null);
  return element("li", {}, button);
}

function renderLabels() {
  const labels = [...new Set(state.objects.map(({ label }) => label))].sort();
  $("labels").hidden = labels.length < 2;
  if ($("labels").dataset.shown === labels.join("\n")) return; // keeps the keyboard's focus
  $("labels").dataset.shown = labels.join("\n");
  $("labels").replaceChildren($("labels").firstElementChild, ...labels.map((label) => {
    const box = element("input", { type: "checkbox", checked: !state.hidden.has(label) });
    box.onchange = () => { state.hidden[box.checked ? "delete" : "add"](label); render(); };
    return element("label", {}, box, label);
  }));
}

function renderTiming() {
  const { parts, totalMs } = state.timing;
  const paint = (i) => (i === parts.length - 1 ? "#98a2b3" : `hsl(${(i * 52 + 215) % 360} 70% 56%)`);
  $("bar").replaceChildren(...parts.map(([, ms], i) => {
    const piece = element("div");
    Object.assign(piece.style, { flex: `${ms} 0 0`, background: paint(i) });
    return piece;
  }));
  const line = (what, ms, fill) => [element("dt", {}, fill ? swatch(fill) : element("span"), element("span", { textContent: what })),
    element("dd", { textContent: `${ms.toFixed(1)} ms` })];
  const rows = parts.flatMap(([what, ms], i) => line(what, ms, paint(i)));
  const total = line("total", totalMs);
  total.forEach((item) => item.classList.add("total"));
  $("timing").replaceChildren(...rows, ...total);
}

function renderCode(list) {
  const labels = state.hidden.size ? [...new Set(state.objects.map(({ label }) => label))].filter((label) => !state.hidden.has(label)) : undefined;
  const request = {
    url: new URL("score", document.baseURI).href,
    name: state.photo.name || "photo.png",
    type: typeOf(state.photo),
    asked: { threshold: labels?.length === 0 ? 1 : state.threshold, tolerance: state.tolerance, labels }, // an empty list means all labels
    hasKey: Boolean(state.key),
  };
  const texts = {
    curl: () => curl(request),
    picture: () => curl({ ...request, draw: true }),
    python: () => requests(request),
    json: () => JSON.stringify([{ boxes: list.map(({ object }) => object) }], null, 1)
      .replace(/\[\s+(-?[\d.e-]+(?:,\s+-?[\d.e-]+)*)\s+\]/g, (_, numbers) => `[${numbers.replace(/\s+/g, " ")}]`),
  };
  for (const tab of document.querySelectorAll("[role=tab]")) {
    const isChosen = tab.id === `tab-${state.tab}`;
    Object.assign(tab, { ariaSelected: String(isChosen), tabIndex: isChosen ? 0 : -1 });
  }
  $("panel").setAttribute("aria-labelledby", `tab-${state.tab}`);
  $("panel").textContent = texts[state.tab]();
}

function stress() {
  const list = shown();
  const active = [state.hovered, state.picked].find((index) => list.some((one) => one.index === index)) ?? null; // not a filtered one
  view.setObjects(list, active);
  for (const button of $("objects").querySelectorAll("button")) {
    const index = Number(button.dataset.index);
    button.classList.toggle("active", index === active);
    button.ariaPressed = String(index === state.picked);
  }
}

function hover(index) {
  if (state.hovered === index) return;
  state.hovered = index;
  stress();
}

function pick(index) {
  state.picked = state.picked === index ? null : index;
  stress();
  $("objects").querySelector("[aria-pressed=true]")?.scrollIntoView({ block: "nearest" });
}

// --- wiring ---

function listen() {
  for (const button of document.querySelectorAll("[data-choose]")) button.onclick = () => $("file").click();
  $("file").onchange = () => { take($("file").files[0]); $("file").value = ""; };
  $("retry").onclick = () => take(state.photo);
  $("threshold").oninput = () => { state.threshold = Number($("threshold").value); render(); };
  $("tolerance").oninput = () => { $("tolerance-value").textContent = `${$("tolerance").value} px`; };
  $("tolerance").onchange = () => { state.tolerance = Number($("tolerance").value); newest(find); };
  $("canvas").onpointermove = (event) => {
    hover(view.at(event));
    $("canvas").classList.toggle("pointing", state.hovered !== null);
  };
  $("canvas").onpointerleave = () => hover(null);
  $("canvas").onclick = (event) => pick(view.at(event));
  $("key-form").onsubmit = async (event) => {
    event.preventDefault();
    state.key = $("key").value.trim();
    $("key-form").hidden = $("error").hidden = true;
    await greet();
    if (state.photo) take(state.photo);
  };
  document.onpaste = (event) => {
    const photos = [...event.clipboardData.files].filter((file) => file.type.startsWith("image/"));
    take(photos[0], photos.length - 1);
  };
  document.ondragover = (event) => { event.preventDefault(); $("stage").classList.add("over"); };
  document.ondragleave = (event) => { if (!event.relatedTarget) $("stage").classList.remove("over"); };
  document.ondrop = (event) => {
    event.preventDefault();
    $("stage").classList.remove("over");
    take(event.dataTransfer.files[0], event.dataTransfer.files.length - 1);
  };
  listenToTabs();
}

function listenToTabs() {
  const tabs = [...document.querySelectorAll("[role=tab]")];
  const choose = (tab) => { state.tab = tab.id.slice(4); renderCode(shown()); };
  tabs.forEach((tab, place) => {
    tab.onclick = () => choose(tab);
    tab.onkeydown = ({ key }) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[key];
      if (!step) return;
      const next = tabs.at((place + step) % tabs.length);
      choose(next);
      next.focus();
    };
  });
  $("copy").onclick = async () => {
    const done = await navigator.clipboard?.writeText($("panel").textContent).then(() => true, () => false);
    if (!done) getSelection().selectAllChildren($("panel")); // without HTTPS there is no clipboard API: the user presses Ctrl-C
    $("copy").textContent = done ? "Copied" : "Press Ctrl-C";
    setTimeout(() => { $("copy").textContent = "Copy"; }, 1500);
  };
}

function showExamples() {
  $("examples").replaceChildren(...EXAMPLES.map(({ file, alt }) => {
    const button = element("button", { type: "button", title: alt }, element("img", { src: `playground/examples/${file}`, alt: `Example photo: ${alt}` }));
    button.dataset.file = file;
    button.onclick = () => newest(async (signal) => {
      const blob = await example(file, signal);
      await take(new File([blob], file, { type: blob.type }));
    });
    return element("li", {}, button);
  }));
  $("credits").append("Example photos: ", ...EXAMPLES.flatMap(({ alt, source, credit }, i) => [i ? "; " : "", element("a", { href: source, textContent: alt }), ` ${credit}`]));
}

async function greet() {
  try {
    const { model, engine, precision, limits, classes, exif_orientation: isRotated = true } = await info(state.key);
    $("model").textContent = [model, engine, precision, classes?.length === 1 ? `finds: ${classes[0]}` : `${classes?.length} classes`].filter(Boolean).join(" · ");
    state.isRotated = isRotated;
    state.threshold = Math.max(limits.default_score_threshold, LOWEST_SCORE);
    $("threshold").value = state.threshold;
  } catch (error) {
    if (error.code === "unauthorized") state.key ? tell(error) : askForKey();
    else $("model").textContent = error.message;
  }
}

document.body.classList.add("empty");
listen();
showExamples();
greet();
