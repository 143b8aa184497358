"""What `deploy/` says, against what the server has: its routes, flags, metrics and timeouts."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

yaml = pytest.importorskip("yaml")
pytest.importorskip("sanic")

DEPLOY = Path(__file__).resolve().parents[1] / "deploy"
DRAIN = 30  # limits.drain_timeout


def documents(name: str) -> list[Any]:
    return list(yaml.safe_load_all((DEPLOY / name).read_text(encoding="utf-8")))


def walk(value: Any) -> Iterator[dict[str, Any]]:
    """Every mapping in a document."""
    if isinstance(value, dict):
        yield value
        for inner in value.values():
            yield from walk(inner)
    if isinstance(value, list):
        for inner in value:
            yield from walk(inner)


def manifests() -> list[Any]:
    return [d for path in sorted(DEPLOY.rglob("*.yaml")) for d in yaml.safe_load_all(path.open())]


def of_kind(kind: str) -> Any:
    (found,) = (d for d in manifests() if d.get("kind") == kind)
    return found


def series() -> set[str]:
    """Names of all series that the server's metrics make."""
    from prometheus_client import Counter, Gauge, Histogram

    from sparsec.serving.server import metrics

    names = set()
    for metric in vars(metrics).values():
        if isinstance(metric, Counter):
            names.add(f"{metric._name}_total")
        elif isinstance(metric, Gauge):
            names.add(metric._name)
        elif isinstance(metric, Histogram):
            names |= {f"{metric._name}_{part}" for part in ("bucket", "sum", "count")}
    return names


def expressions() -> list[str]:
    board = json.loads((DEPLOY / "grafana.json").read_text(encoding="utf-8"))
    rules = [
        r["expr"] for d in documents("prometheus/alerts.yaml") for r in d["groups"][0]["rules"]
    ]
    return rules + [t["expr"] for panel in board["panels"] for t in panel["targets"]]


def test_metrics_that_are_asked_for_exist() -> None:
    asked = {name for text in expressions() for name in re.findall(r"sparsec_\w+", text)}
    assert len(asked) >= 10 and asked <= series()


def test_codes_and_labels() -> None:
    from sparsec.serving.server import errors

    source = Path(errors.__file__).read_text(encoding="utf-8")
    for text in expressions():
        for code in re.findall(r'code="(\w+)"', text):
            assert f'"{code}"' in source


def test_expressions_are_promql() -> None:
    promql = pytest.importorskip("promql_parser", reason="pip install .[clients]")
    for text in expressions():
        promql.parse(text.replace("$__rate_interval", "5m"))  # as Grafana fills it in
    with pytest.raises(ValueError):
        promql.parse("sum(rate(sparsec_errors_total[5m]) > 0")


def test_prometheus_takes_rules_and_scrapes() -> None:
    if shutil.which("promtool") is None:
        pytest.skip("there is no promtool: it is in Debian's package prometheus")
    for what, name in (("rules", "alerts"), ("config", "scrape")):
        path = DEPLOY / "prometheus" / f"{name}.yaml"
        subprocess.run(["promtool", "check", what, str(path)], check=True, capture_output=True)


def typed(value: Any, kind: str, models: tuple[Any, ...], at: str = "") -> None:
    """Fail unless a document is of a type of the API, as the official clients declare them."""
    if inner := re.fullmatch(r"[Ll]ist\[(.*)\]|[Dd]ict[\[(]str, (.*)[\])]", kind):
        assert isinstance(value, list if inner[1] else dict), at
        for i, item in value.items() if isinstance(value, dict) else enumerate(value):
            typed(item, inner[1] or inner[2], models, f"{at}.{i}")
        return
    plain = {"str": str, "int": int, "bool": bool, "float": (int, float), "object": object}
    if kind in plain:
        assert isinstance(value, plain[kind]), f"{at}: {value!r} is no {kind}"
        return
    # Where models of KServe name those of Kubernetes, they have their own for some.
    model = next(getattr(module, kind) for module in models if hasattr(module, kind))
    if hasattr(model, "model_validate"):  # newer ones check themselves
        model.model_validate(value)
        return
    names = {name: field for field, name in model.attribute_map.items()}
    assert isinstance(value, dict) and set(value) <= set(names), f"{at}: {set(value) - set(names)}"
    fields = {names[name]: item for name, item in value.items()}
    model(**fields)  # what is required is there
    for name, item in value.items():
        typed(item, model.openapi_types[names[name]], models, f"{at}.{name}")


def test_manifests_are_what_the_apis_take() -> None:
    kubernetes = pytest.importorskip("kubernetes.client", reason="pip install .[clients]")
    kserve = pytest.importorskip("kserve.models", reason="pip install .[clients]")
    checked = []
    for document in manifests():
        if "apiVersion" not in document or document["kind"] == "Kustomization":
            continue
        version = document["apiVersion"].rpartition("/")[2].capitalize()
        typed(document, version + document["kind"], (kubernetes, kserve))
        checked.append(document["kind"])
    assert set(checked) == {
        *("Deployment", "Service", "HorizontalPodAutoscaler", "PodDisruptionBudget"),
        *("ServingRuntime", "InferenceService"),
    }
    for kind, version in (("Deployment", "V1"), ("ServingRuntime", "V1alpha1")):
        for wrong in ("image_name", "metdata"):
            document = of_kind(kind)
            pod = document["spec"].get("template", document)["spec"]
            (pod["containers"][0] if wrong == "image_name" else document)[wrong] = "x"
            with pytest.raises((AssertionError, ValueError), match=wrong):
                typed(document, version + kind, (kubernetes, kserve))
    document = of_kind("Deployment")
    del document["spec"]["selector"]
    with pytest.raises(ValueError, match="selector"):
        typed(document, "V1Deployment", (kubernetes, kserve))


def test_dashboard() -> None:
    """Panels that Grafana draws: of a type, a place of their own, a source that is there."""
    board = json.loads((DEPLOY / "grafana.json").read_text(encoding="utf-8"))
    assert board["schemaVersion"] >= 36 and board["uid"] and board["title"]
    (source,) = board["templating"]["list"]
    assert (source["type"], source["query"]) == ("datasource", "prometheus")
    taken: set[tuple[int, int]] = set()
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
    for panel in board["panels"]:
        assert panel["type"] in {"timeseries", "stat", "gauge", "bargauge", "heatmap", "table"}
        place = panel["gridPos"]
        cells = {
            (place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])
        }
        assert place["x"] + place["w"] <= 24 and not cells & taken
        taken |= cells
        for target in panel["targets"]:
            assert target["datasource"]["uid"] == f"${{{source['name']}}}"
            labels = set(re.findall(r"\{\{(\w+)\}\}", target.get("legendFormat", "")))
            by = re.findall(r"by \(([^)]*)\)", target["expr"])
            kept = {label.strip() for group in by for label in group.split(",")}
            assert labels <= kept or not by


def test_paths_and_ports() -> None:
    """Probes and scrapes go to routes and to the port that there are."""
    from sparsec.serving.server import config

    paths = [m["path"] for d in manifests() for m in walk(d) if "path" in m and "port" in m]
    paths += [d["scrape_configs"][0]["metrics_path"] for d in documents("prometheus/scrape.yaml")]
    assert len(paths) >= 5
    assert set(paths) <= {"/ready", "/health", "/metrics"} <= set(config.RESERVED)
    port = config.ServerConfig.model_fields["port"].default
    ports = [m["containerPort"] for d in manifests() for m in walk(d) if "containerPort" in m]
    assert set(ports) == {port}
    assert f"EXPOSE {port}" in (DEPLOY / "Containerfile").read_text(encoding="utf-8")


def test_there_is_time_to_drain() -> None:
    from sparsec.serving.server import config

    limits = config.ServerConfig.model_fields["limits"].annotation
    assert limits.model_fields["drain_timeout"].default == DRAIN
    pod = of_kind("Deployment")["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    sleep = int(container["lifecycle"]["preStop"]["exec"]["command"][1])
    assert pod["terminationGracePeriodSeconds"] > sleep + DRAIN
    unit = (DEPLOY / "sparsec.service").read_text(encoding="utf-8")
    assert int(re.findall(r"TimeoutStopSec=(\d+)", unit)[0]) > DRAIN


def test_resources_and_selectors() -> None:
    deployment = of_kind("Deployment")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    resources = container["resources"]
    assert resources["requests"] == resources["limits"]
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    service = of_kind("Service")["spec"]
    for selector in (
        deployment["spec"]["selector"]["matchLabels"], service["selector"],
        of_kind("PodDisruptionBudget")["spec"]["selector"]["matchLabels"],
    ):  # fmt: skip
        assert selector.items() <= labels.items()
    assert service["ports"][0]["targetPort"] == container["ports"][0]["name"]
    assert (
        of_kind("HorizontalPodAutoscaler")["spec"]["scaleTargetRef"]["name"]
        == (deployment["metadata"]["name"])
    )
    runtime, model = of_kind("ServingRuntime"), of_kind("InferenceService")
    predictor = model["spec"]["predictor"]["model"]
    assert predictor["runtime"] == runtime["metadata"]["name"]
    formats = [row["name"] for row in runtime["spec"]["supportedModelFormats"]]
    assert predictor["modelFormat"]["name"] in formats
    for name in documents("kubernetes/kustomization.yaml")[0]["resources"]:
        assert (DEPLOY / "kubernetes" / name).exists()


def test_flags_and_tasks() -> None:
    """Commands have flags that `sparsec serve` and `compile` have, tasks are ones."""
    from sparsec.cli import all_parsers
    from sparsec.serving.pipelines.base import find

    parsers = {parser.prog.split()[-1]: parser for parser in all_parsers()}
    script = (DEPLOY / "image.sh").read_text(encoding="utf-8").replace("\\\n", " ")
    unit = (DEPLOY / "sparsec.service").read_text(encoding="utf-8")
    commands = re.findall(r"sparsec\"? (serve|compile) (.*)", script + unit)
    assert len(commands) == 3
    (container,) = of_kind("Deployment")["spec"]["template"]["spec"]["containers"]
    commands.append(("serve", " ".join(container["args"])))
    for name, line in commands:
        flags = {flag for a in parsers[name]._actions for flag in a.option_strings}
        assert set(re.findall(r"(?<!\S)--?[a-z][\w-]*", line)) <= flags
    for document in manifests():
        for entry in walk(document):
            if entry.get("name") == "SPARSEC_TASK":
                find(entry["value"])


def test_shell_and_unit() -> None:
    subprocess.run(["sh", "-n", str(DEPLOY / "image.sh")], check=True)
    if shutil.which("systemd-analyze") is None:
        pytest.skip("there is no systemd-analyze")
    done = subprocess.run(
        ["systemd-analyze", "verify", str(DEPLOY / "sparsec.service")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    said = [line for line in done.stderr.splitlines() if "sparsec.service" in line]
    # Nothing is wrong but that it is not installed.
    assert [line for line in said if "is not executable" not in line] == []
