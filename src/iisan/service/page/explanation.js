// Terms of a score as bars, and the panel that says where a score comes from.

import { cosine, count, counted, decimals, h, picture, title, titleOf } from "./parts.js";

const NOTES = {
  learned: "trained network",
  anchor: "similarity of frozen states to the history, untrained",
  popularity: "how often it was interacted with",
  transitions: "what followed the latest item in training",
  repeats: "it is in the history already",
};

// Label, tone and note of a term; the anchors of several modalities differ in tone.
export function describe(terms) {
  const names = Object.keys(terms);
  const members = names.filter((name) => name.startsWith("member "));
  const anchors = names.filter((name) => name.startsWith("anchor of ")).sort().reverse();
  return names.map((name) => {
    const value = terms[name];
    if (members.includes(name)) {
      const label = members.length > 1 ? `learned, ${name}` : "learned";
      return { name, value, label, tone: "learned", note: NOTES.learned };
    }
    if (anchors.includes(name)) {
      const label = `anchor, ${name.slice("anchor of ".length)}`;
      return { name, value, label, tone: `anchor-${Math.min(anchors.indexOf(name), 2) + 1}`, note: NOTES.anchor };
    }
    return { name, value, label: name, tone: name, note: NOTES[name] ?? "" };
  });
}

// A bar from zero, on an axis from low to high; styles set from scripts are allowed by the content policy.
function bar(from, to, low, high, tone) {
  const element = h("span", { class: `bar ${tone}` });
  const place = (value) => (100 * (value - low)) / (high - low || 1);
  element.style.left = `${place(Math.min(from, to))}%`;
  element.style.width = `${Math.abs(place(to) - place(from))}%`;
  return element;
}

function zero(low, high) {
  const line = h("span", { class: "zero" });
  line.style.left = `${(100 * (0 - low)) / (high - low || 1)}%`;
  return line;
}

export function extent(terms) {
  const values = Object.values(terms);
  const sum = (some) => some.reduce((total, value) => total + value, 0);
  return [sum(values.filter((value) => value < 0)), sum(values.filter((value) => value > 0))];
}

// All terms on one line: those that raise the score to the right of zero, those that lower it to the left.
export function stack(terms, low, high) {
  let [left, right] = [0, 0];
  const bars = [];
  for (const { value, tone } of describe(terms)) {
    if (value === 0) continue;
    const start = value < 0 ? left : right;
    bars.push(bar(start, start + value, low, high, tone));
    if (value < 0) left += value;
    else right += value;
  }
  return [bars, zero(low, high)];
}

export const legend = (terms) =>
  h("ul", { class: "legend", "aria-label": "Terms of the scores" },
    describe(terms).map(({ label, tone, note }) => h("li", { title: note }, h("span", { class: `swatch ${tone}` }), label)));

export function rankSentence({ rank, num_items, tied }) {
  if (rank === null) return "It is in the history, so it has no rank.";
  const others = tied ? `, tied with ${counted(tied, "other")}` : "";
  return `Rank ${count(rank)} of ${count(num_items)}${others}.`;
}

function terms(explanation) {
  const described = describe(explanation.terms);
  const [low, high] = [Math.min(0, ...described.map((each) => each.value)), Math.max(0, ...described.map((each) => each.value))];
  const written = decimals(described.map((each) => each.value), true);
  const line = ({ value, label, tone, note }) =>
    h("tr", { class: value === 0 ? "nil" : null },
      h("th", { scope: "row" }, label, h("small", {}, note)),
      h("td", { class: "axis" }, h("span", { class: "track" }, bar(0, value, low, high, tone), zero(low, high))),
      h("td", { class: "number" }, written(value)));
  return h("table", { class: "terms" },
    h("caption", {}, "The score is the sum of these"),
    h("tbody", {}, described.map(line)),
    h("tfoot", {}, h("tr", {}, h("th", { scope: "row" }, "score"), h("td"), h("td", { class: "number" }, decimals([explanation.score])(explanation.score)))));
}

function past(explanation, open) {
  const items = [...explanation.history].reverse();
  const modalities = Object.keys(items[0]?.similarity ?? {});
  const anchored = items.some((each) => Object.keys(each.anchor).length);
  const learned = items.some((each) => each.model_similarity !== null);
  const shares = items.map((each) => Object.values(each.anchor).reduce((total, value) => total + value, 0));
  const [share, change] = [decimals(shares, true), decimals(items.map((each) => each.change ?? 0), true)];
  const head = (text, title) => h("th", { scope: "col", class: "number", title }, text);
  const line = (item, index) =>
    h("tr", {},
      h("th", { scope: "row" }, h("button", { type: "button", class: "open small", title: titleOf(item), onclick: () => open(item.item_id) },
        picture(item), title(item))),
      anchored && h("td", { class: "number" }, share(shares[index])),
      h("td", { class: "number" }, item.change === null ? "–" : change(item.change)),
      modalities.map((each) => h("td", { class: "number" }, cosine(item.similarity[each]))),
      learned && h("td", { class: "number" }, cosine(item.model_similarity)));
  const left = explanation.interactions - items.length;
  const table = h("table", { class: "contributions" },
    h("caption", {}, `What the history contributes, the latest first${left ? `; ${counted(left, "older interaction")} not read by this run` : ""}`),
    h("thead", {},
      h("tr", { class: "groups" }, h("td"), anchored && h("td"), h("td"),
        modalities.length + learned > 0 && h("th", { scope: "colgroup", colspan: modalities.length + learned, class: "number" }, "similarity by")),
      h("tr", {}, h("td"),
        anchored && head("in anchor", "Its share of the anchor's terms; the shares add up to them"),
        head("without it", "Change of the whole score when this item is taken out of the history"),
        modalities.map((each) => head(each, `Cosine of the ${each} anchors of the two items`)),
        learned && head("model", "Cosine of the learned embeddings of the two items"))),
    h("tbody", {}, items.map(line)));
  table.style.setProperty("--numbers", anchored + 1 + modalities.length + learned);
  return h("div", { class: "scroll" }, table);
}

function nearest(explanation, open) {
  const lists = Object.entries(explanation.nearest).filter(([, items]) => items.length);
  if (!lists.length) return null;
  const item = (each) =>
    h("li", {}, h("button", { type: "button", class: "open small", title: titleOf(each), onclick: () => open(each.item_id) },
      picture(each), title(each), h("span", { class: "number" }, cosine(each.score))));
  return h("div", { class: "nearest" },
    lists.map(([by, items]) => h("section", {}, h("h4", {}, `Nearest by ${by}`), h("ul", {}, items.map(item)))));
}

export function panel(explanation, open) {
  return h("div", { class: "why" },
    h("div", { class: "reasons" }, terms(explanation), past(explanation, open)),
    nearest(explanation, open));
}
