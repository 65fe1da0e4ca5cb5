"""Where tensors of a checkpoint are in a model: by their names, their base's, and prefixes that change together."""

from dataclasses import dataclass

from dts.sites import Target, resolve


@dataclass
class Stored:
    base_name: str | None = None
    shape: tuple[int, ...] = (2, 3)
    task_only: bool = False


KNOWN = ["bert.layer.0.weight", "bert.layer.1.weight", "head.weight", "other.layer.0.weight"]


def found(tensors: dict, rename=Target) -> tuple[dict, list]:
    wrong: list[str] = []
    targets = resolve(tensors, KNOWN, rename, wrong)
    return {name: target.name for name, target in targets.items()}, wrong


def test_a_name_goes_before_the_base_s():
    tensors = {"head.weight": Stored("bert.layer.0.weight"), "mine": Stored("bert.layer.1.weight")}
    assert found(tensors) == ({"head.weight": "head.weight", "mine": "bert.layer.1.weight"}, [])


def test_a_prefix_is_the_one_that_most_tensors_need():
    tensors = {f"layer.{i}.weight": Stored() for i in (0, 1)}
    assert found(tensors)[0] == {name: f"bert.{name}" for name in tensors}
    assert found({f"wrapped.{name}": Stored() for name in KNOWN[:2]})[0] == {f"wrapped.{n}": n for n in KNOWN[:2]}


def test_a_loader_s_name_keeps_its_part():
    wrong: list[str] = []
    rename = lambda name: Target(name.replace("q", "weight"), expert=1, part=2, parts=3)  # noqa: E731
    targets = resolve({"layer.1.q": Stored()}, KNOWN, rename, wrong)
    assert targets == {"layer.1.q": Target("bert.layer.1.weight", 1, 2, 3)} and not wrong


def test_what_has_no_place_is_named():
    targets, wrong = found({"pooler.weight": Stored(), "score.weight": Stored(task_only=True)})
    assert targets == {} and [line.split(":")[0] for line in wrong] == ["pooler.weight [2, 3]", "score.weight [2, 3]"]
    assert "heads=False" in wrong[1] and "heads=False" not in wrong[0]
