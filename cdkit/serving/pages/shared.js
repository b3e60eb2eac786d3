// What both pages need: asking the service they came from, and making elements without markup.

export const address = new URLSearchParams(location.search);
const token = address.get("token");

/** The address of a path with parameters, and with the token of this page. */
export function link(path, parameters = {}) {
  const query = new URLSearchParams();
  for (const [name, value] of Object.entries(parameters)) {
    if (value !== "" && value !== null && value !== undefined) query.set(name, value);
  }
  if (token) query.set("token", token);
  return `${path}?${query}`;
}

/** What the service says, as JSON; throws its message where it says no. */
export async function ask(path, parameters = {}, options = {}) {
  const answer = await fetch(link(path, parameters), options);
  const content = await answer.json();
  if (!answer.ok) throw new Error([content.message, content.error?.hint].filter(Boolean).join(" "));
  return content;
}

/** An element with properties and children. Texts stay texts: nothing is ever taken for markup. */
export function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in element) element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

const SVG = "http://www.w3.org/2000/svg";

/** The same for a drawing. */
export function draw(tag, attributes = {}, ...children) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

export const byId = (id) => document.getElementById(id);
export const grouped = (number) => number.toLocaleString("en");

/** A web address that a link may lead to; null for anything else, such as javascript: */
export function webAddress(text) {
  try {
    const url = new URL(text);
    return ["http:", "https:"].includes(url.protocol) ? url : null;
  } catch {
    return null;
  }
}

/** A link to where a picture is from, by its host; a text where it is from nowhere. */
export function source(text) {
  const url = text ? webAddress(text) : null;
  if (!url) return make("span", {}, text || "no address");
  return make("a", { href: url.href, rel: "noopener noreferrer", target: "_blank", title: url.href }, url.host);
}

/** Calls `work` once, when nothing has asked for it for a while. */
export function later(work, milliseconds = 200) {
  let timer;
  return () => {
    clearTimeout(timer);
    timer = setTimeout(work, milliseconds);
  };
}
