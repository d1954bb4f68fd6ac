"use strict";

// Charts: the value of every line nearest to the pointer, or to the place the arrow keys moved to.
for (const figure of document.querySelectorAll("[data-chart]")) {
  const { percent, x, lines } = JSON.parse(figure.dataset.chart);
  const svg = figure.querySelector("svg"), cursor = figure.querySelector(".cursor");
  const values = figure.querySelectorAll(".legend b"), at = figure.querySelector(".at");
  const rest = [...values].map((value) => value.textContent);
  const steps = [...new Set(lines.flatMap((line) => line[0]))].sort((a, b) => a - b);
  let place = null;

  const nearest = (sorted, wanted) => {
    let low = 0, high = sorted.length - 1;
    while (high - low > 1) {
      const middle = (low + high) >> 1;
      if (sorted[middle] < wanted) low = middle; else high = middle;
    }
    return wanted - sorted[low] < sorted[high] - wanted ? low : high;
  };
  const show = (value) => (percent ? +(100 * value).toPrecision(3) + " %" : String(+value.toPrecision(4)));
  const read = (index) => {
    place = index;
    const step = steps[index], share = x[1] > x[0] ? (step - x[0]) / (x[1] - x[0]) : 0.5;
    const pixel = x[2] + share * (x[3] - x[2]);
    cursor.setAttribute("x1", pixel);
    cursor.setAttribute("x2", pixel);
    cursor.style.visibility = "visible";
    lines.forEach(([steps, ys], i) => { values[i].textContent = show(ys[nearest(steps, step)]); });
    at.textContent = "step " + step;
  };
  const leave = () => {
    place = null;
    cursor.style.visibility = "hidden";
    rest.forEach((text, i) => { values[i].textContent = text; });
    at.textContent = "";
  };
  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect();
    const pixel = ((event.clientX - box.left) / box.width) * svg.viewBox.baseVal.width;
    read(nearest(steps, x[0] + ((pixel - x[2]) / (x[3] - x[2])) * (x[1] - x[0])));
  });
  svg.addEventListener("pointerleave", leave);
  svg.addEventListener("blur", leave);
  svg.addEventListener("keydown", (event) => {
    const move = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!move) return;
    event.preventDefault();
    const from = place ?? (move > 0 ? -1 : steps.length);
    read(Math.min(Math.max(from + move, 0), steps.length - 1));
  });
}

// Tables: a heading sorts by its column; numbers largest first, names from A; again turns it round.
for (const table of document.querySelectorAll(".sortable")) {
  const headings = [...table.tHead.rows[0].cells], body = table.tBodies[0];
  headings.forEach((heading, column) => {
    heading.querySelector("button").addEventListener("click", () => {
      const first = column ? "descending" : "ascending";
      const other = column ? "ascending" : "descending";
      const order = heading.getAttribute("aria-sort") === first ? other : first;
      headings.forEach((each) => each.removeAttribute("aria-sort"));
      heading.setAttribute("aria-sort", order);
      const sign = order === "ascending" ? 1 : -1;
      const compare = column
        ? (a, b) => a.cells[column].dataset.value - b.cells[column].dataset.value
        : (a, b) => a.cells[0].textContent.localeCompare(b.cells[0].textContent, undefined, { numeric: true });
      body.append(...[...body.rows].sort((a, b) => sign * compare(a, b)));
      document.getElementById("sorted").textContent = `Sorted by ${heading.textContent.trim()}, ${order}`;
    });
  });
}

const opacity = document.getElementById("opacity");
if (opacity) {
  const apply = () => document.documentElement.style.setProperty("--heat", opacity.value / 100);
  opacity.addEventListener("input", apply);
  apply();
}
