"""Run by a Python that has GPTQModel: quantizes a model folder. `python gptq_write.py REQUEST.json`.

Nothing of this project is imported.
"""

import json
import os
import sys


def main(path: str) -> None:
    with open(path, encoding="utf-8") as file:
        request = json.load(file)
    plain, out = (os.path.abspath(request[name]) for name in ("plain", "out"))
    os.chdir(request["answers"])  # GPTQModel writes a folder `logs` where it is started
    os.environ.setdefault("GPTQMODEL_CPU_WORKERS", str(max(2, os.cpu_count() or 2)))  # fewer than 2 are refused

    import torch
    from gptqmodel import GPTQModel, QuantizeConfig

    settings = QuantizeConfig(bits=request["bits"], group_size=request["group_size"], desc_act=False, sym=True)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    trusted = {"trust_remote_code": request["trust_remote_code"]}
    model = GPTQModel.load(plain, settings, device=device, **trusted)
    rows = [{"input_ids": row, "attention_mask": [1] * len(row)} for row in request["rows"]]
    model.quantize(rows, batch_size=1)
    model.save(out)


if __name__ == "__main__":
    main(sys.argv[1])
