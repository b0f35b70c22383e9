"""The alerts in monitoring/ are complete, parse, lead to headings that exist, and fire when they should. (e2e: their metrics exist.)"""

import json
import re
import shutil
import subprocess

import pytest
import yaml

from tests.support.pages import REPOSITORY, headings

PROMTOOL = shutil.which("promtool")
PROMETHEUS = yaml.safe_load((REPOSITORY / "monitoring/prometheus.yml").read_text(encoding="utf-8"))
(RULES_FILE,) = (REPOSITORY / "monitoring" / name for name in PROMETHEUS["rule_files"])
RULES = [rule for group in yaml.safe_load(RULES_FILE.read_text(encoding="utf-8"))["groups"] for rule in group["rules"]]
PANELS = json.loads((REPOSITORY / "monitoring/grafana-dashboard.json").read_text(encoding="utf-8"))["panels"]
EXPRESSIONS = {
    **{rule["alert"]: rule["expr"] for rule in RULES},
    **{f"{panel['title']} {target['refId']}": target["expr"] for panel in PANELS for target in panel.get("targets", [])},
}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_every_alert_says_what_to_do(rule):
    """A severity, a summary, a description, and a heading of docs/OPERATING.md, which has a line about the alert."""
    assert rule["labels"]["severity"] in {"critical", "warning"}
    assert set(rule["annotations"]) == {"summary", "description", "runbook"}
    page, _, anchor = rule["annotations"]["runbook"].partition("#")
    text = (REPOSITORY / page).read_text(encoding="utf-8")
    assert page == "docs/OPERATING.md"
    assert anchor in headings(text)
    assert re.search(rf"^\| `{rule['alert']}` \|.*\(#{anchor}\)", text, re.MULTILINE)


def test_targets_are_found_though_ray_starts_later():
    """Prometheus cannot watch the folder of the file before Ray has made it; its default is to look again after five minutes."""
    (job,) = PROMETHEUS["scrape_configs"]
    assert [source["refresh_interval"] for source in job["file_sd_configs"]] == [PROMETHEUS["global"]["scrape_interval"]]


@pytest.mark.parametrize("expression", EXPRESSIONS.values(), ids=EXPRESSIONS)
def test_expressions_are_promql(expression):
    """Every expression of the alerts and of the dashboard parses; the parser raises for others."""
    parser = pytest.importorskip("promql_parser")
    parser.parse(expression.replace("$__rate_interval", "1m"))


@pytest.mark.skipif(PROMTOOL is None, reason="apt-get install prometheus")
def test_alerts_fire_when_they_should():
    """The cases of alerts_test.yml, and Prometheus' own check of the files."""
    for command in ("check config monitoring/prometheus.yml", "test rules tests/alerts_test.yml"):
        done = subprocess.run([PROMTOOL, *command.split()], cwd=REPOSITORY, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
