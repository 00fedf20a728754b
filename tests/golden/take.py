"""Cases of a directory of golden data -> this one: `python tests/golden/take.py DIRECTORY NAME...`"""

import json
import shutil
import sys
from pathlib import Path

HERE = Path(__file__).parent
LEFT_OUT = ("arrays", "variables", "weight_draw")


def take(source: Path, names: list[str]) -> None:
    known = {entry["name"]: entry for entry in json.loads((source / "manifest.json").read_text())}
    missing = sorted(set(names) - set(known))
    if missing:
        raise SystemExit(f"no such case in {source}: {', '.join(missing)}")
    manifest = HERE / "manifest.json"
    kept = {entry["name"]: entry for entry in json.loads(manifest.read_text())} if manifest.exists() else {}
    for name in names:
        kept[name] = {key: value for key, value in known[name].items() if key not in LEFT_OUT}
        shutil.copyfile(source / known[name]["file"], HERE / known[name]["file"])
    lines = ",\n".join(json.dumps(kept[name]) for name in sorted(kept))
    manifest.write_text(f"[\n{lines}\n]\n")


if __name__ == "__main__":
    take(Path(sys.argv[1]), sys.argv[2:])
