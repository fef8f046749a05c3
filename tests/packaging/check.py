#!/usr/bin/env python3
"""What stands in docker/ and cannot be run in a test is at least parsed and judged by the tools of its own kind.

promtool: the alert rules, a unit test of each, Prometheus's configuration, every query of the Grafana dashboard.
hadolint: the Dockerfiles. The compose specification's schema: compose.yml. Kubernetes' schemas: the manifests.
systemd-analyze: the unit, and how much it exposes. `cutover check`: each proxy.toml.
Says what it checked; ends with 1 at the first tool that finds something.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import kubernetes_validate
import yaml

TOP = Path(__file__).resolve().parents[2]
DOCKER = TOP / "docker"
BINARY = TOP / "target/debug/cutover"
BESIDE_PYTHON = Path(sys.executable).parent
# The oldest and the newest that the manifests are meant for. Sidecars (init containers that go on) came with 1.29.
KUBERNETES = ["1.29", "1.34"]


class Found(Exception):
    """What a tool had to say."""


def run(*words, cwd=TOP, env=None):
    done = subprocess.run(words, cwd=cwd, env=env, capture_output=True, text=True)
    if done.returncode:
        raise Found(f"{' '.join(map(str, words))} ends with {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout + done.stderr


def tool(name):
    found = shutil.which(name) or shutil.which(name, path=BESIDE_PYTHON)
    if not found:
        raise Found(f"{name} is missing; `make test` installs what this test needs")
    return found


def dashboard_queries():
    """Each query of the Grafana dashboard as a rule, with Grafana's variables replaced."""
    dashboard = json.loads((DOCKER / "grafana/cutover.json").read_text())
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])]
    queries += [annotation["expr"] for annotation in dashboard["annotations"]["list"]]
    if len(queries) < 20:
        raise Found("the dashboard's queries are not where this test looks for them")
    queries = [query.replace("$__rate_interval", "1m").replace("$instance", ".*") for query in queries]
    rules = [{"record": f"query:{number}", "expr": query} for number, query in enumerate(queries)]
    return yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]})


def prometheus():
    promtool = tool("promtool")
    run(promtool, "check", "config", "docker/prometheus/prometheus.yml")
    run(promtool, "test", "rules", "docker/prometheus/alerts_test.yml")
    tests = yaml.safe_load((DOCKER / "prometheus/alerts_test.yml").read_text())["tests"]
    names = [test["name"] for test in tests]
    rules = yaml.safe_load((DOCKER / "prometheus/alerts.yml").read_text())["groups"][0]["rules"]
    for rule in rules:
        for wanted in (f"{rule['alert']} fires", f"{rule['alert']} is quiet"):
            if wanted not in names:
                raise Found(f"alerts_test.yml has no test named `{wanted}`")
        page, _, anchor = rule["annotations"]["runbook"].partition("#")
        titles = re.findall(r"^#+ (.*)$", (TOP / page).read_text(), re.M)
        if anchor not in [re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles]:
            raise Found(f"{rule['alert']}: {page} has no heading for #{anchor}")
    with tempfile.TemporaryDirectory() as folder:
        queries = Path(folder, "queries.yml")
        queries.write_text(dashboard_queries())
        run(promtool, "check", "rules", queries)
    return f"{len(rules)} alerts, each fired and quiet; the dashboard's queries"


def dockerfiles():
    files = sorted(DOCKER.glob("*Dockerfile"))
    run(tool("hadolint"), "--failure-threshold", "info", *files)
    return ", ".join(file.name for file in files)


def compose():
    run(tool("check-jsonschema"), "--builtin-schema", "vendor.compose-spec", "docker/compose.yml")
    services = yaml.safe_load((DOCKER / "compose.yml").read_text())["services"]
    for name, service in services.items():
        for other in service.get("depends_on", []):
            if other not in services:
                raise Found(f"compose.yml: {name} depends on {other}, which is no service")
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            if source.startswith(".") and not (DOCKER / source).exists():
                raise Found(f"compose.yml: {name} mounts {source}, which is not there")
        if "build" in service:
            build = service["build"]
            if not (DOCKER / build["context"] / build["dockerfile"]).exists():
                raise Found(f"compose.yml: {name} is built from {build['dockerfile']}, which is not there")
    return f"{len(services)} services"


def kubernetes():
    count = 0
    for file in sorted((DOCKER / "kubernetes").glob("*.yaml")):
        for manifest in yaml.safe_load_all(file.read_text()):
            if manifest["kind"] == "Kustomization":
                generated = [name for maker in manifest["configMapGenerator"] for name in maker["files"]]
                for name in manifest["resources"] + generated:
                    if not (file.parent / name).exists():
                        raise Found(f"{file.name}: {name} is not there")
                continue
            for version in KUBERNETES:
                try:
                    kubernetes_validate.validate(manifest, version, strict=True)
                except (kubernetes_validate.ValidationError, kubernetes_validate.SchemaNotFoundError) as error:
                    raise Found(f"{file.name}, {manifest['kind']}, Kubernetes {version}: {error}") from error
            count += 1
    return f"{count} manifests against Kubernetes {' and '.join(KUBERNETES)}"


def systemd():
    analyze = tool("systemd-analyze")
    unit = (DOCKER / "systemd/cutover.service").read_text()
    with tempfile.TemporaryDirectory() as folder:
        # The program that was built here, for that one is there.
        copy = Path(folder, "cutover.service")
        copy.write_text(unit.replace("/usr/local/bin/cutover", str(BINARY)))
        socket = Path(folder, "cutover.socket")
        shutil.copy(DOCKER / "systemd/cutover.socket", socket)
        said = run(analyze, "verify", "--man=no", copy, socket)
        if "cutover." in said:
            raise Found(said)
        # 0 is the least exposed, 100 the most.
        run(analyze, "security", "--offline=true", "--threshold=20", copy)
    return "both units are valid, and the exposure is below 2.0"


def configurations():
    files = sorted(DOCKER.glob("**/proxy.toml"))
    for file in files:
        # No store is there: nobody listens at port 1. What is judged is the file.
        text = re.sub(r'redis://[^"]*', "redis://127.0.0.1:1", file.read_text())
        names = set(re.findall(r"\$\{(\w+)\}", file.read_text()))
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder, "proxy.toml")
            copy.write_text(text.replace("/var/lib/cutover", folder))
            env = {**os.environ, **{name: "secret" for name in names}}
            done = subprocess.run([BINARY, "--config", copy, "check"], env=env, capture_output=True, text=True)
            if done.returncode == 2 or ": usable" not in done.stdout:
                raise Found(f"{file.relative_to(TOP)}: {done.stdout}{done.stderr}")
    return ", ".join(str(file.relative_to(DOCKER)) for file in files)


def main():
    for check in (prometheus, dockerfiles, compose, kubernetes, systemd, configurations):
        try:
            print(f"{check.__name__:15} {check()}", flush=True)
        except Found as found:
            print(f"{check.__name__:15} FAILED\n{found}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
