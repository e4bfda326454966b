"""Parts of HTML pages."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path

from PIL import Image

from rcg.core.page import LARGE, data_uri, pairs, paragraphs, picture, table, tag, write_html


def decoded(uri: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))


def test_small_pictures_keep_their_pixels_and_large_ones_are_jpeg() -> None:
    small = Image.new("RGB", (16, 12), (200, 30, 60))
    assert data_uri(small).startswith("data:image/png")
    assert decoded(data_uri(small)).tobytes() == small.tobytes()
    large = Image.new("RGB", (LARGE // 100, 101))
    assert decoded(data_uri(large)).format == "JPEG"


def test_text_is_escaped_and_pictures_have_words() -> None:
    assert paragraphs(["a < b", "c"]) == "<p>a &lt; b</p><p>c</p>"
    assert "&lt;b&gt;" in pairs({"<b>": 1})
    image = Image.new("RGB", (8, 8))
    assert 'alt="&quot;x&quot;"' in tag(image, '"x"')
    assert 'class="small"' in tag(image, "")
    assert 'alt="&lt;real&gt;"' in picture("<real>", image)


def test_tables_have_a_head_and_scroll() -> None:
    made = table([("a", "1")], ("", "value"), text=True)
    assert re.search(
        r'class="scroll"><table class="text"><tr><th></th><th>value</th></tr><tr><td>a</td><td>1</td></tr>', made
    )
    assert "<th>" not in table([("a", "1")])


def test_a_page_is_whole_and_needs_nothing(tmp_path: Path) -> None:
    write_html(tmp_path / "b.html", "of a file: \udcff", [])
    assert r"a file: \udcff" in (tmp_path / "b.html").read_text()
    write_html(tmp_path / "sub" / "a.html", "x & y", ["<h1>Hi</h1>"], style="b { color: red }", script="let a = 1;")
    text = (tmp_path / "sub" / "a.html").read_text()
    assert "<title>x &amp; y</title>" in text
    assert "b { color: red }</style>" in text
    assert "<script>\nlet a = 1;</script>" in text
    assert "prefers-color-scheme: dark" in text
    assert text.rstrip().endswith("</body></html>")
    assert not re.search(r"https?://", text)
