"""What the documents say can be pasted: their Python blocks run from top to bottom in an empty folder."""

import re
from pathlib import Path

import pytest

pytestmark = pytest.mark.usefixtures("one_thread")

ROOT = Path(__file__).resolve().parent.parent
NAMES = ("README.md", "docs/tutorial.md", "docs/language.md", "docs/vllm.md")
PAGES = [ROOT / name for name in NAMES if (ROOT / name).exists()]


def blocks(page):
    return re.findall(r"^```python\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_python_blocks_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "__main__"}
    code = blocks(page)
    assert code
    for block in code:
        exec(compile(block, str(page), "exec"), namespace)
