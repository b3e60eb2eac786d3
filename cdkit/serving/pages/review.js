// The review page: what is shown, which picture is chosen, and decisions, which the service writes at once.

import { address, ask, byId, grouped, later, link, make, webAddress } from "./shared.js";
import { filterFields, matches } from "./review-filters.js";
import { changeTab, chosen, move } from "./review-keys.js";
import { showMap } from "./review-map.js";

const WALL = 500;
const fromWeb = address.get("pictures") === "on";
let set = { pictures: [], left_out: [], alike: [], rejected: [] };
let rejected = new Set();
let view = "pictures";

const say = (text, failed = false) => {
  byId("status").textContent = text;
  byId("status").classList.toggle("warn", failed);
};

/** The address of a picture: ours, or the web's where the reader asked for that. */
export function pictureAddress(picture) {
  if (picture.stored) return link(`/pictures/${encodeURIComponent(picture.key)}`, { v: picture.sha256?.slice(0, 8) });
  return fromWeb && picture.url ? webAddress(picture.url)?.href : null;
}

function image(picture, options = {}) {
  const url = pictureAddress(picture);
  if (!url) return make("span", { className: "gone" }, "not loaded");
  const element = make("img", { alt: "", decoding: "async", referrerPolicy: "no-referrer", ...options });
  element.addEventListener("error", () => element.replaceWith(make("span", { className: "gone" }, "picture not there")));
  element.src = url;
  return element;
}

/** What is known of a picture, on one line. */
function facts(picture) {
  const similarity = picture.similarity === null ? "drawn" : picture.similarity.toFixed(3);
  return [similarity, picture.host || picture.source, picture.licence ?? "licence not known"].filter(Boolean).join(" · ");
}

/** A picture as a button that is pressed while the picture is rejected. */
function tile(picture) {
  const words = make("span", { className: "words" }, picture.caption);
  const button = make(
    "button",
    { type: "button", className: "tile", tabIndex: -1 },
    image(picture, { loading: "lazy" }),
    words,
    make("span", { className: "facts" }, facts(picture)),
  );
  button.dataset.key = picture.key;
  mark(button);
  button.addEventListener("click", () => enlarge(picture));
  return make("li", {}, button);
}

function mark(button) {
  const out = rejected.has(button.dataset.key);
  button.setAttribute("aria-pressed", out);
  button.querySelector(".mark")?.remove();
  if (out) button.append(make("span", { className: "mark" }, "rejected"));
}

/** Marks every picture as it stands, and counts. */
function showStanding() {
  for (const button of document.querySelectorAll(".tile")) mark(button);
  for (const point of document.querySelectorAll("#map [data-key]")) {
    point.classList.toggle("rejected", rejected.has(point.dataset.key));
  }
  const kept = set.pictures.length - rejected.size;
  byId("tab-pictures").lastElementChild.textContent = `${grouped(kept)} of ${grouped(set.pictures.length)}`;
}

function shownPictures() {
  return set.pictures.filter((picture) => matches(picture, rejected.has(picture.key)));
}

function showWall() {
  byId("wall").replaceChildren();
  const pictures = shownPictures();
  addToWall(pictures);
  byId("wall").querySelector(".tile")?.setAttribute("tabindex", "0");
  say(`${grouped(pictures.length)} of ${grouped(set.pictures.length)} pictures are shown.`);
}

/** The next pictures on the wall: as many as a browser draws without delay. */
function addToWall(pictures) {
  const hung = byId("wall").children.length;
  byId("wall").append(...pictures.slice(hung, hung + WALL).map(tile));
  byId("more").hidden = byId("wall").children.length >= pictures.length;
}

function showAlike() {
  const byKey = new Map(set.pictures.map((picture) => [picture.key, picture]));
  const groups = set.alike.map((keys, place) =>
    make("section", { className: "alike", "aria-label": `Group ${place + 1}` },
      make("h3", {}, `${keys.length} that look alike`),
      make("ul", { className: "wall" }, ...keys.map((key) => tile(byKey.get(key))))));
  const nothing = make("p", { className: "quiet" }, "No two pictures of this set look alike.");
  byId("view-alike").replaceChildren(...(groups.length ? groups : [nothing]));
  byId("view-alike").querySelector(".tile")?.setAttribute("tabindex", "0");
}

function showLeftOut() {
  const rows = set.left_out.filter((row) => matches(row, false, true));
  byId("left-out").replaceChildren(...rows.map((row) => {
    const similarity = row.similarity === null ? "–" : row.similarity.toFixed(3);
    const cells = [row.caption ?? "–", similarity, row.host || row.source || "–", row.detail ?? ""];
    return make("tr", {}, make("th", { scope: "row" }, row.reason),
      ...cells.map((text, place) => make("td", { className: place === 1 ? "num" : "" }, text)));
  }));
  say(`${grouped(rows.length)} of ${grouped(set.left_out.length)} that were left out are shown.`);
}

/** Reject or restore pictures; the answer says how everything stands. */
async function decide(action, keys) {
  if (!keys.length) return;
  await change("/decisions", JSON.stringify({ action, keys }));
  const words = keys.length === 1 ? "Picture" : `${grouped(keys.length)} pictures`;
  say(`${words} ${action === "reject" ? "rejected" : "restored"}. ${kept()}`);
}

const kept = () => `${grouped(set.pictures.length - rejected.size)} of ${grouped(set.pictures.length)} are kept.`;

async function undo() {
  if (byId("undo").disabled) return;
  await change("/undo", "{}");
  say(`Undone. ${kept()}`);
}

async function change(path, body) {
  try {
    const standing = await ask(path, {}, { method: "POST", body });
    rejected = new Set(standing.rejected);
    byId("undo").disabled = !standing.undoable;
    showStanding();
  } catch (error) {
    say(`Nothing was changed: ${error.message}`, true);
    throw error;
  }
}

function enlarge(picture) {
  const dialog = byId("large");
  dialog.firstElementChild.replaceChildren(image(picture, { alt: picture.caption }));
  byId("large-caption").textContent = picture.caption;
  const size = picture.width ? `${picture.width} × ${picture.height} · ` : "";
  byId("large-facts").textContent = `${size}${facts(picture)} · ${picture.url ?? "no address"}`;
  dialog.showModal();
}

async function show(name) {
  view = name;
  for (const tab of document.querySelectorAll('[role="tab"]')) {
    const open = tab.id === `tab-${name}`;
    tab.setAttribute("aria-selected", open);
    tab.tabIndex = open ? 0 : -1;
    byId(tab.getAttribute("aria-controls")).hidden = !open;
  }
  for (const field of document.querySelectorAll("[data-views]")) {
    field.hidden = !field.dataset.views.split(" ").includes(name);
  }
  if (name === "pictures") showWall();
  if (name === "alike") showAlike();
  if (name === "out") showLeftOut();
  if (name === "map") await showMap({ set, rejected: () => rejected, tile, decide, say, pictureAddress });
}

function listen() {
  document.addEventListener("keydown", (event) => {
    if (event.target.matches("input, select") || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.target.getAttribute("role") === "tab") return changeTab(event);
    if (event.key.startsWith("Arrow") && !byId("large").open) {
      event.preventDefault();
      move(event.key, byId(`view-${view}`));
    } else if (event.key === "x" && chosen()) {
      const key = chosen().dataset.key;
      decide(rejected.has(key) ? "restore" : "reject", [key]);
    } else if (event.key === "z") undo();
    else if (event.key === " " && byId("large").open) {
      event.preventDefault();
      byId("large").close();
    }
  });
  for (const tab of document.querySelectorAll('[role="tab"]')) {
    tab.addEventListener("click", () => show(tab.id.replace("tab-", "")));
  }
  byId("undo").addEventListener("click", undo);
  byId("more").addEventListener("click", () => addToWall(shownPictures()));
  const again = later(() => show(view), 150);
  for (const field of filterFields()) field.addEventListener("input", again);
  byId("large").addEventListener("click", () => byId("large").close());
  byId("pictures").addEventListener("change", (event) => {
    location.assign(link("/", { pictures: event.target.checked ? "on" : "" }));
  });
}

function fillSelect(id, values) {
  byId(id).append(...[...new Set(values)].filter(Boolean).sort().map((value) => make("option", { value }, value)));
}

async function start() {
  listen();
  set = await ask("/set");
  rejected = new Set(set.rejected);
  document.title = `${set.name} · cdkit review`;
  byId("name").textContent = set.name;
  const least = set.threshold === null ? "" : `, at least ${set.threshold} similar`;
  byId("prompts").textContent = set.prompts.length ? `${set.prompts.map((prompt) => `“${prompt}”`).join(", ")}${least}` : "";
  byId("tab-alike").lastElementChild.textContent = grouped(set.alike.length);
  byId("tab-out").lastElementChild.textContent = grouped(set.left_out.length);
  byId("file").textContent = set.decisions;
  byId("command").textContent = set.command;
  byId("undo").disabled = !set.undoable;
  byId("pictures-label").hidden = set.pictures.every((picture) => picture.stored);
  byId("pictures").checked = fromWeb;
  fillSelect("filter-host", [...set.pictures, ...set.left_out].map((each) => each.host));
  fillSelect("filter-reason", set.left_out.map((each) => each.reason));
  await show("pictures");
  showStanding();
}

start().catch((error) => say(error.message, true));
