// Elements that several parts of the page are made of. Data enters as text nodes and attributes only.

export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

export const byId = (id) => document.getElementById(id);
export const titleOf = (item) => item.text || `Item ${item.item_id}`;
export const title = (item) =>
  item.text ? h("span", { class: "title" }, item.text) : h("span", { class: "title none" }, "no title");
export const say = (sentence) => { byId("said").textContent = sentence; };

const integers = new Intl.NumberFormat("en");
export const count = (number) => integers.format(number);
export const counted = (number, noun) => `${count(number)} ${noun}${number === 1 ? "" : "s"}`;
export const percent = (share, digits = 1) => `${(100 * share).toFixed(digits)}%`;

// A format with so many decimals that the largest of some values has three digits; a true minus sign.
export function decimals(values, signed = false) {
  const largest = Math.max(...values.map(Math.abs), 0) || 1;
  const digits = Math.min(8, Math.max(2, 2 - Math.floor(Math.log10(largest))));
  return (value) => {
    const text = Math.abs(value).toFixed(digits);
    const sign = Number(text) === 0 ? "" : value < 0 ? "−" : signed ? "+" : "";
    return sign + text;
  };
}
export const cosine = (value) => (value === null || value === undefined ? "–" : decimals([1])(value));

// Pictures that this page added: the service lists those of the catalogue only.
export const uploaded = new Map();

export function picture(item, big = false) {
  const tile = h("span", { class: big ? "tile big" : "tile" });
  const source = item.image ?? uploaded.get(item.item_id);
  if (!source) {
    tile.classList.add("none");
    return tile;
  }
  const shown = h("img", { src: source, alt: "", loading: "lazy", decoding: "async" });
  shown.addEventListener("error", () => {
    shown.remove();
    tile.classList.add("none");
  });
  tile.append(shown);
  return tile;
}

// An item in a list: its picture and title open it, the button adds it to the history.
export function row(page, item, { before, beside, below } = {}) {
  const name = titleOf(item);
  return h(
    "li",
    { class: "row", "data-item": item.item_id },
    before,
    h(
      "button",
      { type: "button", class: "open", title: name, onclick: () => page.open(item.item_id) },
      picture(item),
      h("span", { class: "name" }, title(item), h("span", { class: "id" }, item.item_id)),
    ),
    beside,
    h("button", {
      type: "button",
      class: "plus",
      title: "Add to history",
      "aria-label": `Add to history: ${name}`,
      onclick: ({ target }) => {
        page.pick(item);
        target.textContent = "✓";
        setTimeout(() => { target.textContent = "+"; }, 1200);
      },
    }, "+"),
    below,
  );
}

export const skeleton = (rows) =>
  Array.from({ length: rows }, () => h("li", { class: "row blank", "aria-hidden": "true" }, h("span", { class: "tile" }), h("span", { class: "lines" })));

// An error, with a button where the same request may succeed later.
export function problem(error, again) {
  const passing = !error.status || [408, 429].includes(error.status) || error.status >= 500;
  return h(
    "div",
    { class: "notice bad", role: "alert" },
    h("p", {}, error.message),
    passing && again && h("button", { type: "button", onclick: again }, "Try again"),
  );
}

// Options of a choice; values are JSON, as columns of items may hold numbers and truth values.
export function choice(label, options, chosen, changed, attributes = {}) {
  const select = h(
    "select",
    { ...attributes, onchange: (event) => changed(JSON.parse(event.target.value)) },
    options.map(([text, value]) => h("option", { value: JSON.stringify(value), selected: value === chosen }, text)),
  );
  return h("label", { class: "field" }, h("span", {}, label), select);
}
