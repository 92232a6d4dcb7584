"""The report's sections as one HTML page and as Markdown; no scripts, nothing loaded from elsewhere."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from hf_lottery.layout import PLOTS_FOLDER
from hf_lottery.report.section import Section
from hf_lottery.results import verdict
from hf_lottery.results.table import Cell

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff; max-width: 60rem; margin: 2rem auto;
  padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2.2rem; }
.verdict { border-left: .4rem solid #0072B2; background: #f2f6fa; padding: .8rem 1rem; font-size: 1.1rem; }
.missing { border-left: .4rem solid #E69F00; background: #fdf7ea; padding: .1rem 1rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .88rem; margin: .8rem 0; }
th, td { text-align: right; padding: .3rem .7rem; border-bottom: 1px solid #ddd; vertical-align: top; }
th { border-bottom: 2px solid #888; } td small { display: block; color: #555; max-width: 9rem; margin-left: auto; }
.missing h2 { margin-top: .6rem; }
.yes { font-weight: 700; } .no { text-decoration: underline dotted; }
figure { margin: 1rem 0; } figure svg { width: 100%; height: auto; max-width: 48rem; }
pre { background: #f6f6f6; padding: 1rem; overflow-x: auto; font-size: .85rem; }
"""


def html(title: str, headline: str, sections: Sequence[Section], plot_folder: Path, recipe: str) -> str:
    """The page.

    Args:
        title, headline: plain text.
        sections: in the order in which they are shown.
        plot_folder: where the sections' plots have been saved as SVG.
        recipe: the resolved recipe's text, shown folded at the end; empty for none.
    """
    body = "\n".join(_section(section, plot_folder) for section in sections)
    if recipe:
        body += f"\n<details><summary>The recipe, as resolved</summary><pre>{escape(recipe)}</pre></details>"
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<title>{escape(title)}</title>
<style>{_STYLE}</style>
</head>
<body>
<h1>{escape(title)}</h1>
<p class="verdict" id="verdict">{escape(headline)}</p>
{body}
</body>
</html>
"""


def _section(section: Section, plot_folder: Path) -> str:
    parts = [f"<h2>{escape(section.heading)}</h2>"]
    if section.plot:
        name = section.plot[0]
        svg = _inline(plot_folder / f"{name}.svg", name, section.heading)
        parts.append(f'<figure id="plot-{escape(name)}">{svg}</figure>')
    parts += [f"<p>{escape(sentence)}</p>" for sentence in section.sentences]
    if section.table:
        headings, rows = section.table
        head = "".join(f"<th>{escape(heading.replace('_', ' '))}</th>" for heading in headings)
        body = "\n".join("<tr>" + "".join(_cell(cell) for cell in row) + "</tr>" for row in rows)
        parts.append(f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>')
    marked = ' class="missing"' if section.warning else ""
    return f"<section{marked}>\n" + "\n".join(parts) + "\n</section>"


def _cell(cell: Cell) -> str:
    """A cell, its detail in small print below the value. Yes is bold, no is underlined."""
    small = f"<small>{escape(cell.detail)}</small>" if cell.detail else ""
    marked = {verdict.YES: "yes", verdict.NO: "no"}.get(cell.value)
    shown = f'<span class="{marked}">{cell.value}</span>' if marked else escape(cell.value)
    return f"<td>{shown}{small}</td>"


def _inline(path: Path, name: str, heading: str) -> str:
    """An SVG file as an element of the page. Its ids are made unique, because several figures share one page."""
    svg = path.read_text(encoding="utf-8")
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', svg)
    svg = re.sub(r'href="#([^"]+)"', rf'href="#{name}-\1"', svg)
    svg = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", svg)
    return svg.replace("<svg", f'<svg role="img" aria-label="{escape(heading)}"', 1)


def markdown(title: str, headline: str, sections: Sequence[Section]) -> str:
    """The page's content as Markdown, for a model card; plots are linked as `plots/NAME.png`."""
    parts = [f"# {title}", f"**{headline}**"]
    for section in sections:
        parts.append(f"## {section.heading}")
        if section.plot:
            parts.append(f"![{section.heading}]({PLOTS_FOLDER}/{section.plot[0]}.png)")
        parts += section.sentences
        if section.table:
            parts.append(markdown_table(*section.table))
    return "\n\n".join(parts) + "\n"


def markdown_table(headings: Sequence[str], rows: Iterable[Sequence[str | Cell]]) -> str:
    """A table in Markdown, its columns aligned right."""
    lines = [headings, ["---:"] * len(headings), *rows]
    return "\n".join(f"| {' | '.join(str(cell).replace('|', '/') for cell in row)} |" for row in lines)
