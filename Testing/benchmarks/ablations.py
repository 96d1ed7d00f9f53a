"""The paper's claims at our scale: one table per claim, from short adapt runs on a frozen base.

    python Testing/benchmarks/ablations.py --base BASE.safetensors --data PACK --out runs/ablations [TABLE...]

Every variant is trained from the same base, config and seeds, and evaluated on the same test images; finished variants
are kept in ``--out`` and not run again. The tables are written to ``Testing/benchmarks/ablations.md``.
"""

from __future__ import annotations

import json
import zlib
from dataclasses import replace
from pathlib import Path

import click
import numpy as np

from SegMoTELib.data.curate import curate
from SegMoTELib.data.pack import open_packs
from SegMoTELib.data.sources import open_sources
from SegMoTELib.evaluation.evaluate import evaluate
from SegMoTELib.interaction.predictor import Predictor
from SegMoTELib.network import AutoTarget, load_checkpoint
from SegMoTELib.training.config import Phase, TrainingConfig
from SegMoTELib.training.trainer import Trainer

ADAPTED = ("kvasir_polyp", "isic17_lesion", "fetalhead_us", "hippo_mr", "cord_mr", "spleen2_ct", "sts_pet",
           "carotid_us")
LEFT_OUT = ("busbra_us", "brisc_mr", "heart_mr", "lungpatch_ct")
TARGETS = tuple(AutoTarget(f"{code} {value}", sources=(f"{code}:{value}",))
                for code, value in [("kvasir_polyp", 1), ("isic17_lesion", 1), ("fetalhead_us", 1), ("hippo_mr", 1),
                                    ("hippo_mr", 2), ("cord_mr", 1), ("spleen2_ct", 1), ("sts_pet", 1),
                                    ("carotid_us", 1)])
RESULTS = Path(__file__).with_name("ablations.md")

# Table -> title, variants: name -> changes of the training config ("model": of the adapters); None = no training.
TABLES: dict[str, tuple[str, dict[str, dict | None]]] = {
    "claims": ("Frozen base, + MoTE, + MoTE + PPT", {
        "frozen base": None, "+ MoTE": {"auto_share": 0.0}, "+ MoTE + PPT": {}}),
    "experts": ("Number of experts E", {
        "E = 1": {"model": {"experts": 1}}, "E = 2": {"model": {"experts": 2}}, "E = 4": {},
        "E = 8": {"model": {"experts": 8}}}),
    "gating": ("Router: learned gate, or the released code's gate, which gets no gradient from the masks", {
        "learned": {}, "reference": {"model": {"gating": "reference"}}}),
    "balance": ("Load-balance loss", {"0.01": {}, "none": {"balance_weight": 0.0}}),
    "prompt_tokens": ("Prompt tokens Q per auto target", {
        "Q = 0": {"auto_share": 0.0, "model": {"prompt_tokens": 0}}, "Q = 2": {"model": {"prompt_tokens": 2}},
        "Q = 8": {}}),
    "annotations": ("Annotated images used", {
        "1 %": {"image_share": 0.01}, "10 %": {"image_share": 0.1}, "100 %": {}}),
    "review": ("Quality review, at the same number of images", {
        "reviewed": {"data": "reviewed"}, "unreviewed": {"data": "unreviewed"}}),
}


class Study:
    """Trains and evaluates variants.

    Args:
        base: checkpoint of the frozen base. data: folder of packs. out: where runs and results are kept.
        steps, size, seeds, limit: training steps and image side, seeds per variant, test images per data set.
    """

    def __init__(self, base: Path, data: Path, out: Path, steps: int, size: int, seeds: int, limit: int) -> None:
        self.base, self.data, self.out = base, data, out
        self.seeds, self.limit = seeds, limit
        self.config = TrainingConfig(
            stage="adapt", start=str(base), data=tuple(str(data / code) for code in ADAPTED),
            phases=(Phase(size, steps, 8, 2),), auto_targets=TARGETS, learning_rate=1e-3, warmup_steps=10,
            average=0.97, validate_every=steps + 1, checkpoint_every=steps + 1)

    def row(self, changes: dict | None) -> dict[str, tuple[float, float]]:
        """Column -> mean and standard deviation over seeds of the macro-mean Dice."""
        runs = [self._result(changes, seed) for seed in range(1 if changes is None else self.seeds)]
        return {column: (float(np.mean([run[column] for run in runs])), float(np.std([run[column] for run in runs])))
                for column in runs[0]}

    def experts_by_modality(self, seed: int = 0) -> dict[str, np.ndarray]:
        """Modality -> (E,) mean router probability over the test targets, prompted with boxes."""
        predictor = self._predictor({}, seed)
        seen: dict[str, list[np.ndarray]] = {}
        for pack in open_packs([self.data / code for code in ADAPTED + LEFT_OUT]):
            for sample in list(pack.samples("test"))[:self.limit]:
                rows, columns = np.nonzero(sample.load_label())
                if len(rows) == 0:
                    continue
                predictor.set_image(sample.load_image(), None)
                predictor.predict(box=np.array([columns.min(), rows.min(), columns.max(), rows.max()]),
                                  multimask_output=False)
                seen.setdefault(pack.info["modality"], []).append(predictor.expert_view().token_probabilities)
        return {modality: np.mean(values, axis=0) for modality, values in seen.items()}

    def _result(self, changes: dict | None, seed: int) -> dict[str, float]:
        name = json.dumps([changes, seed if changes is not None else 0])
        store = self.out / "results.json"
        known = json.loads(store.read_text(encoding="utf-8")) if store.is_file() else {}
        if name not in known:
            known[name] = self._measure(self._predictor(changes, seed))
            store.write_text(json.dumps(known, indent=1), encoding="utf-8")
        return known[name]

    def _predictor(self, changes: dict | None, seed: int) -> Predictor:
        if changes is None:
            model = load_checkpoint(self.base)
            model.adapters_trained = False
            return Predictor(model, "cpu")
        changes = dict(changes)
        if "data" in changes:
            changes.update(self._reviewed_or_not(changes["data"]))
        config = replace(self.config, seed=seed, **changes)
        folder = self.out / f"run-{zlib.crc32(repr(config).encode()):08x}"
        return Predictor(Trainer(config, folder).run(progress=False), "cpu")

    def _reviewed_or_not(self, which: str) -> dict:
        folders = {name: self.out / name for name in ("reviewed", "unreviewed")}
        for name, folder in folders.items():
            if not folder.is_dir():
                sources = open_sources([self.data / code for code in ADAPTED], "pack", (40.0, 400.0))
                curate(sources, folder, review=name == "reviewed")
        counts = {name: sum(len(pack.info["splits"]["train"]) for pack in open_packs([folder]))
                  for name, folder in folders.items()}
        return {"data": (str(folders[which]),), "image_share": min(counts.values()) / counts[which]}

    def _measure(self, predictor: Predictor) -> dict[str, float]:
        columns = {}
        for where, codes in (("adapted", ADAPTED), ("left out", LEFT_OUT)):
            found = evaluate(open_packs([self.data / code for code in codes]), predictor, "test", baselines=False,
                             limit=self.limit)
            for row in found.summary():
                wanted = {"box": "box", "click1": "1 click", "click5": "5 clicks", "auto": "auto"}
                if row.level == "overall" and row.mode in wanted and "dice" in row.metrics:
                    columns[f"{where}, {wanted[row.mode]}"] = row.metrics["dice"].mean
        return columns


def format_table(title: str, rows: dict[str, dict[str, tuple[float, float]]], seeds: int) -> str:
    """Markdown: a line per variant, Dice as mean, of several seeds with their standard deviation."""
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    lines = [f"## {title}", "", f"| | {' | '.join(columns)} |", f"|---|{'---|' * len(columns)}"]
    for name, row in rows.items():
        cells = [f"{row[c][0]:.3f}" + (f" ± {row[c][1]:.3f}" if seeds > 1 else "") if c in row else "-"
                 for c in columns]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


@click.command()
@click.argument("tables", nargs=-1, type=click.Choice([*TABLES, "heatmap"]))
@click.option("--base", required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--data", required=True, type=click.Path(exists=True, path_type=Path), help="Folder of packs.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Runs and results are kept here.")
@click.option("--steps", default=100, show_default=True)
@click.option("--size", default=128, show_default=True)
@click.option("--seeds", default=1, show_default=True)
@click.option("--limit", default=8, show_default=True, help="Test images per data set.")
def main(tables: tuple[str, ...], base: Path, data: Path, out: Path, steps: int, size: int, seeds: int,
         limit: int) -> None:
    """Print the tables (all by default) and write them next to this script."""
    out.mkdir(parents=True, exist_ok=True)
    study = Study(base, data, out, steps, size, seeds, limit)
    done = []
    for table in tables or [*TABLES, "heatmap"]:
        if table == "heatmap":
            done.append(draw_heatmap(study.experts_by_modality(), RESULTS.with_name("experts.png")))
        else:
            title, variants = TABLES[table]
            done.append(format_table(title, {name: study.row(changes) for name, changes in variants.items()}, seeds))
        click.echo(done[-1])
    if not tables:
        head = (f"# The claims at our scale\n\nMacro-mean Dice on {limit} test images per data set; {steps} adapt "
                f"steps at {size} px, {seeds} seed(s).\nAdapted on: {', '.join(ADAPTED)}.\nLeft out of adapting (the "
                f"base has seen them): {', '.join(LEFT_OUT)}.\n\nReprinted by `python Testing/benchmarks/ablations.py "
                f"--base BASE --data PACK --out runs/ablations --steps {steps} --size {size} --seeds {seeds} "
                f"--limit {limit}`.\n\n")
        RESULTS.write_text(head + "\n".join(done), encoding="utf-8")


def draw_heatmap(probabilities: dict[str, np.ndarray], path: Path) -> str:
    """Draw which modality activates which expert; returns the same as markdown."""
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    table = np.stack(list(probabilities.values()))
    figure, axis = plt.subplots(figsize=(1.5 + 0.7 * table.shape[1], 1 + 0.35 * len(table)))
    drawn = axis.imshow(table, vmin=0, vmax=1, cmap="viridis", aspect="auto")
    axis.set_yticks(range(len(table)), list(probabilities))
    axis.set_xticks(range(table.shape[1]), [f"expert {e + 1}" for e in range(table.shape[1])])
    figure.colorbar(drawn, label="mean router probability")
    figure.savefig(path, bbox_inches="tight", dpi=120)
    plt.close(figure)
    lines = ["## Which modality activates which expert", "", f"![router probabilities]({path.name})", "",
             f"| | {' | '.join(f'expert {e + 1}' for e in range(table.shape[1]))} |", f"|---|{'---|' * table.shape[1]}"]
    lines += [f"| {name} | {' | '.join(f'{p:.2f}' for p in row)} |" for name, row in probabilities.items()]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
