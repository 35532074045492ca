// Dialogs: one item with what is like it and where it stands, and the form that adds an item.

import { panel, rankSentence } from "./explanation.js";
import { byId, cosine, h, percent, picture, problem, row, skeleton, titleOf, uploaded } from "./parts.js";
import { call, explain, itemPath, newest } from "./service.js";

const SIMILAR = 12;
const BY = { model: "learned embeddings", anchor: "frozen states of all modalities" };

let token = ""; // In memory only: it is gone with the page.

export class ItemDialog {
  constructor(page) {
    this.page = page;
    this.dialog = byId("item");
    this.item = newest();
    this.similars = newest();
    this.standings = newest();
    this.before = []; // Ids of the items that led here, for "Back".
    this.dialog.addEventListener("close", () => {
      for (const requests of [this.item, this.similars, this.standings]) requests.stop();
      this.before = [];
    });
  }

  open = (id, note = null) => {
    if (this.dialog.open && this.id !== id) this.before.push(this.id);
    this.draw(id, note);
  };

  draw(id, note) {
    this.id = id;
    this.standing = h("div", { class: "standing" });
    this.similar = h("ol", { class: "rows grid" });
    this.removal = h("div");
    this.dialog.replaceChildren(h("p", { id: "item-title", class: "quiet pad" }, "Reading the item …"));
    if (!this.dialog.open) this.dialog.showModal();
    this.item.run(
      async (signal) => {
        const run = this.page.runs[0];
        const item = await call(itemPath(id, "", { run: run.name }), { signal });
        this.dialog.replaceChildren(...this.parts(item, run, note));
        this.dialog.scrollTop = 0;
        byId("item-title").focus();
        this.showSimilar(this.by(run));
        this.showStandings();
      },
      (error) => {
        const shown = problem(error, () => this.draw(id, note));
        this.dialog.replaceChildren(this.bar(), h("div", { class: "pad" }, shown));
      },
    );
  }

  by(run) {
    return run.similar_by.includes(this.chosen) ? this.chosen : run.similar_by[0];
  }

  bar() {
    const button = (label, act) => h("button", { type: "button", class: "plain", onclick: act }, label);
    const back = this.before.length ? button("‹ Back", () => this.draw(this.before.pop())) : h("span");
    return h("div", { class: "bar-top" }, back, button("Close", () => this.dialog.close()));
  }

  parts(item, run, note) {
    const facts = Object.entries(item.columns ?? {}).filter(([, value]) => value !== null && value !== "");
    const pick = () => {
      this.page.pick(item);
      this.dialog.close();
    };
    const ask = () => this.askRemoval(item);
    const choose = (by) => {
      this.chosen = by;
      this.showSimilar(by);
    };
    const tab = (by) => h("label", { title: BY[by] ?? `frozen states of the ${by}` },
      h("input", { type: "radio", name: "by", value: by, checked: by === this.by(run), onchange: () => choose(by) }),
      h("span", {}, by));
    return [
      this.bar(),
      h("div", { class: "pad" },
        note && h("div", { class: "notice good", role: "status" }, note.map((line) => h("p", {}, line))),
        h("div", { class: "subject" },
          this.page.runs.some((each) => each.images) && picture(item, true),
          h("div", {},
            h("h2", { id: "item-title", tabindex: "-1" }, titleOf(item)),
            h("p", { class: "id" }, item.item_id),
            facts.length > 0 && h("dl", { class: "facts" },
              facts.flatMap(([name, value]) => [h("dt", {}, name), h("dd", {}, String(value))])),
            h("div", { class: "buttons" },
              h("button", { type: "button", class: "main", onclick: pick }, "Add to history"),
              this.page.adding && h("button", { type: "button", onclick: ask }, "Remove from lists")))),
        this.removal,
        h("section", {}, h("h3", {}, "For the current history"), this.standing),
        h("section", {}, h("div", { class: "head" }, h("h3", {}, "Similar items"),
          h("fieldset", { class: "tabs" }, h("legend", { class: "unseen" }, "Similar by"), run.similar_by.map(tab))),
        this.similar)),
    ];
  }

  showSimilar(by) {
    this.similar.replaceChildren(...skeleton(6));
    this.similars.run(
      async (signal) => {
        const query = { by, k: SIMILAR, run: this.page.runs[0].name };
        const { items } = await call(itemPath(this.id, "/similar", query), { signal });
        const likeness = (each) => h("span", { class: "number", title: "Cosine" }, cosine(each.score));
        this.similar.replaceChildren(...items.map((each) => row(this.page, each, { beside: likeness(each) })));
      },
      (error) => this.similar.replaceChildren(h("li", {}, problem(error))),
    );
  }

  // Rank and reasons for the current history in each run; drawn again when the history changes.
  showStandings() {
    if (!this.dialog.open) return;
    const { runs, state: { history } } = this.page;
    const waiting = history.length ? "Ranking …" : "Pick a history; then its rank and its score are here.";
    this.standing.replaceChildren(h("p", { class: "quiet" }, waiting));
    this.standings.run(
      async (signal) => {
        if (!history.length) return;
        const parts = await Promise.all(runs.map((run) => this.stand(run, history, signal)));
        if (!signal.aborted) this.standing.replaceChildren(...parts);
      },
      (error) => this.standing.replaceChildren(problem(error)),
    );
  }

  async stand(run, history, signal) {
    try {
      const found = await explain({ history, item: this.id, run: run.name }, signal);
      const name = this.page.runs.length > 1 ? `${run.name}: ` : "";
      return h("details", {}, h("summary", {}, name, rankSentence(found)), panel(found, this.page.open));
    } catch (error) {
      return problem(error);
    }
  }

  askRemoval(item) {
    const failed = h("div");
    const form = h("form", { class: "form", "data-working": "Removing the item …", onsubmit: async (event) => {
      event.preventDefault();
      await remove(this.page, item.item_id, form, failed) && this.dialog.close();
    } },
    h("p", {}, "It leaves all lists and the catalogue. Histories that hold it still count it."),
    tokenField(), failed,
    h("div", { class: "buttons" },
      h("button", { class: "main" }, "Remove"),
      h("button", { type: "button", onclick: () => this.removal.replaceChildren() }, "Keep")));
    this.removal.replaceChildren(form);
    form.querySelector("input, button").focus();
  }
}

const tokenField = () => token
  ? h("p", { class: "quiet" }, "The token is kept in memory until this page is closed.")
  : h("label", { class: "field wide" }, h("span", {}, "Token of the service"),
    h("input", { type: "password", name: "token", required: true, autocomplete: "off", spellcheck: "false" }),
    h("small", {}, "Kept in memory until this page is closed, nowhere else."));

// Runs a task with the token of a form, which is forgotten if the service does not accept it.
async function withToken(form, failed, task) {
  const button = form.querySelector("button.main");
  const given = token || form.elements.token.value;
  button.disabled = true;
  failed.replaceChildren(h("p", { class: "quiet", role: "status" }, form.dataset.working));
  try {
    const answer = await task(given);
    token = given;
    failed.replaceChildren();
    return answer;
  } catch (error) {
    if (error.status === 401) {
      token = "";
      if (!form.elements.token) failed.before(tokenField());
    }
    failed.replaceChildren(problem(error));
    return null;
  } finally {
    button.disabled = false;
  }
}

async function remove(page, id, form, failed) {
  const done = await withToken(form, failed, (given) =>
    forEachRun(page.runs, (name) => call(itemPath(id, "", { run: name }), { method: "DELETE", token: given })));
  if (done) await page.changed(`Removed: ${id}`, id);
  return done;
}

// Answers of the runs in view one after the other, and the sentences of those that refuse; an error if all do.
async function forEachRun(runs, task) {
  const [done, errors] = [[], []];
  for (const { name } of runs) {
    try {
      done.push(await task(name));
    } catch (error) {
      errors.push([name, error]);
    }
  }
  if (!done.length) throw errors[0][1];
  return { done, refused: errors.map(([name, { message }]) => `Not in ${name}: ${message}`) };
}

export class AddDialog {
  constructor(page) {
    this.page = page;
    this.dialog = byId("adding");
    this.dialog.addEventListener("close", () => this.dialog.replaceChildren());
  }

  open() {
    const { runs } = this.page;
    const modalities = new Set(runs.flatMap((run) => run.modalities));
    const names = runs.map(({ name }) => name).join(" and ");
    const failed = h("div");
    const field = (label, input, hint) =>
      h("label", { class: "field wide" }, h("span", {}, label), input, hint && h("small", {}, hint));
    const preview = h("span", { class: "tile big none" });
    const file = h("input", {
      type: "file",
      name: "image",
      accept: "image/png,image/jpeg,image/webp",
      onchange: ({ target }) => show(preview, target.files[0]),
    });
    const id = { name: "item_id", required: true, value: freshId(), autocomplete: "off", spellcheck: "false" };
    const columns = Object.entries(runs[0].columns).map(([name, column]) => field(name, columnInput(name, column)));
    const form = h("form", {
      class: "form pad",
      "data-working": "The encoders read the item; the first one takes longer, as they are loaded …",
      onsubmit: (event) => {
        event.preventDefault();
        this.send(form, failed);
      },
    },
    h("h2", { id: "adding-title" }, "Add an item"),
    h("p", { class: "quiet" }, `At once in histories and lists of ${names}, without training.`),
    field("Title", h("textarea", { name: "text", rows: 2, required: !modalities.has("image") })),
    modalities.has("image") && h("div", { class: "upload" }, preview, field("Picture", file)),
    field("Item id", h("input", id), "Any id that the catalogue does not have."),
    h("div", { class: "pair" }, columns),
    tokenField(), failed,
    h("div", { class: "buttons" },
      h("button", { class: "main" }, "Add"),
      h("button", { type: "button", onclick: () => this.dialog.close() }, "Cancel")));
    this.dialog.replaceChildren(form);
    this.dialog.showModal();
    form.elements.text.focus();
  }

  async send(form, failed) {
    const { page } = this;
    const value = (name) => form.elements[name]?.value.trim() || null;
    const [id, text, file] = [value("item_id"), value("text"), form.elements.image?.files[0]];
    const columns = Object.entries(page.runs[0].columns)
      .map(([name, column]) => [name, typed(value(`column ${name}`), column)])
      .filter(([, each]) => each !== null);
    const answer = await withToken(form, failed, async (given) => {
      const image = file ? await base64(file) : null;
      const items = [{ item_id: id, text, image, columns: Object.fromEntries(columns) }];
      return forEachRun(page.runs, (name) =>
        call("/items", { method: "POST", token: given, body: { items, run: name } }));
    });
    if (!answer) return;
    this.dialog.close();
    if (file) uploaded.set(id, URL.createObjectURL(file));
    await page.changed(`Added: ${text ?? id}`, id);
    const [{ seconds, outside }] = answer.done;
    const unlike = Object.entries(outside).filter(([, share]) => share >= 0.01);
    page.open(id, [
      `Added in ${seconds.toFixed(1)} s. This is where it lands.`,
      ...answer.refused,
      ...unlike.map(([name, share]) => `${percent(share, 0)} of its ${name} is unlike the training data, and ignored.`),
    ]);
  }
}

const freshId = () => `new-${Date.now().toString(36)}`;

function show(preview, file) {
  preview.replaceChildren();
  preview.classList.toggle("none", !file);
  if (!file) return;
  const address = URL.createObjectURL(file);
  preview.append(h("img", { src: address, alt: "The chosen picture", onload: () => URL.revokeObjectURL(address) }));
}

const base64 = (file) => new Promise((resolve, reject) => {
  const reader = new FileReader();
  reader.onload = () => resolve(reader.result.slice(reader.result.indexOf(",") + 1));
  reader.onerror = () => reject(new Error("The picture could not be read; choose the file again."));
  reader.readAsDataURL(file);
});

function columnInput(name, { values }) {
  const list = `values-${name}`;
  const type = typeof values[0] === "number" ? "number" : "text";
  return [
    h("input", { name: `column ${name}`, list, type, step: "any", autocomplete: "off" }),
    h("datalist", { id: list }, values.map((each) => h("option", { value: String(each) }))),
  ];
}

// What was typed, in the type of the column's values.
function typed(text, { values }) {
  if (text === null) return null;
  if (typeof values[0] === "number") return Number(text);
  if (typeof values[0] === "boolean") return text === "true";
  return text;
}
