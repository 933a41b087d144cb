"""In llama.cpp's environment: `python gguf_adapter.py REQUEST.json` runs its own converter on a PEFT adapter folder."""

import json
import runpy
import sys
from pathlib import Path


def main() -> None:
    request = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    sys.path.insert(0, request["converter"])
    from conversion import base

    base.ModelBase.no_mtp = not request["predicts"]
    program = str(Path(request["converter"]) / "convert_lora_to_gguf.py")
    sys.argv = [program, "--base", request["plain"], "--outfile", request["out"], "--outtype", request["type"]]
    sys.argv += [*(["--trust-remote-code"] if request["trust_remote_code"] else []), request["adapter"]]
    runpy.run_path(program, run_name="__main__")


if __name__ == "__main__":
    main()
