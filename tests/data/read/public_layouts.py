"""Rows with the columns of public datasets, written for these tests: name -> three rows.

The names and kinds of columns are those of the datasets' own files; what the rows say is not.
"""

from __future__ import annotations

from typing import Any

Rows = list[dict[str, Any]]

SUMS = [("What is 2 + 3?", "2 and 3 make 5."), ("What is 4 + 5?", "4 and 5 make 9."), ("What is 6 + 1?", "It is 7.")]
PLACES = ["The river runs to the sea.", "The hill is green in May.", "The old mill has two doors."]
ASKED = ["Where does it run?", "When is it green?", "What has it?"]
SAID = ["To the sea.", "In May it is.", "Two doors."]


def _rows(make: Any) -> Rows:
    return [make(number) for number in range(3)]


def _chat(number: int) -> list[dict[str, str]]:
    return [{"role": "user", "content": ASKED[number]}, {"role": "assistant", "content": SAID[number]}]


def _turns(number: int) -> list[dict[str, str]]:
    return [{"from": "human", "value": ASKED[number]}, {"from": "gpt", "value": SAID[number]}]


UNNAMED: dict[str, Rows] = {
    "openai/gsm8k": _rows(lambda n: {"question": SUMS[n][0], "answer": SUMS[n][1]}),
    "databricks/databricks-dolly-15k": _rows(
        lambda n: {"instruction": ASKED[n], "context": ["", *PLACES[1:]][n], "response": SAID[n], "category": "open_qa"}
    ),
    "b-mc2/sql-create-context": _rows(
        lambda n: {
            "answer": f"SELECT a FROM t{n} WHERE b > {n}",
            "question": ASKED[n],
            "context": f"CREATE TABLE t{n} (a VARCHAR, b INTEGER)",
        }
    ),
    "Open-Orca/OpenOrca": _rows(
        lambda n: {
            "id": f"niv.{n}1723",
            "system_prompt": ["", "You are an assistant.", ""][n],
            "question": ASKED[n],
            "response": SAID[n],
        }
    ),
    "samsum": _rows(
        lambda n: {"id": f"1381851{n}", "dialogue": f"Ann: {ASKED[n]}\r\nBob: {SAID[n]}", "summary": SAID[n]}
    ),
    "EdinburghNLP/xsum": _rows(lambda n: {"document": PLACES[n] * 3, "summary": SAID[n], "id": f"3523211{n}"}),
    "abisee/cnn_dailymail": _rows(
        lambda n: {"article": PLACES[n] * 5, "highlights": SAID[n], "id": f"0001d1afc246a7964130f43ae940af6bc6c57f0{n}"}
    ),
    "Anthropic/hh-rlhf": _rows(
        lambda n: {
            "chosen": f"\n\nHuman: {ASKED[n]}\n\nAssistant: {SAID[n]}",
            "rejected": f"\n\nHuman: {ASKED[n]}\n\nAssistant: No.",
        }
    ),
    "Intel/orca_dpo_pairs": _rows(
        lambda n: {"system": "You help.", "question": ASKED[n], "chosen": SAID[n], "rejected": "No."}
    ),
    "HuggingFaceH4/ultrafeedback_binarized": _rows(
        lambda n: {
            "prompt": ASKED[n],
            "prompt_id": f"a{n}9b" * 8,
            "chosen": _chat(n),
            "rejected": _chat(n),
            "messages_count": 2,
            "score_chosen": 8.0 + n,
            "score_rejected": 4.0,
        }
    ),
    "meta-math/MetaMathQA": _rows(
        lambda n: {
            "type": "MATH_AnsAug",
            "query": SUMS[n][0],
            "original_question": f"{SUMS[n][0]} Say why.",
            "response": SUMS[n][1],
        }
    ),
    "microsoft/orca-math-word-problems-200k": _rows(lambda n: {"question": SUMS[n][0], "answer": SUMS[n][1]}),
    "allenai/sciq": _rows(
        lambda n: {
            "question": ASKED[n],
            "distractor3": "In the north.",
            "distractor1": "On the roof.",
            "distractor2": "By the road.",
            "correct_answer": SAID[n],
            "support": PLACES[n],
        }
    ),
    "truthfulqa/truthful_qa": _rows(
        lambda n: {
            "type": "Adversarial",
            "category": "Misconceptions",
            "question": ASKED[n],
            "best_answer": SAID[n],
            "correct_answers": [SAID[n], "Yes."],
            "incorrect_answers": ["Nowhere."],
            "source": f"https://example.org/{n}",
        }
    ),
    "sentence-transformers/natural-questions": _rows(lambda n: {"query": ASKED[n].lower(), "answer": PLACES[n]}),
    "allenai/ai2_arc": _rows(
        lambda n: {
            "id": f"Mercury_71756{n}",
            "question": ASKED[n],
            "choices": {"text": [*SAID, "No."], "label": ["A", "B", "C", "D"]},
            "answerKey": "ABC"[n],
        }
    ),
    "tau/commonsense_qa": _rows(
        lambda n: {
            "id": f"075e483d21c29a511267ef62bedc046{n}",
            "question": ASKED[n],
            "question_concept": ["river", "hill", "mill"][n],
            "choices": {"label": ["A", "B", "C", "D", "E"], "text": [*SAID, "No.", "Yes."]},
            "answerKey": "ABC"[n],
        }
    ),
    "medalpaca/medical_meadow_wikidoc": _rows(
        lambda n: {"input": ASKED[n], "target": SAID[n], "task_prompt": "Answer this question truthfully."}
    ),
    "lighteval/MATH": _rows(
        lambda n: {"problem": SUMS[n][0], "level": f"Level {n}", "type": "Algebra", "solution": SUMS[n][1]}
    ),
    "AI-MO/NuminaMath-TIR": _rows(lambda n: {"problem": SUMS[n][0], "solution": SUMS[n][1], "chat": _chat(n)}),
    "nampdn-ai/tiny-codes": _rows(
        lambda n: {
            "prompt": f"Write a function that adds {n}.",
            "main_topic": "Mathematics",
            "subtopic": "Algebra",
            "adjective": ["Rarely", "Always", "Often"][n],
            "response": f"def add(x):\n    return x + {n}",
            "programming_language": "Python",
            "idx": n,
        }
    ),
    "nvidia/HelpSteer": _rows(
        lambda n: {"prompt": ASKED[n], "response": SAID[n], "helpfulness": n, "correctness": 3, "verbosity": 2}
    ),
    "argilla/distilabel-math-preference-dpo": _rows(
        lambda n: {
            "metadata": "{}",
            "instruction": SUMS[n][0],
            "chosen_response": SUMS[n][1],
            "rejected_response": "No.",
            "chosen_rating": 9.0,
        }
    ),
    "lmsys/lmsys-chat-1m": _rows(
        lambda n: {
            "conversation_id": f"33f01939a744455c869cb234afca47{n}1",
            "model": "wizardlm-13b",
            "conversation": _chat(n),
            "turn": 1,
            "language": "English",
            "redacted": False,
        }
    ),
    "allenai/c4 under another name": _rows(
        lambda n: {"content": PLACES[n] * 9, "timestamp": f"2019-04-25T12:57:5{n}Z", "url": f"https://example.org/{n}"}
    ),
    "bigcode/the-stack-smol": _rows(
        lambda n: {
            "content": f"def f{n}(x):\n    return x * {n}\n",
            "avg_line_length": 14.5,
            "max_line_length": 20,
            "lang": "Python",
            "licenses": ["mit"],
            "repository_name": f"someone/thing{n}",
        }
    ),
    "a table in German": _rows(lambda n: {"Frage": ASKED[n], "Antwort": SAID[n], "Datum": f"2024-05-0{n + 1}"}),
    "a table in Chinese": _rows(lambda n: {"问题": ASKED[n], "答案": SAID[n]}),
    "headings of a spreadsheet": _rows(lambda n: {"Question (EN)": ASKED[n], "Best answer": SAID[n], "Nr.": str(n)}),
    "names that say nothing": _rows(lambda n: {"a": ASKED[n], "b": SAID[n]}),
}
"""Layouts whose columns name no format."""

BY_VALUE: dict[str, Rows] = {
    "rajpurkar/squad": _rows(
        lambda n: {
            "id": f"5733be284776f41900661{n}82",
            "title": "University_of_Notre_Dame",
            "context": PLACES[n],
            "question": ASKED[n],
            "answers": {"text": [SAID[n]], "answer_start": [n]},
        }
    ),
    "google/boolq": _rows(lambda n: {"question": ASKED[n], "answer": n > 0, "passage": PLACES[n]}),
    "cais/mmlu": _rows(
        lambda n: {"question": ASKED[n], "subject": "abstract_algebra", "choices": [*SAID, "No."], "answer": n}
    ),
    "mandarjoshi/trivia_qa": _rows(
        lambda n: {
            "question": ASKED[n],
            "question_id": f"tc_{n}",
            "question_source": "http://www.triviacountry.com/",
            "answer": {"aliases": [SAID[n]], "normalized_aliases": [SAID[n].lower()], "value": SAID[n]},
        }
    ),
    "Helsinki-NLP/opus_books": _rows(lambda n: {"id": f"{n}", "translation": {"de": SAID[n], "en": ASKED[n]}}),
    "stanford_alpaca seed_tasks": _rows(
        lambda n: {
            "id": f"seed_task_{n}",
            "name": "places",
            "instruction": ASKED[n],
            "instances": [{"input": "", "output": SAID[n]}],
            "is_classification": False,
        }
    ),
}
"""Layouts whose answer is a number, a truth value, or lies inside an object."""

AMBIGUOUS: dict[str, Rows] = {
    "tatsu-lab/alpaca": _rows(
        lambda n: {"instruction": ASKED[n], "input": "", "output": SAID[n], "text": f"### {ASKED[n]}\n{SAID[n]}"}
    ),
    "HuggingFaceH4/no_robots with completions": _rows(
        lambda n: {"prompt": ASKED[n], "completion": SAID[n], "messages": _chat(n), "category": "Open QA"}
    ),
}
"""Layouts that fit several formats."""

NAMED: dict[str, Rows] = {
    "sahil2801/CodeAlpaca-20k": _rows(lambda n: {"instruction": ASKED[n], "input": "", "output": SAID[n]}),
    "HuggingFaceH4/CodeAlpaca_20K": _rows(lambda n: {"prompt": ASKED[n], "completion": SAID[n]}),
    "OpenAssistant/oasst1": _rows(
        lambda n: {"message_id": f"6ab24d72-0181-4594-a9cd-deaf170242f{n}", "text": ASKED[n], "role": "prompter"}
    ),
    "HuggingFaceH4/ultrachat_200k": _rows(
        lambda n: {"prompt": ASKED[n], "prompt_id": f"f0e37e9f7800{n}", "messages": _chat(n)}
    ),
    "WizardLM/WizardLM_evol_instruct_70k": _rows(lambda n: {"instruction": ASKED[n], "output": SAID[n]}),
    "WizardLMTeam/WizardLM_evol_instruct_V2_196k": _rows(lambda n: {"idx": f"Z{n}", "conversations": _turns(n)}),
    "teknium/OpenHermes-2.5": _rows(lambda n: {"conversations": _turns(n), "source": "airoboros2.2"}),
    "timdettmers/openassistant-guanaco": _rows(lambda n: {"text": f"### Human: {ASKED[n]}### Assistant: {SAID[n]}"}),
}
"""Layouts that are read without a note."""
