"""Two small benchmarks as files of lm-evaluation-harness: one of choices, one of generated text."""

from __future__ import annotations

import json
from pathlib import Path

CHOICE = """\
task: local_choice
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/choice.jsonl}}}}
test_split: test
fewshot_split: test
output_type: multiple_choice
doc_to_text: "Question: {{{{question}}}}\\nAnswer:"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: label
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
  - {{metric: acc_norm, aggregation: mean, higher_is_better: true}}
metadata: {{version: 1.0}}
"""

TEXT = """\
task: local_text
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/text.jsonl}}}}
test_split: test
fewshot_split: test
output_type: generate_until
doc_to_text: "Question: {{{{question}}}}\\nAnswer:"
doc_to_target: "{{{{answer}}}}"
generation_kwargs: {{until: ["\\n\\n"], do_sample: false, max_gen_toks: 8}}
metric_list:
  - {{metric: exact_match, aggregation: mean, higher_is_better: true}}
metadata: {{version: 1.0}}
"""

GROUP = """\
group: local_group
task: [local_choice, local_choice_again]
aggregate_metric_list:
  - {{metric: acc, aggregation: mean, weight_by_size: true}}
metadata: {{version: 1.0}}
"""


def write_benchmarks(folder: Path, answers: list[str] | None = None) -> Path:
    """The files and their rows; `answers` are the references of the questions with text."""
    folder.mkdir(parents=True, exist_ok=True)
    questions = [f"{number} plus {number % 7}?" for number in range(24)]
    choices = [
        {"question": text, "choices": [f" {index}", f" {index + 5}", " many"], "label": index % 3}
        for index, text in enumerate(questions)
    ]
    texts = [{"question": text, "answer": (answers or ["x"] * 24)[index]} for index, text in enumerate(questions)]
    for name, rows in (("choice", choices), ("text", texts)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    (folder / "choice.yaml").write_text(CHOICE.format(folder=folder), "utf-8")
    again = CHOICE.format(folder=folder).replace("local_choice", "local_choice_again").replace("Answer:", "Reply:")
    (folder / "again.yaml").write_text(again, "utf-8")
    (folder / "text.yaml").write_text(TEXT.format(folder=folder), "utf-8")
    (folder / "group.yaml").write_text(GROUP.format(folder=folder), "utf-8")
    return folder
