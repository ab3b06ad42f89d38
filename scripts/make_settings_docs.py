"""Write docs/settings.md and docs/from-the-guides.md from the configuration and the table of other names.

python scripts/make_settings_docs.py            # write
python scripts/make_settings_docs.py --check    # exit 1 if a file is not current
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from itertools import groupby
from pathlib import Path

from rl4rec_cli.config.aliases import GUIDES, LIBRARIES, Alias
from rl4rec_cli.config.sections import RunConfig
from rl4rec_cli.config.settings import Setting, all_settings

DOCS = Path(__file__).parent.parent / "docs"
SETTINGS = """# Settings

Written by `python scripts/make_settings_docs.py` from the configuration itself; do not edit.

A setting is given by a recipe (`-r`), by `--set section.key=value`, or by the flag that is named with it;
`rl4rec settings WORD` searches this page. Names of other projects: [from-the-guides.md](from-the-guides.md).
"""
GUIDE = """# From the guides' options, and TRL's, to these

Written by `python scripts/make_settings_docs.py` from the table in `rl4rec_cli/config/aliases.py`; do not edit.

What a key means, its range and its default: [settings.md](settings.md), or `rl4rec settings NAME`, which knows these
names too. Where an option of `rl4rec train` is named, it may be given instead of `--set KEY=VALUE`.
"""


def render_settings() -> str:
    parts = [SETTINGS]
    for section, settings in groupby(all_settings(), key=lambda setting: setting.key.partition(".")[0]):
        parts.append(f"\n## {section}\n")
        about = RunConfig.model_fields[section].description
        parts += [f"\n{about}\n\n"] if about else ["\n"]
        parts += [_entry(setting) for setting in settings]
    return "".join(parts)


def _entry(setting: Setting) -> str:
    flag = f" Flag: `{setting.flag}`." if setting.flag else ""
    return f"- **`{setting.key}`** ({setting.facts}){': ' if setting.meaning else '.'}{setting.meaning}{flag}\n"


def render_guide() -> str:
    rows = "".join(_table(title, table) for title, table in (("The guides", GUIDES), ("Libraries", LIBRARIES)))
    return GUIDE + rows


def _table(title: str, aliases: Iterable[Alias]) -> str:
    lines = [f"\n## {title}\n", "| name | setting | option | remark |", "|---|---|---|---|"]
    for alias in aliases:
        keys = ", ".join(f"`{key}`" for key in alias.key.split(",") if key)
        lines.append(f"| `{alias.name}` | {keys} | {f'`{alias.flag}`' if alias.flag else ''} | {alias.note} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    pages = {DOCS / "settings.md": render_settings(), DOCS / "from-the-guides.md": render_guide()}
    stale = [path for path, text in pages.items() if not path.exists() or path.read_text(encoding="utf-8") != text]
    if "--check" in sys.argv[1:]:
        for path in stale:
            print(f"docs/{path.name} is not current: run scripts/make_settings_docs.py")
        return 1 if stale else 0
    for path in stale:
        path.write_text(pages[path], encoding="utf-8")
        print(f"wrote {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
