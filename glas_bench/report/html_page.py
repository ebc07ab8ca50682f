"""`<study>.html`: a page in one file, its pictures inside, from the page's markdown."""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Mapping
from importlib.resources import files
from itertools import pairwise
from string import Template

from markdown_it import MarkdownIt
from markdown_it.token import Token

from glas_bench.report.figures import DPI


def render(study: str, markdown: str, pictures: Mapping[str, bytes]) -> str:
    """Return the HTML of a page.

    Args:
        study: its title.
        markdown: of `page.render`.
        pictures: PNGs by file name; one that is missing is named in words.
    """
    parser = MarkdownIt("commonmark", {"html": False}).enable(["table", "strikethrough"])
    tokens = parser.disable("reference").parse(markdown)  # a note's text is no link
    contents = _contents(tokens)
    for token in (child for each in tokens for child in each.children or ()):
        if token.type == "image":
            _embed(token, pictures)
    body = _with_notes(parser.renderer.render(tokens, parser.options, {}))
    body = body.replace("<table>", '<div class="wide"><table>')
    body = body.replace("</table>", "</table></div>")
    page = Template((files("glas_bench.report") / "page.html").read_text(encoding="utf-8"))
    return page.substitute(title=html.escape(study), contents=contents, body=body)


def _contents(tokens: list[Token]) -> str:
    """Give each heading an anchor; return the table of contents."""
    lines = []
    for place, (head, text) in enumerate(pairwise(tokens)):
        if head.type == "heading_open" and head.tag in ("h2", "h3"):
            head.attrSet("id", f"part-{place}")
            name = html.escape(text.content)
            lines.append(f'<li class="{head.tag}"><a href="#part-{place}">{name}</a></li>')
    return "\n".join(lines)


def _embed(image: Token, pictures: Mapping[str, bytes]) -> None:
    """Put a picture into the page, in its natural size."""
    png = pictures.get(str(image.attrGet("src")).removeprefix("figures/"))
    if png is None:
        image.type, image.content = "text", f"({image.content}: not drawn from a csv)"
        return
    width, height = (int.from_bytes(png[at : at + 4]) * 96 // DPI for at in (16, 20))
    image.attrSet("src", f"data:image/png;base64,{base64.b64encode(png).decode()}")
    image.attrSet("width", width)
    image.attrSet("height", height)


def _with_notes(body: str) -> str:
    """Link the marks of notes to their texts, which a mark shows under the mouse, too."""
    texts = dict(re.findall(r"<p>\[\^([\w-]+)\]: (.*?)</p>", body, re.S))

    def mark(match: re.Match[str]) -> str:
        name = match[1]
        text = re.sub(r"<[^>]+>", "", texts.get(name, "")).replace('"', "&quot;")
        return f'<sup><a href="#note-{name}" title="{text}">{name.rpartition("-")[2]}</a></sup>'

    body = re.sub(
        r"<p>\[\^([\w-]+-(\d+))\]: ", r'<p class="note" id="note-\1"><sup>\2</sup> ', body
    )
    return re.sub(r"\[\^([\w-]+)\]", mark, body)
