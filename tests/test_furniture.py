"""What stands beside the code: issue forms, workflows, hooks."""

import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
FORMS = sorted((ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml"))


def parsed(path):
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def test_the_hooks_of_pre_commit_are_the_commands_of_make_lint():
    """Both ways: no command of the one is missing from the other."""
    makefile = (ROOT / "Makefile").read_text()
    (needs, recipe) = re.search(r"^lint: (.*?) ##.*\n((?:\t.*\n)+)", makefile, re.M).groups()
    recipes = [recipe] + [
        re.search(rf"^{target}:.*\n((?:\t.*\n)+)", makefile, re.M)[1] for target in needs.split() if target.isalpha()
    ]
    commands = {
        line.strip().lstrip("@").replace("$(BIN)", ".venv/bin") for text in recipes for line in text.splitlines()
    }
    hooks = [hook for repo in parsed(ROOT / ".pre-commit-config.yaml")["repos"] for hook in repo["hooks"]]
    assert {hook["entry"] for hook in hooks} == commands
    assert all(not hook["pass_filenames"] and hook["language"] == "system" for hook in hooks)


def test_pre_commit_fetches_no_repository():
    assert {repo["repo"] for repo in parsed(ROOT / ".pre-commit-config.yaml")["repos"]} == {"local"}


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.stem)
def test_an_issue_form_has_what_the_host_asks_of_one(path):
    form = parsed(path)
    if path.stem == "config":
        assert set(form) <= {"blank_issues_enabled", "contact_links"}
        return
    assert {"name", "description", "body"} <= set(form)
    fields = [field for field in form["body"] if field["type"] != "markdown"]
    assert fields and len({field["id"] for field in fields}) == len(fields)
    for field in form["body"]:
        assert field["type"] in ("markdown", "textarea", "input", "dropdown", "checkboxes")
        assert field["attributes"].get("label") or field["type"] == "markdown"


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_reads_alone_has_time_limits_and_names_versions_of_its_actions(path):
    flow = parsed(path)
    assert flow["permissions"] == {"contents": "read"}
    for job in flow["jobs"].values():
        assert job["timeout-minutes"]
        for step in job["steps"]:
            assert "run" in step or re.fullmatch(r"[\w.-]+/[\w.-]+@(v\d+|release/v\d+|[0-9a-f]{40})", step["uses"])
            if "run" in step and step["run"].startswith("."):
                program = ROOT / step["run"].split()[0]
                assert program.stat().st_mode & 0o100, f"{program} is no program"


def test_a_release_is_published_without_a_password_and_only_after_its_wheel_was_tried():
    jobs = parsed(ROOT / ".github/workflows/release.yml")["jobs"]
    assert jobs["publish"]["permissions"] == {"id-token": "write"}
    assert jobs["publish"]["needs"] == "build"
    assert not any("password" in step.get("with", {}) for step in jobs["publish"]["steps"])
    runs = [step["run"] for step in jobs["build"]["steps"] if "run" in step]
    assert [run.split()[0] for run in runs] == ["make", ".ci/check-wheel"]
    said = (ROOT / ".ci/check-wheel").read_text()
    assert "adbench --version" in said and "trainer=smoke" in said
