import { ask, at, doing, make, _ } from "./ask.js";

const number = (value) => (value === null || value === undefined ? _("no bound") : value.toFixed(2));

function said(turn) {
  if (turn.dial) return _("dial from {from} to {to}", { from: turn.from, to: turn.dial });
  if (turn.scrubbing) return _("scrubbing from {from} to {to}", { from: turn.from, to: turn.scrubbing });
  return turn.granted ? _("source {source} may serve: {purpose}", { source: turn.source, purpose: turn.consent }) : _("source {source} may no longer serve: {purpose}", { source: turn.source, purpose: turn.consent });
}

function choice(name, value, here, label, set) {
  const input = make("input", { type: "radio", name, value, checked: here });
  input.addEventListener("change", () => doing(undefined, async () => { await set(value); await show(); at(`${name}-head`).parentElement.querySelector(`input[name=${name}]:checked`)?.focus(); }));
  return make("label", {}, input, " ", label);
}

async function show() {
  const facts = await ask("left");
  at("left-sum").textContent = facts.ever.length
    ? _("{count} answers left this device, together epsilon {epsilon} (delta {delta}).", { count: facts.ever.length, epsilon: number(facts.epsilon_ever), delta: facts.delta })
    : facts.exports.length ? _("No federation was ever answered.") : _("Nothing ever left this device.");
  at("left-exports").replaceChildren(...facts.exports.map((each) => make("li", {}, each.unit === "choice"
    ? _("{when}: an own adapter that learned from your choices was exported, epsilon {epsilon} for each choice", { when: new Date(each.time * 1000).toLocaleString(), epsilon: number(each.epsilon) })
    : _("{when}: an own adapter was exported, epsilon {epsilon} for each document", { when: new Date(each.time * 1000).toLocaleString(), epsilon: number(each.epsilon) }))));
  at("left-answers").closest(".wide").hidden = facts.ever.length === 0;
  at("left-words").textContent = facts.words;
  at("left-answers").replaceChildren(...facts.ever.map((each) => make("tr", {},
    make("td", {}, each.second ? new Date(each.second * 1000).toLocaleString() : ""), make("td", {}, each.federation), make("td", {}, each.purpose),
    make("td", { class: "number" }, String(each.numbers)), make("td", { class: "number" }, String(each.least_answers)), make("td", { class: "number" }, number(each.epsilon)))));
  at("dial-stops").replaceChildren(...facts.stops.map((stop) => make("tr", stop.stop === facts.dial ? { class: "here" } : {},
    make("td", {}, choice("dial", stop.stop, stop.stop === facts.dial, stop.stop, (value) => ask("dial", { stop: value }))),
    make("td", {}, stop.asks.join(", ") || _("nothing")),
    make("td", { class: "number" }, stop.gain === null ? _("not measured") : `${(100 * stop.gain).toFixed(1)} %`),
    make("td", { class: "number" }, number(stop.epsilon_a_year)))));
  at("scrubbing-strengths").replaceChildren(...Object.entries(facts.strengths).map(([name, removes]) =>
    choice("scrubbing", name, name === facts.scrubbing, `${name}: ${removes}`, (value) => ask("dial", { scrubbing: value }))));
  at("left-turns").replaceChildren(...facts.turns.map((turn) => make("li", {}, `${new Date(turn.second * 1000).toLocaleString()}: ${said(turn)}`)));
}

export function startLeft() {
  return { left: () => doing(undefined, show) };
}
