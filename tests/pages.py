"""What tests of pages share: reading one, and drawing it in headless Chromium."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

BROWSER = next(
    (
        found
        for name in ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
        if (found := shutil.which(name))
    ),
    None,
)
needs_browser = pytest.mark.skipif(
    BROWSER is None, reason="no chromium: `apt-get install chromium-headless-shell` un-skips it"
)
BACKGROUNDS = {"light": (0xFF, 0xFF, 0xFF), "dark": (0x14, 0x17, 0x1A)}
COLOURS = {
    "light": [(0x25, 0x63, 0xA8), (0xD2, 0x69, 0x1E), (0x2F, 0x85, 0x5A)],
    "dark": [(0x6C, 0xB0, 0xF5), (0xF2, 0x9B, 0x5B), (0x6C, 0xC5, 0x8F)],
}
"""Of the first series of a plot."""
HOSTILE = (
    "<script>alert(1)</script><img src=x onerror=alert(2)> | [a](javascript:alert(3)) `x` $y$ https://evil.example \"'"
)


class Page(HTMLParser):
    """Elements, attributes and text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.texts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def check_page(text: str) -> Page:
    found = Page(text)
    assert {"script", "img", "iframe", "link", "object", "embed", "a", "form", "base"}.isdisjoint(found.tags)
    assert not [name for name, _ in found.attributes if name.startswith("on") or name in ("src", "srcset", "action")]
    assert all((value or "").startswith("#") for name, value in found.attributes if name.endswith("href"))
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)", text))
    assert "@import" not in text
    [policy] = [value or "" for name, value in found.attributes if value and value.startswith("default-src")]
    assert policy.startswith("default-src 'none'; style-src 'unsafe-inline'")
    return found


def draw_quietly(file: Path, width: int, scheme: str) -> Page:
    """The page as a browser has it after loading it; nothing may stand on the browser's console."""
    canary = file.with_name("canary.html")
    canary.write_text("<!DOCTYPE html><script>console.error('heard')</script>")
    assert "CONSOLE" in _browse(canary, width, scheme, "--dump-dom").stderr  # or its silence would say nothing
    done = _browse(file, width, scheme, "--dump-dom")
    assert "CONSOLE" not in done.stderr
    return Page(done.stdout)


def screenshot(file: Path, width: int, scheme: str) -> Any:
    """`[height, width, 3]` colours of the page."""
    from PIL import Image

    picture = file.with_suffix(".png")
    _browse(file, width, scheme, f"--screenshot={picture}")
    pixels = np.asarray(Image.open(picture).convert("RGB"))
    assert pixels.shape[1] == width
    return pixels


def _browse(file: Path, width: int, scheme: str, *args: str) -> subprocess.CompletedProcess[str]:
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--enable-logging=stderr"]
    options += [f"--window-size={width},6000", f"--blink-settings=preferredColorScheme={int(scheme == 'light')}"]
    with tempfile.TemporaryDirectory() as profile:
        command = [str(BROWSER), *options, f"--user-data-dir={profile}", *args, file.as_uri()]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
