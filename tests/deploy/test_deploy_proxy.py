"""nginx and Prometheus as Debian ships them, with the files of deploy/, around a real server; on loopback only."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import yaml
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key
from cryptography.x509 import CertificateBuilder, Name, NameAttribute, load_pem_x509_certificate, random_serial_number
from cryptography.x509.oid import NameOID
from flwr.proto.control_pb2 import ListNodesRequest, ListNodesResponse

import confide
from deploy.load.__main__ import command, end, wait
from deploy.load.crew import Crew, founded, made_basis
from deploy.load.fleet import Fleet
from deploy.local.federation import free_ports, listens
from server.certificates import new_authority
from server.folder import OperatorFolder
from server.superlink import SuperLink
from tests.federation_by_command import until

DEPLOY = Path(confide.__file__).parent / "deploy"
OBSERVE = DEPLOY / "observe"


def program(name: str) -> str:
    found = shutil.which(name, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin")
    if found is None:
        pytest.skip(f"no {name} here: apt-get install --no-install-recommends nginx-light prometheus")
    return found


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[OperatorFolder, Crew, Path]]:
    """Start a real server over four devices that nobody has connected yet."""
    folder, basis, ports = tmp_path_factory.mktemp("proxy"), made_basis(4, 4), free_ports(3)
    operator = founded(folder / "server", 4, 1, (ports[0], ports[1], ports[2]), basis)
    crew = Crew(operator, folder / "crew", 4, basis)
    os.environ["CONFIDE_SOCKETS"] = str(crew.sockets)
    server = command(folder, "start", operator)
    try:
        wait(lambda: (folder / "start.out").read_bytes().endswith(b"}\n"), server)
        yield operator, crew, folder
    finally:
        end(server)
        crew.close()


def operators_certificate(folder: Path, name: str) -> tuple[Path, Path]:
    """Return an authority of operators, and a certificate that it signed with its key, both in one file."""
    new_authority(folder / f"{name}.key", folder / f"{name}-ca.crt", name)
    signer = load_pem_private_key((folder / f"{name}.key").read_bytes(), None)
    root = load_pem_x509_certificate((folder / f"{name}-ca.crt").read_bytes())
    assert isinstance(signer, ec.EllipticCurvePrivateKey)
    key = ec.generate_private_key(ec.SECP256R1())
    subject = Name([NameAttribute(NameOID.COMMON_NAME, "operator")])
    builder = CertificateBuilder(root.subject, subject, key.public_key(), random_serial_number())
    builder = builder.not_valid_before(root.not_valid_before_utc).not_valid_after(root.not_valid_after_utc)
    own = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (folder / f"{name}.pem").write_bytes(own + builder.sign(signer, hashes.SHA256()).public_bytes(Encoding.PEM))
    return folder / f"{name}-ca.crt", folder / f"{name}.pem"


@contextmanager
def running(words: list[str | Path], port: int, log: Path) -> Iterator[None]:
    with log.open("wb") as out:
        process = subprocess.Popen(list(map(str, words)), stdout=out, stderr=out, start_new_session=True)
    try:
        until(lambda: listens(port) or process.poll() is not None, f"{words[0]} listens", 120.0)
        assert process.poll() is None, log.read_text()[-2000:]
        yield
    finally:
        end(process)


@contextmanager
def proxied(operator: OperatorFolder, folder: Path, authority: Path) -> Iterator[tuple[int, int]]:
    """Run nginx with the file of deploy/, which takes this machine's ports and folders; yield its two ports."""
    folder.mkdir()
    fleet, control = free_ports(2)
    text = (DEPLOY / "proxy" / "nginx.conf").read_text()
    here = {
        "server 127.0.0.1:9443;": f"server 127.0.0.1:{operator.settings.control};",
        "listen 9092 ssl;": f"listen 127.0.0.1:{fleet} ssl;",
        "listen 9445 ssl;": f"listen 127.0.0.1:{control} ssl;",
        "/etc/confide/operators/ca.crt": str(authority),
        "/etc/confide/tls/": f"{operator.folder.absolute() / 'tls'}/",
        "http {": "http {\n" + "".join(
            f"    {kind}_temp_path {folder / kind};\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        ),
    }  # fmt: skip
    for old, new in here.items():
        assert old in text
        text = text.replace(old, new)
    (folder / "nginx.conf").write_text(text)
    main = f"daemon off; pid {folder / 'nginx.pid'}; error_log stderr;" + ("" if os.geteuid() else " user root;")
    words: list[str | Path] = [program("nginx"), "-p", folder, "-c", folder / "nginx.conf", "-g", main]
    with running(words, control, folder / "nginx.log"):
        yield fleet, control


def posted(port: int, path: str, authority: Path, shown: Path | None = None, body: bytes = b"") -> tuple[int, bytes]:
    """Return status and body of a call, with the client's certificate `shown`."""
    context = ssl.create_default_context(cafile=str(authority))
    if shown is not None:
        context.load_cert_chain(shown)
    connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=60, context=context)
    connection.request("POST", path, body, {"content-type": "application/protobuf"})
    answer = connection.getresponse()
    found = answer.status, answer.read()
    connection.close()
    return found


@pytest.mark.slow
def test_nginx_lets_operators_in_by_certificate_and_devices_to_the_fleet_alone(
    served: tuple[OperatorFolder, Crew, Path], tmp_path: Path
) -> None:
    operator, _, _ = served
    authority, listed = operator.folder / "tls" / "ca.crt", "/v1/control/list-nodes"
    ours, own = operators_certificate(tmp_path, "ours")
    _, foreign = operators_certificate(tmp_path, "foreign")
    with proxied(operator, tmp_path / "nginx", ours) as (fleet, control):
        ask = ListNodesRequest().SerializeToString()
        status, body = posted(control, listed, authority, own, ask)
        assert status == 200 and len(ListNodesResponse.FromString(body).nodes_info) == 4
        assert posted(control, listed, authority, None, ask)[0] == 400, "no certificate"
        assert posted(control, listed, authority, foreign, ask)[0] == 400, "another authority's"
        assert posted(control, "/v1/fleet/pull-messages", authority, own)[0] == 404
        for path in (listed, "/v1/fleet/register-node", "/v1/runtime/get-run", "/", "/v1/fleet/../control/list-nodes"):
            assert posted(fleet, path, authority, own, ask)[0] == 404, path
        assert posted(fleet, "/v1/fleet/pull-messages", authority)[0] == 401, "the SuperLink answers: who asks?"
        with pytest.raises(ssl.SSLCertVerificationError):
            posted(fleet, "/v1/fleet/pull-messages", ours)


@pytest.mark.slow
def test_a_registration_that_was_cut_off_is_taken_up_again(served: tuple[OperatorFolder, Crew, Path]) -> None:
    link = SuperLink(served[0])
    before = link.nodes()
    assert len(set(before.values())) == 4
    (link.folder / "nodes.json").write_text(json.dumps(dict(list(before.items())[:1])))
    link.register_all()
    assert link.nodes() == before, "a key that is registered keeps its number"


@pytest.mark.slow
def test_a_campaign_comes_through_nginx_to_its_release(
    served: tuple[OperatorFolder, Crew, Path], tmp_path: Path
) -> None:
    operator, crew, folder = served
    ours, _ = operators_certificate(tmp_path, "ours")
    with proxied(operator, tmp_path / "nginx", ours) as (port, _):
        fleet = Fleet(f"127.0.0.1:{port}", operator.folder / "tls" / "ca.crt", crew.node_keys, 4, 0.5)
        try:
            run = command(folder, "run", operator)
            assert run.wait(900.0) == 0, (folder / "run.err").read_text()
        finally:
            fleet.close()
        assert fleet.seen.errors == 0 and len(fleet.seen.messages) == 8
    assert (operator.home / "release" / "release.json").exists()


# -- Prometheus ---------------------------------------------------------------------------------------------------


def told(port: int, what: str) -> Any:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", what)
    answer = connection.getresponse()
    status, body = answer.status, answer.read()
    connection.close()
    return json.loads(body)["data"] if status == 200 and body.startswith(b"{") else status


def value(port: int, metric: str) -> float | None:
    """Return the one sample of a query as Prometheus has it now."""
    found = told(port, f"/api/v1/query?query={quote(metric)}")["result"]
    return float(found[0]["value"][1]) if found else None


@pytest.mark.slow
def test_prometheus_scrapes_a_real_server_and_loads_the_rules(
    served: tuple[OperatorFolder, Crew, Path], tmp_path: Path
) -> None:
    operator, _, _ = served
    shutil.copy(OBSERVE / "alerts.yml", tmp_path)
    text = (OBSERVE / "prometheus.yml").read_text()
    assert "30s" in text and "127.0.0.1:9444" in text
    text = text.replace("30s", "1s").replace("127.0.0.1:9444", f"127.0.0.1:{operator.settings.observe}")
    (tmp_path / "prometheus.yml").write_text(text)
    [port] = free_ports(1)
    words: list[str | Path] = [program("prometheus"), "--config.file", tmp_path / "prometheus.yml"]
    words += ["--storage.tsdb.path", tmp_path / "data", "--web.listen-address", f"127.0.0.1:{port}"]
    with running(words, port, tmp_path / "prometheus.log"):
        until(lambda: told(port, "/-/ready") == 200, "Prometheus is ready", 120.0, 0.5)
        until(lambda: value(port, "confide_cohort_met"), "a scrape", 120.0, 0.5)
        assert value(port, "up") == 1 and value(port, "confide_cohort_invited") == 4
        assert value(port, 'confide_devices{state="admitted"}') == 4 and value(port, "confide_ledger_readable") == 1
        [group] = told(port, "/api/v1/rules")["groups"]
        until(
            lambda: told(port, "/api/v1/rules")["groups"][0]["rules"][-1]["health"] == "ok", "the rules ran", 60.0, 0.5
        )
        named = {rule["name"]: rule for rule in told(port, "/api/v1/rules")["groups"][0]["rules"]}
        assert len(named) == len(group["rules"]) >= 10
        assert {rule["health"] for rule in named.values()} == {"ok"}

        def quiet() -> bool:
            """Return whether no rule is pending: the first evaluation may come before the first scrape."""
            return {rule["state"] for rule in told(port, "/api/v1/rules")["groups"][0]["rules"]} == {"inactive"}

        until(quiet, "four of four are admitted, all is well", 60.0, 0.5)


def test_every_file_of_observe_is_what_promtool_reads() -> None:
    done = subprocess.run(
        [program("promtool"), "check", "config", str(OBSERVE / "prometheus.yml")], capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0 and "SUCCESS" in done.stdout, done.stdout + done.stderr


# For each alert: series as promtool writes them ("start+step x times", one a minute), and the minutes at which it is
# quiet and fires. Where one metric alone decides, the last calm and the first alarming value are both tried.
FIRES: dict[str, tuple[dict[str, str], int, int]] = {
    "ServerDown": ({"up": "1x10 0x20", "confide_devices": "4x30"}, 14, 17),
    "BelowFloor": ({"confide_cohort_met": "1x10 0x30"}, 24, 27),
    "CampaignFailed": ({"confide_campaign_failed": "0x10 1x10"}, 10, 12),
    "AttemptsLost": ({"confide_attempts_lost": "0x10 1x30 3x30"}, 35, 45),
    "FewAnswers": ({"confide_round_answers": "16x20 12x30", "confide_cohort_invited": "20x50"}, 20, 32),
    "NoSignal": ({"confide_round_noise_to_signal": "2.5x10 2.6x10"}, 10, 12),
    "BudgetNearlySpent": ({"confide_budget_share": "0.8x10 0.81x10"}, 10, 12),
    "CertificateEnds": ({"confide_certificate_days": "30x10 29x10"}, 10, 12),
    "LedgerUnreadable": ({"confide_ledger_readable": "1x10 0x10"}, 10, 12),
    "StrangersAtTheDoor": ({'confide_calls_total{outcome="refused"}': "0+30x30 900+90x60"}, 30, 75),
}


def test_each_alert_fires_on_what_it_is_for_and_not_before(tmp_path: Path) -> None:
    rules = yaml.safe_load((OBSERVE / "alerts.yml").read_text())["groups"][0]["rules"]
    assert {rule["alert"] for rule in rules} == set(FIRES)
    tests = []
    for rule in rules:
        series, quiet, fires = FIRES[rule["alert"]]
        samples = [{"series": _labelled(name), "values": values} for name, values in series.items()]
        if "confide_devices" not in series and rule["alert"] != "ServerDown":
            samples.append({"series": 'confide_devices{job="confide"}', "values": "4x100"})
        asked = [{"eval_time": f"{minute}m", "alertname": rule["alert"]} for minute in (quiet, fires)]
        labels = {"job": "confide"} | ({"outcome": "refused"} if "outcome" in str(series) else {})
        asked[1]["exp_alerts"] = [{"exp_labels": labels, "exp_annotations": rule["annotations"]}]
        tests.append({"interval": "1m", "input_series": samples, "alert_rule_test": asked})
    shutil.copy(OBSERVE / "alerts.yml", tmp_path)
    (tmp_path / "tests.yml").write_text(yaml.safe_dump({"rule_files": ["alerts.yml"], "tests": tests}))
    words = [program("promtool"), "test", "rules", str(tmp_path / "tests.yml")]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def _labelled(name: str) -> str:
    metric, _, labels = name.partition("{")
    return f'{metric}{{job="confide"{"," + labels if labels else "}"}'
