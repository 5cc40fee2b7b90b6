"""Parts of a report → one HTML page that needs no other file and no network."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence

from nnunet_genesis.errors import printable
from nnunet_genesis.study.tables import Table

STYLE = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1120px; padding: 1.5rem 1rem 4rem; color: #1c1f23; background: #fff;
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "DejaVu Sans", sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0 0 .3rem; overflow-wrap: anywhere; }
h2 { font-size: 1.25rem; margin: 2.4rem 0 .6rem; padding-top: .6rem; border-top: 1px solid #d5d9de; }
h3 { font-size: 1.05rem; margin: 1.2rem 0 .3rem; overflow-wrap: anywhere; }
p, ul { margin: .4rem 0 .8rem; } ul { padding-left: 1.3rem; } li { margin: .25rem 0; overflow-wrap: anywhere; }
.caution { background: #fff6e0; border-left: 4px solid #d99a00; padding: .5rem .9rem; margin: .6rem 0;
  overflow-wrap: anywhere; }
.leak { background: #fdeaea; border-color: #c0272d; font-weight: 600; }
.conclusion { background: #f3f6f9; border-left: 4px solid #0072b2; padding: .1rem .9rem .3rem; margin: .8rem 0; }
figure { margin: 1rem 0; } figure img { max-width: 100%; height: auto; display: block; }
figcaption, .note { color: #4c545d; font-size: .9rem; overflow-wrap: anywhere; }
.scroll { overflow-x: auto; margin: .4rem 0 1.2rem; }
table { border-collapse: collapse; font-size: .86rem; font-variant-numeric: tabular-nums; }
caption, summary { text-align: left; font-weight: 600; font-size: .95rem; padding: .3rem 0; }
summary { cursor: pointer; }
th, td { padding: .25rem .6rem; text-align: right; white-space: nowrap; border-bottom: 1px solid #e3e6ea; }
th { background: #f3f6f9; vertical-align: bottom; white-space: normal; max-width: 9rem; }
td:first-child, th:first-child, td.word, th.word { text-align: left; }
table.facts td { white-space: normal; text-align: left; overflow-wrap: anywhere; } table.facts { width: 100%; }
table.facts td:first-child { font-weight: 600; width: 14rem; }
tbody tr:hover { background: #f8fafc; }
@media print { details > * { display: block; } }
"""
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
"""What a browser may load for the page: nothing that is not in it."""


def escape(text: str) -> str:
    """Text as HTML shows it: names in files may hold markup, and characters that no file in UTF-8 may."""
    return html.escape(printable(text))


def page(title: str, parts: Sequence[str]) -> str:
    """A whole page; `parts` are HTML."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{escape(POLICY)}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body>\n</html>\n"
    )


def heading(text: str, level: int = 2) -> str:
    """A heading."""
    return f"<h{level}>{escape(text)}</h{level}>"


def paragraph(text: str, kind: str = "") -> str:
    """A paragraph, with a class if it has one."""
    return f"<p{_class(kind)}>{escape(text)}</p>"


def listed(items: Sequence[str]) -> str:
    """A list of sentences."""
    return "<ul>\n" + "\n".join(f"<li>{escape(item)}</li>" for item in items) + "\n</ul>"


def box(kind: str, parts: Sequence[str]) -> str:
    """A part of the page that stands out."""
    return f"<div{_class(kind)}>\n" + "\n".join(parts) + "\n</div>"


def folded(title: str, parts: Sequence[str]) -> str:
    """Shown on request."""
    return f"<details>\n<summary>{escape(title)}</summary>\n" + "\n".join(parts) + "\n</details>"


def table(content: Table, kind: str = "") -> str:
    """A table that scrolls where it is too wide; columns without digits are flush left."""
    columns = zip(*content.rows, strict=True) if content.rows else [[] for _ in content.head]
    words = [not any(map(_is_number, column)) for column in columns]
    head = "".join(
        f'<th scope="col"{_class("word" * word)}>{escape(name)}</th>'
        for name, word in zip(content.head, words, strict=False)
    )
    rows = []
    for row in content.rows:
        cells = (f"<td{_class('word' * word)}>{escape(cell)}</td>" for cell, word in zip(row, words, strict=True))
        rows.append(f"<tr>{''.join(cells)}</tr>")
    caption = "" if content.folded else f"<caption>{escape(content.title)}</caption>"
    top = f"<thead><tr>{head}</tr></thead>\n" if content.head else ""
    body = "\n".join(rows)
    whole = f'<div class="scroll"><table{_class(kind)}>{caption}\n{top}<tbody>\n{body}\n</tbody></table></div>'
    return folded(content.title, [whole]) if content.folded else whole


def picture(image: bytes, kind: str, described: str, caption: str = "") -> str:
    """A picture that lies in the page itself.

    Args:
        image: Content of a PNG or SVG file.
        kind: `png` or `svg+xml`.
        described: What is to be seen, for those who do not see it.
        caption: Text below.
    """
    data = base64.b64encode(image).decode()
    below = f"\n<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return f'<figure><img alt="{escape(described)}" src="data:image/{kind};base64,{data}">{below}</figure>'


def _class(kind: str) -> str:
    return f' class="{escape(kind)}"' if kind else ""


def _is_number(cell: str) -> bool:
    return cell[:1].isdecimal() or cell[:1] in "+-<"
