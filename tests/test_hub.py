"""The model card, and what would be published."""

import importlib
import json

import pytest
from huggingface_hub import ModelCard
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError, OfflineModeIsEnabled
from huggingface_hub.utils import filter_repo_objects
from test_report import ALARM, make_run

from hfgen.errors import BadInput
from hfgen.hub import push_to_hub, write_model_card

# The HTTP library that the Hub's client raises from.
httpx = importlib.import_module(HfHubHTTPError.__bases__[0].__module__.partition(".")[0])


class Repo(str):
    repo_id = "me/vae"


class FakeHub:
    """Keeps what the real filter would upload from a real folder, or raises."""

    def __init__(self, error=None):
        self.error, self.created, self.uploaded, self.card = error, None, None, None

    def create_repo(self, repo_id, **options):
        if self.error is not None:
            raise self.error
        self.created = (repo_id, options)
        return Repo("https://hub/me/vae")

    def upload_folder(self, *, repo_id, folder_path, repo_type, commit_message, allow_patterns, ignore_patterns):
        assert (repo_id, repo_type) == ("me/vae", "model")
        files = sorted(p.relative_to(folder_path).as_posix() for p in folder_path.rglob("*") if p.is_file())
        kept = filter_repo_objects(files, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns)
        self.uploaded = list(kept)
        self.card = (folder_path / "README.md").read_text()


def http_error(status):
    request = httpx.Request("POST", "https://hub")
    return HfHubHTTPError("refused", response=httpx.Response(status, request=request))


def test_card_has_valid_metadata(tmp_path):
    folder = make_run(tmp_path / "my-vae", alarms=[ALARM])
    card = ModelCard(write_model_card(folder, pipeline_class="VAEPipeline", license="mit").read_text())
    data = card.data.to_dict()
    assert data["library_name"] == "hfgen"
    assert data["tags"] == ["hfgen", "vae"]
    assert data["pipeline_tag"] == "unconditional-image-generation"
    assert data["license"] == "mit"
    assert "datasets" not in data, "the embedded digits are no dataset of the Hub"
    assert card.data.model_name == "my-vae"
    assert {r.metric_type: r.metric_value for r in card.data.eval_results} == {"eval_loss": 19.5, "eval_elbo": -19.5}
    assert "from hfgen import VAEPipeline\n\npipeline = VAEPipeline.from_pretrained('my-vae')\n" in card.text
    assert "hfgen train vae --config digits --run_name 'a<b'\n" in card.text
    assert "| eval\\_elbo | -19.5 |" in card.text
    assert "![Samples & more](figures/samples.png)" in card.text
    assert "posterior\\_collapse at step 20: 0 of 16 units \\<active\\>" in card.text


def test_card_names_a_hub_dataset_and_assumes_no_licence(tmp_path, monkeypatch):
    folder = make_run(tmp_path / "vae")
    facts = json.loads((folder / "run.json").read_text())
    facts["dataset"]["name"] = "someone/pictures"
    facts["metrics"]["eval_nan"] = None
    (folder / "run.json").write_text(json.dumps(facts))
    card = ModelCard(write_model_card(folder).read_text())
    assert card.data.datasets == ["someone/pictures"]
    assert card.data.license is None
    assert "eval_nan" not in [r.metric_type for r in card.data.eval_results]
    assert "from_pretrained" not in card.text
    # The same name, but a folder here: no dataset of the Hub.
    monkeypatch.chdir(tmp_path)
    (tmp_path / "someone" / "pictures").mkdir(parents=True)
    assert ModelCard(write_model_card(folder).read_text()).data.datasets is None


def test_only_safe_files_are_published(tmp_path):
    folder = make_run(tmp_path / "vae")
    write_model_card(folder, pipeline_class="VAEPipeline")
    published = [
        "README.md",
        "evaluation.json",
        "figures/figures.json",
        "figures/samples.png",
        "generator/resnet.py",
        "model_index.json",
        "pipeline.py",
        "run.json",
        "trainer_state.json",
        "vae/config.json",
        "vae/diffusion_pytorch_model.safetensors",
    ]
    kept_back = [
        "checkpoint-10/model.safetensors",
        "checkpoint-10/vae/config.json",
        ".checkpoint-20.tmp/model.safetensors",
        "checkpoint-20.tmp/trainer_state.json",
        "training_args.bin",
        "optimizer.pt",
        "vae/pytorch_model.bin",
        "vae/weights.pkl",
        "vae/weights.pickle",
        "vae/model.pth",
        "vae/model.ckpt",
        "code.py",
        "figures/code.py",
        ".cache/x.json",
        "vae/.hidden.json",
        "generated/00000.png",
        "wandb/latest/config.json",
        "events.out.tfevents.1",
        ".env",
    ]
    for name in [*published, *kept_back]:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    hub = FakeHub()
    assert push_to_hub(folder, "vae", private=True, api=hub) == "https://hub/me/vae"
    assert hub.created == ("vae", {"private": True, "exist_ok": True, "repo_type": "model"})
    assert hub.uploaded == published
    assert "VAEPipeline.from_pretrained('me/vae')" in hub.card


def test_folder_gives_the_default_name(tmp_path):
    hub = FakeHub()
    folder = make_run(tmp_path / "my-vae")
    write_model_card(folder)
    push_to_hub(folder, api=hub)
    assert hub.created[0] == "my-vae"


@pytest.mark.parametrize(
    ("error", "remedy"),
    [
        (LocalTokenNotFoundError("no token"), "hf auth login"),
        (OfflineModeIsEnabled("offline"), "HF_HUB_OFFLINE"),
        (HFValidationError("bad name"), "no name for a repository"),
        (http_error(401), "hf auth login"),
        (http_error(403), "hf auth login"),
        (http_error(500), "try again"),
        (httpx.ConnectError("no route"), "can't be reached"),
    ],
)
def test_failure_is_one_line_and_loses_nothing(tmp_path, error, remedy):
    folder = make_run(tmp_path / "vae")
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    with pytest.raises(BadInput, match=remedy) as caught:
        push_to_hub(folder, "me/vae", api=FakeHub(error))
    assert f"hfgen push {folder} me/vae" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == before


def test_real_client_offline(tmp_path):
    with pytest.raises(BadInput, match="HF_HUB_OFFLINE|hf auth login"):
        push_to_hub(make_run(tmp_path / "vae"), "me/vae")


def test_unfinished_run_is_not_published(tmp_path):
    with pytest.raises(BadInput, match="not a run folder"):
        push_to_hub(tmp_path, "me/vae", api=FakeHub())
