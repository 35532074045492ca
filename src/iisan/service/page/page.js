// The page: what is in view is in the address after "#", so a link shows the same; nothing is stored elsewhere.

import { AddDialog, ItemDialog } from "./dialogs.js";
import { Column, overview } from "./lists.js";
import { byId, choice, count, counted, h, picture, problem, row, say, skeleton, title, titleOf } from "./parts.js";
import { call, itemPath, newest } from "./service.js";

const SHOWN = 24;
const LENGTHS = [10, 20, 50];
const NEAR = 0.95; // Cosine of anchors above which items are near-duplicates.

function read() {
  const given = new URLSearchParams(location.hash.slice(1));
  let where = {};
  try {
    where = JSON.parse(given.get("where") ?? "{}");
  } catch {
    // A link that was cut off: without filters.
  }
  return {
    run: given.get("run"),
    other: given.get("with"),
    history: given.getAll("item"),
    where,
    per: given.get("per"),
    distinct: given.has("distinct"),
    k: LENGTHS.find((length) => length === Number(given.get("k"))) ?? LENGTHS[0],
  };
}

function write({ run, other, history, where, per, distinct, k }) {
  const given = new URLSearchParams();
  if (run !== null) given.set("run", run);
  if (other !== null) given.set("with", other);
  for (const id of history) given.append("item", id);
  if (Object.keys(where).length) given.set("where", JSON.stringify(where));
  if (per) given.set("per", per);
  if (distinct) given.set("distinct", "1");
  if (k !== LENGTHS[0]) given.set("k", k);
  return given.toString();
}

// An item of the history of which only the id is known: not read yet, or unknown to the run.
const unread = (id) => ({ item_id: id, text: id, image: null });

// New fields for a form; the one that had the focus keeps it.
function redraw(form, fields) {
  const focused = document.activeElement?.form === form ? document.activeElement.name : null;
  form.replaceChildren(...fields);
  if (focused) form.elements[focused]?.focus();
}

class Page {
  constructor({ runs, adding }) {
    this.all = runs;
    this.adding = adding;
    this.known = new Map(); // Items by id, from any answer.
    this.searching = newest();
    this.limit = SHOWN;
    this.columns = [new Column(this, 0), new Column(this, 1)].slice(0, runs.length > 1 ? 2 : 1);
    this.dialog = new ItemDialog(this);
    this.open = this.dialog.open;
    byId("columns").append(...this.columns.map(({ element }) => element));
    byId("add").hidden = !adding;
    const form = new AddDialog(this);
    byId("add").addEventListener("click", () => form.open());
    byId("clear").addEventListener("click", () => this.change({ history: [] }));
    byId("search").addEventListener("submit", (event) => event.preventDefault());
    byId("query").addEventListener("input", () => {
      clearTimeout(this.typing);
      this.typing = setTimeout(() => this.search(), 150);
    });
    window.addEventListener("hashchange", () => this.update());
    this.update();
  }

  // The runs in view: the first and, if there is one, the one it is compared with.
  get runs() {
    const named = (name) => this.all.find((run) => run.name === name);
    const first = named(this.state.run) ?? this.all[0];
    const second = this.state.other === null ? this.all.find((run) => run !== first) : named(this.state.other);
    return second && second !== first ? [first, second] : [first];
  }

  change(changes) {
    location.hash = write({ ...this.state, ...changes });
  }

  choose(index, name) {
    const [first, second] = this.runs;
    if (index === 1) this.change({ other: name ?? "" });
    else this.change({ run: name, other: second && (second.name === name ? first.name : second.name) });
  }

  pick(item) {
    this.known.set(item.item_id, item);
    this.change({ history: [...this.state.history, item.item_id] });
    say(`In the history: ${titleOf(item)}`);
  }

  filters(run) {
    const { where, per, distinct, k } = this.state;
    const near = distinct && run.similar_by.includes("anchor") ? NEAR : null;
    return { where: Object.keys(where).length ? where : null, max_per: per, near_duplicates: near, k };
  }

  update() {
    const before = this.state;
    this.state = read();
    const [run] = this.runs;
    if (run.name !== this.drawn) {
      this.drawn = run.name;
      byId("facts").textContent = `${counted(run.num_items, "item")} · ${run.modalities.join(", ") || "ids only"}`;
      document.body.classList.toggle("pictures", run.images);
      this.search();
    }
    if (before?.history.join("\n") !== this.state.history.join("\n")) this.drawHistory();
    this.drawChoices();
    this.drawFilters();
    for (const column of this.columns) column.draw();
    this.dialog.showStandings();
  }

  // Everything again, after an item of the catalogue changed.
  async changed(sentence, id) {
    say(sentence);
    this.all = (await call("/runs")).runs;
    this.known.delete(id);
    this.drawn = null;
    this.update();
    this.drawHistory();
  }

  search(limit = SHOWN) {
    const text = byId("query").value.trim();
    const [list, end] = [byId("results"), byId("results-end")];
    if (!list.childElementCount) list.replaceChildren(...skeleton(8));
    list.setAttribute("aria-busy", "true");
    this.searching.run(
      async (signal) => {
        const { items, total } = await call(`/items?${new URLSearchParams({ search: text, limit, run: this.runs[0].name })}`, { signal });
        for (const item of items) this.known.set(item.item_id, item);
        list.removeAttribute("aria-busy");
        list.replaceChildren(...items.map((item) => row(this, item)));
        byId("found").textContent = text ? `${count(total)} found` : "most popular first";
        end.replaceChildren();
        if (!total) end.replaceChildren(h("p", { class: "quiet" }, `No title contains all of “${text}”.`),
          h("button", { type: "button", onclick: () => { byId("query").value = ""; byId("query").focus(); this.search(); } }, "Show all"));
        else if (items.length < total) end.replaceChildren(h("button", { type: "button", onclick: () => this.search(limit + 2 * SHOWN) }, "Show more"));
        if (!this.state.history.length) this.drawHistory();
      },
      (error) => {
        list.removeAttribute("aria-busy");
        list.replaceChildren();
        byId("found").textContent = "";
        end.replaceChildren(problem(error, () => this.search(limit)));
      },
    );
  }

  async drawHistory() {
    const { history } = this.state;
    byId("clear").hidden = !history.length;
    document.querySelector(".jump [data-to=history]").textContent = history.length ? `History (${history.length})` : "History";
    document.body.classList.toggle("empty", !history.length);
    if (!history.length) {
      const examples = [...byId("results").querySelectorAll("[data-item]")].slice(0, 3).map(({ dataset }) => dataset.item);
      byId("past").replaceChildren(h("li", { class: "welcome" },
        h("p", {}, "Pick items from the catalogue. What to recommend next appears here at once, and every row says why."),
        examples.length > 0 && h("button", { type: "button", class: "main", onclick: () => this.change({ history: examples }) }, "Start with an example"),
        overview(this.all)));
      return;
    }
    this.drawPast(history);
    await Promise.all([...new Set(history)].filter((id) => !this.known.has(id)).map((id) => this.learn(id)));
    if (history.join("\n") === this.state.history.join("\n")) this.drawPast(history);
  }

  drawPast(history) {
    byId("past").replaceChildren(...history.map((id, index) => this.pastItem(id, index)));
    byId("past").scrollLeft = byId("past").scrollWidth;
    this.markUnknown();
  }

  async learn(id) {
    try {
      this.known.set(id, await call(itemPath(id, "", { run: this.runs[0].name })));
    } catch {
      this.known.set(id, unread(id));
    }
  }

  pastItem(id, index) {
    const item = this.known.get(id) ?? unread(id);
    const name = titleOf(item);
    const others = this.state.history.filter((_, place) => place !== index);
    return h("li", { class: "past-item", "data-item": id },
      h("button", { type: "button", class: "open small", title: name, onclick: () => this.open(id) }, picture(item), title(item)),
      h("span", { class: "mark" }),
      h("button", { type: "button", class: "plus", "aria-label": `Take out of the history: ${name}`, title: "Take out", onclick: () => {
        this.change({ history: others });
        byId("history-title").focus();
      } }, "×"));
  }

  drawChoices() {
    if (this.all.length === 1) return;
    const [first, second] = this.runs;
    const names = this.all.map(({ name }) => [name, name]);
    const others = [["nothing", null], ...names.filter(([name]) => name !== first.name)];
    redraw(byId("choices"), [
      choice("by", names, first.name, (name) => this.choose(0, name), { name: "run", "aria-label": "Run" }),
      choice("beside", others, second?.name ?? null, (name) => this.choose(1, name), { name: "with", "aria-label": "Compared with" }),
    ]);
  }

  drawFilters() {
    const [run] = this.runs;
    const { where, per, distinct, k } = this.state;
    const columns = Object.entries(run.columns).filter(([, { values }]) => values.length > 1);
    const filter = ([name, { values }]) => {
      const { [name]: _, ...rest } = where;
      return choice(name, [["any", null], ...values.map((value) => [String(value), value])], where[name] ?? null,
        (value) => this.change({ where: value === null ? rest : { ...rest, [name]: value } }), { name });
    };
    const near = h("label", { class: "check" },
      h("input", { type: "checkbox", name: "distinct", checked: distinct, onchange: (event) => this.change({ distinct: event.target.checked }) }), "no near-duplicates");
    redraw(byId("filters"), [
      ...columns.map(filter),
      columns.length > 0 && choice("at most one per", [["–", null], ...columns.map(([name]) => [name, name])], per, (value) => this.change({ per: value }), { name: "per" }),
      choice("length", LENGTHS.map((length) => [String(length), length]), k, (value) => this.change({ k: value }), { name: "k" }),
      run.similar_by.includes("anchor") && near,
    ].filter(Boolean));
  }

  // A column has an answer or an error: what the two lists share, and what runs do not know.
  arrived() {
    const [first, second] = this.columns;
    const compared = second && this.runs.length > 1 && first.items.length > 0 && second.items.length > 0;
    first.compare(compared ? second : null);
    second?.compare(compared ? first : null);
    const shared = compared ? first.items.filter((item) => second.shown.has(item.item_id)).length : 0;
    byId("agreement").textContent = compared ? `${shared} of ${first.items.length} in both lists` : "";
    this.markUnknown();
  }

  markUnknown() {
    for (const element of byId("past").querySelectorAll("[data-item]")) {
      const runs = this.columns.filter((column) => column.run && column.unknown?.includes(element.dataset.item)).map((column) => column.run.name);
      element.querySelector(".mark").textContent = runs.length ? `unknown to ${runs.join(", ")}` : "";
    }
  }

  // An item under the pointer is marked in both lists.
  point(id, on) {
    for (const { shown } of this.columns) shown.get(id)?.button.closest(".row").classList.toggle("pointed", on);
  }
}

document.addEventListener("keydown", (event) => {
  const typing = event.target.closest("input, textarea, select, dialog");
  if (event.key !== "/" || typing || event.ctrlKey || event.metaKey || event.altKey) return;
  event.preventDefault();
  byId("query").focus();
});

for (const button of document.querySelectorAll(".jump button")) {
  button.addEventListener("click", () => {
    const title = byId(`${button.dataset.to}-title`);
    title.focus({ preventScroll: true });
    title.scrollIntoView();
  });
}

async function begin() {
  byId("results").replaceChildren(...skeleton(8));
  try {
    new Page(await call("/runs"));
  } catch (error) {
    byId("results").replaceChildren();
    byId("results-end").replaceChildren(problem(error, begin));
  }
}

begin();
