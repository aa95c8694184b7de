// The charts, the table of rows and the view of a row. All that comes from the user's data goes in as text, never as markup.
const page = JSON.parse(document.getElementById("page-data").textContent);
const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue("--" + name).trim();
const dark = window.matchMedia("(prefers-color-scheme: dark)");
const make = (tag, name, text) => {
  const made = document.createElement(tag);
  if (name) made.className = name;
  if (text !== undefined) made.textContent = text;
  return made;
};
const number = (value) => (value === null || value === undefined ? "–" : Number(value).toPrecision(4));

// Charts. They are drawn again where the style changes and before printing.
let brush = null;
async function draw() {
  document.documentElement.classList.toggle("dark", dark.matches); // what DataTables goes by
  for (const place of document.querySelectorAll("[data-chart]")) {
    const chart = page.charts[place.dataset.chart];
    let text = JSON.stringify(chart.spec);
    for (const name of ["pool", "score", "chosen", "warn", "ink"]) text = text.replaceAll(`"@${name}"`, JSON.stringify(colour(name)));
    for (const [name, value] of Object.entries(chart.words || {})) text = text.replaceAll(`"@${name}"`, JSON.stringify(value));
    const spec = JSON.parse(text);
    spec.data = { values: chart.data };
    const ink = colour("ink"), soft = colour("soft"), line = colour("line");
    spec.config = {
      background: "transparent", font: "system-ui, sans-serif", view: { stroke: null },
      axis: { labelColor: ink, titleColor: soft, gridColor: line, domainColor: line, tickColor: line, labelFontSize: 12, titleFontSize: 12, titleFontWeight: "normal" },
      legend: { labelColor: ink, titleColor: soft, labelFontSize: 12 }, header: { labelColor: ink, titleColor: soft, labelFontSize: 12 },
    };
    const room = place.closest("figure").clientWidth;
    fit(spec, room);
    const drawn = await window.vegaEmbed(place, spec, { actions: false, renderer: "svg" });
    place.querySelector("svg").setAttribute("aria-hidden", "true"); // the element around it says what it shows
    if (place.dataset.chart === "points" && page.rows) {
      drawn.view.addSignalListener("brush", (_, value) => filterBy(value));
    }
  }
  document.documentElement.dataset.drawn = "yes";
}
// On a narrow screen a chart is as wide as there is room, labels beside it included.
function fit(spec, room) {
  const inner = spec.spec || spec;
  if (typeof inner.width === "number") inner.width = Math.max(140, Math.min(inner.width, room - (spec.facet || inner.encoding ? 190 : 210)));
  for (const layer of inner.layer || []) if (typeof layer.width === "number") layer.width = inner.width;
}

// The table of rows.
let table = null;
function filterBy(value) {
  const has = value && value.loss && value.score;
  brush = has ? value : null;
  document.getElementById("no-brush").hidden = !has;
  if (!table) return;
  const inside = (range, one) => one !== null && one >= Math.min(...range) && one <= Math.max(...range);
  if (brush) table.search.fixed("brush", (_, row) => inside(brush.score, row.score) && inside(brush.loss, row.loss));
  else table.search.fixed("brush", null);
  table.draw();
}
function rowsOf() {
  const { rows, sources, targets = [] } = page.rows;
  return rows.id.map((id, place) => ({
    place, id, source: sources[rows.source[place]], group: rows.group[place], why: rows.why[place], score: rows.score[place],
    loss: rows.loss[place], length: rows.length[place], rank: rows.rank[place], bin: rows.bin[place],
    target: (rows.target && targets[rows.target[place]]) || "",
    text: rows.parts[place].map((part) => part[1]).join(" ").slice(0, 160),
  }));
}
const escaped = (text) => String(text).replace(/[&<>"']/g, (one) => `&#${one.charCodeAt(0)};`);
function tabulate() {
  window.DataTable.ext.errMode = "throw"; // by default it opens a dialog
  const shown = (value, kind) => (kind === "display" ? escaped(value) : value);
  const figures = (value, kind) => (kind === "display" ? number(value) : value === null ? -Infinity : value);
  const data = rowsOf();
  table = new window.DataTable("#row-table", {
    data, deferRender: true, pageLength: 25, lengthMenu: [10, 25, 100], order: [[2, "asc"]], autoWidth: false,
    language: { search: "Search the rows:" },
    columns: [
      { title: '<span class="sr">Open</span>', data: null, orderable: false, searchable: false,
        render: (_, kind, row) => (kind === "display" ? `<button type="button" class="open" aria-expanded="false" aria-label="Open row ${row.id}">+</button>` : "") },
      { title: "Group", data: "group", render: shown },
      { title: "Rank", data: "rank", className: "number", render: (value, kind, row) => (value === null ? (kind === "display" ? "–" : 1e12) : value) },
      { title: "Score", data: "score", className: "number", render: figures },
      { title: "Loss", data: "loss", className: "number minor", render: figures, visible: data.some((row) => row.loss !== null) },
      { title: "Length", data: "length", className: "number minor" },
      { title: "Source", data: "source", className: "source minor", render: shown },
      { title: "Target", data: "target", className: "source minor", render: shown, visible: data.some((row) => row.target) },
      { title: "Row", data: "id", className: "number minor" },
      { title: "Text", data: "text", className: "text", orderable: false, render: (value, kind) => (kind === "display" ? `<span dir="auto">${escaped(value)}</span>` : value) },
    ],
  });
  for (const [id, name] of [["of-group", "group"], ["of-source", "source"]]) {
    const select = document.getElementById(id);
    for (const value of ["all", ...new Set(data.map((row) => row[name]))]) select.append(new Option(value, value));
    select.addEventListener("change", () => {
      table.search.fixed(name, select.value === "all" ? null : (_, row) => row[name] === select.value);
      table.draw();
    });
  }
  document.getElementById("no-brush").addEventListener("click", () => { filterBy(null); draw(); });
  document.querySelector("#row-table").addEventListener("click", (event) => {
    const button = event.target.closest("button.open");
    if (!button) return;
    const row = table.row(button.closest("tr"));
    const open = row.child.isShown();
    if (open) row.child.hide();
    else row.child(detail(row.data())).show();
    button.setAttribute("aria-expanded", String(!open));
    button.textContent = open ? "+" : "–";
  });
}

// The view of a row.
function partsOf(parts) {
  const box = make("div");
  const inline = parts.length > 1 && parts.every((part) => part[2]) && page.rows.inline;
  for (const [name, text, scored] of parts) {
    const part = make("div", "part" + (scored ? " scored" : "") + (inline ? " inline" + (name ? " named" : "") : ""));
    part.dir = "auto";
    if (name && !inline) part.append(make("span", "who", name + (scored ? " (scored)" : "")));
    part.append(make("span", "", inline ? text + " " : text));
    if (name && inline) part.append(make("span", "who", name));
    box.append(part);
  }
  return box;
}
function tokensOf(tokens) {
  const box = make("div");
  const most = Math.max(...tokens.map((one) => Math.abs(one[2] || 0)), 1e-9);
  const line = make("p", "tokens");
  line.dir = "auto";
  for (const [text, loss, gain, label] of tokens) {
    const word = make("span", gain === null ? "off" : Math.abs(gain) < most / 50 ? "" : gain > 0 ? "up" : "down", text);
    if (gain !== null) {
      const hue = gain > 0 ? "--good" : "--bad";
      word.style.background = `color-mix(in srgb, var(${hue}) ${Math.round(45 * Math.min(1, Math.abs(gain) / most))}%, transparent)`;
      word.title = `gain ${gain.toPrecision(3)}, loss ${loss.toPrecision(3)}${label ? ", " + label : ""}`;
    }
    line.append(word);
  }
  const best = tokens.filter((one) => one[2] !== null).sort((a, b) => Math.abs(b[2]) - Math.abs(a[2])).slice(0, 8);
  const fold = make("details");
  fold.append(make("summary", "", "The tokens that moved most"));
  const list = make("table", "plain"), head = make("tr");
  for (const name of ["token", "gain (nat)", "loss before (nat)"]) { const cell = make("th", "", name); cell.scope = "col"; head.append(cell); }
  list.append(head);
  for (const [text, loss, gain, label] of best) {
    const row = make("tr"), first = make("th", "", text.trim() + (label ? ` (${label})` : ""));
    first.scope = "row"; first.dir = "auto";
    row.append(first, make("td", "", (gain > 0 ? "+" : "") + gain.toPrecision(3)), make("td", "", loss.toPrecision(3)));
    list.append(row);
  }
  fold.append(list);
  box.append(line, make("p", "legend", "Solid underline: the token gains by the target's step; dotted: it loses. Grey: not scored."), fold);
  return box;
}
function detail(row) {
  const { rows, explained, target, bins, eligible, unexplained, unit } = page.rows;
  const box = make("div", "detail");
  const bin = bins[row.bin], why = [`Row ${row.id} of the pool (${row.source}), ${row.group}.`];
  if (row.target) why.push(`Chosen for the target ${row.target}.`);
  if (row.why) why.push(`Left out: ${row.why}.`);
  const rank = row.rank === null ? "" : `, rank ${row.rank.toLocaleString("en")} of ${eligible.toLocaleString("en")}`;
  if (row.score !== null) why.push(`Score ${number(row.score)}${rank}.`);
  if (bin && bins.length > 1) why.push(`Length bin ${row.bin + 1} of ${bins.length} (${bin[0] === bin[1] ? bin[0] : `${bin[0]} to ${bin[1]}`} ${unit}).`);
  const said = make("p", "why", why.join(" "));
  said.dir = "auto";
  box.append(said, partsOf(rows.parts[row.place]));
  const more = explained[String(row.id)];
  if (more && more.tokens) box.append(make("h3", "", "Token by token, as the model reads it" + (more.for ? `; gains by the step of ${more.for}` : "")), tokensOf(more.tokens));
  if (more) {
    const near = more.near.filter(([place]) => target[String(place)]);
    if (near.length) box.append(make("h3", "", "The nearest target rows"));
    for (const [place, cosine] of near) {
      box.append(make("p", "legend", `Target row ${place}, cosine ${cosine.toFixed(3)}`), partsOf(target[String(place)]));
    }
  }
  if (!(more && more.tokens) && row.score !== null) {
    box.append(make("p", "legend", unexplained ? `No single tokens: ${unexplained}.` : `Its tokens are told by: tov inspect ${page.rows.run} ${row.id}`));
  }
  return box;
}

if (page.rows) tabulate();
dark.addEventListener("change", draw);
window.addEventListener("beforeprint", draw);
window.addEventListener("afterprint", draw);
draw();
