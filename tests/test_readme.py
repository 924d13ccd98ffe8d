"""The README does what it says: its code runs, its paths exist, its tests are CI's."""

import doctest
import re
from pathlib import Path

import pytest

import fastdrop as fd

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
CODE = re.findall(r"^```(\w+)\n(.*?)^```$", TEXT, flags=re.MULTILINE | re.DOTALL)
LINKS = re.findall(r"\]\(([^)]+)\)", TEXT)


def blocks(language):
    found = [text for name, text in CODE if name == language]
    assert found
    return found


@pytest.mark.parametrize("code", blocks("python"), ids=lambda code: code.strip().splitlines()[0])
def test_code_runs(code):
    exec(compile(code, "README.md", "exec"), {})


def test_usage_is_ten_lines():
    assert len([line for line in blocks("python")[0].splitlines() if line]) <= 10


def test_sessions_print_what_they_say():
    runner = doctest.DocTestRunner()
    for code in blocks("pycon"):
        runner.run(doctest.DocTestParser().get_doctest(code, {}, "README.md", "README.md", 0))
    assert runner.tries > 0
    assert runner.failures == 0


@pytest.mark.parametrize("name", sorted(set(re.findall(r"\bfd\.(\w+)", TEXT))))
def test_names_exist(name):
    assert name in fd.__all__


@pytest.mark.parametrize("link", LINKS)
def test_links_lead_somewhere(link):
    assert (ROOT / link).is_file()


def test_table_of_places_names_what_is_there():
    places = TEXT.partition("## Where things are")[2]
    names = [
        name for row in re.findall(r"^\| (`.*?) \|", places, flags=re.MULTILINE) for name in re.findall("`(.+?)`", row)
    ]
    assert len(names) > 5
    for name in names:
        assert (ROOT / name).exists() or (ROOT / "fastdrop" / name).exists(), name
