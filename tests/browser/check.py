"""What `check` looks at in a browser. Arguments: the browser, a folder with the runs `run` and `other` and the
page `both.html`, a program that serves runs, a folder for pictures."""

import json
import re
import subprocess
import sys
from pathlib import Path

from browser import Browser

# Texts whose contrast with what is behind them is below 4.5, names of fields without a label, pictures without
# a text, and what is wider than the screen.
FAULTS = """(() => {
  const channels = (color) => color.match(/[\\d.]+/g).map(Number);
  const light = (color) => {
    const parts = channels(color).slice(0, 3).map((value) => value / 255);
    const linear = parts.map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2];
  };
  const behind = (node) => {
    for (let at = node; at; at = at.parentElement) {
      const color = getComputedStyle(at).backgroundColor;
      const alpha = channels(color)[3] ?? 1;
      if (alpha === 1) return color;
    }
    return "rgb(255, 255, 255)";
  };
  const faults = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const node = walker.currentNode.parentElement;
    const text = walker.currentNode.textContent.trim();
    if (!text || !node.checkVisibility() || ["SCRIPT", "STYLE", "NOSCRIPT"].includes(node.tagName)) continue;
    if (node.closest(":disabled")) continue;
    const style = getComputedStyle(node);
    const color = node.closest("svg") ? style.fill : style.color;
    const pair = [light(color), light(behind(node))].sort((one, other) => other - one);
    const contrast = (pair[0] + 0.05) / (pair[1] + 0.05);
    if (contrast < 4.5) faults.push(["contrast", contrast.toFixed(2), node.tagName, text.slice(0, 40)]);
  }
  for (const field of document.querySelectorAll("input, select")) {
    if (field.labels.length === 0) faults.push(["no label", field.name]);
  }
  for (const button of document.querySelectorAll("button")) {
    const named = button.textContent.trim() || button.querySelector("img[alt]");
    if (!named) faults.push(["no name", button.outerHTML.slice(0, 80)]);
  }
  for (const image of document.querySelectorAll("img")) if (!image.alt) faults.push(["no text", image.src.slice(0, 40)]);
  for (const drawing of document.querySelectorAll("svg:not([aria-hidden])")) {
    if (!drawing.getAttribute("aria-label")) faults.push(["no text", "svg"]);
  }
  const ids = [...document.querySelectorAll("[id]")].map((one) => one.id);
  for (const id of ids) if (ids.filter((other) => other === id).length > 1) faults.push(["id twice", id]);
  const root = document.documentElement;
  if (root.scrollWidth > root.clientWidth) {
    const wide = [...document.body.querySelectorAll("*")].filter(
      (one) => one.getBoundingClientRect().right > root.clientWidth + 1 && !one.closest(".scroll, pre"));
    faults.push(["wider than the screen", root.scrollWidth, wide.slice(0, 5).map((one) => one.outerHTML.slice(0, 60))]);
  }
  return faults;
})()"""


def count(browser):
    """How many candidates match, and how many there are."""
    text = browser.run("document.querySelector('.count').textContent")
    return tuple(int(number) for number in re.match(r"(\d+) of (\d+) ", text).groups())


def choose(browser, name, value):
    browser.run(
        f"""(() => {{
          const field = document.querySelector('.filters [name="{name}"]');
          field.value = {json.dumps(str(value))};
          field.dispatchEvent(new Event("input", {{ bubbles: true }}));
        }})()"""
    )


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def same(found, expected, what):
    assert found == expected, f"{what}: {found}, expected {expected}"


def check_filters(browser, run):
    accepted, rejected = lines(run / "synthetic/metadata.jsonl"), lines(run / "rejected.jsonl")
    both = accepted + rejected
    same(count(browser), (len(both), len(both)), "all")
    for verdict, expected in [("accepted", accepted), ("rejected", rejected), ("all", both)]:
        choose(browser, "verdict", verdict)
        same(count(browser)[0], len(expected), verdict)
    for name, value, of in [
        ("tag", "flat", [record for record in both if "flat" in record["tags"]]),
        ("size", "2 to 10 %", [record for record in both if record["size"] == "2 to 10 %"]),
    ]:
        choose(browser, name, value)
        same(count(browser)[0], len(of), name)
        choose(browser, name, "all")
    # A text that would be markup is shown as text.
    choose(browser, "search", "ALERT(1)")
    same(count(browser)[0], 1, "search")
    shown = browser.run("document.querySelector('.cards .prompt').textContent")
    assert "<script>alert(1)</script>" in shown, shown
    same(browser.run("document.querySelectorAll('.cards script, .cards .words img').length"), 0, "markup")
    seed = accepted[0]["seed"]
    choose(browser, "search", seed)
    same(count(browser)[0], 1, "search for a seed")
    choose(browser, "search", "")
    choose(browser, "sort", "worst")
    least = min(record["score"] for record in both)
    shown = browser.run("document.querySelector('.cards .verdict').textContent")
    assert f"score {least:.3f}" in shown, shown
    choose(browser, "sort", "index")


def check_threshold(browser, run):
    sweep = json.loads((run / "synthetic.json").read_text())["sweep"]
    found = set()
    for row in sweep:
        choose(browser, "threshold", row["threshold"])
        text = browser.run("document.querySelector('.passing').textContent")
        same(int(text.split(" ")[0]), row["accepted"], f"threshold {row['threshold']}")
        choose(browser, "verdict", "passes")
        same(count(browser)[0], row["accepted"], f"cards at threshold {row['threshold']}")
        found.add(row["accepted"])
        choose(browser, "verdict", "all")
    assert len(found) > 3, found
    choose(browser, "threshold", 0.7)


def check_keyboard(browser):
    page = "document.querySelector('.pager .page').textContent"
    browser.run("document.querySelector('.pager [data-go=next]').focus()")
    browser.press("Enter", "Enter", 13)
    browser.wait(f"{page} === 'page 2 of 4'")
    browser.run("document.querySelector('.pager [data-go=last]').focus()")
    browser.press("Enter", "Enter", 13)
    browser.wait(f"{page} === 'page 4 of 4'")
    assert browser.run("document.activeElement.closest('.pager') !== null"), "the focus is lost"
    browser.run("document.querySelector('.pager [data-go=first]').click()")
    browser.run("document.querySelector('.cards .open').focus()")
    browser.press("Enter", "Enter", 13)
    browser.wait("document.querySelector('.viewer').open")
    browser.press("ArrowRight", "ArrowRight", 39)
    browser.wait("document.querySelector('.viewer .small').textContent.startsWith('no. 1 ')")
    browser.press("Escape", "Escape", 27)
    browser.wait("!document.querySelector('.viewer').open")


def check_looks(browser, work, shots):
    for name in ["run/report.html", "both.html"]:
        for width in [400, 1200]:
            for dark in [False, True]:
                browser.open((work / name).as_uri(), width, dark)
                browser.run("document.querySelectorAll('details').forEach((one) => (one.open = true))")
                browser.run("[...document.images].forEach((image) => (image.loading = 'eager'))")
                browser.wait("[...document.images].every((image) => image.complete && image.naturalWidth > 0)")
                where = f"{Path(name).stem}-{width}-{'dark' if dark else 'light'}"
                same(browser.run(FAULTS), [], where)
                browser.run("document.querySelectorAll('details').forEach((one) => (one.open = false))")
                browser.shot(shots / f"{where}.png")
    browser.open((work / "run/report.html").as_uri(), 1200, True)
    browser.run("document.querySelector('.cards .open').click()")
    browser.shot(shots / "viewer.png", whole=False)


def check_live(browser, work, server):
    run = work / "run"
    serving = subprocess.Popen([server, run], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        browser.open(serving.stdout.readline().strip(), 1200)
        browser.wait("document.querySelector('.live').textContent.startsWith('live: 200 candidates judged')")
        browser.run("document.querySelector('.cards').scrollIntoView()")
        browser.wait("document.querySelector('.cards img').naturalWidth === 384")
        same(browser.run(FAULTS), [], "live")
        choose(browser, "verdict", "accepted")
        accepted = count(browser)[0]
        browser.run("window.before = true")
        # One more candidate is judged.
        path = run / "rejected.jsonl"
        record = {**lines(path)[-1], "index": 200}
        with path.open("a") as file:
            file.write(json.dumps(record) + "\n")
        browser.wait("window.before === undefined && document.readyState === 'complete'")
        browser.wait("document.querySelector('.count').textContent !== ''")
        same(count(browser), (accepted, 201), "what was set, after the page was renewed")
    finally:
        serving.stdin.close()
        serving.wait()


def main():
    program, work, server, shots = sys.argv[1], Path(sys.argv[2]), sys.argv[3], Path(sys.argv[4])
    browser = Browser(program)
    try:
        browser.open((work / "run/report.html").as_uri(), 1200)
        check_filters(browser, work / "run")
        check_threshold(browser, work / "run")
        check_keyboard(browser)
        check_looks(browser, work, shots)
        check_live(browser, work, server)
        same(browser.errors, [], "errors of the page")
    finally:
        browser.close()
    print("the page is in order")


main()
