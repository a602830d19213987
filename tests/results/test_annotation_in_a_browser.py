"""The page of questions, answered in a real browser: what it downloads is read back, and no text of a model runs."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

import lfp_lens as lfp
from tests.results.labelled import some_labels

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")

BEFORE = """
document.title = "nothing of a model ran";
window.alert = () => { document.title = "a text of a model ran"; };
"""
AFTER = """
const saved = {};
URL.createObjectURL = (blob) => { saved.blob = blob; return "blob:kept"; };
HTMLAnchorElement.prototype.click = function () { saved.name = this.download; };
const sections = [...document.querySelectorAll("section.question")];
document.getElementById("download").click();
const told = [document.getElementById("progress").textContent];
document.getElementById("annotator").value = " Ada / Lovelace ";
for (const [at, section] of sections.entries()) {
  for (const place of CHOICES[at]) section.querySelectorAll("input[type=radio]")[place].click();
}
told.push(document.getElementById("progress").textContent);
document.getElementById("download").click();
saved.blob.text().then((text) => {
  const shown = document.createElement("pre");
  shown.id = "saved";
  shown.textContent = JSON.stringify({ text, name: saved.name, told });
  document.body.append(shown);
});
"""


@pytest.mark.skipif(BROWSER is None, reason="no chromium: apt-get install chromium")
def test_what_the_page_saves_is_what_was_clicked(tmp_path: Path) -> None:
    questions = some_labels().annotation_questions(tmp_path / "check", n=6)
    # The first is answered wrongly and then mended, the last by "none of the above", the others rightly.
    right = [key.right for key in questions.keys]
    choices = [[(right[0] + 1) % 4, right[0]], *([one] for one in right[1:-1]), [4]]
    page = questions.page.read_text(encoding="utf-8")
    nonce = f'<script nonce="{questions.fingerprint}">'
    after = AFTER.replace("CHOICES", json.dumps(choices))
    driven = tmp_path / "driven.html"
    driven.write_text(
        page.replace("<head>", f"<head>{nonce}{BEFORE}</script>").replace("</body>", f"{nonce}{after}</script></body>")
    )
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    options += ["--virtual-time-budget=5000", "--dump-dom", driven.as_uri()]
    seen = subprocess.run([str(BROWSER), *options], capture_output=True, text=True, timeout=120, check=True).stdout
    assert "<title>nothing of a model ran</title>" in seen
    found = re.search(r'<pre id="saved">(.*?)</pre>', seen, re.DOTALL)
    assert found is not None, seen[-2000:]
    saved = json.loads(html.unescape(found[1]))
    assert saved["name"] == "answers-Ada-Lovelace.json"
    assert saved["told"] == ["Your name is missing.", "6 of 6 answered"]
    answers = tmp_path / "answers.json"
    answers.write_text(saved["text"])
    checked = lfp.agreement(questions, answers)
    assert (checked.accuracy.n, checked.accuracy.value, checked.none_rate.value) == (6, 5 / 6, 1 / 6)
