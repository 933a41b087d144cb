"""In llama.cpp's environment: `python gguf_convert.py REQUEST.json` runs its own converter on a model folder.

A BPE tokenizer whose kind the converter does not know is told with its hash. Only where the request says that the
tokenizer cuts as GPT-2's does is it called that.
"""

import json
import re
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


def say_as_trained(gguf: Any, begins: bool, adds_no_space: bool, end_of_turn: int | None) -> None:
    """Have the file say what the tokenizer's files do not.

    Args:
        gguf: its module.
        begins: whether the texts of training began with the token for that; if not, none is put before a text.
        adds_no_space: whether no space is put before a text that comes after a special token; SentencePiece alone.
        end_of_turn: token that ends an answer besides the end of the sequence: only known ones stop llama.cpp.
    """
    known = gguf.SpecialVocab.add_to_gguf
    say_space = gguf.GGUFWriter.add_add_space_prefix

    def add_to_gguf(self: Any, *arguments: Any, **named: Any) -> Any:
        if adds_no_space:
            say_space(arguments[0], False)
        if not begins:
            self.add_special_token["bos"] = False
        if end_of_turn is not None:
            self.special_token_ids["eot"] = end_of_turn
        return known(self, *arguments, **named)

    gguf.SpecialVocab.add_to_gguf = add_to_gguf
    if adds_no_space:  # what the converter says of it would be there twice
        gguf.GGUFWriter.add_add_space_prefix = lambda writer, value: None


def as_it_reads(plain: Path, folder: Path) -> Path:
    """A folder of links to a model's files, with what the converter reads of a SentencePiece tokenizer.

    transformers 5 writes neither tokenizer.model nor `added_tokens_decoder`; all is in tokenizer.json. Without the
    first the converter refuses, or gives every merge the same score; without the second it leaves added tokens out,
    and llama.cpp cuts the marks of the chat template into letters.

    Args:
        plain: the model; it stays as it is.
        folder: where the links go.

    Returns:
        `folder`, or `plain` where the tokenizer is of another kind.
    """
    path = plain / "tokenizer.json"
    content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    model = content.get("model") or {}
    if model.get("type") != "BPE" or not model.get("byte_fallback"):
        return plain
    folder.mkdir()
    for file in plain.iterdir():
        (folder / file.name).symlink_to(file.absolute())
    if not (plain / "tokenizer.model").exists():
        (folder / "tokenizer.model").write_bytes(sentencepiece_model(model, content["added_tokens"]))
    settings = json.loads((plain / "tokenizer_config.json").read_text(encoding="utf-8"))
    settings.setdefault("added_tokens_decoder", {str(token["id"]): token for token in content["added_tokens"]})
    (folder / "tokenizer_config.json").unlink()
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return folder


def sentencepiece_model(model: dict[str, Any], added: list[dict[str, Any]]) -> bytes:
    """The tokenizer.model of a tokenizer.json: of two pairs that could be merged, the higher score goes first.

    Args:
        model: the part of that name; a merge is a pair, or in older files two words.
        added: its added tokens.
    """
    from sentencepiece import sentencepiece_model_pb2

    merged: dict[str, int] = {}
    for number, merge in enumerate(model["merges"], start=1):
        merged.setdefault("".join(merge.split(" ", 1) if isinstance(merge, str) else merge), number)
    proto = sentencepiece_model_pb2.ModelProto()
    proto.trainer_spec.model_type = proto.trainer_spec.BPE
    proto.trainer_spec.byte_fallback = True
    kinds = proto.SentencePiece
    special = {token["content"] for token in added if token["special"]}
    texts = {number: text for text, number in model["vocab"].items()}
    for number in range(max(texts) + 1):
        text = texts.get(number, f"[PAD{number}]")
        kind = kinds.NORMAL if number in texts else kinds.UNUSED
        if text == model["unk_token"]:
            kind = kinds.UNKNOWN
        elif re.fullmatch("<0x[0-9A-F]{2}>", text):
            kind = kinds.BYTE
        elif text in special:
            kind = kinds.CONTROL
        proto.pieces.add(piece=text, score=-float(merged.get(text, 0)), type=kind)
    return bytes(proto.SerializeToString())


def main() -> None:
    request = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    sys.path.insert(0, request["converter"])
    import convert_hf_to_gguf
    from conversion import base

    name_cutters(base, request["is_gpt2"])
    say_as_trained(base.gguf, request["begins"], request["adds_no_space"], request["end_of_turn"])
    base.ModelBase.no_mtp = not request["predicts"]
    answers = Path(request["answers"])
    plain = as_it_reads(Path(request["plain"]), answers / "model")
    # llama.cpp knows Phi-3, whose marks take the line break after them along, by this name alone.
    named = ["--model-name", request["name"]]
    sys.argv = ["convert_hf_to_gguf.py", str(plain), "--outfile", request["out"], "--outtype", request["type"], *named]
    try:
        convert_hf_to_gguf.main()
    except UnknownCutterError as fault:
        (answers / "unknown.txt").write_text(str(fault), encoding="utf-8")


if __name__ == "__main__":
    main()
