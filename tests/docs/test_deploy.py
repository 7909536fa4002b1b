"""The files of deploy/ are well-formed, agree with each other, and name metrics that there are.

Nothing is built or applied here: that takes a container engine and a cluster.
"""

import json
import re
import shutil
import subprocess
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tidegate.app import DRAIN_DELAY
from tidegate.service import DRAIN_TIMEOUT
from tidegate_transports.metrics import DOCUMENTED
from tidegate_transports.pages import PROBES

promql_parser = pytest.importorskip("promql_parser")
yaml = pytest.importorskip("yaml")

ROOT = Path(__file__).parent.parent.parent
DEPLOY = ROOT / "deploy"
SCRIPTS = Path(sysconfig.get_path("scripts"))
# What Prometheus and scrapers add to every metric.
ADDED = {"instance", "job", "le"}


def documents(name: str) -> list[Any]:
    return list(yaml.safe_load_all((DEPLOY / name).read_text()))


def of_kind(kind: str) -> Any:
    (found,) = (one for one in documents("kubernetes.yaml") if one["kind"] == kind)
    return found


def container() -> Any:
    (only,) = of_kind("Deployment")["spec"]["template"]["spec"]["containers"]
    return only


def expressions() -> Iterator[tuple[str, str]]:
    """Every PromQL expression of the alerts and the dashboard, with its name."""
    for group in documents("prometheus-rules.yaml")[0]["groups"]:
        for rule in group["rules"]:
            yield rule["alert"], rule["expr"]
    for panel in json.loads((DEPLOY / "grafana-dashboard.json").read_text())["panels"]:
        for target in panel["targets"]:
            yield panel["title"], target["expr"].replace("$__rate_interval", "1m")


def unknown(expression: str) -> list[str]:
    """Metrics and labels of an expression that no service has."""
    found = []
    for name in re.findall(r"\btidegate_\w+", expression):
        family = re.sub(r"_(bucket|sum|count)$", "", name)
        if DOCUMENTED.get(family, DOCUMENTED.get(name, ("",)))[0] not in ("histogram",):
            family = name
        if family not in DOCUMENTED:
            found.append(name)
    known = {label for _, labels, _ in DOCUMENTED.values() for label in labels} | ADDED
    for labels in re.findall(r"(?:by|on) \(([^)]*)\)", expression):
        found += [label for label in re.split(r",\s*", labels) if label not in known]
    for name, labels in re.findall(r"(tidegate_\w+)\{([^}]*)\}", expression):
        family = name if name in DOCUMENTED else re.sub(r"_(bucket|sum|count)$", "", name)
        allowed = {*DOCUMENTED.get(family, ("", (), ""))[1], *ADDED}
        found += [label for label in re.findall(r"(\w+)\s*[=!]", labels) if label not in allowed]
    return found


@pytest.mark.parametrize(("name", "expression"), list(expressions()))
def test_an_expression_is_promql_and_asks_for_what_there_is(name: str, expression: str) -> None:
    promql_parser.parse(expression)
    assert unknown(expression) == []


PROMTOOL = shutil.which("promtool") or str(ROOT / ".cache" / "promtool")
has_promtool = pytest.mark.skipif(not Path(PROMTOOL).exists(), reason="no promtool here: `make test-tools`")


@has_promtool
@pytest.mark.parametrize(
    "command", [["check", "rules", "prometheus-rules.yaml"], ["check", "config", "--syntax-only", "prometheus.yaml"]]
)
def test_promtool_takes_the_rules_and_the_configuration(command: list[str]) -> None:
    ran = subprocess.run([PROMTOOL, *command], cwd=DEPLOY, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr


@has_promtool
@pytest.mark.parametrize(("failing", "fires"), [(6, True), (0, False)])
def test_the_alert_for_errors_fires_when_one_request_in_ten_fails_and_not_before(
    tmp_path: Path, failing: int, fires: bool
) -> None:
    labels = {"severity": "critical", "handler": "embed"}
    annotations = {
        "summary": "embed: 10% of the requests fail",
        "description": "The log has one line per failed request, with its id and the handler's traceback.",
    }
    expected = [{"exp_labels": labels, "exp_annotations": annotations}] if fires else []
    series = [("200", 60 - failing), ("500", failing)]
    name = "tidegate_http_requests_total"
    case = {
        "interval": "1m",
        "input_series": [
            {"series": f'{name}{{handler="embed",status="{status}"}}', "values": f"0+{count}x20"}
            for status, count in series
        ],
        "alert_rule_test": [{"eval_time": "15m", "alertname": "TidegateErrors", "exp_alerts": expected}],
    }
    file = tmp_path / "case.yaml"
    file.write_text(json.dumps({"rule_files": [str(DEPLOY / "prometheus-rules.yaml")], "tests": [case]}))
    ran = subprocess.run([PROMTOOL, "test", "rules", str(file)], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_an_expression_that_asks_for_what_there_is_not_would_be_seen() -> None:
    assert unknown("rate(tidegate_request_total[5m])") == ["tidegate_request_total"]
    assert unknown("sum by (model) (tidegate_queue_depth)") == ["model"]
    assert unknown('tidegate_queue_depth{reason="full"}') == ["reason"]
    assert unknown("tidegate_queue_depth_bucket") == ["tidegate_queue_depth_bucket"]


def test_every_documented_metric_of_a_service_is_on_the_dashboard_or_in_an_alert() -> None:
    used = " ".join(expression for _, expression in expressions())
    assert [name for name in DOCUMENTED if name not in used] == ["tidegate_build_info"]


@pytest.mark.parametrize("path", sorted(DEPLOY.glob("*.yaml")), ids=lambda path: path.name)
def test_a_yaml_file_is_clean(path: Path) -> None:
    rules = "{extends: default, rules: {line-length: {max: 140}}}"
    run(SCRIPTS / "yamllint", "--strict", "-d", rules, path)


def test_the_dockerfile_is_clean() -> None:
    run(SCRIPTS / "hadolint", ROOT / "Dockerfile")


def test_the_dockerfile_copies_what_its_ignore_file_lets_through() -> None:
    allowed = (ROOT / ".dockerignore").read_text()
    for line in (ROOT / "Dockerfile").read_text().splitlines():
        if line.startswith("COPY ") and "--from" not in line:
            for source in line.split()[1:-1]:
                assert (ROOT / source).exists(), source
                assert f"!{source}\n" in allowed, source


def test_the_image_is_for_nobody_in_particular_and_gets_signals() -> None:
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    (user,) = (line for line in lines if line.startswith("USER "))
    assert not user.startswith(("USER 0", "USER root"))
    assert 'ENTRYPOINT ["tidegate", "serve"]' in lines
    assert any("HEALTHCHECK" in line for line in lines)
    assert any("/readyz" in line for line in lines)


def test_the_manifests_are_what_kubernetes_takes() -> None:
    run(SCRIPTS / "kubernetes-validate", "--strict", DEPLOY / "kubernetes.yaml")


def test_the_probes_ask_for_what_there_is() -> None:
    probes = {name: container()[f"{name}Probe"]["httpGet"] for name in ("startup", "readiness", "liveness")}
    assert {name: probe["path"] for name, probe in probes.items()} == {
        "startup": "/readyz",
        "readiness": "/readyz",
        "liveness": "/livez",
    }
    assert {probe["path"] for probe in probes.values()} <= PROBES


def test_the_grace_periods_leave_time_for_a_whole_drain() -> None:
    environment = {one["name"]: one["value"] for one in container()["env"]}
    drain = float(environment["TIDEGATE_DRAIN_DELAY"]) + float(environment["TIDEGATE_DRAIN_TIMEOUT"])
    assert of_kind("Deployment")["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] > drain
    assert "preStop" not in json.dumps(container())
    compose = documents("compose.yaml")[0]
    assert float(compose["services"]["model"]["stop_grace_period"].rstrip("s")) > DRAIN_DELAY + DRAIN_TIMEOUT


def test_everything_in_the_manifests_selects_the_same_pods() -> None:
    labels = of_kind("Deployment")["spec"]["template"]["metadata"]["labels"]
    assert of_kind("Service")["spec"]["selector"] == labels
    assert of_kind("PodDisruptionBudget")["spec"]["selector"]["matchLabels"] == labels
    assert (
        of_kind("HorizontalPodAutoscaler")["spec"]["scaleTargetRef"]["name"]
        == of_kind("Deployment")["metadata"]["name"]
    )


def test_the_compose_file_is_what_compose_takes() -> None:
    compose_spec = pytest.importorskip("compose_spec")
    compose_spec.ComposeSpecification.model_validate(documents("compose.yaml")[0])


def test_the_nginx_configuration_can_be_parsed_and_waits_longer_than_a_request_may_take(tmp_path: Path) -> None:
    crossplane = pytest.importorskip("crossplane")
    whole = tmp_path / "nginx.conf"
    whole.write_text(f"events {{}}\nhttp {{\n{(DEPLOY / 'nginx.conf').read_text()}}}\n")
    assert crossplane.parse(str(whole))["errors"] == []
    waits = re.search(r"proxy_read_timeout (\d+)s", whole.read_text())
    assert waits
    assert int(waits[1]) > 30


def test_the_dashboards_panels_do_not_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in json.loads((DEPLOY / "grafana-dashboard.json").read_text())["panels"]:
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & taken, panel["title"]
        assert place["x"] + place["w"] <= 24
        taken |= cells


def run(*command: object) -> None:
    if not Path(str(command[0])).exists():
        pytest.skip(f"{Path(str(command[0])).name} is not installed")
    ran = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=60, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
