import { ask, at, doing, make, _ } from "./ask.js";

let pair;

export function startCompare() {
  const form = at("compare-form");
  const verdict = at("compare-verdict");
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    doing(event.submitter, async () => {
      verdict.hidden = true;
      at("compare-replies").replaceChildren();
      at("compare-result").textContent = _("Both are thinking…");
      const made = await ask("blind", { question: at("compare-question").value });
      pair = made.pair;
      at("compare-result").textContent = "";
      at("compare-replies").replaceChildren(...made.replies.map((text, i) => make("div", { class: "answer" }, make("h2", {}, i ? _("Second") : _("First")), make("p", { class: "reply" }, text || _("(no reply)")))));
      verdict.hidden = false;
      verdict.querySelector("button").focus();
    });
  });
  verdict.addEventListener("click", (event) => {
    const better = event.target.dataset?.better;
    if (better === undefined) return;
    doing(event.target, async () => {
      const told = await ask("verdict", { pair, better: better === "" ? null : Number(better), learn: at("compare-learn").checked });
      verdict.hidden = true;
      const names = { personal: _("yours"), base: _("the model as it is") };
      const [first, second] = told.voices.map((voice) => names[voice]);
      at("compare-result").textContent = _("The first was {first}, the second {second}. So far yours was better {personal} times, the model as it is {base}, neither {neither}; so uneven by chance alone: {chance}.", {
        first, second, ...told.tally, chance: `${(100 * told.chance).toFixed(0)} %`,
      });
    });
  });
  return { compare: () => at("compare-question").focus() };
}
