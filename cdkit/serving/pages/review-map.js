// The map: pictures where the encoder puts them, and a lasso around some of them.

import { ask, byId, draw, grouped } from "./shared.js";

// More pictures than this are dots.
const MOST_PICTURES = 600;
const [WIDTH, HEIGHT, MARGIN] = [1200, 700, 40];
let inside = [];
let page = null;

/** Shows the map, asking for it the first time. page: what the page knows and can do. */
export async function showMap(given) {
  page = given;
  if (byId("map").firstElementChild) return;
  page.say("Looking at the pictures…");
  try {
    const { points, encoder } = await ask("/map");
    byId("map").replaceChildren(drawing(points));
    page.say(`${grouped(points.length)} pictures as the encoder ${encoder} sees them.`);
  } catch (error) {
    page.say(error.message, true);
  }
}

function drawing(points) {
  const byKey = new Map(page.set.pictures.map((picture) => [picture.key, picture]));
  const side = points.length > MOST_PICTURES ? 6 : Math.max(18, Math.min(52, 700 / Math.sqrt(points.length)));
  const placed = points.map(([key, x, y]) => ({
    key,
    x: MARGIN + x * (WIDTH - 2 * MARGIN),
    y: MARGIN + (1 - y) * (HEIGHT - 2 * MARGIN),
  }));
  const label = "Map of the pictures. The same pictures can be chosen by keyboard in the other views.";
  const svg = draw("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": label });
  for (const point of placed) svg.append(shape(point, byKey.get(point.key), side));
  const line = draw("path", { class: "lasso", d: "" });
  svg.append(line);
  listen(svg, line, placed, byKey);
  return svg;
}

function shape({ key, x, y }, picture, side) {
  const marks = { "data-key": key, class: page.rejected().has(key) ? "rejected" : "" };
  const where = { x: x - side / 2, y: y - side / 2, width: side, height: side };
  const url = page.pictureAddress(picture);
  if (side < 10 || !url) return draw("circle", { cx: x, cy: y, r: side / 2, fill: "var(--c0)", ...marks });
  return draw("image", { href: url, preserveAspectRatio: "xMidYMid slice", ...where, ...marks });
}

function listen(svg, line, placed, byKey) {
  let path = null;
  const position = (event) => {
    const point = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
    return [point.x, point.y];
  };
  const redraw = () => line.setAttribute("d", path.length ? `M${path.map((point) => point.join(" ")).join("L")}Z` : "");
  svg.addEventListener("pointerdown", (event) => {
    event.preventDefault();
    svg.setPointerCapture(event.pointerId);
    path = [position(event)];
    redraw();
  });
  svg.addEventListener("pointermove", (event) => {
    if (!path) return;
    path.push(position(event));
    redraw();
  });
  svg.addEventListener("pointerup", () => {
    if (!path) return;
    inside = placed.filter((point) => isInside(point, path)).map((point) => point.key);
    path = null;
    showInside(byKey);
  });
  byId("reject-lasso").addEventListener("click", async () => {
    await page.decide("reject", inside.filter((key) => !page.rejected().has(key)));
    line.setAttribute("d", "");
    inside = [];
    showInside(byKey);
  });
}

function showInside(byKey) {
  byId("reject-lasso").disabled = !inside.length;
  byId("lasso-count").textContent = inside.length ? `${grouped(inside.length)} inside` : "";
  byId("lassoed").replaceChildren(...inside.map((key) => page.tile(byKey.get(key))));
  byId("lassoed").querySelector(".tile")?.setAttribute("tabindex", "0");
  for (const point of document.querySelectorAll("#map [data-key]")) {
    point.classList.toggle("chosen", inside.includes(point.dataset.key));
  }
}

/** Whether a point lies inside a closed line: a ray from it crosses the line an odd number of times. */
function isInside({ x, y }, path) {
  let crossings = 0;
  for (let place = 0; place < path.length; place += 1) {
    const [x1, y1] = path[place];
    const [x2, y2] = path[(place + 1) % path.length];
    if (y1 > y !== y2 > y && x < ((x2 - x1) * (y - y1)) / (y2 - y1) + x1) crossings += 1;
  }
  return crossings % 2 === 1;
}
