import { ask, askLines, at, doing, sourceItem, speaks, _ } from "./ask.js";
import { openDocument } from "./stored.js";

let running;

function open(number) {
  at("document-number").value = number;
  location.hash = "stored";
  doing(undefined, () => openDocument(number));
}

export function startFind() {
  const form = at("find-form");
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const question = at("find-question").value.trim();
    if (!question) return;
    running?.abort();
    running = new AbortController();
    const { signal } = running;
    doing(undefined, async () => {
      const found = await ask("find", { question });
      at("find-sources-head").hidden = found.passages.length === 0;
      at("find-sources").replaceChildren(...found.passages.map((passage) => sourceItem(passage, question, open)));
      at("find-quote").hidden = !found.quote;
      if (found.quote) {
        at("find-quoted").textContent = found.quote.text;
        at("find-quoted-from").textContent = _("Your words, from {title}", { title: found.quote.title || _("untitled") });
      }
      const reply = at("find-reply");
      at("find-answer").hidden = false;
      reply.textContent = "";
      reply.setAttribute("aria-busy", "true");
      reply.classList.add("busy");
      try {
        await askLines("answer", { question }, (facts) => {
          if (facts.piece) reply.textContent += facts.piece;
          if (facts.model) at("find-speaks").textContent = speaks(facts);
        }, signal);
      } finally {
        if (!signal.aborted) {
          reply.setAttribute("aria-busy", "false");
          reply.classList.remove("busy");
        }
      }
    });
  });
  return { find: () => at("find-question").focus() };
}
