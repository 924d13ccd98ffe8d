"""Dropout of finished models is replaced and restored, and nothing else of them changes."""

import copy
import io

import pytest

import fastdrop as fd

torch = pytest.importorskip("torch")
fdt = pytest.importorskip("fastdrop.torch")
from torch import nn  # noqa: E402

NAMES = ["Dropout", "Dropout1d", "Dropout2d", "Dropout3d", "AlphaDropout", "FeatureAlphaDropout"]


class Own(nn.Dropout):
    pass


def model():
    shared = nn.Dropout(0.3)
    layers = [nn.Linear(8, 8), shared, nn.Sequential(nn.Linear(8, 8), nn.AlphaDropout(0.1), shared), fdt.Dropout(0.2)]
    return nn.Sequential(*layers, Own(0.4)).double()


@pytest.mark.parametrize("name", NAMES)
def test_every_module_of_torch(name):
    theirs = getattr(nn, name)(0.3, True).eval()
    mine = copy.deepcopy(theirs)
    report = fdt.replace_dropout(mine, generator=fd.Rng(1))
    assert type(mine) is getattr(fdt, name)
    assert (mine.p, mine.inplace, mine.training) == (0.3, True, False)
    assert report.done == {"": repr(theirs)}
    assert fdt.restore_dropout(mine) == [""]
    assert type(mine) is type(theirs)
    assert vars(mine).keys() == vars(theirs).keys()


def test_what_is_replaced_and_what_is_left():
    net = model()
    report = fdt.replace_dropout(net)
    assert list(report.done) == ["1", "2.1"]
    assert report.left == {"4": "its class Own is none of torch's"}
    assert net[1] is net[2][2]
    assert str(report).splitlines()[-1] == "4: left, its class Own is none of torch's"
    assert fdt.replace_dropout(net).done == {}  # once is enough
    assert fdt.restore_dropout(net) == ["1", "2.1"]
    assert type(net[3]) is fdt.Dropout
    assert fdt.restore_dropout(net) == []


def test_evaluation_and_state_stay_and_training_is_ours():
    net = model()[:3]
    x, state = torch.randn(5, 8, dtype=torch.float64), copy.deepcopy(net.state_dict())
    wanted = net.eval()(x)
    called = []
    hook = net[1].register_forward_hook(lambda *_: called.append(1))
    fdt.replace_dropout(net, generator=fd.Rng(2))
    assert torch.equal(net(x), wanted)
    assert called
    hook.remove()
    assert net.state_dict().keys() == state.keys()
    assert torch.equal(net[1].train()(x), fdt.dropout(x, 0.3, generator=fd.Rng(2)))
    file = io.BytesIO()
    torch.save(net, file)
    file.seek(0)
    assert fdt.restore_dropout(torch.load(file, weights_only=False)) == ["1", "2.1"]


def test_transformers_and_recurrent_layers():
    layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.1, batch_first=True)
    net = nn.ModuleDict({"encoder": nn.TransformerEncoder(layer, 2), "rnn": nn.LSTM(16, 16, 2, dropout=0.2)})
    net["plain"] = nn.GRU(16, 16)
    x = torch.randn(3, 5, 16)
    wanted = net.eval()["encoder"](x), net["rnn"](x)[0]
    report = fdt.replace_dropout(net)
    assert len(report.done) == 6
    assert sorted(report.left) == ["encoder.layers.0.self_attn", "encoder.layers.1.self_attn", "rnn"]
    for y, z in zip(wanted, (net["encoder"](x), net["rnn"](x)[0])):
        assert torch.equal(y, z)
    net.train()
    y = net["encoder"](x)
    y.sum().backward()
    assert all(p.grad is not None for p in net["encoder"].parameters())


def test_drop_path_is_no_dropout_of_torch():
    report = fdt.replace_dropout(nn.Sequential(fdt.DropPath(0.1)))
    assert (report.done, report.left) == ({}, {})


def test_what_is_no_model():
    for function in (fdt.replace_dropout, fdt.restore_dropout):
        with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module, got list"):
            function([nn.Dropout()])
