import { askLines, at, doing, make, sourceItem, speaks, _ } from "./ask.js";
import { judged } from "./judge.js";

let turns = [];
let running;
let steer; // unset: what was measured

function said(role) {
  const who = make("p", { class: "who" }, role === "user" ? _("You") : _("The model"));
  const text = make("p", { class: "reply" });
  const item = make("li", { class: `said ${role}` }, who, text);
  at("chat-turns").append(item);
  return { item, who, text };
}

function send(question) {
  said("user").text.textContent = question;
  turns.push({ role: "user", content: question });
  return reply(question, false);
}

async function reply(question, another) {
  const reply = said("assistant");
  reply.text.classList.add("busy");
  running = new AbortController();
  at("chat-stop").hidden = false;
  const voice = document.querySelector("input[name=voice]:checked").value;
  try {
    await askLines("chat", { turns, voice, another, steer: voice === "personal" ? steer : undefined }, (facts) => {
      if (facts.model) {
        reply.who.textContent = speaks(facts);
        if (facts.memories.length) {
          reply.item.append(make("details", {}, make("summary", {}, _("Memories that were used")),
            make("ul", { class: "plain" }, ...facts.memories.map((passage) => sourceItem(passage, question)))));
        }
      }
      if (facts.piece) reply.text.textContent += facts.piece;
      if (facts.id && reply.text.textContent.trim()) {
        const turn = { role: "assistant", content: reply.text.textContent };
        turns.push(turn);
        reply.item.append(judged(facts.id, reply.text, (text) => { turn.content = text; }));
      }
    }, running.signal);
  } finally {
    reply.text.classList.remove("busy");
    at("chat-stop").hidden = true;
    if (turns.at(-1)?.role === "user") { // it was stopped, or nothing came
      if (reply.text.textContent) turns.push({ role: "assistant", content: reply.text.textContent });
      else turns.pop();
    }
    at("chat-another").hidden = turns.length === 0;
  }
}

export function startChat() {
  const form = at("chat-form");
  const text = at("chat-text");
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const question = text.value.trim();
    if (!question) return;
    text.value = "";
    doing(form.querySelector("[type=submit]"), () => send(question)).then(() => text.focus());
  });
  text.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      form.requestSubmit();
    }
  });
  at("chat-steer").addEventListener("input", () => {
    steer = Number(at("chat-steer").value);
    const words = steer === -1 ? _("not at all") : steer === 0 ? _("as it is") : steer > 0 ? _("more: {steer}", { steer: `+${steer}` }) : _("less: {steer}", { steer });
    at("chat-steered").textContent = words;
    at("chat-steer").setAttribute("aria-valuetext", words);
  });
  at("chat-stop").addEventListener("click", () => running?.abort());
  at("chat-another").addEventListener("click", () => {
    if (turns.at(-1)?.role === "assistant") turns.pop();
    doing(at("chat-another"), () => reply(turns.at(-1).content, true));
  });
  at("chat-learn").addEventListener("change", () => at("chat-turns").classList.toggle("learns", at("chat-learn").checked));
  at("chat-new").addEventListener("click", () => {
    running?.abort();
    turns = [];
    at("chat-another").hidden = true;
    at("chat-turns").replaceChildren();
    text.focus();
  });
  return { chat: () => text.focus() };
}
