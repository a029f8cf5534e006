"use strict";
// The contact sheet is plain HTML; this script filters it and fills the large view from the JSON of one sample.
// Names come from data sets: they only ever enter the page as text, never as markup.

const json = (id) => JSON.parse(document.getElementById(id).textContent);
const find = (selector) => document.querySelector(selector);
const make = (tag, attributes = {}, ...children) => {
  const element = Object.assign(document.createElement(tag), attributes);
  element.append(...children);
  return element;
};

const store = json("store");
const cards = [...document.querySelectorAll(".card")];
const dialog = find("dialog");
const stage = find(".stage");
const percent = (share) => (share > 0 && share < 0.001 ? "<0.1%" : (100 * share).toFixed(1) + "%");

// --- contact sheet ---

const shown = () => cards.filter((card) => !card.hidden);

function filter() {
  const words = find("#search").value.toLowerCase().split(",").map((word) => word.trim()).filter(Boolean);
  for (const card of cards) card.hidden = !words.every((word) => card.dataset.search.includes(word));
  const count = shown().length;
  find("#count").textContent = count === cards.length ? `${count} samples` : `${count} of ${cards.length} samples`;
  find(".none").hidden = count > 0;
}

find("#search").addEventListener("input", filter);
for (const button of document.querySelectorAll(".choice button")) {
  button.addEventListener("click", () => {
    find(".sheet").classList.toggle("photos", button.value === "photo");
    for (const other of document.querySelectorAll(".choice button")) other.ariaPressed = String(other === button);
  });
}
for (const card of cards) card.addEventListener("click", () => open(cards.indexOf(card)));

// --- large view ---

const layers = store.layers.map((layer) => ({ ...layer, on: layer.name === "labels", opacity: layer.opacity }));
const state = { position: -1, sample: null, weightClass: null, dim: false, classes: null };

function open(position) {
  const sample = json(`sample-${position}`);
  Object.assign(state, { position, sample, classes: null });
  if (!(state.weightClass in sample.weights)) state.weightClass = sample.classes.length ? sample.classes[0][0] : null;
  const from = sample.split ? `${sample.split}, ` : "";
  find("#title").textContent = sample.id;
  find("#about").textContent =
    `sample ${sample.index}, ${from}${sample.size[1]} x ${sample.size[0]} px, ` +
    `frame ${sample.frame[1]} x ${sample.frame[0]}${sample.note ? ", " + sample.note : ""}`;
  const problem = find("#problem");
  problem.hidden = !sample.problem;
  problem.textContent = sample.problem ? `The image could not be read: ${sample.problem}` : "";
  fillSelect();
  drawStage();
  drawLegend();
  sync();
  history.replaceState(null, "", "#" + encodeURIComponent(sample.id));
  if (!dialog.open) dialog.showModal();
}

function step(by) {
  const list = shown();
  const here = list.indexOf(cards[state.position]);
  const next = list[here + by];
  if (next) open(cards.indexOf(next));
}

function drawStage() {
  const { sample } = state;
  const [height, width] = sample.frame;
  stage.style.setProperty("--ratio", width / height);
  const pictures = layers.map((layer) => make("img", { className: layer.name, alt: "", draggable: false }));
  stage.replaceChildren(make("img", { className: "photo", src: sample.image, alt: sample.id, draggable: false }),
    ...pictures, make("output", { hidden: true }));
  layers.forEach((layer, i) => {
    layer.picture = pictures[i];
    if (layer.name === "weights") {
      const [rows, columns] = sample.patches; // the last patches may reach over the border
      Object.assign(pictures[i].style, {
        width: `${(100 * columns * store.patch) / width}%`, height: `${(100 * rows * store.patch) / height}%`,
      });
    } else pictures[i].src = sample.layers[layer.name].src;
    layer.about.textContent = layer.name === "weights" ? "" : sample.layers[layer.name].about;
  });
}

function drawLegend() {
  const { sample } = state;
  const rows = sample.classes.map(([id, share]) => {
    const button = make("button", { type: "button", value: id, title: "show this class's patch weights" },
      swatch(store.classes[id].colour), make("span", { textContent: store.classes[id].name }),
      make("small", { textContent: percent(share) }));
    button.addEventListener("click", () => chooseWeights(id));
    return make("li", {}, button);
  });
  if (sample.ignored) {
    rows.push(make("li", {}, make("button", { type: "button", disabled: true }, swatch(store.ignored),
      make("span", { textContent: "(ignored)" }), make("small", { textContent: percent(sample.ignored) }))));
  }
  find(".legend").replaceChildren(...rows);
}

function fillSelect() {
  const options = state.sample.classes.map(([id]) => make("option", { value: id, textContent: store.classes[id].name }));
  weightSelect.replaceChildren(...options);
}

function chooseWeights(id) {
  const layer = layers.find((one) => one.name === "weights");
  const again = layer.on && state.weightClass === id;
  state.weightClass = id;
  layer.on = !again;
  sync();
}

function swatch(colour) {
  const box = make("i", { className: "swatch" });
  box.style.background = colour;
  return box;
}

/** Bring switches, pictures and legend to the state. */
function sync() {
  for (const layer of layers) {
    layer.box.checked = layer.on;
    layer.slider.value = layer.opacity;
    layer.picture.hidden = !layer.on || (layer.name === "weights" && state.weightClass === null);
    layer.picture.style.opacity = layer.opacity;
    if (layer.name === "weights") {
      weightSelect.value = state.weightClass;
      if (state.weightClass !== null) layer.picture.src = state.sample.weights[state.weightClass];
      for (const button of document.querySelectorAll(".legend button"))
        button.ariaPressed = String(layer.on && Number(button.value) === state.weightClass);
    }
  }
  stage.classList.toggle("dim", state.dim);
  find("#dim").checked = state.dim;
}

const weightSelect = make("select", { ariaLabel: "class of the patch weights" });
weightSelect.addEventListener("change", () => {
  state.weightClass = Number(weightSelect.value);
  layers.find((layer) => layer.name === "weights").on = true;
  sync();
});

layers.forEach((layer, i) => {
  layer.box = make("input", { type: "checkbox", id: `layer-${i}` });
  layer.slider = make("input", { type: "range", min: 0.05, max: 1, step: 0.05, ariaLabel: `opacity of ${layer.title}` });
  layer.about = make("small");
  layer.box.addEventListener("change", () => { layer.on = layer.box.checked; sync(); });
  layer.slider.addEventListener("input", () => { layer.opacity = Number(layer.slider.value); layer.on = true; sync(); });
  layer.slider.addEventListener("pointerup", () => layer.slider.blur()); // so that the arrow keys turn pages again
  const row = make("div", { className: "layer" }, layer.box, swatch(layer.colour),
    make("label", { htmlFor: layer.box.id, textContent: layer.title }), layer.slider, layer.about);
  if (layer.name === "weights") {
    const ramp = make("i");
    ramp.style.background = layer.colour;
    row.append(weightSelect, make("div", { className: "scale" }, "0", ramp, "1"));
  }
  find("#layers").append(row);
});

find("#dim").addEventListener("change", () => { state.dim = find("#dim").checked; sync(); });
find("#previous").addEventListener("click", () => step(-1));
find("#next").addEventListener("click", () => step(1));
find("#close").addEventListener("click", () => dialog.close());
dialog.addEventListener("close", () => {
  history.replaceState(null, "", location.pathname + location.search);
  cards[state.position]?.focus();
});

document.addEventListener("keydown", (event) => {
  if (!dialog.open || event.ctrlKey || event.metaKey || event.altKey) return;
  const inControl = event.target.matches("select, input[type=range]");
  if (!inControl && event.key === "ArrowLeft") step(-1);
  else if (!inControl && event.key === "ArrowRight") step(1);
  else if (!inControl && event.key === "d") { state.dim = !state.dim; sync(); }
  else if (!inControl && layers[Number(event.key) - 1]) {
    const layer = layers[Number(event.key) - 1];
    layer.on = !layer.on;
    sync();
  } else return;
  event.preventDefault();
});

// --- the class under the pointer ---

/** The label map's pixels, read once per sample: its colours are those of the classes. */
async function labelPixels(sample) {
  const picture = new Image();
  picture.src = sample.layers.labels.src;
  await picture.decode();
  const canvas = make("canvas", { width: picture.naturalWidth, height: picture.naturalHeight });
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(picture, 0, 0);
  return context;
}

stage.addEventListener("pointermove", async (event) => {
  const { sample } = state;
  state.classes ??= labelPixels(sample);
  const pixels = await state.classes;
  if (sample !== state.sample) return;
  const box = stage.getBoundingClientRect();
  const [height, width] = sample.frame;
  const x = Math.floor(((event.clientX - box.left) / box.width) * width);
  const y = Math.floor(((event.clientY - box.top) / box.height) * height);
  const [red, green, blue] = pixels.getImageData(x, y, 1, 1).data;
  const colour = "#" + [red, green, blue].map((value) => value.toString(16).padStart(2, "0")).join("");
  const hit = sample.classes.find(([id]) => store.classes[id].colour === colour);
  const output = stage.querySelector("output");
  output.hidden = !hit;
  if (!hit) return;
  output.textContent = store.classes[hit[0]].name;
  const [left, top] = [event.clientX - box.left, event.clientY - box.top];
  output.style.left = `${Math.max(0, Math.min(left + 14, box.width - output.offsetWidth - 4))}px`;
  output.style.top = `${top > box.height - 44 ? top - 30 : top + 16}px`;
});
stage.addEventListener("pointerleave", () => { const output = stage.querySelector("output"); if (output) output.hidden = true; });

// --- start ---

filter();
const wanted = decodeURIComponent(location.hash.slice(1));
const start = wanted ? cards.findIndex((card) => card.dataset.id === wanted) : -1;
if (start >= 0) open(start);
