"""`UNet.save_pretrained` and `from_pretrained`: folders of huggingface_hub on the disk."""

import json
import sys

import pytest
import safetensors.torch
import torch

import attzoo
from attzoo.torch import UNet


def network(**options):
    """Return a small U-Net in evaluation mode; its weights are the same in every call."""
    torch.manual_seed(0)
    return UNet(2, 3, (4, 8), skip="attention_gate", **options).eval()


@pytest.fixture
def hub(monkeypatch):
    """Return the package huggingface_hub, set to use no network."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return pytest.importorskip("huggingface_hub")


@pytest.mark.parametrize("options", [{}, {"dtype": torch.bfloat16}, {"block": "se", "block_options": {"reduction": 2}}])
def test_network_loaded_from_a_folder_equals_the_saved_network(options, hub, tmp_path):
    net = network(**options)
    net.save_pretrained(tmp_path / "net")
    assert sorted(path.name for path in (tmp_path / "net").iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
    ]
    config = json.loads((tmp_path / "net" / "config.json").read_text())
    assert config.pop("dtype") == str(options.get("dtype", torch.float32)).removeprefix("torch.")
    assert attzoo.create("unet", backend="numpy", **config) == net.spec
    state = safetensors.torch.load_file(tmp_path / "net" / "model.safetensors")
    assert {key: value.dtype for key, value in state.items()} == {
        key: value.dtype for key, value in net.state_dict().items()
    }
    loaded = UNet.from_pretrained(tmp_path / "net")
    assert type(loaded) is UNet
    assert not loaded.training
    assert all(parameter.requires_grad and not parameter.is_meta for parameter in loaded.parameters())
    for key, value in net.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value)
    x = torch.randn(1, 2, 9, 8).to(next(net.parameters()).dtype)
    assert torch.equal(loaded(x), net(x))


def test_model_card_has_the_config(hub, tmp_path):
    network().save_pretrained(tmp_path)
    card = hub.ModelCard.load(tmp_path / "README.md")
    assert card.data.library_name == "attzoo"
    assert "The input has 2 channels, the output 3, and both 2 spatial axes." in card.text
    block = card.text.partition("```json\n")[2].partition("```")[0]
    assert json.loads(block) == json.loads((tmp_path / "config.json").read_text())


def test_saved_unet_is_replaced_and_other_models_raise(hub, tmp_path):
    network().save_pretrained(tmp_path)
    (net := network(head="sigmoid")).save_pretrained(tmp_path)
    assert UNet.from_pretrained(tmp_path).spec == net.spec
    (tmp_path / "config.json").write_text('{"model_type": "bert", "hidden_size": 8}')
    contents_before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(FileExistsError, match=r"expected only a U-Net of attzoo, or no model, in .* remove it first"):
        net.save_pretrained(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == contents_before


@pytest.mark.parametrize(("text", "message"), [
    ('{"model_type": "bert"}', "got .*bert.*takes no argument 'model_type'"),
    ("[1]", "expected a U-Net of attzoo in"),
    ("{", "Expecting property name"),
    ('{"in_channels": 1, "out_channels": 2, "dtype": "int8"}', "dtype must be one of 'float32'"),
])   # fmt: skip
def test_invalid_configs_raise(text, message, hub, tmp_path):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=f"(?s){message}"):
        UNet.from_pretrained(tmp_path)


def test_missing_files_and_arrays_raise(hub, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        UNet.from_pretrained(tmp_path)
    (net := network()).save_pretrained(tmp_path)
    state = {key: value.contiguous() for key, value in net.state_dict().items() if key != "head.bias"}
    safetensors.torch.save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(RuntimeError, match=r"head\.bias"):
        UNet.from_pretrained(tmp_path)


def test_a_missing_folder_is_named_with_a_folder_of_a_similar_name(hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    network().save_pretrained("runs/best_net")
    expected = "expected a folder that UNet.save_pretrained wrote, or the name of such a repository on the Hub, got"
    for source, message in (
        ("runs/bestnet", "'runs/bestnet', which is no folder; did you mean 'best_net'?; the repository of this"),
        ("missing", "'missing', which is no folder; the repository of this name cannot be read: "),
        (tmp_path / "runs" / "bestnet", "bestnet', which is no folder; did you mean 'best_net'?"),
        ("runs/best_net/config.json", "the file 'runs/best_net/config.json': give its folder, 'runs/best_net'"),
    ):
        with pytest.raises(FileNotFoundError) as error:
            UNet.from_pretrained(source, local_files_only=True)
        assert str(error.value).startswith(expected)
        assert message in str(error.value)


@pytest.mark.parametrize("content", ['{"model_type": "bert"}', None])
def test_config_of_a_repository_is_checked(content, hub, tmp_path, monkeypatch):
    """The repository is a copy in the cache of huggingface_hub, so that nothing is downloaded."""
    snapshot = tmp_path / "models--user--net" / "snapshots" / ("0" * 40)
    (net := network()).save_pretrained(snapshot)
    (tmp_path / "models--user--net" / "refs").mkdir()
    (tmp_path / "models--user--net" / "refs" / "main").write_text("0" * 40)
    options = {"cache_dir": tmp_path, "local_files_only": True}
    if content is None:
        assert torch.equal(UNet.from_pretrained("user/net", **options).head.weight, net.head.weight)
        return
    (snapshot / "config.json").write_text(content)
    with pytest.raises(ValueError, match=r"expected a U-Net of attzoo in .*takes no argument 'model_type'"):
        UNet.from_pretrained("user/net", **options)


def test_changed_layers_are_refused(hub, tmp_path):
    net = network()
    net.head = torch.nn.Identity()
    with pytest.raises(ValueError, match="expected head of UNet to be Conv2d"):
        net.save_pretrained(tmp_path / "net")
    assert not (tmp_path / "net").exists()


def test_error_without_huggingface_hub_names_the_extra(monkeypatch, tmp_path):
    from attzoo.unet import hub as module

    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    module._hub_class.cache_clear()
    for call in (lambda: network().save_pretrained(tmp_path / "net"), lambda: UNet.from_pretrained(tmp_path)):
        with pytest.raises(ModuleNotFoundError, match=r"huggingface_hub is not installed, .* needs it: .*\[hub\]"):
            call()
    assert not (tmp_path / "net").exists()


def test_saving_changes_no_random_numbers(hub, tmp_path):
    net, state = network(), torch.get_rng_state()
    for _ in range(2):   # the second call replaces the card of the first
        net.save_pretrained(tmp_path)
        assert torch.equal(torch.get_rng_state(), state)


def test_a_card_in_another_encoding_is_not_replaced(hub, tmp_path):
    network().save_pretrained(tmp_path)
    (tmp_path / "README.md").write_bytes("Größe".encode("latin-1"))
    network().save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_bytes() == "Größe".encode("latin-1")


def test_a_card_follows_the_network_unless_a_user_changed_it(hub, tmp_path):
    UNet(1, 2, (4, 8)).save_pretrained(tmp_path)
    UNet(3, 2, (4, 8)).save_pretrained(tmp_path)
    card = (tmp_path / "README.md").read_text()
    assert "The input has 3 channels" in card
    (tmp_path / "README.md").write_text(card + "Trained on my images.")
    UNet(5, 2, (4, 8)).save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text() == card + "Trained on my images."
