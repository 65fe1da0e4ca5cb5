"""The model card of an adapter."""

from dts import __version__


def card(config: dict) -> str:
    """README.md from the content of ``dts_config.json``."""
    base, task = config["base"], config["task"]
    kinds: dict[str, int] = {}
    for row in config["tensors"].values():
        kind = "task only" if row.get("task_only") else row["kind"]
        kinds[kind] = kinds.get(kind, 0) + 1
    rate = 4 * config["amr"] / config["base"]["bytes_per_element"]
    lines = [
        "---", "tags: [dts, adapter]", f"base_model: {base['name']}", "---",
        f"# {task['name']}", "",
        task["description"] or f"A full fine-tune of {base['name']}, stored as its difference.", "",
        f"- classes: {', '.join(task['class_names']) if task['class_names'] else 'not named'}",
        f"- base: {base['name']}, {base['parameters']:,} parameters, {base['dtype']}, "
        f"fingerprint `{base['fingerprint']}`",
        f"- {config['bytes']:,} bytes: {config['amr']:.3%} of the base in fp32, {rate:.3%} of it in {base['dtype']}",
        f"- method: {config['method']}; squared error of the whole difference: {show(config['squared_error'])}"
        + note(config["method"]),
        f"- tensors: {', '.join(f'{count} {kind}' for kind, count in kinds.items()) or 'none'}; "
        f"{len(config['dropped'])} left at the base",
        f"- made by dts {__version__}", "",
        "```python", "import dts", "",
        f'adapters = {{"{task["name"]}": "path/to/this/folder"}}',
        f'model = dts.DTSModel.from_pretrained("{base["name"]}", adapters=adapters)',
        f'model.set_task("{task["name"]}")', "```",
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def note(method: str) -> str:
    """What explains an adapter's squared error."""
    return ", mostly the sketch's noise" if method == "sketch" else ""


def show(error: float | None) -> str:
    return "not known" if error is None else f"{error:.4f}"
