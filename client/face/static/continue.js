import { ask, at, doing, make, speaks, _ } from "./ask.js";
import { editor } from "./judge.js";

let candidates = [];
let memories = [];
let prompt = "";

const kind = () => document.querySelector("input[name=kind]:checked").value;

function drop() {
  candidates = [];
  at("continue-candidates").replaceChildren();
}

// What a person makes of a suggestion is what they would rather have read.
function change(number) {
  const { text } = candidates[number];
  const [made, asked, shown] = [kind(), prompt, memories];
  editor(at(`candidate-${number}`), _("Your version of suggestion {number}", { number: number + 1 }), async (mine) => {
    candidates[number].text = mine;
    if (at("continue-learn").checked) {
      await ask("chosen", { kind: made, prompt: asked, chosen: mine, rejected: [text], documents: shown.map((each) => each.document) });
    }
  });
}

async function accept(number) {
  const chosen = candidates[number];
  if (chosen === undefined) return;
  const text = at("continue-text");
  const behind = { sentence: " ", subject: "\n\n", reply: "\n\n" }[kind()];
  text.value = kind() === "subject" ? `${chosen.text}${behind}${text.value.trim()}` : `${text.value.trimEnd()}${behind}${chosen.text}`;
  const rejected = candidates.filter((_each, i) => i !== number).map((each) => each.text);
  const made = kind();
  const learn = at("continue-learn").checked;
  drop();
  text.focus();
  text.selectionStart = text.selectionEnd = text.value.length;
  if (learn) await ask("chosen", { kind: made, prompt, chosen: chosen.text, rejected, documents: memories.map((each) => each.document) });
}

export function startContinue() {
  const form = at("continue-form");
  const button = form.querySelector("button");
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    doing(button, async () => {
      drop();
      prompt = at("continue-text").value;
      at("continue-speaks").textContent = _("Drawing suggestions…");
      const made = await ask("continue", { text: prompt, kind: kind() });
      candidates = made.candidates;
      memories = made.memories;
      at("continue-speaks").textContent = candidates.length ? speaks(made) : _("Nothing came to mind. Write a little more and try again.");
      at("continue-candidates").replaceChildren(...candidates.map((each, i) => make("li", { class: "candidate" },
        make("p", { id: `candidate-${i}` }, each.text),
        make("button", { type: "button", class: "quiet", onclick: () => change(i), "aria-describedby": `candidate-${i}` }, _("Change it")),
        make("button", { type: "button", class: "quiet", onclick: () => doing(undefined, () => accept(i)), "aria-describedby": `candidate-${i}`, "aria-keyshortcuts": `Alt+${i + 1}` },
          _("Accept"), " ", make("kbd", {}, `Alt+${i + 1}`)))));
    });
  });
  at("screen-continue").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      form.requestSubmit();
    } else if (event.altKey && ["Digit1", "Digit2", "Digit3"].includes(event.code)) {
      event.preventDefault();
      doing(undefined, () => accept(Number(event.code.slice(-1)) - 1));
    } else if (event.key === "Escape") {
      drop();
      at("continue-text").focus();
    }
  });
  return { continue: () => at("continue-text").focus() };
}
