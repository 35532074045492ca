// Recommendations of one run: a column that follows the history, with the reasons of every row.

import { extent, legend, panel, rankSentence, stack } from "./explanation.js";
import { count, counted, decimals, h, percent, problem, row, say, skeleton, titleOf } from "./parts.js";
import { explain, newest, recommend } from "./service.js";

export class Column {
  constructor(page, index) {
    this.page = page;
    this.index = index;
    this.requests = newest();
    this.items = [];
    this.unknown = [];
    this.shown = new Map();
    this.head = h("header");
    this.notes = h("div", { class: "notes" });
    this.list = h("ol", { class: "rows" });
    this.element = h("article", { class: "column" }, this.head, this.notes, this.list);
  }

  get run() {
    return this.page.runs[this.index];
  }

  async draw() {
    const { run } = this;
    const { history } = this.page.state;
    this.element.hidden = !run;
    if (run) {
      this.element.setAttribute("aria-label", `Recommendations of ${run.name}`);
      this.head.replaceChildren(h("h3", {}, run.name), about(run));
    }
    if (!run || !history.length) {
      this.requests.stop();
      this.clear();
      return;
    }
    this.element.setAttribute("aria-busy", "true");
    if (!this.items.length) this.list.replaceChildren(...skeleton(6));
    await this.requests.run(
      async (signal) => {
        const answer = await recommend({ history, run: run.name, terms: true, ...this.page.filters(run) }, signal);
        this.show(answer);
      },
      (error) => {
        this.clear();
        this.notes.replaceChildren(problem(error, () => this.draw()));
        this.page.arrived();
      },
    );
  }

  clear() {
    this.items = [];
    for (const { reasons } of this.shown.values()) reasons.stop();
    this.shown.clear();
    this.list.replaceChildren();
    this.notes.replaceChildren();
    this.unknown = [];
    this.element.removeAttribute("aria-busy");
  }

  show({ items, unknown, note }) {
    const open = ([, { button }]) => button.getAttribute("aria-expanded") === "true";
    const opened = [...this.shown].filter(open).map(([id]) => id);
    this.clear();
    this.items = items;
    this.unknown = unknown;
    const score = decimals(items.map((each) => each.score));
    const ends = items.map(({ terms }) => extent(terms));
    const axis = [Math.min(0, ...ends.map(([low]) => low)), Math.max(0, ...ends.map(([, high]) => high))];
    this.list.append(...items.map((item) => this.row(item, score, axis)));
    const used = Object.keys(items[0].terms).filter((name) => items.some(({ terms }) => terms[name] !== 0));
    this.notes.replaceChildren(note ? h("p", { class: "notice" }, note) : "", legend(items[0].terms, used));
    this.page.arrived();
    if (this.index === 0) say(`${counted(items.length, "recommendation")}, first: ${titleOf(items[0])}`);
    for (const id of opened) if (this.shown.has(id)) this.toggle(id);
  }

  row(item, score, axis) {
    const shown = { mark: h("span", { class: "mark" }), reasons: newest() };
    const id = `why-${this.index}-${item.rank}`;
    shown.panel = h("div", { id, class: "panel", hidden: true });
    shown.button = h(
      "button",
      {
        type: "button",
        class: "score",
        "aria-expanded": "false",
        "aria-controls": id,
        "aria-label": `Why: ${titleOf(item)}, score ${score(item.score)}`,
        title: "Why it is here",
        onclick: () => this.toggle(item.item_id),
      },
      h("span", { class: "stack", "aria-hidden": "true" }, ...stack(item.terms, ...axis)),
      h("span", { class: "number" }, score(item.score)),
      h("span", { class: "why-word" }, "Why"),
    );
    this.shown.set(item.item_id, shown);
    const element = row(this.page, item, {
      before: h("span", { class: "rank number" }, count(item.rank)),
      beside: shown.button,
      below: shown.panel,
    });
    element.querySelector(".name").append(shown.mark);
    element.addEventListener("pointerenter", () => this.page.point(item.item_id, true));
    element.addEventListener("pointerleave", () => this.page.point(item.item_id, false));
    return element;
  }

  // Which rows the other list has too, and where.
  compare(other) {
    const ranks = new Map(other?.items.map((item) => [item.item_id, item.rank]));
    for (const [id, { mark }] of this.shown) {
      const both = ranks.has(id);
      mark.textContent = both ? `rank ${ranks.get(id)} in ${other.run.name}` : "";
      mark.title = both ? `Rank ${ranks.get(id)} in the list of ${other.run.name}` : "";
      mark.closest(".row").classList.toggle("both", both);
    }
  }

  async toggle(id) {
    const { button, panel: place, reasons } = this.shown.get(id);
    const open = button.getAttribute("aria-expanded") !== "true";
    button.setAttribute("aria-expanded", String(open));
    place.hidden = !open;
    place.closest(".row").classList.toggle("opened", open);
    if (!open) return;
    place.replaceChildren(h("p", { class: "quiet" }, "Reading the reasons …"));
    await reasons.run(
      async (signal) => {
        const found = await explain({ history: this.page.state.history, item: id, run: this.run.name }, signal);
        place.replaceChildren(h("p", { class: "place" }, rankSentence(found)), panel(found, this.page.open));
      },
      (error) => place.replaceChildren(problem(error)),
    );
  }
}

const METRICS = { "hr@10": "HR@10", "ndcg@10": "NDCG@10", "cold_hr@10": "cold HR@10" };
const day = (run) => run.trained.slice(0, 10);
const modalities = (run) => run.modalities.join(", ") || "ids only";
const metrics = (run) =>
  Object.entries(METRICS)
    .filter(([name]) => Number.isFinite(run.metrics[name]))
    .map(([name, label]) => [label, percent(run.metrics[name], 2)]);

// The served runs, for the empty page.
export function overview(runs) {
  const head = (text, numeric) => h("th", { scope: "col", class: numeric && "number" }, text);
  const cell = (text, numeric) => h("td", { class: numeric && "number" }, text);
  const line = (run) => {
    const measured = Object.fromEntries(metrics(run));
    return h("tr", {},
      h("th", { scope: "row" }, run.name), cell(run.recipe), cell(modalities(run)), cell(count(run.num_items), true),
      Object.values(METRICS).map((label) => cell(measured[label] ?? "–", true)), cell(day(run)));
  };
  const heads = [
    ...["run", "recipe", "knows items by"].map((text) => head(text)),
    ...["items", ...Object.values(METRICS)].map((text) => head(text, true)),
    head("trained"),
  ];
  const protocols = [...new Set(runs.map((run) => run.protocol))];
  return h("div", { class: "runs scroll" },
    h("table", {},
      h("caption", {}, "What is served"),
      h("thead", {}, h("tr", {}, heads)),
      h("tbody", {}, runs.map(line))),
    protocols.map((protocol) => h("p", { class: "quiet" }, protocol)));
}

function about(run) {
  const measured = metrics(run).map((pair) => pair.join(" "));
  const headline = run.recipe === run.name ? measured : [run.recipe, ...measured];
  const facts = {
    protocol: run.protocol,
    items: count(run.num_items),
    "knows items by": modalities(run),
    trained: day(run),
  };
  return h("details", { class: "about" },
    h("summary", {}, headline.join(" · ")),
    h("dl", {}, Object.entries(facts).flatMap(([name, value]) => [h("dt", {}, name), h("dd", {}, value)])));
}
