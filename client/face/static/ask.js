// What every screen needs: the token, requests, elements made of text alone (no markup is ever parsed), words.

const KEY = "confide-token";
let words = {};

// The token comes once, behind the address's #, which no server sees; a tab keeps it for its own reloads.
export function takeToken() {
  const given = location.hash.match(/^#token=([\w-]{20,})$/);
  if (given) {
    sessionStorage.setItem(KEY, given[1]);
    history.replaceState(null, "", location.pathname);
  }
  return sessionStorage.getItem(KEY) !== null;
}

export async function readWords() {
  const answer = await fetch("/words.json");
  if (answer.ok) words = await answer.json();
}

export function _(text, parts = {}) {
  return (words[text] ?? text).replace(/\{(\w+)\}/g, (whole, name) => parts[name] ?? whole);
}

async function asked(path, body, signal) {
  const headers = { Authorization: `Bearer ${sessionStorage.getItem(KEY) ?? ""}` };
  const init = body === undefined ? { headers } : { method: "POST", headers, body: JSON.stringify(body) };
  if (body !== undefined) headers["Content-Type"] = "application/json";
  let answer;
  try {
    answer = await fetch(`/page/${path}`, { ...init, signal });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error(_("The program that serves this page has ended. Start it again: confide device serve"));
  }
  if (answer.status === 401) throw new Error(_("This page's token is of an earlier start. Open it again: confide device open"));
  if (!answer.ok) throw new Error((await answer.json()).error.message);
  return answer;
}

export async function ask(path, body) {
  return (await asked(path, body)).json();
}

// Calls `each` with every line of a streamed answer.
export async function askLines(path, body, each, signal) {
  const reader = (await asked(path, body, signal)).body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) break;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      const facts = JSON.parse(line);
      if (facts.error) throw new Error(facts.error);
      each(facts);
    }
  }
}

export const at = (id) => document.getElementById(id);

export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "onclick") element.addEventListener("click", value);
    else if (value !== false && value !== undefined) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== undefined));
  return element;
}

export function trouble(text) {
  at("trouble").textContent = text;
  at("trouble").hidden = !text;
}

// Runs what a person asked for, with its button out of reach meanwhile and its error on the page.
export async function doing(button, act) {
  trouble("");
  if (button) button.disabled = true;
  try {
    return await act();
  } catch (error) {
    if (error.name !== "AbortError") trouble(error.message);
    return undefined;
  } finally {
    if (button) button.disabled = false;
  }
}

export function day(seconds) {
  return seconds ? new Date(seconds * 1000).toLocaleDateString(document.documentElement.lang, { dateStyle: "medium" }) : _("no date");
}

// A passage with the words that were asked for marked; the document opens on a click.
export function sourceItem(passage, question = "", open = undefined) {
  const wanted = question.toLowerCase().match(/[\p{L}\p{N}]{4,}/gu) ?? [];
  const text = make("p");
  if (wanted.length) {
    const pattern = new RegExp(`(?<![\\p{L}\\p{N}])(${wanted.map((word) => word.slice(0, 40)).join("|")})(?![\\p{L}\\p{N}])`, "giu");
    for (const part of passage.text.split(pattern)) {
      text.append(wanted.includes(part.toLowerCase()) ? make("mark", {}, part) : part);
    }
  } else text.append(passage.text);
  const head = make("p", { class: "title" }, passage.title || _("untitled"), " ", make("span", { class: "when" }, `${day(passage.written)}, ${passage.type}`));
  const more = open && passage.document > 0 ? make("button", { class: "quiet small", "aria-label": _("Open {title}", { title: passage.title || _("untitled") }), onclick: () => open(passage.document) }, _("Open")) : undefined;
  return make("li", { class: "source" }, head, text, more);
}

export function speaks(facts) {
  const count = facts.memories.length;
  const who = facts.own_adapter ? _("{model} with your own adapter", { model: facts.model }) : _("{model} without an own adapter", { model: facts.model });
  if (facts.voice === "base") return _("{model} as it is, without your text", { model: facts.model });
  if (!count) return _("{who}; nothing of yours matched", { who });
  const shown = _("{who}, shown {count} passages of yours", { who, count });
  const steer = facts.steer > 0 ? `+${facts.steer}` : facts.steer;
  return steer ? _("{shown}, weighed {steer}", { shown, steer }) : shown;
}
