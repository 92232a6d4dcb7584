"""The report page in a headless Chromium: it lays out, and nothing complains."""

import json
import re
import shutil
import subprocess

import pytest

from hf_lottery.report.report import write_report
from tests.result_lines import lines, write_folder

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

# A page around the report that measures what the browser made of it and writes that into its own document.
PROBE = """<!DOCTYPE html><html><body><iframe id="page" src="report/index.html" width="1000" height="900"></iframe>
<pre id="found"></pre><script>
const frame = document.getElementById("page");
frame.addEventListener("load", () => {
  const page = frame.contentDocument, size = e => { const b = e.getBoundingClientRect(); return [b.width, b.height]; };
  document.getElementById("found").textContent = JSON.stringify({
    verdict: page.getElementById("verdict").innerText,
    plots: [...page.querySelectorAll("figure svg")].map(size),
    drawn: [...page.querySelectorAll("figure svg")].map(e => e.querySelectorAll("path, use").length),
    tables: [...page.querySelectorAll("table")].map(e => e.rows.length),
    overflow: page.documentElement.scrollWidth - page.documentElement.clientWidth,
    scripts: page.scripts.length,
  });
});
</script></body></html>"""


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_the_page_opens_with_plots_tables_verdict_and_no_complaints(tmp_path):
    write_report(write_folder(tmp_path, lines()))
    (tmp_path / "probe.html").write_text(PROBE)
    command = [
        CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files",
        f"--user-data-dir={tmp_path / 'profile'}", "--enable-logging=stderr", "--virtual-time-budget=10000",
        "--dump-dom", (tmp_path / "probe.html").as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert "CONSOLE" not in done.stderr, done.stderr  # script errors and refused resources
    found = json.loads(re.search(r'<pre id="found">(.*?)</pre>', done.stdout, re.DOTALL).group(1).replace("&gt;", ">"))
    assert found["verdict"].startswith("Matching down to 13.7% density")
    assert len(found["plots"]) == 7
    assert all(width > 500 and height > 250 for width, height in found["plots"])
    assert all(count > 30 for count in found["drawn"])
    assert found["tables"] == [6, 5, 5, 5]
    assert found["overflow"] <= 0
    assert found["scripts"] == 0
