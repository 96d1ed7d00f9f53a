"""Curation: sources in, reviewed and split data sets in the pack's layout out, with a report of everything left out."""

from __future__ import annotations

import csv
import random
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from SegMoTELib.data.items import BadFile, Item, SourceSet
from SegMoTELib.data.report import Report, Thumbnail, thumbnail
from SegMoTELib.data.review import (
    BORDER,
    MaskVerdict,
    ReviewThresholds,
    measurement_names,
    reason_kind,
    review_labels,
)
from SegMoTELib.data.splits import (
    SPLITS,
    Duplicate,
    Fingerprint,
    assign_splits,
    find_duplicates,
    fingerprint,
    leaks,
)
from SegMoTELib.data.writer import PackWriter
from SegMoTELib.errors import DataError

REVIEW_FILE, REPORT_FILE = "review.csv", "report.html"
FAINT_LEAST = 4  # masks of a label; of fewer, most is no rule
THUMBNAILS = 12  # of one kind, so that the report of a large set still opens


@dataclass
class Record:
    """What is remembered of one image after its pixels were written.

    Attributes:
        dataset: code of its set.
        name: identifier in the output.
        group: patient or volume, unique over all sets.
        person: the same, but equal for a patient whom several sources know; decides the split and is not written.
        space: sets that are split together.
        source_file: where it came from.
        verdicts: one a mask.
        fingerprint: to find it again under another name; None when nothing of it was written.
        split: fixed by the source at first, then as decided.
        refusal: why the whole image was left out, or None.
    """

    dataset: str
    name: str
    group: str
    person: str
    space: str
    source_file: Path
    verdicts: list[MaskVerdict]
    fingerprint: Fingerprint | None
    split: str | None
    refusal: str | None = None

    @property
    def title(self) -> str:
        """Data set and name, as messages show it."""
        return f"{self.dataset}/{self.name}"

    @property
    def kept_labels(self) -> list[int]:
        """Label indices that are in the output."""
        return [] if self.refusal else [verdict.label for verdict in self.verdicts if verdict.accepted]


@dataclass
class Curation:
    """The outcome of ``curate``.

    Attributes:
        output: the folder written.
        records: one an image read.
        bad_files: what could not be used, and why.
        duplicates: (image, other image, what was done).
        faint: (data set, label, masks refused for their border, masks in all), where that is most of them.
        unmatched: images in whose name ``patient_pattern`` found nothing.
    """

    output: Path
    records: list[Record] = field(default_factory=list)
    bad_files: list[BadFile] = field(default_factory=list)
    duplicates: list[tuple[str, str, str]] = field(default_factory=list)
    faint: list[tuple[str, str, int, int]] = field(default_factory=list)
    unmatched: list[str] = field(default_factory=list)

    def summary(self) -> str:
        """Return one sentence with the counts, and another where some names do not tell the patient."""
        used = [record for record in self.records if record.kept_labels]
        kept = sum(len(record.kept_labels) for record in used)
        sets, people = len({record.dataset for record in used}), len({record.person for record in used})
        text = (f"{sets} data sets, {len(used)} images of {people} patients or volumes and {kept} masks kept; "
                f"{_mask_count(self.records) - kept} masks rejected, {len(self.bad_files)} bad files, "
                f"{len(self.duplicates)} duplicates.")
        if self.unmatched:
            text += (f" {len(self.unmatched)} of {len(self.records)} names do not match --patient (e.g. "
                     f"{self.unmatched[0]}), so their patients are told by the layout.")
        return text


def curate(sources: list[SourceSet], output: Path, *, seed: int = 0, thresholds: ReviewThresholds | None = None,
           review: bool = True, patient_pattern: str | None = None, overwrite: bool = False,
           progress: Callable[[int, int, str], None] | None = None) -> Curation:
    """Read, review, split and write data sets; sources are only read.

    Args:
        sources: from ``SegMoTELib.data.sources.open_sources``.
        output: folder to make: one folder a data set, ``review.csv`` and ``report.html``. It appears complete or not
            at all.
        seed: of the split and of the choice of thumbnails.
        thresholds: of the review; None = the defaults.
        review: False keeps every non-empty mask unmeasured.
        patient_pattern: regular expression searched in an image's name; its first group (or the whole match) tells
            patients apart, over all sources. Default: what the layout tells.
        overwrite: replace an earlier output of this function.
        progress: called with (done, total, data set) after every image or volume.

    Raises:
        DataError: the output exists or is not a curated folder, or the pattern is not valid, matches no name at all or
            nothing in one.
    """
    thresholds = thresholds or ReviewThresholds()
    try:
        pattern = re.compile(patient_pattern) if patient_pattern is not None else None
    except re.error as error:
        raise DataError(f"{patient_pattern!r} is not a valid regular expression ({error}).") from None
    with _atomic_folder(output, overwrite) as folder:
        run = _Run(folder, Curation(output), thresholds if review else None, pattern, seed)
        total = sum(len(source.references) for source in sources)
        done = 0
        for source in sources:
            run.begin(source)
            for reference in source.references:
                for found in reference.items():
                    run.take(source, found)
                done += 1
                if progress:
                    progress(done, total, source.code)
        run.finish(sources)
    return run.curation


class _Run:
    """The state of one curation while it goes on."""

    def __init__(self, folder: Path, curation: Curation, thresholds: ReviewThresholds | None,
                 pattern: re.Pattern | None, seed: int) -> None:
        self.folder = folder
        self.curation = curation
        self.thresholds = thresholds
        self.pattern = pattern
        self.seed = seed
        self.writers: dict[str, PackWriter] = {}
        self.bad_files: dict[str, list[BadFile]] = {}
        self.rejected: dict[str, list[Thumbnail]] = {}
        self.label_names: dict[str, dict[int, str]] = {}

    def begin(self, source: SourceSet) -> None:
        self.writers[source.code] = PackWriter(self.folder / source.code, source)
        self.bad_files[source.code] = list(source.bad_files)
        self.label_names[source.code] = dict(source.labels)

    def take(self, source: SourceSet, found: Item | BadFile) -> None:
        """Review one image and write what is accepted of it."""
        if isinstance(found, BadFile):
            self.bad_files[source.code].append(found)
            return
        verdicts = _verdicts(found, self.thresholds)
        kept = [verdict.label for verdict in verdicts if verdict.accepted]
        writer = self.writers[source.code]
        name = writer.free_name(found.identifier)
        names = self.label_names[source.code]
        for verdict in verdicts:
            if verdict.label:
                names.setdefault(verdict.label, f"label {verdict.label}")
        if kept:
            writer.add(found, name, kept)
        group, person = self._group(source, found)
        record = Record(dataset=source.code, name=name, group=group, person=person, space=source.group_space,
                        source_file=found.source_file, verdicts=verdicts,
                        fingerprint=fingerprint(found.image) if kept else None, split=found.split)
        self.curation.records.append(record)
        for verdict in verdicts:
            if not verdict.accepted:
                self._show_rejected(record, verdict, found.image, found.label)

    def finish(self, sources: list[SourceSet]) -> None:
        """Split, refuse duplicates, write descriptions, table and report."""
        unmatched = self.curation.unmatched
        if self.pattern and unmatched and len(unmatched) == len(self.curation.records):
            raise DataError(f"--patient {self.pattern.pattern!r} matches none of the {len(unmatched)} names, such as "
                            f"{unmatched[0]}; give a pattern that finds the patient in them.")
        self.curation.bad_files = [bad for source in sources for bad in self.bad_files[source.code]]
        self.curation.faint = _faint_labels(self.curation.records, self.label_names)
        self._split()
        galleries = [("Kept", "kept", sum(len(record.kept_labels) for record in self.curation.records),
                      self._kept_thumbnails())]
        for source in sources:
            self._describe(source)
        counts = _reason_counts(self.curation.records)
        galleries += [(f"Rejected: {kind}", "rejected", counts[kind], shown)
                      for kind, shown in sorted(self.rejected.items())]
        _write_table(self.folder / REVIEW_FILE, self.curation.records, self.label_names)
        Report(summary=self.curation.summary(), sets=[self._row(source) for source in sources],
               reasons=counts.most_common(),
               thresholds=list(asdict(self.thresholds).items()) if self.thresholds else [],
               bad_files=[(str(bad.path), bad.reason.removeprefix(f"{bad.path}: "))
                          for bad in self.curation.bad_files],
               duplicates=self.curation.duplicates, faint=self.curation.faint,
               galleries=galleries).write(self.folder / REPORT_FILE)

    def _group(self, source: SourceSet, item: Item) -> tuple[str, str]:
        """A record's ``group`` and ``person``."""
        match = self.pattern.search(item.identifier) if self.pattern else None
        if match:
            patient = match.group(1) if match.re.groups and match.group(1) is not None else match.group(0)
            if not patient:
                raise DataError(f"--patient {match.re.pattern!r} finds an empty patient in {item.identifier!r}; it "
                                "must match at least one character, e.g. '\\d+' instead of '\\d*'.")
            return f"{source.group_space}/{patient}", f"patient {patient}"
        if self.pattern:
            self.curation.unmatched.append(f"{source.code}/{item.identifier}")
        group = f"{source.group_space}/{item.group}"
        return group, f"person {source.people[item.group]}" if item.group in source.people else group

    def _split(self) -> None:
        """Decide the splits, and take back what would stand in two of them."""
        records = [record for record in self.curation.records if record.fingerprint]
        groups = [record.person for record in records]
        duplicates = find_duplicates([record.fingerprint for record in records if record.fingerprint], groups)
        splits = assign_splits(groups, [record.split for record in records], [record.space for record in records],
                               duplicates, self.seed)
        refused = leaks(splits, groups, duplicates, [record.title for record in records])
        for index, (record, split) in enumerate(zip(records, splits, strict=True)):
            record.split = split
            if index in refused:
                record.refusal = refused[index]
                self._show_refused(record, refused[index])
                self.writers[record.dataset].remove(record.name)
        self.curation.duplicates = [_duplicate_row(one, records) for one in duplicates]

    def _show_rejected(self, record: Record, verdict: MaskVerdict, image: np.ndarray, label: np.ndarray) -> None:
        shown = self.rejected.setdefault(reason_kind(verdict.reasons[0]), [])
        if len(shown) < THUMBNAILS:
            mask = (label == verdict.label) & (label != 0)
            shown.append(thumbnail(image, mask, self._caption(record, verdict.label), verdict.reasons))

    def _show_refused(self, record: Record, reason: str) -> None:
        shown = self.rejected.setdefault(reason_kind(reason), [])
        if len(shown) < THUMBNAILS:
            image, label = self._written(record)
            shown.append(thumbnail(image, label > 0, record.title, (reason,)))

    def _kept_thumbnails(self) -> list[Thumbnail]:
        """A seeded choice of each data set, at most ``THUMBNAILS`` masks."""
        shown = []
        for code in self.writers:
            masks = [(record, index) for record in self.curation.records if record.dataset == code
                     for index in record.kept_labels]
            chosen = random.Random(f"{self.seed}/{code}").sample(range(len(masks)), min(THUMBNAILS, len(masks)))
            for record, index in (masks[number] for number in sorted(chosen)):
                image, label = self._written(record)
                shown.append(thumbnail(image, label == index, self._caption(record, index)))
        return shown

    def _caption(self, record: Record, label: int) -> str:
        return f"{record.title}: {self.label_names[record.dataset].get(label, 'no label')}"

    def _written(self, record: Record) -> tuple[np.ndarray, np.ndarray]:
        path = self.writers[record.dataset].image_path(record.name)
        with Image.open(path) as image, Image.open(path.parent.parent / "labels" / path.name) as label:
            return np.asarray(image), np.asarray(label)

    def _describe(self, source: SourceSet) -> None:
        """Write ``dataset.json``; a set of which nothing was kept gets no folder, the report tells about it."""
        writer = self.writers[source.code]
        records = [record for record in self.curation.records if record.dataset == source.code]
        kept = [record for record in records if record.kept_labels]
        if not kept:
            shutil.rmtree(writer.folder, ignore_errors=True)
            return
        kept_masks = sum(len(record.kept_labels) for record in kept)
        review = {
            "reviewed": self.thresholds is not None,
            "thresholds": asdict(self.thresholds) if self.thresholds else {},
            "masks_read": _mask_count(records),
            "masks_kept": kept_masks,
            "reasons": dict(sorted(_reason_counts(records).items())),
            "bad_files": [{"file": str(bad.path), "reason": bad.reason} for bad in self.bad_files[source.code]],
            "seed": self.seed,
        }
        splits = {split: [record.name for record in kept if record.split == split] for split in SPLITS}
        prefix = len(source.group_space) + 1
        writer.finish(splits, {record.name: record.group[prefix:] for record in kept}, self.label_names[source.code],
                      review)

    def _row(self, source: SourceSet) -> dict:
        records = [record for record in self.curation.records if record.dataset == source.code]
        kept, total = sum(len(record.kept_labels) for record in records), _mask_count(records)
        splits = Counter(record.split for record in records if record.kept_labels)
        return {"code": source.code, "modality": source.modality, "licence": source.info["licence"],
                "source": source.info.get("source", "not stated"),
                "images": sum(bool(record.kept_labels) for record in records), "kept": kept,
                "rejected": total - kept, "share": f"{kept / total:.1%}" if total else "",
                "splits": " / ".join(str(splits[split]) for split in SPLITS)}


def _verdicts(item: Item, thresholds: ReviewThresholds | None) -> list[MaskVerdict]:
    if thresholds is not None or not item.label.any():
        return review_labels(item.image, item.label, thresholds)
    return [MaskVerdict(int(index), None, True) for index in np.unique(item.label) if index]


def _mask_count(records: list[Record]) -> int:
    return sum(len(record.verdicts) for record in records)


def _reason_counts(records: list[Record]) -> Counter:
    """Masks a reason; an image that was refused counts with the masks it would have kept."""
    counts: Counter = Counter()
    for record in records:
        for verdict in record.verdicts:
            counts.update(reason_kind(reason) for reason in verdict.reasons)
            if record.refusal and verdict.accepted:
                counts[reason_kind(record.refusal)] += 1
    return counts


def _faint_labels(records: list[Record], label_names: dict[str, dict[int, str]]) -> list[tuple[str, str, int, int]]:
    refused: Counter = Counter()
    total: Counter = Counter()
    for record in records:
        for verdict in record.verdicts:
            key = record.dataset, label_names[record.dataset].get(verdict.label, "no label")
            total[key] += 1
            refused[key] += BORDER in map(reason_kind, verdict.reasons)
    return [(*key, refused[key], total[key]) for key in total if total[key] >= FAINT_LEAST
            and refused[key] > total[key] / 2]


def _duplicate_row(one: Duplicate, records: list[Record]) -> tuple[str, str, str]:
    first, second = records[one.first], records[one.second]
    refused = next((record for record in (first, second) if record.refusal), None)
    done = f"{refused.title} refused" if refused else f"kept together in {first.split}"
    return first.title, second.title, f"{one.kind}: {done}"


def _write_table(path: Path, records: list[Record], label_names: dict[str, dict[int, str]]) -> None:
    """Write ``review.csv``: one row a mask, in the order read."""
    columns = ["dataset", "image", "source_file", "group", "split", "label", "label_name", "verdict", "reasons",
               *measurement_names()]
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, columns)
        table.writeheader()
        for record in records:
            for verdict in record.verdicts:
                reasons = verdict.reasons + ((record.refusal,) if record.refusal else ())
                numbers = asdict(verdict.measurements) if verdict.measurements else {}
                table.writerow({
                    "dataset": record.dataset, "image": record.name, "source_file": _cell(record.source_file),
                    "group": _cell(record.group), "split": record.split if record.kept_labels else "",
                    "label": verdict.label, "label_name": _cell(label_names[record.dataset].get(verdict.label, "")),
                    "verdict": "kept" if verdict.label in record.kept_labels else "rejected",
                    "reasons": _cell("; ".join(reasons)),
                    **{name: f"{value:.6g}" if isinstance(value, float) else value for name, value in numbers.items()},
                })


def _cell(text: object) -> str:
    """A text that no spreadsheet takes for a formula."""
    return f"'{text}" if str(text)[:1] in ("=", "+", "-", "@", "\t", "\r") else str(text)


@contextmanager
def _atomic_folder(output: Path, overwrite: bool) -> Iterator[Path]:
    """Yield a temporary folder beside the output that takes its place at the end, or vanishes on any error.

    Raises:
        DataError: the output is there already, is not ours to replace, or cannot be written.
    """
    if output.exists():
        if not overwrite:
            raise DataError(f"{output}: already exists; choose another folder or pass --overwrite.")
        if not output.is_dir() or (any(output.iterdir()) and not (output / REVIEW_FILE).exists()):
            raise DataError(f"{output}: not the output of an earlier curation, so it is not replaced.")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{output.name}.", dir=output.parent) as temporary:
            fresh, old = Path(temporary, "new"), Path(temporary, "old")
            fresh.mkdir()
            yield fresh
            if output.exists():
                output.rename(old)
            try:
                fresh.rename(output)
            except OSError:
                if old.exists():
                    old.rename(output)
                raise
    except OSError as error:
        raise DataError(f"{output}: cannot be written ({error.strerror or error}).") from error
