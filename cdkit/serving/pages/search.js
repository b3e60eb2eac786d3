// The search page: a prompt, captions with their similarities, a threshold with its count, the command for a set.

import { address, ask, byId, draw, grouped, later, link, make, source, webAddress } from "./shared.js";

const LIMIT = 60;
const BINS = 60;
const withPictures = address.get("pictures") === "on";
const form = byId("form");
const [query, index, least] = [byId("q"), byId("index"), byId("least")];
let similarities = { similarities: [] };
let cursor = null;
let asked = 0;

const parameters = () => ({ q: query.value.trim(), index: index.value, min_similarity: least.value });

function say(text, failed = false) {
  byId("status").textContent = text;
  byId("status").classList.toggle("warn", failed);
}

/** Counts captions above the threshold, in words. */
function counted() {
  const value = Number(least.value);
  const number = similarities.similarities.filter((similarity) => similarity >= value).length;
  const open = !similarities.complete && number === similarities.similarities.length;
  const words = `${similarities.estimated ? "about " : ""}${grouped(number)}${open ? " or more" : ""}`;
  return `${words} caption${number === 1 && !open ? "" : "s"}`;
}

/** Bars of how many captions have which similarity; those above the threshold are marked. */
function drawHistogram() {
  const [low, high, value] = [Number(least.min), 1, Number(least.value)];
  const counts = new Array(BINS).fill(0);
  for (const similarity of similarities.similarities) {
    counts[Math.max(0, Math.min(BINS - 1, Math.floor(((similarity - low) / (high - low)) * BINS)))] += 1;
  }
  const most = Math.max(1, ...counts);
  const bars = counts.map((count, place) => {
    const height = count ? Math.max(1, (60 * Math.sqrt(count)) / Math.sqrt(most)) : 0;
    const above = low + ((place + 0.5) / BINS) * (high - low) >= value;
    const where = { x: place * 10 + 1, y: 62 - height, width: 8, height };
    return draw("rect", { ...where, class: above ? "bar c0" : "bar c4" });
  });
  const label = `How many captions have which similarity, from ${low} to ${high}: ${counted()} from ${value} on`;
  const line = draw("line", { class: "baseline", x1: 0, x2: BINS * 10, y1: 62.5, y2: 62.5 });
  const box = { class: "chart", viewBox: `0 0 ${BINS * 10} 64`, role: "img", "aria-label": label };
  byId("histogram").replaceChildren(draw("svg", { ...box, preserveAspectRatio: "none" }, ...bars, line));
}

function showThreshold() {
  byId("least-value").textContent = Number(least.value).toFixed(3);
  byId("count").textContent = counted();
  drawHistogram();
}

function picture(row, caption) {
  const url = row?.url ? webAddress(row.url) : null;
  if (!withPictures || !url) return null;
  const image = make("img", { loading: "lazy", referrerPolicy: "no-referrer", alt: caption });
  image.addEventListener("error", () => image.replaceWith(make("span", { className: "gone" }, "picture not there")));
  image.src = url.href;
  return image;
}

function card(result) {
  const more = result.rows.length > 1 ? `${grouped(result.rows.length)} images` : null;
  const facts = make("p", { className: "facts-line" }, make("b", {}, result.similarity.toFixed(4)), " ");
  if (result.rows.length) facts.append(source(result.rows[0].url));
  if (more) facts.append(` · ${more}`);
  return make("li", {}, picture(result.rows[0], result.caption), make("p", {}, result.caption), facts);
}

/** The results of what is asked now; with `further`, those behind the ones shown. */
async function showResults(further = false) {
  const mine = ++asked;
  const given = parameters();
  try {
    const page = await ask("/search", { ...given, limit: LIMIT, cursor: further ? cursor : "" });
    // An answer that was overtaken by another question is not shown.
    if (mine !== asked) return;
    const cards = page.results.map(card);
    if (further) byId("results").append(...cards);
    else byId("results").replaceChildren(...cards);
    if (further) cards[0]?.scrollIntoView({ block: "nearest" });
    cursor = page.cursor;
    byId("more").hidden = !cursor;
    byId("found").hidden = false;
    say([`${grouped(byId("results").children.length)} shown of ${counted()}.`, ...page.notes].join(" "));
    const command = await ask("/command", given);
    byId("command").textContent = command.command;
    for (const format of ["csv", "parquet"]) byId(format).href = link("/search", { ...given, format });
    remember();
  } catch (error) {
    if (mine === asked) say(error.message, true);
  }
}

function remember() {
  const kept = { ...parameters(), pictures: withPictures ? "on" : "" };
  history.replaceState(null, "", link("/", kept));
}

/** A new prompt: its similarities first, which say where the threshold can be. */
async function search(threshold = null) {
  if (!query.value.trim()) return;
  say("Searching…");
  try {
    similarities = await ask("/similarities", { q: query.value.trim(), index: index.value });
  } catch (error) {
    say(error.message, true);
    return;
  }
  const lowest = similarities.similarities.at(-1) ?? 0;
  least.min = Math.max(-1, Math.floor(Math.min(lowest, similarities.threshold) * 20) / 20);
  least.value = threshold ?? similarities.threshold;
  byId("controls").hidden = false;
  showThreshold();
  await showResults();
}

async function start() {
  const names = await ask("/indices-list");
  index.replaceChildren(...names.map((name) => make("option", { value: name }, name)));
  byId("index-label").hidden = names.length < 2;
  if (names.includes(address.get("index"))) index.value = address.get("index");
  // Who types faster than this page starts keeps what was typed.
  query.value ||= address.get("q") ?? "";
  byId("pictures").checked = withPictures;
  await search(address.get("min_similarity"));
}

const searchSoon = later(() => showResults());
form.addEventListener("submit", (event) => {
  event.preventDefault();
  search();
});
index.addEventListener("change", () => search());
least.addEventListener("input", () => {
  showThreshold();
  searchSoon();
});
byId("more").addEventListener("click", () => showResults(true));
byId("pictures").addEventListener("change", (event) => {
  // The page is asked for anew: what it may load from elsewhere is decided by the service.
  location.assign(link("/", { ...parameters(), pictures: event.target.checked ? "on" : "" }));
});
byId("copy").addEventListener("click", async () => {
  await navigator.clipboard.writeText(byId("command").textContent);
  say("Copied.");
});
document.addEventListener("keydown", (event) => {
  if (event.key !== "/" || event.target.matches("input[type=search], select")) return;
  event.preventDefault();
  query.focus();
});
start().catch((error) => say(error.message, true));
