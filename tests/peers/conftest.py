"""What the tests with other programs share: nothing is fetched, nothing is reported, and servers are real."""

import pytest
from corpora import ROOT
from evaluation_fakes import make_project
from serving_fakes import serving

OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "HF_EVALUATE_OFFLINE": "1",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",  # or LiteLLM fetches its price list
    "LITELLM_TELEMETRY": "False",
    "LANGSMITH_TRACING": "false",
    "DO_NOT_TRACK": "1",
    "OMP_NUM_THREADS": "1",
}


@pytest.fixture(scope="package", autouse=True)
def offline():
    """These tests' environment, in this process and those that it starts."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in OFFLINE.items():
            patch.setenv(name, value)
        yield


@pytest.fixture(scope="package")
def project(tmp_path_factory):
    """A folder with two checkpoints of tiny models, out/tuned (fine-tuned) and out/base."""
    return make_project(tmp_path_factory.mktemp("project"))


@pytest.fixture(scope="package")
def server(project):
    """server.py with the models "tuned" and "base", in float32."""
    ckpt = f"--ckpt={project / 'out/tuned/ckpt.pt'},{project / 'out/base/ckpt.pt'}"
    with serving(ROOT / "server.py", ckpt, "--dtype=float32", "--device=cpu") as server:
        yield server
