// The page's own script: what Gradio has no component for. Buttons call the functions of `minigpt`; the texts that it
// shows come from i18n.toml (keys js_…), by way of server.py. It relies on our own ids and on HTML roles, not on Gradio's
// class names.
{
  const texts = window.minigptTexts[/^zh/i.test(navigator.language) ? "zh" : "en"];
  const MAX_LINK_CHARS = 2000; // of a prompt, as in minigpt/arena/links.py
  const FIELDS = ["max_new_tokens", "temperature", "top_k", "top_p", "frequency_penalty", "seed"]; // as in votes.py
  const VOTE_KEYS = { ArrowLeft: "left", ArrowRight: "right", ArrowUp: "tie", ArrowDown: "bad" };

  /** Show a short message at the bottom of the page for a moment; screen readers read it out. */
  function say(text) {
    let note = document.getElementById("note");
    if (!note) {
      note = document.createElement("div");
      note.id = "note";
      note.setAttribute("role", "status");
      document.querySelector("#page").append(note);
    }
    note.textContent = text;
    note.classList.add("shown");
    clearTimeout(say.timer);
    say.timer = setTimeout(() => note.classList.remove("shown"), 2500);
  }

  /** Copy a text. Browsers offer navigator.clipboard to https and to this machine only, so there is a second way. */
  async function copy(text, done) {
    try {
      await navigator.clipboard.writeText(text);
    } catch {
      const field = document.createElement("textarea");
      field.value = text;
      document.body.append(field);
      field.select();
      const copied = document.execCommand("copy");
      field.remove();
      if (!copied) return say(texts.copy_failed);
    }
    say(done);
  }

  /** The text of the last message of a role in a chatbot's value. It is escaped there (asking.plain_message). */
  function lastMessage(chat, role) {
    const message = (chat ?? []).filter((each) => each.role === role).at(-1);
    const text = (message?.content ?? []).map((part) => part.text ?? "").join("");
    return text.replaceAll("&lt;", "<").replaceAll("&gt;", ">").replaceAll("&amp;", "&");
  }

  window.minigpt = {
    copyAnswer(chat) {
      const answer = lastMessage(chat, "assistant");
      answer ? copy(answer, texts.copied) : say(texts.nothing_to_copy);
    },

    /** Copy the page's address with the prompt (the one being typed, else the last one) and its settings. */
    copyLink(model, prompt, chat, ...values) {
      const text = prompt.trim() ? prompt : lastMessage(chat, "user");
      if (!text.trim()) return void say(texts.no_prompt_to_link);
      if (text.length > MAX_LINK_CHARS) return void say(texts.long_link);
      const link = new URL(location.pathname, location.origin);
      link.searchParams.set("prompt", text);
      if (model) link.searchParams.set("model", model);
      FIELDS.forEach((key, i) => values[i] === "" || values[i] == null || link.searchParams.set(key, values[i]));
      copy(link.href, texts.link_copied);
    },

    /** Switch between a light and a dark page, and remember it. */
    switchTheme() {
      const theme = document.body.classList.toggle("dark") ? "dark" : "light"; // Gradio's documented way
      try { localStorage.setItem("minigpt-theme", theme); } catch { /* not remembered */ }
      const address = new URL(location);
      address.searchParams.set("__theme", theme);
      history.replaceState(null, "", address);
    },

    /** Open the page in the other language; the server reads it from the cookie. */
    switchLanguage() {
      const other = /^zh/i.test(navigator.language) ? "en" : "zh";
      document.cookie = `minigpt_language=${other}; path=/; max-age=31536000; SameSite=Strict`;
      location.reload();
    },
  };

  document.addEventListener("keydown", (event) => {
    const field = event.target;
    if (event.isComposing) return; // an input method uses these keys itself
    if (field.matches?.("#prompt textarea, #duel-prompt textarea")) {
      // Enter sends and Shift+Enter is a new line by Gradio; Ctrl+Enter (Cmd+Enter) is one as well.
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
        event.preventDefault();
        field.setRangeText("\n", field.selectionStart, field.selectionEnd, "end");
        field.dispatchEvent(new Event("input", { bubbles: true }));
      } else if (event.key === "Escape") {
        field.blur();
      }
      return;
    }
    // Votes by arrow keys, unless the focus is in something that uses them, such as a text field, a slider or a list.
    if (event.ctrlKey || event.altKey || event.metaKey || event.shiftKey || !VOTE_KEYS[event.key]) return;
    if (field.closest?.("input, textarea, select, [contenteditable], [role=listbox], [role=log], table")) return;
    const button = document.getElementById(`vote-${VOTE_KEYS[event.key]}`);
    if (button?.checkVisibility() && !button.disabled) {
      event.preventDefault();
      button.click();
    }
  });
}
