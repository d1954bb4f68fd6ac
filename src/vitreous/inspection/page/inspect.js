"use strict";

const data = JSON.parse(document.getElementById("data").textContent);
const cut = document.getElementById("cut"), opacity = document.getElementById("opacity");
const asked = { image: 0, query: "patch", y: 0.5, x: 0.5 }; // a place is a share of the image, the same in two models

// What is packed as raw deflate in base64, as a buffer.
const inflate = (text) => {
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate-raw"));
  return new Response(stream).arrayBuffer();
};

// 256 colours between a few.
const colours = (stops) => Array.from({ length: 256 }, (_, i) => {
  const place = (i / 255) * (stops.length - 1), low = Math.min(Math.floor(place), stops.length - 2);
  return stops[low].map((value, c) => Math.round(value + (place - low) * (stops[low + 1][c] - value)));
});
const HEAT = colours(data.heat), COSINE = colours(data.cosine);

const paint = (canvas, width, height, colour) => {
  const context = canvas.getContext("2d"), image = context.createImageData(width, height);
  for (let i = 0; i < width * height; i++) {
    const rgb = colour(i);
    if (rgb) image.data.set([...rgb, 255], 4 * i);
  }
  context.putImageData(image, 0, 0);
};

// What is drawn brightest: the largest weight, or that which 2 % of the patches exceed.
const brightest = (weights) => {
  const sorted = [...weights].sort((a, b) => a - b);
  return Math.max(sorted[Math.round((cut && cut.checked ? 0.98 : 1) * (sorted.length - 1))], 1e-30);
};

const percent = (share) => (100 * share).toPrecision(3) + " %";
const element = (name, attributes = {}, text = "") => {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.textContent = text;
  return made;
};

// One of several is chosen: by click, or by arrow keys, of which one is in the tab order.
const roving = (items, columns, choose) => items.forEach((item, i) => {
  item.addEventListener("click", () => choose(i));
  item.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns }[event.key];
    if (!step || (event.preventDefault(), !items[i + step])) return;
    choose(i + step);
    items[i + step].focus();
  });
});
const mark = (items, chosen, attribute) => items.forEach((item, i) => {
  item.setAttribute(attribute, String(i === chosen));
  item.tabIndex = i === chosen ? 0 : -1;
});

class Panel {
  constructor(root) {
    this.root = root;
    this.model = data.models[root.dataset.model];
    [this.rows, this.columns] = this.model.grid;
    this.tokens = this.model.prefix.length + this.rows * this.columns;
    this.chosen = { layer: this.model.layers.length - 1, head: 0 };
    this.loaded = new Map();
    this.cells = [];
    this.build();
  }

  find(selector) { return this.root.querySelector(selector); }

  build() {
    const { layers, heads } = this.model, maps = this.find(".maps");
    maps.style.setProperty("--layers", layers.length);
    const head = element("div", { role: "row", class: "row" });
    head.append(element("span", { role: "columnheader", class: "corner" }, "head \\ layer"));
    layers.forEach((layer) => head.append(element("span", { role: "columnheader" }, layer)));
    if (layers.length) maps.append(head);
    heads.forEach((name, h) => {
      const row = element("div", { role: "row", class: "row" });
      row.append(element("span", { role: "rowheader" }, name));
      layers.forEach((layer, l) => {
        const cell = element("button", { type: "button", role: "gridcell", "aria-label": `Layer ${layer}, head ${name}` });
        cell.append(element("canvas", { width: this.columns, height: this.rows }), element("i"));
        row.append(cell);
        this.cells.push(cell);
      });
      maps.append(row);
    });
    roving(this.cells, layers.length, (i) => choose(layers[i % layers.length], heads[Math.floor(i / layers.length)]));

    this.patches = this.find(".patches");
    const at = (event) => {
      const box = this.patches.getBoundingClientRect();
      const share = (value, start, size) => Math.min(Math.max((value - start) / size, 0), 0.9999);
      return [share(event.clientY, box.top, box.height), share(event.clientX, box.left, box.width)];
    };
    this.patches.addEventListener("pointerdown", (event) => askPlace(...at(event)));
    this.patches.addEventListener("pointermove", (event) => {
      if (event.buttons === 1 && event.pointerType === "mouse") askPlace(...at(event));
      this.point(...at(event));
    });
    this.patches.addEventListener("pointerleave", () => { this.find(".under").textContent = "\u00a0"; });
    this.patches.addEventListener("keydown", (event) => arrows(event, this.model.grid));

    this.queries = [...this.root.querySelectorAll("[data-query]")];
    roving(this.queries, 1, (i) => askToken(this.queries[i].dataset.query));
  }

  // The token that asks: a patch, or one of those before the patches if this model has it.
  get query() {
    if (asked.query !== "patch" && this.model.prefix[asked.query]) return Number(asked.query);
    return this.model.prefix.length + this.row * this.columns + this.column;
  }
  get row() { return Math.floor(asked.y * this.rows); }
  get column() { return Math.floor(asked.x * this.columns); }
  get asksPatch() { return this.query >= this.model.prefix.length; }

  // The attention that token `query` gives to each token: layers and heads by their place among those on the page.
  weights(layer, head, query) {
    const { largest, bytes } = this.attention, row = (layer * this.model.heads.length + head) * this.tokens + query;
    return Array.from({ length: this.tokens }, (_, i) => (bytes[row * this.tokens + i] / 255) ** 2 * largest[row]);
  }

  async load() {
    const image = asked.image;
    if (!this.loaded.has(image)) {
      const text = document.getElementById(`attention-${this.root.dataset.model}-${image}`);
      const count = this.model.layers.length * this.model.heads.length * this.tokens;
      const parts = [text && text.textContent, this.model.lens[image]].map((packed) => packed ? inflate(packed) : null);
      this.loaded.set(image, Promise.all(parts).then(([attention, lens]) => ({
        attention: attention && {
          largest: new Float32Array(attention, 0, count),
          bytes: new Uint8Array(attention, 4 * count),
        },
        lens: lens && new Uint16Array(lens),
      })));
    }
    const found = await this.loaded.get(image);
    if (image === asked.image) Object.assign(this, found);
  }

  drawMap(canvas, weights) {
    const patches = weights.slice(this.model.prefix.length), bright = brightest(patches);
    paint(canvas, this.columns, this.rows, (i) => HEAT[Math.round(255 * Math.sqrt(Math.min(patches[i] / bright, 1)))]);
  }

  draw() {
    for (const image of this.root.querySelectorAll(".seen")) image.hidden = Number(image.dataset.image) !== asked.image;
    const place = this.find(".mark");
    place.hidden = !this.asksPatch;
    place.style.left = `${(100 * this.column) / this.columns}%`;
    place.style.top = `${(100 * this.row) / this.rows}%`;
    mark(this.queries, this.asksPatch ? 0 : this.query + 1, "aria-checked");
    this.find(".answering").classList.toggle("absent-maps", !this.attention);
    this.find(".large").hidden = !this.attention;
    if (this.attention) this.drawMaps();
    else this.find(".said").textContent = "The attention of this image did not fit on the page.";
    if (this.lens) this.drawLens();
  }

  drawMaps() {
    const { layers, heads, prefix } = this.model;
    this.cells.forEach((cell, i) => {
      const weights = this.weights(i % layers.length, Math.floor(i / layers.length), this.query);
      this.drawMap(cell.firstChild, weights);
      cell.lastChild.style.setProperty("--share", weights.slice(0, prefix.length).reduce((a, b) => a + b, 0));
    });
    const { layer, head } = this.chosen;
    mark(this.cells, head * layers.length + layer, "aria-selected");
    this.shown = this.weights(layer, head, this.query);
    this.drawMap(this.find(".large"), this.shown);
    const patches = this.shown.slice(prefix.length), best = patches.indexOf(Math.max(...patches));
    const who = this.asksPatch ? `Row ${this.row}, column ${this.column}` : `The ${prefix[this.query]}`;
    const others = prefix.map((name, i) => `${percent(this.shown[i])} to the ${name}`).join(", ");
    this.find(".said").textContent =
      `${who} in layer ${layers[layer]}, head ${heads[head]}: most to row ${Math.floor(best / this.columns)}, ` +
      `column ${best % this.columns} (${percent(patches[best])})${others ? "; " + others : ""}.`;
    for (const dot of document.querySelectorAll(`.charts[data-model="${this.root.dataset.model}"] .head`))
      dot.classList.toggle("on", dot.dataset.layer == layers[layer] && dot.dataset.head == heads[head]);
  }

  drawLens() {
    const body = this.find(".lens tbody"), ranks = this.model.ranks, layers = this.lens.length / (2 * ranks * this.tokens);
    body.replaceChildren(...Array.from({ length: layers }, (_, layer) => {
      const said = Array.from({ length: ranks }, (_, rank) => {
        const at = 2 * ((layer * this.tokens + this.query) * ranks + rank);
        return [this.model.classes[this.lens[at]], this.lens[at + 1] / 65535];
      });
      const row = element("tr"), best = element("td", { class: "bar", style: `--share:${said[0][1].toFixed(4)}` });
      best.append(element("span", { class: "name" }, said[0][0]), element("span", { class: "number" }, percent(said[0][1])));
      const rest = said.slice(1).map(([name, share]) => `${name} ${percent(share)}`).join(" · ");
      row.append(element("th", { scope: "row" }, layer), best, element("td", { class: "rest" }, rest));
      return row;
    }));
  }

  // The weight under the pointer.
  point(y, x) {
    if (!this.shown) return;
    const row = Math.floor(y * this.rows), column = Math.floor(x * this.columns);
    const weight = this.shown[this.model.prefix.length + row * this.columns + column];
    this.find(".under").textContent = `row ${row}, column ${column} gets ${percent(weight)}`;
  }
}

class Tiles {
  constructor(root) {
    this.root = root;
    this.model = data.models[root.dataset.model];
    this.frame = root.querySelector(".mosaic-frame");
    this.frame.addEventListener("pointerdown", (event) => {
      const box = this.frame.getBoundingClientRect();
      askPlace((event.clientY - box.top) / box.height, (event.clientX - box.left) / box.width);
    });
    this.frame.addEventListener("keydown", (event) => arrows(event, this.model.grid));
  }

  async load() {
    if (this.bytes) return;
    this.bytes = new Uint8Array(await inflate(this.model.positions));
    const [rows, columns] = this.model.grid, canvas = this.root.querySelector(".mosaic");
    const width = columns * (columns + 1) + 1, height = rows * (rows + 1) + 1;
    [canvas.width, canvas.height] = [width, height];
    paint(canvas, width, height, (i) => {
      const y = Math.floor(i / width) - 1, x = (i % width) - 1, row = y % (rows + 1), column = x % (columns + 1);
      if (y < 0 || x < 0 || row === rows || column === columns) return null;
      const tile = Math.floor(y / (rows + 1)) * columns + Math.floor(x / (columns + 1));
      return COSINE[this.bytes[tile * rows * columns + row * columns + column]];
    });
  }

  draw() {
    const [rows, columns] = this.model.grid, row = Math.floor(asked.y * rows), column = Math.floor(asked.x * columns);
    const tile = this.bytes.subarray((row * columns + column) * rows * columns).subarray(0, rows * columns);
    paint(this.root.querySelector(".tile"), columns, rows, (i) => COSINE[tile[i]]);
    const place = this.root.querySelector(".mark");
    place.style.left = `${(100 * column) / columns}%`;
    place.style.top = `${(100 * row) / rows}%`;
    place.style.width = `${100 / columns}%`;
    place.style.height = `${100 / rows}%`;
    const others = [...tile].filter((_, i) => i !== row * columns + column), cosine = (byte) => (byte / 127.5 - 1).toFixed(2);
    this.root.querySelector("[role=status]").textContent =
      `Row ${row}, column ${column}: cosines with the other patches from ${cosine(Math.min(...others))} to ${cosine(Math.max(...others))}`;
  }
}

const panels = [...document.querySelectorAll(".panel")].map((root) => new Panel(root));
const tiles = [...document.querySelectorAll(".position")].map((root) => new Tiles(root));
const thumbnails = [...document.querySelectorAll(".thumbnails [data-image]")];

async function show() {
  document.documentElement.setAttribute("aria-busy", "true");
  await Promise.all([...panels, ...tiles].map((part) => part.load()));
  for (const part of [...panels, ...tiles]) part.draw();
  document.documentElement.removeAttribute("aria-busy");
}
function askPlace(y, x) {
  const inside = (share) => Math.min(Math.max(share, 0), 0.9999);
  Object.assign(asked, { query: "patch", y: inside(y), x: inside(x) });
  return show();
}
function askToken(query) {
  asked.query = query;
  return show();
}
function askImage(image) {
  asked.image = image;
  mark(thumbnails, image, "aria-checked");
  return show();
}
// The same layer and head in every model that has them on the page.
function choose(layer, head) {
  for (const panel of panels) {
    const place = { layer: panel.model.layers.indexOf(layer), head: panel.model.heads.indexOf(head) };
    if (place.layer >= 0 && place.head >= 0) panel.chosen = place;
  }
  return show();
}
function arrows(event, [rows, columns]) {
  const step = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
  if (!step) return;
  event.preventDefault();
  const move = (share, sides, by) => (Math.min(Math.max(Math.floor(share * sides) + by, 0), sides - 1) + 0.5) / sides;
  askPlace(move(asked.y, rows, step[0]), move(asked.x, columns, step[1]));
}

roving(thumbnails, 1, askImage);
for (const chart of document.querySelectorAll(".charts")) {
  chart.addEventListener("click", (event) => {
    const dot = event.target.closest(".head");
    if (dot) choose(Number(dot.dataset.layer), Number(dot.dataset.head));
  });
}
if (opacity) {
  cut.addEventListener("change", show);
  const apply = () => document.documentElement.style.setProperty("--heat", opacity.value / 100);
  opacity.addEventListener("input", apply);
  apply();
}
show();
