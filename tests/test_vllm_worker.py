"""The worker extension as scripts use it, on a stand-in of vLLM's worker: what each call leaves behind."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from vllm_standin import Engine, Norm, extended, parameter

import thickets.integrations.weights as weights_module
from thickets import sample_noise
from thickets.integrations.shards import engine_segments
from thickets.integrations.vllm import WorkerExtension
from thickets.integrations.weights import LiveWeights
from thickets.perturbed.segments import Segment

CONFIG = transformers.LlamaConfig(
    vocab_size=20,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=1,
    num_attention_heads=2,
    num_key_value_heads=1,
)


def engine(seed: int = 0) -> Engine:
    """A small engine with random weights, padding included."""
    model = Engine(CONFIG)
    generator = torch.Generator().manual_seed(seed)
    for tensor in model.parameters():
        tensor.copy_(torch.randn(tensor.shape, generator=generator))
    return model


def worker(seed: int = 0, **settings: Any) -> Any:
    return extended(type("Extension", (WorkerExtension,), settings), engine(seed))


def weights(one: Any) -> dict[str, Tensor]:
    """The worker's weights now, copied."""
    return {name: tensor.clone() for name, tensor in one.model_runner.model.named_parameters()}


def same(one: dict[str, Tensor], two: dict[str, Tensor]) -> bool:
    return all(torch.equal(one[name], two[name]) for name in one.keys() | two.keys())


def summed(base: dict[str, Tensor], terms: list[tuple[int, float]]) -> dict[str, Tensor]:
    """The base plus coefficients times noise of seeds in float64, rounded once."""
    result = {name: tensor.double() for name, tensor in base.items()}
    for name, segments in engine_segments(engine()).items():
        for segment in segments:
            block = segment.of(result[name])
            for seed, coefficient in terms:
                noise = sample_noise(block.shape, seed=seed, name=segment.name)
                block += torch.tensor(coefficient).double() * noise.double()
    return {name: tensor.to(base[name].dtype) for name, tensor in result.items()}


def assert_near(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Equal but for a last bit of bfloat16 here and there: float32 sums may round to the other side."""
    assert actual.keys() == expected.keys()
    for name, tensor in actual.items():
        wrong = tensor != expected[name]
        assert wrong.float().mean() < 0.01, name
        torch.testing.assert_close(tensor, expected[name], rtol=2**-7, atol=0)


BOTH = pytest.mark.parametrize("base_on", ["device", "host"])


@BOTH
def test_any_number_of_cycles_restores_every_bit(base_on: str) -> None:
    one = worker(base_on=base_on)
    base = weights(one)
    pointers = [tensor.data_ptr() for tensor in one.model_runner.model.parameters()]
    for seed in range(300):
        assert one.perturb_self_weights(seed, 1e-3) is True
        assert one.restore_self_weights(seed, 1e-3) is True
    assert same(weights(one), base)
    assert pointers == [tensor.data_ptr() for tensor in one.model_runner.model.parameters()]


@BOTH
def test_perturbations_stack_and_each_is_undone_alone(base_on: str) -> None:
    one = worker(base_on=base_on)
    base = weights(one)
    one.perturb_self_weights(3, 0.5)
    first = weights(one)
    assert_near(first, summed(base, [(3, 0.5)]))
    one.perturb_self_weights(4, 0.25, True)
    both = weights(one)
    assert_near(both, summed(first, [(4, -0.25)]))
    one.perturb_self_weights(5, 0.125)
    one.restore_self_weights(5, 0.125)
    assert same(weights(one), both)
    one.restore_self_weights(3, 0.5)
    second = weights(one)
    one.restore_self_weights(4, 0.25, negate=True)
    assert same(weights(one), base)
    one.perturb_self_weights(4, 0.25, negate=True)
    assert same(weights(one), second)


def test_the_mirrored_member_is_reached_from_the_other_side() -> None:
    one = worker()
    base = weights(one)
    one.perturb_self_weights(3, 0.5)
    one.perturb_self_weights(3, 1.0, True)  # as scripts of two-point estimates do
    mirrored = weights(one)
    one.perturb_self_weights(3, 0.5)
    assert same(weights(one), base)
    one.apply_perturbation(3, -0.5)
    assert same(weights(one), mirrored)


@BOTH
def test_members_are_made_from_the_base(base_on: str) -> None:
    one = worker(base_on=base_on)
    one.store_base_weights()
    base = weights(one)
    one.apply_perturbation(7, 0.5)
    member = weights(one)
    assert not same(member, base)
    one.apply_perturbation(8, 0.5)
    one.apply_perturbation(7, 0.5)
    assert same(weights(one), member)
    one.reset_to_base_weights()
    assert same(weights(one), base)
    one.apply_perturbation(7, 0.5)
    one.store_base_weights()  # of what the weights are now
    one.apply_perturbation(8, 0.5)
    one.reset_to_base_weights()
    assert same(weights(one), member)
    one.apply_perturbation(8, 0.5)
    other = weights(one)
    one.clear_base_weights()
    one.reset_to_base_weights()
    assert same(weights(one), other)


def test_averages_are_summed_in_float32_and_rounded_once() -> None:
    one = worker()
    base = weights(one)
    one.apply_averaged_perturbations([(1, 0.5), (2, 0.25), (1, 1.0)], [1, 2, 1])
    assert_near(weights(one), summed(base, [(1, 0.125), (2, 0.125), (1, 0.25)]))
    one.apply_averaged_perturbations([[1, 0.5], [2, 0.25]])
    assert_near(weights(one), summed(base, [(1, 0.25), (2, 0.125)]))
    one.apply_averaged_perturbations([(9, 0.5)])
    average = weights(one)
    one.apply_perturbation(9, 0.5)
    assert same(weights(one), average)
    one.reset_to_base_weights()
    assert same(weights(one), base)


@BOTH
def test_updates_change_the_base_and_leave_what_is_active(base_on: str) -> None:
    one, two = worker(base_on=base_on), worker()
    base = weights(one)
    one.update_weights_from_seeds([1, 2], [0.5, -2.0], 0.5, 4)
    updated = weights(one)
    assert_near(updated, summed(base, [(1, 0.0625), (2, -0.25)]))
    one.perturb_self_weights(3, 0.5)
    one.restore_self_weights(3, 0.5)
    assert same(weights(one), updated)

    two.perturb_self_weights(3, 0.5)
    two.update_weights_from_seeds([1, 2], [0.5, -2.0], 0.5, 4)
    one.perturb_self_weights(3, 0.5)
    assert same(weights(one), weights(two))
    two.restore_self_weights(3, 0.5)
    assert same(weights(two), updated)


def test_a_coefficient_makes_an_update() -> None:
    one = worker()
    base = weights(one)
    one.perturb_self_weights(3, 0.5, 1.0, False)
    one.restore_self_weights(3, 0.5)
    assert same(weights(one), base)
    one.perturb_self_weights(1, 1.0, 0.125, False)
    one.perturb_self_weights(2, 1.0, 0.25, True)
    updated = weights(one)
    assert_near(updated, summed(summed(base, [(1, 0.125)]), [(2, -0.25)]))
    one.apply_perturbation(3, 0.5)
    one.reset_to_base_weights()
    assert same(weights(one), updated)


@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors"])
def test_weights_go_to_disk_and_back(name: str, tmp_path: Path) -> None:
    one, two = worker(seed=1), worker(seed=2)
    one.perturb_self_weights(3, 0.5)
    assert one.save_self_weights_to_disk(str(tmp_path / name)) is True
    two.perturb_self_weights(4, 0.5)
    assert two.load_weights_from_disk(str(tmp_path / name)) is True
    assert same(weights(one), weights(two))
    two.perturb_self_weights(4, 0.5)
    two.restore_self_weights(4, 0.5)
    assert same(weights(one), weights(two))


def test_each_rank_has_its_own_file(tmp_path: Path) -> None:
    ranks = [extended(WorkerExtension, engine(rank), rank=rank, world_size=2) for rank in (0, 1)]
    for one in ranks:
        one.save_self_weights_to_disk(tmp_path / "all.pt")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["all.rank0.pt", "all.rank1.pt"]
    before = weights(ranks[1])
    ranks[1].perturb_self_weights(3, 0.5)
    ranks[1].load_weights_from_disk(tmp_path / "all.pt")
    assert same(weights(ranks[1]), before)


def test_another_engines_file_is_refused_before_a_weight_changes(tmp_path: Path) -> None:
    one = worker()
    before = weights(one)
    torch.save({**before, "model.norm.weight": torch.zeros(3)}, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"hold 'model.norm.weight' with shape \(16,\), got \(3,\)"):
        one.load_weights_from_disk(tmp_path / "a.pt")
    torch.save({**before, "more": torch.zeros(3)}, tmp_path / "b.pt")
    with pytest.raises(ValueError, match=r"must hold 'more' with shape None, got \(3,\)"):
        one.load_weights_from_disk(tmp_path / "b.pt")
    assert same(weights(one), before)


def test_initial_weights_are_apart_from_the_base() -> None:
    one = worker()
    initial = weights(one)
    assert one.save_self_initial_weights() is True
    one.update_weights_from_seeds([1], [1.0], 0.5, 1)
    one.perturb_self_weights(3, 0.5)
    assert one.restore_self_initial_weights() is True
    assert same(weights(one), initial)
    one.perturb_self_weights(3, 0.5)
    one.restore_self_weights(3, 0.5)
    assert same(weights(one), initial)
    with pytest.raises(RuntimeError, match="save_self_initial_weights must be called before"):
        one.restore_self_initial_weights()


class Communicator:
    """As vLLM's, between engines of one process: what the source sends is there for the others."""

    sent: dict[tuple[str, int, int], Tensor]

    def __init__(self, group: tuple[str, int, int, int], device: torch.device) -> None:
        self.host, self.port, self.rank, _ = group
        self.count = 0

    def broadcast(self, tensor: Tensor, src: int, stream: object) -> None:
        key = (self.host, self.port, self.count)
        self.count += 1
        if self.rank == src:
            self.sent[key] = tensor.clone()
        else:
            tensor.copy_(self.sent[key])


@pytest.fixture
def vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    """The two classes of vLLM that engines communicate by."""
    Communicator.sent = {}
    names = ["vllm", "vllm.distributed", "vllm.distributed.device_communicators"]
    modules = {name: ModuleType(name) for name in names}
    modules["vllm.distributed.device_communicators.pynccl"] = pynccl = ModuleType("pynccl")
    modules["vllm.distributed.utils"] = utils = ModuleType("utils")
    pynccl.PyNcclCommunicator = Communicator  # type: ignore[attr-defined]
    utils.StatelessProcessGroup = SimpleNamespace(  # type: ignore[attr-defined]
        create=lambda host, port, rank, world_size: (host, port, rank, world_size)
    )
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)


def test_engines_take_the_weights_of_one(vllm: None) -> None:
    engines = [worker(seed) for seed in range(3)]
    for rank, one in enumerate(engines):
        assert one.init_inter_engine_group("host", 1234, rank, 3) is True
    engines[1].perturb_self_weights(3, 0.5)
    engines[2].perturb_self_weights(4, 0.5)
    source = weights(engines[1])
    for rank in (1, 0, 2):
        assert engines[rank].broadcast_all_weights(1) is True
    for one in engines:
        assert same(weights(one), source)
        one.perturb_self_weights(5, 0.5)
        one.restore_self_weights(5, 0.5)
        assert same(weights(one), source)


def test_tensor_parallel_ranks_meet_at_ports_of_their_own(vllm: None) -> None:
    ranks = [extended(WorkerExtension, engine(), rank=rank, world_size=2) for rank in (0, 1)]
    for one in ranks:
        one.init_inter_engine_group("host", "1234", 0, 2)
    assert [one.inter_pg.port for one in ranks] == [1234, 1235]


class Multimodal(nn.Module):
    """A vision-language model as vLLM has it: the language model, and a tower that nothing names."""

    def __init__(self) -> None:
        super().__init__()
        self.visual = Norm(4, torch.float32)
        self.visual.odd = parameter(4, 4, dtype=torch.float32)
        self.language_model = engine()

    def get_language_model(self) -> nn.Module:
        return self.language_model


def changed(one: Any) -> set[str]:
    before = weights(one)
    one.perturb_self_weights(3, 0.5)
    return {name for name, tensor in weights(one).items() if not torch.equal(tensor, before[name])}


def test_the_vision_tower_is_left_alone_unless_asked() -> None:
    language = {f"language_model.{name}" for name, _ in engine().named_parameters()}
    assert changed(extended(WorkerExtension, Multimodal())) == language
    all_of_it = type("All", (WorkerExtension,), {"perturb_visual": True})
    with pytest.raises(ValueError, match=r"'visual.odd' is: Norm is no layer .*, or exclude it"):
        changed(extended(all_of_it, Multimodal()))
    named = type("Named", (all_of_it,), {"exclude": "visual.odd"})
    assert changed(extended(named, Multimodal())) == language | {"visual.weight"}


def test_padding_keeps_its_values() -> None:
    one = worker()
    before = weights(one)["lm_head.weight"]
    one.perturb_self_weights(3, 0.5)
    after = weights(one)["lm_head.weight"]
    assert torch.equal(after[20:], before[20:])
    assert not torch.equal(after[:20], before[:20])


def test_errors_come_before_any_change() -> None:
    one = worker()
    before = weights(one)
    with pytest.raises(ValueError, match=r"seeds must be in 0 <= seed < 2\*\*64, got -1"):
        one.perturb_self_weights(-1, 0.5)
    with pytest.raises(TypeError, match=r"seed must be an integer, got 1\.5"):
        one.perturb_self_weights(1.5, 0.5)
    with pytest.raises(ValueError, match="population_size must be at least 1, got 0"):
        one.update_weights_from_seeds([1], [0.5], 0.5, 0)
    with pytest.raises(ValueError, match="sigmas must be finite in float32, got nan"):
        one.apply_perturbation(1, float("nan"))
    with pytest.raises(RuntimeError, match=r"seed 4 must be active to be restored, active are \[\]"):
        one.restore_self_weights(4, 0.5)
    one.perturb_self_weights(3, 0.5)
    with pytest.raises(RuntimeError, match=r"seed 4 must be active .*, active are \[\(3, 0.5\)\]"):
        one.restore_self_weights(4, 0.5)
    with pytest.raises(RuntimeError, match=r"no perturbation must be active, active are \[\(3, 0.5\)\]"):
        one.check_names("nowhere")
    one.restore_self_weights(3, 0.5)
    one.perturb_self_weights(3, 3e38)
    with pytest.raises(ValueError, match=r"sigmas must be finite in float32, got 6e\+38"):
        one.perturb_self_weights(3, 3e38)
    one.restore_self_weights(3, 3e38)
    with pytest.raises(ValueError, match="weights must be one per member, got 1 for 2 members"):
        one.apply_averaged_perturbations([(1, 0.5), (2, 0.5)], [1.0])
    with pytest.raises(ValueError, match="weights must be one per member, got 0 for 0 members"):
        one.apply_averaged_perturbations([])
    with pytest.raises(ValueError, match=r"weights must not sum to 0, got \[1.0, -1.0\]"):
        one.apply_averaged_perturbations([(1, 0.5), (2, 0.5)], [1, -1])
    with pytest.raises(ValueError, match=r"sigmas must be \[N=2\], got \(1,\)"):
        one.update_weights_from_seeds([1, 2], [0.5], 0.5, 2)
    assert same(weights(one), before)
    for setting, value, message in [
        ("base_on", "disk", "base_on must be 'device' or 'host', got 'disk'"),
        ("noise", "white", "noise must be .*, got 'white'"),
        ("exclude", "no.such", "exclude must match a parameter .*, got 'no.such'"),
        ("exclude", "*", "segments must be of one parameter at least, got none"),
    ]:
        with pytest.raises(ValueError, match=message):
            worker(**{setting: value}).perturb_self_weights(1, 0.5)


def test_names_are_checked_against_the_checkpoint(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(CONFIG).to(torch.bfloat16)
    model.save_pretrained(tmp_path)
    one = extended(WorkerExtension, Engine(CONFIG).load_weights(model.state_dict()))
    assert one.check_names(str(tmp_path)) is True
    one.perturb_self_weights(3, 0.5)
    one.store_base_weights()
    with pytest.raises(ValueError, match="but holds other values"):
        one.check_names(str(tmp_path))


def test_one_kernel_is_launched_per_block(monkeypatch: pytest.MonkeyPatch) -> None:
    names: list[str] = []
    perturb_ = weights_module.perturb_

    def counted(*args: Any, **rest: Any) -> Tensor:
        names.append(rest["name"])
        return perturb_(*args, **rest)

    monkeypatch.setattr(weights_module, "perturb_", counted)
    one = worker()
    one.perturb_self_weights(3, 0.5)
    assert sorted(names) == sorted(transformers.LlamaForCausalLM(CONFIG).state_dict())
    one.restore_self_weights(3, 0.5)
    assert len(names) == len(set(names))


def test_what_is_undone_leaves_no_trace_where_sums_of_floats_would() -> None:
    one = {"a": torch.zeros(8, 8)}
    live = LiveWeights(one, {"a": [Segment("a")]})
    live.add(1, 0.1)
    live.add(1, 0.2)
    live.remove(1, 0.2)
    live.remove(1, 0.1)
    assert live.active == []
    assert (one["a"] == 0).all()


def test_noise_differs_from_block_to_block() -> None:
    ones = {"a": torch.zeros(8, 8), "b": torch.zeros(8, 8)}
    LiveWeights(ones, {name: [Segment(name)] for name in ones}).add(1, 1.0)
    assert not (ones["a"] == ones["b"]).any()


@pytest.mark.gpu
@BOTH
def test_cycles_on_a_gpu_wait_for_nothing(base_on: str) -> None:
    one, two = worker(base_on=base_on), worker()
    one.model_runner.model.cuda()

    def cycle(some: Any) -> None:
        some.perturb_self_weights(3, 0.5)
        some.restore_self_weights(3, 0.5)
        some.apply_averaged_perturbations([(1, 0.5), (2, 0.5)])

    cycle(two)
    cycle(one)  # compiles, and makes the copy of the base
    torch.cuda.set_sync_debug_mode("error")
    try:
        cycle(one)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert_near({name: tensor.cpu() for name, tensor in weights(one).items()}, weights(two))
