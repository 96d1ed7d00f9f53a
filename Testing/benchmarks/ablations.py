"""The paper's claims at our scale: one table per claim, from short adapt runs on a frozen base.

    segmote train Testing/benchmarks/held-out-base.yaml -o runs/held-out
    python Testing/benchmarks/ablations.py --base runs/held-out/model.safetensors --data PACK --out runs/ablations

The base of ``held-out-base.yaml`` has seen none of the data sets that the study uses. Every variant is trained from the
same base, config and seeds, and evaluated on the same test images. The base's embeddings are computed once for all
runs. Whatever is finished is kept in ``--out`` and not done again, so a run that was stopped goes on when it is called
again. The tables are written to ``Testing/benchmarks/ablations.md``; what they say is written by hand and has to be
written anew.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import click
import numpy as np
from scipy.stats import entropy

from SegMoTELib.data.curate import curate
from SegMoTELib.data.pack import Pack, open_packs
from SegMoTELib.data.sources import open_sources
from SegMoTELib.evaluation.baselines import PromptedModel
from SegMoTELib.evaluation.clicks import simulate_clicks, tight_box
from SegMoTELib.evaluation.metrics import dice
from SegMoTELib.evaluation.targets import find_auto_targets, find_targets
from SegMoTELib.interaction.embeddings import EmbeddingCache
from SegMoTELib.interaction.predictor import Predictor
from SegMoTELib.network import AutoTarget, SegMoTE, load_checkpoint
from SegMoTELib.training.config import Phase, TrainingConfig
from SegMoTELib.training.dataset import TrainingData
from SegMoTELib.training.step import InteractiveStep
from SegMoTELib.training.trainer import Trainer

ADAPTED = ("kvasir_polyp", "isic17_lesion", "fetalhead_us", "hippo_mr", "cord_mr", "spleen2_ct", "sts_pet",
           "carotid_us")
LEFT_OUT = ("busbra_us", "brisc_mr", "heart_mr", "lungpatch_ct")
TARGETS = tuple(AutoTarget(f"{code} {value}", sources=(f"{code}:{value}",))
                for code, value in [("kvasir_polyp", 1), ("isic17_lesion", 1), ("fetalhead_us", 1), ("hippo_mr", 1),
                                    ("hippo_mr", 2), ("cord_mr", 1), ("spleen2_ct", 1), ("sts_pet", 1),
                                    ("carotid_us", 1)])
CLICKS = 5
CACHE_BYTES = {"training": 4 << 30, "testing": 1 << 30}
RESULTS = Path(__file__).with_name("ablations.md")

# Table -> title, variants: name -> changes of the training config ("model": of the adapters); None = no training.
TABLES: dict[str, tuple[str, dict[str, dict | None]]] = {
    "claims": ("Frozen base, + MoTE, + PPT, + domain experts", {
        "frozen base": None, "+ MoTE": {"auto_share": 0.0, "model": {"domains": ()}},
        "+ MoTE + PPT": {"model": {"domains": ()}}, "+ MoTE + PPT + domain experts": {}}),
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
ROUTERS: dict[str, dict] = {"learned": {}, "reference": {"model": {"gating": "reference"}},
                            "learned, no balance loss": {"balance_weight": 0.0}}


class SharingTrainer(Trainer):
    """A trainer whose frozen embeddings come from a cache that all runs share."""

    def __init__(self, config: TrainingConfig, folder: Path, cache: EmbeddingCache) -> None:
        super().__init__(config, folder)
        self.cache = cache

    def _wrapped(self) -> InteractiveStep:
        module = super()._wrapped()
        module.embeddings = self.cache
        return module


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
        self.fingerprint = hashlib.sha256(base.read_bytes()).hexdigest()[:12]
        self.training, self.testing = (EmbeddingCache(CACHE_BYTES[use]) for use in ("training", "testing"))
        self.images: dict[tuple, TrainingData] = {}

    def row(self, changes: dict | None) -> dict[str, tuple[float, float]]:
        """Column -> mean and standard deviation over seeds of the macro-mean Dice."""
        runs = [self._result("dice", changes, seed) for seed in range(1 if changes is None else self.seeds)]
        return {column: (float(np.mean([run[column] for run in runs])), float(np.std([run[column] for run in runs])))
                for column in runs[0]}

    def routing(self, changes: dict) -> list[dict]:
        """What ``_route`` found, a dict per seed."""
        return [self._result("routing", changes, seed) for seed in range(self.seeds)]

    def _result(self, what: str, changes: dict | None, seed: int) -> dict:
        """One finished measurement, from the store or made now."""
        config = None if changes is None else self._config(changes, seed)
        name = json.dumps([what, changes, seed, self.limit, self.fingerprint, _digest(config or self.config)])
        store = self.out / "results.json"
        known = json.loads(store.read_text(encoding="utf-8")) if store.is_file() else {}
        if name not in known:
            predictor = Predictor(self._model(config), "cpu", cache=self.testing)
            known[name] = {"dice": self._measure, "routing": self._route}[what](predictor)
            store.with_suffix(".part").write_text(json.dumps(known, indent=1), encoding="utf-8")
            os.replace(store.with_suffix(".part"), store)
        return known[name]

    def _config(self, changes: dict, seed: int) -> TrainingConfig:
        changes = dict(changes)
        if "data" in changes:
            changes.update(self._reviewed_or_not(changes["data"]))
        return replace(self.config, seed=seed, **changes)

    def _model(self, config: TrainingConfig | None) -> SegMoTE:
        """The trained variant, or the base without adapters."""
        if config is None:
            model = load_checkpoint(self.base)
            model.adapters_trained = False
            return model
        folder = self.out / f"run-{self.fingerprint}-{_digest(config)}"
        if (folder / "model.safetensors").is_file():
            return load_checkpoint(folder / "model.safetensors")
        click.echo(f"  training {folder.name}", err=True)
        trainer = SharingTrainer(config, folder, self.training)
        key = (config.data, config.image_share, config.seed if config.image_share < 1 else None)
        place = ("train", config.phases[0].size)
        if key in self.images:
            trainer.data[place] = self.images[key]
        model = trainer.run(progress=False)
        if place in trainer.data:
            self.images[key] = trainer.data[place]
        return model

    def _reviewed_or_not(self, which: str) -> dict:
        folders = {name: self.out / name for name in ("reviewed", "unreviewed")}
        for name, folder in folders.items():
            if not folder.is_dir():
                sources = open_sources([self.data / code for code in ADAPTED], "pack", (40.0, 400.0))
                curate(sources, folder, review=name == "reviewed")
        counts = {name: sum(len(pack.info["splits"]["train"]) for pack in open_packs([folder]))
                  for name, folder in folders.items()}
        return {"data": (str(folders[which]),), "image_share": min(counts.values()) / counts[which]}

    def _samples(self, codes: tuple[str, ...]) -> Iterator[tuple[Pack, np.ndarray, np.ndarray, np.ndarray | None]]:
        """Pack, image, label and instances of the test images."""
        for pack in open_packs([self.data / code for code in codes]):
            for sample in list(pack.samples("test"))[:self.limit]:
                yield pack, sample.load_image(), sample.load_label(), sample.load_instances()

    def _measure(self, predictor: Predictor) -> dict[str, float]:
        """Column -> Dice, mean over data sets of the mean over targets."""
        model = PromptedModel(predictor)
        columns = {}
        for where, codes in (("adapted", ADAPTED), ("left out", LEFT_OUT)):
            found: dict[str, dict[str, list[float]]] = {}
            for number, (pack, image, label, instances) in enumerate(self._samples(codes)):
                model.set_image(image)
                for mode, value in _dice_of_targets(model, predictor, pack, label, instances, number):
                    found.setdefault(mode, {}).setdefault(pack.code, []).append(value)
            columns |= {f"{where}, {mode}": float(np.mean([np.mean(values) for values in sets.values()]))
                        for mode, sets in found.items()}
        return columns

    def _route(self, predictor: Predictor) -> dict:
        """Modality -> (E,) mean probabilities of the last layer's router for the token that gave the mask, for boxes
        around all that is labelled; and how much the expert it chose tells about the modality (see ``shared_share``).
        """
        probabilities: dict[str, list[np.ndarray]] = {}
        chosen = []
        for pack, image, label, _ in self._samples(ADAPTED + LEFT_OUT):
            if not label.any():
                continue
            predictor.set_image(image)
            predictor.predict(box=np.array(tight_box(label > 0)), multimask_output=False)
            view = predictor.expert_view()
            probabilities.setdefault(pack.modality, []).append(view.gate_probabilities[-1][view.selected])
            chosen.append((pack.modality, int(view.routing[-1][view.selected])))
        return {"probabilities": {modality: np.mean(rows, axis=0).tolist() for modality, rows in probabilities.items()},
                "share": shared_share(chosen)}


def _dice_of_targets(model: PromptedModel, predictor: Predictor, pack: Pack, label: np.ndarray,
                     instances: np.ndarray | None, seed: int) -> Iterator[tuple[str, float]]:
    """(mode, Dice) of all targets of the current image."""
    for target in find_targets(label, pack.labels, instances, (seed,))[0]:
        yield "box", dice(model.from_boxes([tight_box(target.mask)]), target.mask)
        steps = simulate_clicks(model.from_clicks, target.mask, CLICKS, CLICKS, 1.0)
        yield "1 click", steps[0].dice
        yield f"{CLICKS} clicks", steps[-1].dice
    for target in find_auto_targets(label, pack, predictor.auto_targets):
        yield "auto", dice(predictor.predict_auto(target.name)[0][0], target.mask)


def shared_share(pairs: list[tuple[str, int]]) -> float:
    """Mutual information of modality and expert over the entropy of the modality: 0 = independent, 1 = it tells."""
    modalities, experts = (np.unique(column, return_inverse=True)[1] for column in zip(*pairs, strict=True))
    joint = np.zeros((modalities.max() + 1, experts.max() + 1))
    np.add.at(joint, (modalities, experts), 1 / len(pairs))
    together = entropy(joint.sum(axis=0)) + entropy(joint.sum(axis=1)) - entropy(joint.ravel())
    return float(together / max(entropy(joint.sum(axis=1)), 1e-12))


def _digest(config: TrainingConfig) -> str:
    return hashlib.sha256(repr(config).encode()).hexdigest()[:12]


def format_table(title: str, rows: dict[str, dict[str, tuple[float, float]]], seeds: int) -> str:
    """Markdown: a line per variant, Dice as mean, of several seeds with their standard deviation."""
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    lines = [f"## {title}", "", f"| | {' | '.join(columns)} |", f"|---|{'---|' * len(columns)}"]
    for name, row in rows.items():
        cells = [f"{row[c][0]:.3f}" + (f" ± {row[c][1]:.3f}" if seeds > 1 else "") if c in row else "-"
                 for c in columns]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def format_routing(study: Study, picture: Path) -> str:
    """Markdown and the heat map: which modality activates which expert, of the first seed, and how far, of all."""
    found = {name: study.routing(changes) for name, changes in ROUTERS.items()}
    probabilities = {modality: np.array(row) for modality, row in found["learned"][0]["probabilities"].items()}
    draw_heatmap(probabilities, picture)
    experts = len(next(iter(probabilities.values())))
    lines = ["## Which modality activates which expert", "",
             "Mean probabilities of the last layer's router for the token that gave the mask, first seed (experts have",
             "no order, so seeds cannot be averaged).", "", f"![router probabilities]({picture.name})", "",
             f"| | {' | '.join(f'expert {e + 1}' for e in range(experts))} |", f"|---|{'---|' * experts}"]
    lines += [f"| {name} | {' | '.join(f'{p:.2f}' for p in row)} |" for name, row in probabilities.items()]
    lines += ["", "How much the chosen expert tells about the modality: mutual information over the modality's",
              "entropy, 0 to 1.", "", "| router | share |", "|---|---|"]
    for name, runs in found.items():
        shares = [run["share"] for run in runs]
        lines.append(f"| {name} | {np.mean(shares):.2f}" + (f" ± {np.std(shares):.2f} |" if len(shares) > 1 else " |"))
    return "\n".join(lines) + "\n"


def seen_by(base: Path) -> str:
    """Which of the study's data sets the base was trained on, in words, from what its file says."""
    trained_on = json.loads(load_checkpoint(base).metadata.get("training_data", "null"))
    if trained_on is None:
        return "nobody knows which: its file does not say"
    codes = ADAPTED + LEFT_OUT
    seen = [code for code in codes if code in trained_on]
    return {0: "none", len(codes): "all"}.get(len(seen), ", ".join(seen))


def draw_heatmap(probabilities: dict[str, np.ndarray], path: Path) -> None:
    """Draw modality by expert into a PNG."""
    from matplotlib.figure import Figure

    table = np.stack(list(probabilities.values()))
    figure = Figure(figsize=(1.5 + 0.7 * table.shape[1], 1 + 0.35 * len(table)))
    axis = figure.subplots()
    drawn = axis.imshow(table, vmin=0, vmax=1, cmap="viridis", aspect="auto")
    axis.set_yticks(range(len(table)), list(probabilities))
    axis.set_xticks(range(table.shape[1]), [f"expert {e + 1}" for e in range(table.shape[1])])
    figure.colorbar(drawn, label="mean router probability")
    figure.savefig(path, bbox_inches="tight", dpi=120)


@click.command()
@click.argument("tables", nargs=-1, type=click.Choice([*TABLES, "routing"]))
@click.option("--base", required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--data", required=True, type=click.Path(exists=True, path_type=Path), help="Folder of packs.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Runs and results are kept here.")
@click.option("--steps", default=80, show_default=True)
@click.option("--size", default=128, show_default=True)
@click.option("--seeds", default=1, show_default=True)
@click.option("--limit", default=5, show_default=True, help="Test images per data set.")
@click.option("--results", default=RESULTS, show_default=True, type=click.Path(path_type=Path),
              help="Where all tables together are written, the heat map beside.")
def main(tables: tuple[str, ...], base: Path, data: Path, out: Path, steps: int, size: int, seeds: int,
         limit: int, results: Path) -> None:
    """Print the tables, all by default, and write all of them into one file."""
    out.mkdir(parents=True, exist_ok=True)
    study = Study(base, data, out, steps, size, seeds, limit)
    done = []
    for table in tables or [*TABLES, "routing"]:
        if table == "routing":
            done.append(format_routing(study, results.with_name("experts.png")))
        else:
            title, variants = TABLES[table]
            done.append(format_table(title, {name: study.row(changes) for name, changes in variants.items()}, seeds))
        click.echo(done[-1])
    if not tables:
        head = (f"# The paper's claims at our scale\n\nMacro-mean Dice on {limit} test images per data set; {steps} "
                f"adapt steps at {size} px, {seeds} seed{'s' * (seeds > 1)}.\nAdapted on: {', '.join(ADAPTED)}.\n"
                f"Left out of adapting: {', '.join(LEFT_OUT)}.\nOf these the base has seen {seen_by(base)}.\n\n"
                f"Reprinted by `python Testing/benchmarks/ablations.py --base BASE --data PACK --out runs/ablations "
                f"--steps {steps} --size {size} --seeds {seeds} --limit {limit}`.\n\n")
        results.write_text(head + "\n".join(done), encoding="utf-8")


if __name__ == "__main__":
    main()
