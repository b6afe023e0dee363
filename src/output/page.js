// Keeps the page current and searches its feeds. Without this script the page is complete, and reloads from time to time.
"use strict";
const byId = (id) => document.getElementById(id);
const [old, rows, search, shown] = ["old", "rows", "search", "shown"].map(byId);
// How far this machine's clock is ahead of the mirror's.
let ahead = Date.now() - Number(document.body.dataset.now);

function span(seconds) {
  const s = Math.max(0, seconds);
  if (s < 120) return `${s} s`;
  if (s < 7200) return `${Math.floor(s / 60)} min`;
  if (s < 172800) return `${Math.floor(s / 3600)} h`;
  return `${Math.floor(s / 86400).toLocaleString("en")} d`;
}

function words(time) {
  const ago = Math.floor((Date.now() - ahead) / 1000) - Date.parse(time.dateTime) / 1000;
  if (time.dataset.says === "ahead") return ago < 0 ? `in ${span(-ago)}` : "now";
  return span(ago) + (time.dataset.says === "ago" ? " ago" : "");
}

function tick() {
  for (const time of document.querySelectorAll("time[data-says]")) {
    const said = words(time);
    if (time.firstChild.data !== said) time.firstChild.data = said;
  }
}

// Makes one element equal to another and leaves equal parts alone: focus, selection and scrolling stay.
function become(before, after) {
  if (before.nodeName !== after.nodeName || before.nodeType !== after.nodeType) return before.replaceWith(after);
  if (before.nodeType !== Node.ELEMENT_NODE) {
    if (before.data !== after.data) before.data = after.data;
    return;
  }
  for (const name of before.getAttributeNames()) {
    if (!after.hasAttribute(name) && !["open", "hidden", "class"].includes(name)) before.removeAttribute(name);
  }
  for (const name of after.getAttributeNames()) {
    const value = after.getAttribute(name);
    if (before.getAttribute(name) !== value) before.setAttribute(name, value);
  }
  const [kept, fresh] = [[...before.childNodes], [...after.childNodes]];
  fresh.forEach((node, at) => (at < kept.length ? become(kept[at], node) : before.append(node)));
  for (const node of kept.slice(fresh.length)) node.remove();
}

function show(part) {
  const here = byId(part.id);
  if (here) become(here, part);
  else if (rows && part.localName === "tr") rows.append(part);
}

// Puts rows in order, and moves only those at another position.
function arrange(order) {
  const focused = document.activeElement;
  const wanted = new Set(order);
  for (const row of [...rows.children]) if (!wanted.has(row.id)) row.remove();
  let place = rows.firstElementChild;
  for (const row of order.map(byId)) {
    if (!row) continue;
    if (row === place) place = place.nextElementSibling;
    else rows.insertBefore(row, place);
  }
  if (focused.isConnected && focused !== document.activeElement) focused.focus({ preventScroll: true });
}

function matches(row, term) {
  const [, name, value] = /^(health|mode|provider):(.*)$/.exec(term) ?? [];
  return name ? row.dataset[name].toLowerCase() === value : row.textContent.toLowerCase().includes(term);
}

function find() {
  if (!rows) return;
  const terms = search.value.toLowerCase().split(/\s+/).filter(Boolean);
  let found = 0;
  for (const row of rows.children) {
    row.hidden = !terms.every((term) => matches(row, term));
    found += row.hidden ? 0 : 1;
  }
  const said = terms.length ? `${found} of ${rows.children.length} feeds` : "";
  if (shown.textContent !== said) shown.textContent = said;
}

function lookFor(text) {
  search.value = text;
  find();
  history.replaceState(null, "", text ? `/?q=${encodeURIComponent(text)}` : "/");
}

function told(news) {
  ahead = Date.now() - news.now;
  document.title = `${news.title} · feedmirror`;
  for (const html of news.parts) {
    const holder = document.createElement("template");
    holder.innerHTML = html;
    show(holder.content.firstElementChild);
  }
  if (news.order && rows) arrange(news.order);
  find();
  tick();
}

function isOld(why) {
  if (old.textContent !== why) old.textContent = why;
  old.hidden = !why;
}

let source;
function listen() {
  source?.close();
  source = new EventSource(document.body.dataset.live);
  source.onmessage = (message) => {
    told(JSON.parse(message.data));
    isOld("");
  };
  source.onerror = () => {
    isOld("The mirror does not answer: what is shown is old.");
    // A refused request is not repeated by itself.
    if (source.readyState === EventSource.CLOSED) setTimeout(() => document.hidden || listen(), 5000);
  };
}

document.addEventListener("visibilitychange", () => (document.hidden ? source.close() : listen()));
if (search) {
  search.addEventListener("input", () => lookFor(search.value));
  search.form.addEventListener("submit", (event) => event.preventDefault());
  search.form.querySelector("button").hidden = true;
  document.addEventListener("click", (event) => {
    const link = event.target.closest?.("#summary a");
    if (!link || event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    lookFor(new URL(link.href).searchParams.get("q") ?? "");
  });
}
find();
listen();
setInterval(tick, 1000);
