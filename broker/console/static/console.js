// What the pages gain by a script; without it they do the same, with less comfort. It only ever sets text, never markup.
"use strict";

// Live figures: polled while the page is looked at, and stoppable.
(() => {
  const box = document.querySelector("[data-live]");
  const state = document.getElementById("live-state");
  const pause = document.getElementById("live-pause");
  if (!box || !state || !pause) return;
  const every = 3000;
  let timer = 0, paused = false;
  const say = (text) => { state.textContent = text; };
  const stop = () => { clearTimeout(timer); timer = 0; };
  const next = () => { stop(); if (!paused && !document.hidden) timer = setTimeout(poll, every); };
  async function poll() {
    try {
      const answer = await fetch(box.dataset.live, { credentials: "same-origin", cache: "no-store" });
      if (answer.status === 401 || answer.status === 403) { paused = true; pause.hidden = true; say("· the session is over: load the page again"); return; }
      if (!answer.ok) throw new Error(String(answer.status));
      const news = await answer.json();
      for (const place of box.querySelectorAll("[data-key]")) {
        const value = news.values[place.dataset.key];
        if (typeof value === "string" && value !== place.textContent) place.textContent = value;
      }
      say("· live, " + news.time + " UTC");
    } catch (_) {
      say("· no answer from the broker");
    }
    next();
  }
  pause.addEventListener("click", () => {
    paused = !paused;
    pause.textContent = paused ? "Resume" : "Pause";
    if (paused) { stop(); say("· paused"); } else poll();
  });
  document.addEventListener("visibilitychange", () => { if (document.hidden) stop(); else if (!paused) poll(); });
  state.hidden = pause.hidden = false;
  poll();
})();

// Editor: line numbers, Tab indents, Escape gives Tab back to moving on.
(() => {
  const box = document.querySelector(".editor");
  const text = box && box.querySelector("textarea");
  if (!text) return;
  const gutter = document.createElement("pre");
  gutter.className = "gutter";
  gutter.setAttribute("aria-hidden", "true");
  box.prepend(gutter);
  let shown = 0;
  const number = () => {
    let n = 1;
    for (let at = text.value.indexOf("\n"); at >= 0; at = text.value.indexOf("\n", at + 1)) n++;
    if (n !== shown) gutter.textContent = Array.from({ length: n }, (_, i) => i + 1).join("\n") + "\n\n\n";
    shown = n;
    gutter.scrollTop = text.scrollTop;
  };
  text.addEventListener("input", number);
  text.addEventListener("scroll", () => { gutter.scrollTop = text.scrollTop; });
  new ResizeObserver(number).observe(text);
  number();

  // Who comes by with Tab passes through; who works in the text indents with it.
  let working = false;
  text.addEventListener("pointerdown", () => { working = true; });
  text.addEventListener("keydown", (event) => {
    if (event.key === "Escape") { working = false; return; }
    if (event.key === "Tab") {
      if (!working || event.shiftKey || event.ctrlKey || event.altKey || event.metaKey || text.readOnly) return;
      event.preventDefault();
      // Deprecated, and the one way that leaves undo whole.
      if (!document.execCommand("insertText", false, "\t")) text.setRangeText("\t", text.selectionStart, text.selectionEnd, "end");
      number();
      return;
    }
    if (!["Shift", "Control", "Alt", "Meta"].includes(event.key)) working = true;
  });
  text.addEventListener("blur", () => { working = false; });

  const go = (line) => {
    let at = 0;
    for (let i = 1; i < line; i++) {
      const end = text.value.indexOf("\n", at);
      if (end < 0) break;
      at = end + 1;
    }
    const end = text.value.indexOf("\n", at);
    text.focus();
    text.setSelectionRange(at, end < 0 ? text.value.length : end);
    text.scrollTop = (line - 4) * text.scrollHeight / Math.max(shown, 1);
  };
  for (const link of document.querySelectorAll("[data-line]")) {
    link.addEventListener("click", (event) => { event.preventDefault(); go(Number(link.dataset.line)); });
  }
})();

// Choosing a source of a secret by filling it in.
for (const option of document.querySelectorAll(".option")) {
  const radio = option.querySelector("input[type=radio]");
  const rest = option.querySelector(".field");
  if (radio && rest) rest.addEventListener("input", () => { radio.checked = true; });
}

// After a form came back, what it says is in view.
(() => {
  const news = document.getElementById("dry-run") || document.getElementById("review") || document.querySelector(".card.bad");
  if (news && !location.hash) news.scrollIntoView({ block: "start" });
})();
