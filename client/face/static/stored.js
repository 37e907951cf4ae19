import { ask, at, day, doing, make, _ } from "./ask.js";

let facts;

function consentBox(source, purpose, label) {
  const box = make("input", { type: "checkbox", checked: source.for.includes(purpose), "aria-label": label });
  box.addEventListener("change", () => doing(box, async () => {
    try {
      await ask("consent", { source: source.source, purpose, granted: box.checked });
    } catch (error) {
      box.checked = !box.checked;
      throw error;
    }
  }));
  return make("td", {}, box);
}

export async function forgetting(body, question) {
  if (!confirm(question)) return;
  const made = await ask("forget", body);
  const note = at("stored-certificate");
  note.textContent = _("Forgotten: {documents} documents with {vectors} embeddings, {pseudonyms} pseudonyms, {adapters} own adapters. {releases}", {
    documents: made.documents.length, vectors: made.vectors, pseudonyms: made.pseudonyms, adapters: made.adapters, releases: made.releases,
  });
  note.hidden = false;
  at("document-shown").replaceChildren();
  await show();
}

async function show() {
  facts = await ask("stored");
  at("stored-sum").textContent = _("{documents} documents with {words} words of yours, {ratings} ratings, {adapters} own adapters, {preferences} preferences. All of it lies in one encrypted file.", {
    documents: facts.documents, words: facts.own_words, ratings: facts.ratings, adapters: facts.adapters, preferences: facts.preferences,
  });
  at("stored-sources").replaceChildren(...facts.sources.map((source) => {
    const name = `${source.kind}: ${source.place.split("/").pop()}`;
    return make("tr", {}, make("th", { scope: "row" }, name), make("td", { class: "number" }, String(source.documents)),
      consentBox(source, "own", _("{name}, for your own model", { name })), consentBox(source, "shared", _("{name}, for what leaves in private sums", { name })),
      make("td", {}, make("button", { class: "grave", "aria-label": _("Forget {name}", { name }), onclick: () => doing(undefined, () => forgetting({ sources: [source.source] }, _("Forget this source with all its documents? This cannot be undone."))) }, _("Forget"))));
  }));
  const kinds = Object.entries(facts.pseudonyms);
  at("stored-scrubbed").textContent = kinds.length
    ? _("In what may leave, these are replaced by placeholders: {list}.", { list: kinds.map(([kind, count]) => `${kind} ${count}`).join(", ") })
    : _("Nothing was scrubbed yet: no source has been used for what leaves.");
}

export async function openDocument(number) {
  const found = await ask("document", { number });
  const text = make("pre", {}, ...found.spans.map((span) => make("span", span.own ? { class: "own" } : {}, span.text)));
  at("document-shown").replaceChildren(make("p", { class: "hint" }, `${found.title}, ${found.type}, ${day(found.written)}. `, _("Your own words have a coloured ground.")), text);
}

export function startStored() {
  const number = () => Number(at("document-number").value);
  at("document-form").addEventListener("submit", (event) => {
    event.preventDefault();
    doing(event.submitter, () => openDocument(number()));
  });
  at("document-scrub").addEventListener("click", (event) => doing(event.currentTarget, async () => {
    const found = await ask("scrubbed", { number: number() });
    const removed = Object.entries(found.removed).map(([kind, count]) => `${kind} ${count}`).join(", ") || _("nothing");
    at("document-shown").replaceChildren(make("p", { class: "hint" }, _("As it would train what is shared; removed: {removed}", { removed })), make("pre", {}, found.text));
  }));
  at("document-forget").addEventListener("click", (event) => doing(event.currentTarget, () => forgetting({ documents: [number()] }, _("Forget this document? This cannot be undone."))));
  at("before-form").addEventListener("submit", (event) => {
    event.preventDefault();
    doing(event.submitter, () => forgetting({ before: at("before-day").value }, _("Forget everything written before that day? This cannot be undone.")));
  });
  return { stored: () => doing(undefined, show) };
}
