// What a person says of a reply: good, bad, or what it should have been. Shown only where they ticked the box.

import { ask, doing, make, _ } from "./ask.js";

function thumbs(id) {
  const buttons = [["up", _("Good reply")], ["down", _("Bad reply")]].map(([thumb, words]) => make("button", {
    type: "button", class: "quiet small", "aria-pressed": "false", onclick: (event) => doing(event.currentTarget, async () => {
      await ask("judged", { id, thumb });
      for (const [other, button] of buttons) button.setAttribute("aria-pressed", String(other === thumb));
    }),
  }, words)).map((button, i) => [i ? "down" : "up", button]);
  return buttons.map(([, button]) => button);
}

// A text as a field that can be changed; `keep` gets what was made of it.
export function editor(shown, label, keep) {
  const field = make("textarea", { rows: "4", maxlength: "20000", "aria-label": label });
  field.value = shown.textContent;
  const close = () => {
    row.remove();
    field.replaceWith(shown);
  };
  const row = make("div", { class: "row judge" },
    make("button", { type: "button", class: "small", onclick: (event) => doing(event.currentTarget, async () => {
      const text = field.value.trim();
      if (text && text !== shown.textContent.trim()) {
        await keep(text);
        shown.textContent = text;
      }
      close();
    }) }, _("Keep my version")),
    make("button", { type: "button", class: "quiet small", onclick: close }, _("Cancel")));
  shown.replaceWith(field);
  field.after(row);
  field.focus();
}

// `changed` hears what a reply was made into.
export function judged(id, shown, changed) {
  return make("div", { class: "row judge", role: "group", "aria-label": _("What you say of this reply") }, ...thumbs(id),
    make("button", { type: "button", class: "quiet small", onclick: () => editor(shown, _("What it should say"), async (text) => {
      await ask("judged", { id, edited: text });
      changed(text);
    }) }, _("Change it")));
}
