"""In llama.cpp's environment: `python gguf_convert.py REQUEST.json` runs its own converter on a model folder.

A BPE tokenizer whose kind the converter does not know is told with its hash. Only where the request says that the
tokenizer cuts as GPT-2's does is it called that.
"""

import json
import sys
from pathlib import Path
from typing import Any


class UnknownCutterError(Exception):
    """The hash of a pre-tokenizer that the converter does not know."""


def name_cutters(base: Any, is_gpt2: bool) -> None:
    """Let the converter take an unknown kind of pre-tokenizer for GPT-2's, or tell its hash."""
    known = base.TextModel.get_vocab_base_pre
    said: list[str] = []

    def heard(record: Any) -> bool:
        said.append(record.getMessage())
        return True

    base.logger.addFilter(heard)

    def get_vocab_base_pre(self: Any, tokenizer: Any) -> Any:
        try:
            return known(self, tokenizer)
        except NotImplementedError as fault:
            if is_gpt2:
                return "gpt-2"
            hashes = [line.split()[-1] for line in said if "chkhsh:" in line]
            raise UnknownCutterError(hashes[-1] if hashes else "unknown") from fault

    base.TextModel.get_vocab_base_pre = get_vocab_base_pre


def say_as_trained(gguf: Any, begins: bool, end_of_turn: int | None) -> None:
    """Have the file say what the tokenizer's files do not.

    Args:
        gguf: its module.
        begins: whether the texts of training began with the token for that; if not, none is put before a text.
        end_of_turn: token that ends an answer besides the end of the sequence: only known ones stop llama.cpp.
    """
    known = gguf.SpecialVocab.add_to_gguf

    def add_to_gguf(self: Any, *arguments: Any, **named: Any) -> Any:
        if not begins:
            self.add_special_token["bos"] = False
        if end_of_turn is not None:
            self.special_token_ids["eot"] = end_of_turn
        return known(self, *arguments, **named)

    gguf.SpecialVocab.add_to_gguf = add_to_gguf


def main() -> None:
    request = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    sys.path.insert(0, request["converter"])
    import convert_hf_to_gguf
    from conversion import base

    name_cutters(base, request["is_gpt2"])
    say_as_trained(base.gguf, request["begins"], request["end_of_turn"])
    sys.argv = ["convert_hf_to_gguf.py", request["plain"], "--outfile", request["out"], "--outtype", request["type"]]
    try:
        convert_hf_to_gguf.main()
    except UnknownCutterError as fault:
        (Path(request["answers"]) / "unknown.txt").write_text(str(fault), encoding="utf-8")


if __name__ == "__main__":
    main()
