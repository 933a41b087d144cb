"""`qlora data show`, `check` and `cache`, through the real command line."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import yaml

from qlora_cli.cli import app
from qlora_cli.data.cache import locked
from tests.data.read.public_layouts import AMBIGUOUS, BY_VALUE, UNNAMED

PAGE = Path(__file__).parents[2] / "docs" / "data.md"

LONG = {"instruction": "count", "output": "one two three " * 20}


@pytest.fixture
def recipe(tmp_path, tiny_base, monkeypatch):
    """Write `rows.yaml` over the rows given; returns its name."""
    monkeypatch.setenv("QLORA_CACHE", str(tmp_path / "cache"))

    def write(rows, name="rows", **data):
        lines = (row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows)
        (tmp_path / f"{name}.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        values = {
            "model": {"base_model": str(tiny_base)},
            "data": {"train": f"{name}.jsonl", "max_length": 128, **data},
            "training": {"max_steps": 1},
        }
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(values))
        return f"{name}.yaml"

    return write


def sums(num_rows):
    return [{"instruction": f"add {n} and {n + 1}", "output": str(2 * n + 1)} for n in range(num_rows)]


def headings(out):
    return [line for line in out.splitlines() if line.startswith("rows.jsonl:")]


def test_the_first_rows_are_shown_with_place_counts_and_what_is_trained(call, recipe):
    ran = call("data", "show", recipe(sums(5)))
    assert ran.code == 0
    assert [line.split()[0] for line in headings(ran.out)] == ["rows.jsonl:1", "rows.jsonl:2", "rows.jsonl:3"]
    assert "user\nadd 0 and 1<|im_end|>\n<|im_start|>assistant\n⟦1<|im_end|>↵⟧\n" in ran.out
    # "1", the end of the turn and its line end, by the byte-level tokenizer
    assert headings(ran.out)[0].endswith("tokens, 3 of them trained")
    assert ran.err == "trained tokens are between ⟦ and ⟧\n"


def test_each_source_shows_its_first_rows(call, recipe, tmp_path):
    recipe(sums(2), "more")
    ran = call("data", "show", recipe(sums(5), train=["rows.jsonl", "more.jsonl"]), "-n", 1)
    assert [line.split()[0] for line in ran.out.splitlines() if ".jsonl:" in line] == ["rows.jsonl:1", "more.jsonl:1"]


def test_one_row_is_picked_by_its_number(call, recipe):
    name = recipe(sums(5))
    assert "add 3 and 4" in call("data", "show", name, "--row", 4).out
    assert len(headings(call("data", "show", name, "--row", 4).out)) == 1


def test_a_row_that_is_not_there_is_an_error_with_the_place(call, recipe):
    ran = call("data", "show", recipe(sums(5)), "--row", 6)
    assert ran.code == 2
    assert ran.err.splitlines()[-2:] == ["error: rows.jsonl: the source has no row 6", "hint: rows are counted from 1"]


def test_eval_rows_are_shown_where_the_recipe_has_some(call, recipe):
    recipe([{"instruction": "held out", "output": "x"}], "held")
    assert "held out" in call("data", "show", recipe(sums(2), eval="held.jsonl"), "--eval").out
    ran = call("data", "show", recipe(sums(2)), "--eval")
    assert (ran.code, "the recipe names no `data.eval`" in ran.err) == (2, True)


def test_ids_are_those_of_the_tokenizer_one_a_line(call, recipe, tiny_base):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    out = call("data", "show", recipe(sums(1)), "--ids").out
    lines = [line.split() for line in out.splitlines() if line[:8].strip().isdecimal()]
    text = "<|im_start|>user\nadd 0 and 1<|im_end|>\n<|im_start|>assistant\n1<|im_end|>\n"
    assert [int(line[1]) for line in lines] == tokenizer(text, add_special_tokens=False)["input_ids"]
    assert [line[2:] for line in lines[-3:]] == [
        ["trained", "1"],
        ["trained", "special", "<|im_end|>"],
        ["trained", "↵"],
    ]


def test_a_row_that_is_too_long_is_shown_in_full_and_marked(call, recipe):
    out = call("data", "show", recipe([LONG])).out
    assert "longer than max_length 128: refused" in out
    assert "one two three <|im_end|>↵⟧" in out
    assert "128: left out" in call("data", "show", recipe([LONG], truncation="drop")).out


def test_a_row_that_is_cut_says_from_how_many_tokens(call, recipe):
    row = {"instruction": "so long a question " * 20, "output": "short"}
    out = call("data", "show", recipe([row], truncation="cut_prompt")).out
    assert " tokens to max_length 128" in out
    assert "short<|im_end|>" in out


def test_a_row_that_cannot_be_read_is_shown_with_why(call, recipe):
    ran = call("data", "show", recipe([*sums(1), "{broken", {"instruction": "x", "output": ""}]))
    assert ran.code == 0
    _, broken, empty = headings(ran.out)
    assert broken == "rows.jsonl:2 · not trained on: not readable"
    assert empty == "rows.jsonl:3 · not trained on: empty answer"
    assert "\n{broken\n" in ran.out


def test_the_page_is_written_and_holds_the_rows(call, recipe, tmp_path):
    ran = call(
        "data", "show", recipe([{"instruction": "<script>alert(1)</script>", "output": "x"}]), "--html", "p.html"
    )
    assert (ran.code, ran.out) == (0, "wrote p.html\n")
    page = (tmp_path / "p.html").read_text("utf-8")
    assert "rows.jsonl:1" in page
    assert "<script" not in page


def test_no_page_takes_the_place_of_another_kind_of_file(call, recipe, tmp_path):
    name = recipe(sums(1))
    ran = call("data", "show", name, "--html", name)
    assert (ran.code, ran.err.splitlines()[-1]) == (2, "hint: try `--html rows.html`")
    assert "base_model" in (tmp_path / name).read_text()


def test_keys_are_overridden(call, recipe):
    out = call("data", "show", recipe(sums(1)), "--set", "data.max_length=8", "--set", "data.train_on=all").out
    assert "longer than max_length 8" in out


def test_good_data_is_trainable(call, recipe):
    ran = call("data", "check", recipe(sums(20)))
    assert ran.code == 0
    assert ran.out.startswith("trainable: 20 rows, ")
    assert ran.out.splitlines()[0].endswith("; nothing refused")


def test_bad_data_is_exit_code_2_and_every_cause_has_its_first_place(call, recipe):
    rows = [*sums(8), "{broken", {"instruction": "x", "output": ""}, LONG, "{broken again"]
    ran = call("data", "check", recipe(rows))
    assert ran.code == 2
    assert ran.out.startswith("not trainable: ")
    lines = [line.split() for line in ran.out.splitlines()]
    assert ["not", "readable", "2", "refused", "rows.jsonl:9"] in lines
    assert ["empty", "answer", "1", "refused", "rows.jsonl:10"] in lines
    assert ["longer", "than", "max_length", "1", "refused", "rows.jsonl:11"] in lines


def test_what_is_left_out_is_counted_and_trained_without(call, recipe):
    ran = call("data", "check", recipe([*sums(8), LONG], truncation="drop"))
    assert ran.code == 0
    assert "; 1 left out; nothing refused" in ran.out.splitlines()[0]


def test_json_is_the_report_and_nothing_else(call, recipe):
    ran = call("data", "check", recipe(sums(20)), "--json")
    assert ran.code == 0
    assert (ran.json["is_trainable"], ran.json["num_train"], ran.json["max_length"]) == (True, 20, 128)
    [source] = ran.json["sources"]
    assert (source["path"], source["num_read"], source["num_kept"]) == ("rows.jsonl", 20, 20)
    ran = call("data", "check", recipe(["{broken"]), "--json")
    assert (ran.code, ran.json["is_trainable"]) == (2, False)


def test_a_missing_file_is_an_error_line(call, recipe):
    name = recipe(sums(1))
    ran = call("data", "check", name, "--set", "data.train=raws.jsonl")
    assert (ran.code, ran.out) == (2, "")
    assert ran.err == "error: raws.jsonl: no such file or folder\nhint: did you mean 'rows.jsonl'?\n"


def test_what_was_prepared_is_listed_and_cleared(call, recipe, tmp_path):
    assert call("data", "cache").err == f"the cache is empty ({tmp_path / 'cache' / 'data'})\n"
    assert call("data", "check", recipe(sums(20))).code == 0
    listed = call("data", "cache", "--json").json
    [entry] = listed["entries"]
    assert (entry["num_rows"], entry["sources"]) == (20, ["rows.jsonl"])
    shown = call("data", "cache").out
    for part in (entry["key"][:8], "20", "rows.jsonl", listed["path"]):
        assert part in shown
    cleared = call("data", "cache", "--clear")
    assert cleared.out.endswith(f" freed in {listed['path']}\n")
    assert call("data", "cache", "--clear", "--json").json == {**listed, "entries": [], "num_bytes_freed": 0}


def test_what_another_process_is_using_is_kept_and_said(call, recipe):
    call("data", "check", recipe(sums(20)))
    [entry] = call("data", "cache", "--json").json["entries"]
    with locked(entry["key"]):
        out = call("data", "cache", "--clear").out
    assert out.startswith("0 bytes freed in ")
    assert "in use are still:" in out.splitlines()[0]
    assert entry["key"][:8] in out


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [("data", "--help"), ("data", "check", "--help")])
def test_help_loads_no_heavy_library(tmp_path, arguments):
    code = (
        f"import sys; from {app.__name__} import main; sys.argv = ['qlora', *{list(arguments)!r}]\n"
        "try: main()\n"
        "except SystemExit: print([name for name in ('torch', 'transformers', 'datasets') if name in sys.modules])\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert ran.stdout.splitlines()[-1] == "[]"


def shown_commands():
    """Each command of docs/data.md whose output stands below it, with that output."""
    blocks = re.findall(r"^    \$ qlora (.+)\n((?:    .*\n|\n(?=    ))+)", PAGE.read_text("utf-8"), flags=re.MULTILINE)
    return [(command, textwrap.dedent(output)) for command, output in blocks]


def without_times(text):
    return [re.sub(r"[\d.]+ s$", "0 s", line.rstrip()) for line in text.strip().splitlines()]


def test_the_outputs_in_the_docs_are_what_the_commands_print(call, tmp_path, monkeypatch):
    monkeypatch.setenv("QLORA_CACHE", str(tmp_path / "cache"))
    (tmp_path / "recipes").symlink_to(PAGE.parents[1] / "recipes")
    [making] = re.findall(r"`qlora (tiny [^`]+)`", PAGE.read_text("utf-8"))
    assert call(*making.split()).code == 0
    assert len(shown_commands()) == 2
    for command, output in shown_commands():
        ran = call(*command.split())
        assert without_times(ran.err + ran.out) == without_times(output)


def hinted_source(err):
    """The line that the hint says to write."""
    [line] = re.findall(r"^hint: write `(train: \{.*\})` in the recipe", err, re.MULTILINE)
    return yaml.safe_load(line)["train"]


@pytest.mark.parametrize("name", [*UNNAMED, *AMBIGUOUS, *BY_VALUE])
def test_data_that_no_format_fits_is_trainable_once_the_hint_was_followed(call, recipe, name):
    rows = (UNNAMED | AMBIGUOUS | BY_VALUE)[name]
    ran = call("data", "check", recipe(rows, max_length=512))
    assert (ran.code, ran.out) == (2, "")
    ran = call("data", "check", recipe(rows, max_length=512, train=hinted_source(ran.err)))
    assert (ran.code, ran.err) == (0, "")


def test_show_says_the_same_mapping_of_held_out_rows_under_their_own_key(call, recipe, tmp_path):
    name = recipe(sums(2), eval="held.jsonl")
    rows = [json.dumps(row) + "\n" for row in UNNAMED["openai/gsm8k"]]
    (tmp_path / "held.jsonl").write_text("".join(rows))
    ran = call("data", "show", name, "--eval")
    assert "`eval: {path: held.jsonl, columns: {instruction: question, output: answer}}`" in ran.err
