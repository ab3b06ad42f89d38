"""What is decided about Ray without starting it: tokens, addresses, who is found; and that nothing else touches Ray."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rl4rec_cli.config.layering import load_config
from rl4rec_cli.config.sections import RetrievalSection, ServiceSection
from rl4rec_cli.errors import ConfigError, ServiceError
from rl4rec_cli.retrieval.service import cluster, joining
from rl4rec_cli.retrieval.service.cluster import Note

SERVICE = ServiceSection(wait=0.0)


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(cluster, "connected", lambda: None)  # other tests of this process may be
    for name in [name for name in os.environ if name.startswith("RAY_")]:
        monkeypatch.delenv(name)


def test_the_token_is_made_once_for_its_owner_alone() -> None:
    file = cluster.token_file()
    assert file.stat().st_mode & 0o777 == 0o600
    assert file.parent.stat().st_mode & 0o777 == 0o700
    token = file.read_text()
    assert len(token) == 64
    assert cluster.token_file().read_text() == token
    file.chmod(0o644)
    with pytest.raises(ConfigError, match="can be read by others"):
        cluster.token_file()


def test_a_cluster_that_others_reach_needs_a_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for address in ("127.0.0.1:6379", "localhost:6379", "[::1]:6379"):
        cluster.check_token(address)
    for address in ("10.0.0.1:6379", "head.example:6379", "0.0.0.0:6379"):
        with pytest.raises(ConfigError, match="it must ask for a token"):
            cluster.check_token(address)
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    token = tmp_path / "token"
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(token))
    with pytest.raises(ConfigError, match="No such file"):
        cluster.check_token("10.0.0.1:6379")
    token.write_text("secret")
    token.chmod(0o640)
    with pytest.raises(ConfigError, match="can be read by others") as caught:
        cluster.check_token("10.0.0.1:6379")
    assert caught.value.hint == f"chmod 600 {token}"
    token.chmod(0o600)
    cluster.check_token("10.0.0.1:6379")


def test_a_service_is_found_by_what_it_left() -> None:
    assert cluster.find_address(SERVICE) is None
    assert not cluster.is_offered(SERVICE)
    cluster.write_note(SERVICE, Note("127.0.0.1:7", os.getpid(), None))
    assert cluster.find_address(SERVICE) == "127.0.0.1:7"
    assert cluster.is_offered(SERVICE)
    assert not cluster.is_offered(ServiceSection(name="Other"))
    assert not cluster.is_offered(ServiceSection(namespace="other"))
    named = ServiceSection(address="10.0.0.1:6379")
    assert cluster.find_address(named) == "10.0.0.1:6379"
    cluster.remove_note(SERVICE)
    assert cluster.find_address(SERVICE) is None


def test_what_a_dead_service_left_is_not_believed() -> None:
    done = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    cluster.write_note(SERVICE, Note("127.0.0.1:7", int(done.stdout), None))
    assert cluster.find_address(SERVICE) is None
    file = cluster.home() / "rl4rec.RetrievalService.json"
    assert file.is_file()
    file.write_text("{not json")
    assert cluster.find_address(SERVICE) is None


def test_a_folder_that_others_may_enter_is_refused(tmp_path: Path) -> None:
    (tmp_path / "rl4rec" / "ray").mkdir(parents=True, mode=0o755)
    with pytest.raises(ConfigError, match="only its owner can read"):
        cluster.home()


def test_addresses_that_lead_nowhere() -> None:
    with pytest.raises(ServiceError, match=r"no Ray cluster answers at 127\.0\.0\.1:9"):
        cluster.join(SERVICE, "127.0.0.1:9")
    with pytest.raises(ConfigError, match="is no address"):
        cluster.join(SERVICE, "127.0.0.1:nine")
    with pytest.raises(ConfigError, match="client protocol"):
        cluster.join(SERVICE, "ray://10.0.0.1:10001")


def test_without_ray_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    from rl4rec_cli.retrieval.service import serving
    from rl4rec_cli.retrieval.service.requests import ServiceClient

    monkeypatch.setattr(cluster.importlib.util, "find_spec", lambda name: None)
    for call in (
        lambda: serving.serve(RetrievalSection(), ["x"], num_gpus=0),
        lambda: ServiceClient(RetrievalSection()),
    ):
        with pytest.raises(ConfigError, match="needs Ray, which is not installed") as caught:
            call()
        assert caught.value.hint == "pip install 'rl4rec[ray]'"


IN_PROCESS = """
import sys
opened = []
sys.addaudithook(lambda event, _: opened.append(event) if event in ("socket.bind", "socket.connect") else None)
from rl4rec_cli.config.sections import RetrievalSection
from rl4rec_cli.data.synthetic import synthesize
from rl4rec_cli.retrieval.opening import open_retriever
for backend in ("auto", "in-process"):
    retriever = open_retriever(RetrievalSection(backend=backend, embedder="lsa", device="cpu"), synthesize(20, 30, 0))
    retriever.target_ranks(["hand cream"], [0], [[]])
print(opened, [name for name in sys.modules if name.partition(".")[0] == "ray"])
"""


def test_in_process_opens_no_socket_and_imports_no_ray() -> None:
    done = subprocess.run([sys.executable, "-c", IN_PROCESS], capture_output=True, text=True, check=True)
    assert done.stdout == "[] []\n"


def test_a_run_whose_service_is_not_there_says_how_to_start_it(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "rl4rec_cli.cli.main", "train", "grpo", "--quick-test"]
    sets = ["retrieval.backend=ray", "retrieval.service.wait=0", f"run.output_dir={tmp_path}"]
    flags = [part for one in sets for part in ("--set", one)]
    done = subprocess.run([*command, *flags], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "error: RetrievalService not found in namespace rl4rec: no service runs on this machine" in done.stderr
    assert "hint: start it: rl4rec serve-retrieval --datasets PATH --embedder lsa" in done.stderr


def test_a_second_service_of_a_name_is_refused_while_the_first_is_there() -> None:
    with cluster.claimed(SERVICE):
        cluster.write_note(SERVICE, Note("127.0.0.1:7", os.getpid(), None))
        with pytest.raises(ServiceError, match=r"on this machine already at 127\.0\.0\.1:7") as caught:  # noqa: SIM117
            with cluster.claimed(SERVICE):
                pass
        assert "--actor-name NAME" in (caught.value.hint or "")
        with cluster.claimed(SERVICE.model_copy(update={"name": "Other"})):
            pass
        assert cluster.find_address(SERVICE) == "127.0.0.1:7"
        cluster.remove_note(SERVICE)
    with cluster.claimed(SERVICE):
        pass


@pytest.mark.parametrize(
    "settings",
    [
        {"embedder": "lsa", "lsa_dim": 24, "emb_type": "no", "query_prompt": "for: "},
        {"model": "m", "dtype": "bf16"},
        {"model": "my models/a b", "query_prompt": "", "file": "x y.pt", "service": {"shards": 2, "namespace": "team"}},
    ],
)
def test_the_settings_that_are_printed_give_the_same_vectors(settings: dict[str, Any], tmp_path: Path) -> None:
    """Whatever a run's recipe says: what vectors depend on is all there, and read as it was."""
    section = RetrievalSection.model_validate(settings)
    words = joining.run_settings(section, "10.0.0.1:7")
    sets = words[1::2]
    assert shlex.split(shlex.join(words)) == words
    other = tmp_path / "other.yaml"
    other.write_text("retrieval: {query_prompt: another, lsa_dim: 7, emb_type: title, model: m, dtype: fp16}")
    run = load_config(algorithm="grpo", recipes=[str(other)], sets=sets).retrieval
    assert joining.vector_settings(run) == joining.vector_settings(section)
    assert (run.backend, run.service.address, run.service.namespace) == ("ray", "10.0.0.1:7", section.service.namespace)
    served = joining.serve_settings(section)[1::2]
    flags = {"retrieval.embedder": section.embedder, "retrieval.emb_type": section.emb_type}
    again = load_config(algorithm=None, flags=flags, sets=served).retrieval
    assert joining.vector_settings(again) == joining.vector_settings(section)
    assert (again.file, again.service.shards) == (section.file, section.service.shards)


def test_a_command_looks_for_a_service_that_is_gone_but_briefly(monkeypatch: pytest.MonkeyPatch) -> None:
    from rl4rec_cli.retrieval.service import requests

    pytest.importorskip("ray", reason="pip install 'rl4rec[ray]'")
    lines: list[str] = []
    monkeypatch.setattr(requests.console, "log", lines.append)
    with pytest.raises(ServiceError, match="no service runs on this machine") as caught:
        requests.ServiceClient(RetrievalSection(backend="ray"), first_wait=0.1)
    assert lines == ["RetrievalService: no service runs on this machine; waiting 0.1 s for it"]
    assert "or do without: --set retrieval.backend=in-process" in (caught.value.hint or "")


def test_that_no_service_runs_is_said_without_torch() -> None:
    pytest.importorskip("ray", reason="pip install 'rl4rec[ray]'")
    code = (
        "import sys; from rl4rec_cli.cli.main import main\n"
        "code = main(['serve-retrieval', '--status'])\n"
        "print(code, sorted({'torch', 'ray', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "no service runs on this machine" in done.stderr
    assert done.stdout == "1 []\n"
