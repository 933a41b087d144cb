"""Uploads to a server that keeps commits as the Hub does: what arrives, what stays, and what is said when it fails."""

from __future__ import annotations

import json
import shutil

import huggingface_hub
import pytest

from qlora_cli import push
from qlora_cli.errors import ArgumentError, IdentityError, QloraError, ResourceError
from tests.hub_server import OWNER, TOKEN
from tests.hub_stand_ins import closed_port

REPO = f"{OWNER}/sums"
BASE = "org/llama-1b"


@pytest.fixture
def run(made, tmp_path):
    shutil.copytree(made.path, tmp_path / "run")
    return tmp_path / "run"


def test_what_arrives_are_the_files_of_the_adapter_and_the_card_of_the_dry_run(hub, run):
    planned = push(run, REPO, dry_run=True, base_model=BASE)
    assert hub.requests == []
    pushed = push(run, REPO, base_model=BASE)
    there = hub.repos[REPO].files()
    assert {*there} - {".gitattributes"} == {file.name for file in planned.files}
    weights = "adapter_model.safetensors"
    assert there[weights] == (run / "adapter" / weights).read_bytes()
    assert hub.repos[REPO].lfs[pushed.uploaded.commit] == {weights}
    assert there["README.md"].decode() == planned.card
    assert json.loads(there["adapter_config.json"])["base_model_name_or_path"] == BASE
    assert len(hub.repos[REPO].trees) == 2  # the Hub's own first one, and one of ours


def test_a_second_push_sends_no_weights_and_leaves_the_files_of_others(hub, run):
    push(run, REPO, base_model=BASE)
    repo = hub.repos[REPO]
    repo.put("main", {**repo.files(), "notes.txt": b"by hand", "model.safetensors": b"older"}, {"model.safetensors"})
    hub.requests.clear()
    pushed = push(run, REPO, base_model=BASE)
    assert [path for method, path in hub.requests if method == "PUT"] == []
    assert pushed.uploaded.kept == (".gitattributes", "model.safetensors", "notes.txt")
    assert repo.files()["notes.txt"] == b"by hand"


def test_weights_of_another_model_that_stay_are_said(hub, run, capsys):
    hub.add(REPO, {"model.safetensors": b"older"})
    push(run, REPO, base_model=BASE)
    assert f"weights of another model stay in {REPO}: model.safetensors" in capsys.readouterr().err


def test_a_card_that_was_edited_on_the_hub_stays_until_it_is_given_up(hub, run, capsys):
    push(run, REPO, base_model=BASE)
    repo = hub.repos[REPO]
    edited = repo.files()["README.md"].replace(b"## Intended use\n", b"## Intended use\n\nFor sums in schools.\n")
    repo.put("main", {**repo.files(), "README.md": edited}, set())
    assert push(run, REPO, base_model=BASE).uploaded.is_card_kept
    assert repo.files()["README.md"] == edited
    assert "was written by somebody and stays; --replace-card" in capsys.readouterr().err
    push(run, REPO, base_model=BASE, replace_card=True)
    assert b"For sums in schools" not in repo.files()["README.md"]


def test_a_card_that_nobody_edited_follows_the_run(hub, run):
    push(run, REPO, base_model=BASE)
    shutil.rmtree(run / "eval")
    assert not push(run, REPO, base_model=BASE).uploaded.is_card_kept
    assert b"Not measured." in hub.repos[REPO].files()["README.md"]


def test_a_private_push_makes_a_private_repository_and_refuses_a_public_one(hub, run):
    push(run, f"{OWNER}/own", private=True)
    assert hub.repos[f"{OWNER}/own"].is_private
    before = dict(hub.add(REPO, {"a": b"1"}).files())
    with pytest.raises(ArgumentError, match=r"is public, so what is pushed with --private would be too"):
        push(run, REPO, private=True)
    assert hub.repos[REPO].files() == before


def test_a_name_without_an_owner_is_a_repository_of_ones_own(hub, run):
    assert push(run, "sums").repo == REPO


def test_a_branch_that_is_not_there_is_made_and_main_stays(hub, run):
    repo = hub.add(REPO, {"a": b"1"})
    push(run, REPO, revision="v2")
    assert repo.files("main") == {"a": b"1"}
    assert "adapter_model.safetensors" in repo.files("v2")


def test_a_file_that_the_repository_ignores_is_missed_and_said(hub, run):
    """huggingface_hub leaves such files out without a word."""
    hub.add(REPO, {".gitignore": b"tokenizer.json\nadapter_config.json\n"})
    with pytest.raises(IdentityError, match=r"'adapter_config.json' was sent, but is not in the commit: a \.gitignore"):
        push(run, REPO)


def test_somebody_who_commits_meanwhile_is_not_overwritten(hub, run):
    repo = hub.add(REPO, {"a": b"1"})

    def before(method, path):
        if method == "PUT":
            repo.put("main", {"a": b"2"}, set())

    hub.before = before
    with pytest.raises(IdentityError, match="the repository has changed while it was written to"):
        push(run, REPO)
    assert repo.files() == {"a": b"2"}


def test_storage_that_fails_twice_is_asked_again(hub, run):
    hub.faults.append(("PUT", "/storage/", 503, 2))
    push(run, REPO)
    assert "adapter_model.safetensors" in hub.repos[REPO].files()


@pytest.mark.parametrize(
    ("fault", "kind", "said", "hint"),
    [
        (("GET", "/api/models/", 401), ArgumentError, "does not accept the token", "hf auth login"),
        (("POST", "/api/repos/create", 403), ArgumentError, "may not write there", "right to write"),
        (("POST", "/preupload/", 403), ArgumentError, "may not write there", "right to write"),
        (("POST", "/commit/", 404), ArgumentError, "no such repository", "OWNER/NAME"),
        (("POST", "/commit/", 409), IdentityError, "has changed", "look at what is there"),
        (("POST", "/commit/", 429), ResourceError, "asks to wait", "wait some minutes"),
        (("POST", "/commit/", 500), ResourceError, "fails with 500", "run the same command again"),
        (("PUT", "/storage/", 400), ArgumentError, "refuses it with 400", "--dry-run"),
        (("POST", "/lfs/objects/batch", 413), ArgumentError, "refuses it with 413", "--dry-run"),
        (("POST", "/api/verify", 404), ArgumentError, "no such repository", "OWNER/NAME"),
    ],
)
def test_a_refusal_is_one_line_with_a_hint_and_changes_no_file(hub, run, fault, kind, said, hint):
    repo = None if "create" in fault[1] else hub.add(REPO, {"a": b"1"})
    hub.faults.append((*fault, 99))
    with pytest.raises(kind) as raised:
        push(run, REPO)
    [problem] = raised.value.problems
    assert said in problem.text
    assert "\n" not in problem.text
    assert hint in problem.hint
    assert TOKEN not in str(raised.value)
    assert repo is None or repo.files() == {"a": b"1"}


def test_a_token_that_is_not_accepted_is_told_from_a_repository_that_is_not_there(hub, run, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_" + "Zz9" * 12)
    with pytest.raises(ArgumentError, match="the Hub does not accept the token"):
        push(run, REPO)


def test_without_a_token_nothing_is_sent(hub, run, monkeypatch, tmp_path):
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    with pytest.raises(ArgumentError, match="there is no token to write with"):
        push(run, REPO)
    assert [path for _, path in hub.requests if path != "/api/models"] == []


def test_a_hub_that_cannot_be_reached_is_said_at_once(hub, run, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", closed_port())
    with pytest.raises(ResourceError, match=r"nothing can be uploaded: http://127\.0\.0\.1:\d+ cannot be reached"):
        push(run, REPO)


def test_who_says_that_he_is_offline_gets_no_upload(run, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ResourceError, match="nothing can be uploaded: HF_HUB_OFFLINE is set"):
        push(run, REPO)


@pytest.mark.parametrize("name", ["a/b/c", "../x", "ada/", "ada/na me", "-ada/x", "ada/x.git"])
def test_a_name_that_no_repository_can_have_is_refused_before_anything_is_read(run, name):
    with pytest.raises(QloraError, match="is no name of a repository"):
        push(run, name, dry_run=True)
