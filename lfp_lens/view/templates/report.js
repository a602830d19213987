"use strict";
// Figures: drawn in the reader's colour scheme, and redrawn when that changes.
const dark = window.matchMedia("(prefers-color-scheme: dark)");
const narrow = window.matchMedia("(max-width: 40rem)");
function look(layout) {
  const style = getComputedStyle(document.documentElement);
  const colour = (name) => style.getPropertyValue(name).trim();
  const base = layout.template.layout;
  base.paper_bgcolor = base.plot_bgcolor = "rgba(0,0,0,0)";
  base.font.color = colour("--ink");
  base.modebar = { bgcolor: "rgba(0,0,0,0)", color: colour("--line"), activecolor: colour("--soft") };
  base.hoverlabel = { bgcolor: colour("--card"), bordercolor: colour("--line"), font: { color: colour("--ink") } };
  for (const axis of [base.xaxis, base.yaxis]) {
    axis.gridcolor = dark.matches ? "#2a3037" : "#eceef1";
    axis.linecolor = axis.tickcolor = colour("--line");
  }
  return layout;
}
function draw(script) {
  const figure = JSON.parse(script.textContent);
  const options = {
    responsive: true, displaylogo: false, displayModeBar: narrow.matches ? false : "hover",
    modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"],
  };
  Plotly.newPlot(script.dataset.plot, figure.data, look(figure.layout), options);
  if (figure.layout.meta !== "words") return;
  const plot = document.getElementById(script.dataset.plot);
  plot.removeAllListeners("plotly_click");
  plot.on("plotly_click", (event) => find(event.points[0].text));
}
const figures = document.querySelectorAll("script.figure");
figures.forEach(draw);
dark.addEventListener("change", () => figures.forEach(draw));

// Tables: a click on a header sorts by that column, a second click turns the order round. Missing values stay last.
function sort(head, column) {
  const rising = head.getAttribute("aria-sort") === "descending";
  head.parentElement.querySelectorAll("th").forEach((other) => other.removeAttribute("aria-sort"));
  head.setAttribute("aria-sort", rising ? "ascending" : "descending");
  const body = head.closest("table").tBodies[0];
  const key = (row) => {
    const cell = row.cells[column];
    return "v" in cell.dataset ? parseFloat(cell.dataset.v) : cell.textContent;
  };
  const order = (a, b) => (typeof a === "number" ? a - b : a.localeCompare(b)) * (rising ? 1 : -1);
  const rows = [...body.rows].sort((one, two) => {
    const [a, b] = [key(one), key(two)];
    return Number.isNaN(a) - Number.isNaN(b) || (Number.isNaN(a) ? 0 : order(a, b));
  });
  body.append(...rows);
}
document.querySelectorAll(".lens table").forEach((table) => {
  if (table.tBodies[0].rows.length < 2) return;
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    head.classList.add("sortable");
    head.tabIndex = 0;
    head.addEventListener("click", () => sort(head, column));
    head.addEventListener("keydown", (event) => { if (event.key === "Enter") sort(head, column); });
  });
});

// Long tables: a box that hides the rows without what is typed into it.
const LONG = 20;
function searchable(box) {
  const rows = [...box.querySelectorAll("tbody tr")];
  if (rows.length < LONG) return;
  const bar = document.createElement("div");
  const input = document.createElement("input");
  const count = document.createElement("span");
  bar.className = "search";
  input.type = "search";
  input.placeholder = "Search";
  input.setAttribute("aria-label", "Search this table");
  count.setAttribute("role", "status");
  bar.append(input, count);
  box.before(bar);
  const words = rows.map((row) => row.textContent.toLowerCase());
  input.addEventListener("input", () => {
    const wanted = input.value.trim().toLowerCase();
    let shown = 0;
    rows.forEach((row, at) => {
      row.hidden = !words[at].includes(wanted);
      shown += !row.hidden;
    });
    count.textContent = wanted ? `${shown} of ${rows.length} rows` : "";
  });
}
document.querySelectorAll(".lens-scroll").forEach(searchable);

// A click on a word of the scatter looks it up. Plotly's labels are escaped; a parser that runs nothing reads them back.
function find(label) {
  const input = document.querySelector("#words .search input");
  if (!input) return;
  input.value = new DOMParser().parseFromString(label, "text/html").body.textContent;
  input.dispatchEvent(new Event("input"));
  input.scrollIntoView({ block: "center" });
}

// Contents: mark the section being read.
const links = new Map([...document.querySelectorAll("nav a")].map((link) => [link.hash.slice(1), link]));
const watcher = new IntersectionObserver((entries) => entries.forEach((entry) => {
  if (!entry.isIntersecting) return;
  links.forEach((link) => link.classList.remove("here"));
  links.get(entry.target.id)?.classList.add("here");
}), { rootMargin: "0px 0px -75% 0px" });
document.querySelectorAll("section[id], header[id]").forEach((part) => watcher.observe(part));
