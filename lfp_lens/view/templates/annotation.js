// Keeps answers in this browser and downloads them as JSON. Nothing is sent.
(() => {
  "use strict";
  const main = document.querySelector("main");
  const annotator = document.getElementById("annotator");
  const progress = document.getElementById("progress");
  const questions = [...document.querySelectorAll("section.question")].map((section) => section.id);
  const shelf = "lfp_lens " + main.dataset.questions;
  let answers = {};
  let last = performance.now();

  function restore() {
    // A browser may refuse storage to local files: then answers live until the page is closed.
    try {
      const kept = JSON.parse(localStorage.getItem(shelf) || "{}");
      annotator.value = String(kept.annotator || "");
      for (const name of questions) {
        const found = (kept.answers || {})[name];
        const button = found && document.querySelector(`input[name="${name}"][value="${Number(found.choice)}"]`);
        if (button) {
          button.checked = true;
          answers[name] = { choice: Number(found.choice), seconds: Number(found.seconds) || 0 };
        }
      }
    } catch (error) {
      answers = {};
    }
  }

  function keep() {
    try {
      localStorage.setItem(shelf, JSON.stringify({ annotator: annotator.value, answers }));
    } catch (error) { /* Nothing is kept; the download still works. */ }
    progress.textContent = `${Object.keys(answers).length} of ${questions.length} answered`;
  }

  function answered(event) {
    const name = event.target.name;
    if (event.target.type !== "radio" || !questions.includes(name)) return;
    const before = answers[name];
    const now = performance.now();
    const seconds = before ? before.seconds : Math.round((now - last) / 100) / 10;
    last = now;
    answers[name] = { choice: Number(event.target.value), seconds };
    keep();
  }

  function download() {
    const name = annotator.value.trim();
    annotator.classList.toggle("missing", !name);
    if (!name) {
      annotator.focus();
      progress.textContent = "Your name is missing.";
      return;
    }
    const told = { format: main.dataset.format, questions: main.dataset.questions, annotator: name, answers };
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([JSON.stringify(told, null, 1)], { type: "application/json" }));
    link.download = `answers-${name.replace(/[^\p{L}\p{N}_-]+/gu, "-")}.json`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
    keep();
  }

  restore();
  keep();
  main.addEventListener("change", answered);
  annotator.addEventListener("input", keep);
  document.getElementById("download").addEventListener("click", download);
})();
